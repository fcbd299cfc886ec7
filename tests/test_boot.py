"""Booting: machines of all shapes, memory with holes, page tables, and what cannot be booted."""

import json
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import kos
from conftest import Boot
from helpers import refused
from kos import image
from kos.exceptions import BootError, CallError, HostError
from kos.machine import Machine
from kos.rpc.calls import ZoneInfo

ROOT = Path(__file__).resolve().parent.parent
FRAME = 4096
MIB = 1 << 20
LOW_END = 0x9F000  # where the BIOS's own data begins, rounded down to a frame
LEGACY_HOLES = FRAME + (MIB - LOW_END)  # frame 0 is never used
EINVAL, EBUSY, ENOMEM = -22, -16, -12
NOT_RAM, RESERVED, FREE = 0, 1, 2
WAIT = 60  # seconds after which a terminal session counts as hung


def zones(vm: Machine) -> list[ZoneInfo]:
    return [vm.client.zone_info(number) for number in range(3)]


def boot_text(vm: Machine) -> str:
    """What the kernel said before its first prompt."""
    return vm.console.wait_for(r"^kos> ")


def ram_ranges(vm: Machine) -> list[tuple[int, int]]:
    """What the console calls RAM: first and last address of each range."""
    text = vm.console.run("mem").split("physical addresses of RAM\n")[1]
    return [
        (int(m[1], 16), int(m[2], 16)) for m in re.finditer(r"0x([0-9a-f]+)-0x([0-9a-f]+)", text)
    ]


# ---- shapes ----

SHAPES = [
    (cpus, memory)
    for memory, counts in {
        "16M": (1, 8),
        "16388K": (2,),
        "64M": (1, 2, 4, 8),
        "1G": (4,),
        "2815M": (1,),  # q35 moves the PCI hole down from here on
        "2816M": (2,),
        "3G": (1,),
        "3076M": (8,),
        "4G": (2, 8),
        "16G": (4,),
        "64G": (1, 8),
    }.items()
    for cpus in counts
]


@pytest.mark.parametrize("machine", ["microvm", "q35"])
@pytest.mark.parametrize(("cpus", "memory"), SHAPES)
def test_shape(boot: Boot, machine: str, cpus: int, memory: str) -> None:
    vm = boot(memory=memory, cpus=cpus, machine=machine)
    info, zone = vm.client.machine_info(), zones(vm)

    assert info.cpus == cpus
    found = [vm.client.cpu_info(number) for number in range(cpus)]
    assert [cpu.id for cpu in found] == list(range(cpus))
    assert len({cpu.apic_id for cpu in found}) == cpus
    assert len({cpu.stack_low for cpu in found}) == cpus
    with refused(EINVAL):
        vm.client.cpu_info(cpus)

    assert info.total_bytes == vm.memory - LEGACY_HOLES
    assert info.metadata_bytes * 200 < vm.memory
    assert [z.name for z in zone] == ["DMA", "NORMAL", "HIGHMEM"]
    assert sum(z.managed for z in zone) * FRAME == info.managed_bytes
    assert info.free_bytes <= info.managed_bytes < info.total_bytes
    for z in zone:
        blocks = sum(count << order for order, count in enumerate(z.free_blocks))
        assert blocks == z.free <= z.managed <= z.end_pfn - z.start_pfn
    assert sum(z.free for z in zone) * FRAME + info.magazine_bytes == info.free_bytes
    dma, normal, highmem = zone
    assert (dma.start_pfn, dma.end_pfn) == (0, 4096)
    assert normal.start_pfn == 4096
    assert normal.end_pfn * FRAME >= vm.memory
    assert dma.free * 10 >= dma.managed * 9
    assert (highmem.managed, highmem.free) == (0, 0)

    ranges = ram_ranges(vm)
    assert sum(last + 1 - first for first, last in ranges) == info.total_bytes
    for first, last in ranges:
        assert vm.ram_offset(last) - vm.ram_offset(first) == last - first
    assert max(vm.ram_offset(last) for _, last in ranges) == vm.memory - 1
    assert len(boot_text(vm).splitlines()) == 4, "three lines and the prompt"


@pytest.mark.kos(leaks="allow")
def test_last_frame_is_usable(boot: Boot) -> None:
    """The highest frame above the PCI hole can be taken, written through the kernel and seen."""
    vm = boot(memory="4G")
    top = ram_ranges(vm)[-1][1] + 1 - FRAME
    assert top >= 1 << 32
    vm.client.page_claim(top)
    vm.client.page_map(top, 0x400000)
    vm.client.mem_write(0x400000, b"the top of memory")
    at = vm.ram_offset(top)
    assert bytes(vm.ram[at : at + 17]) == b"the top of memory"
    with refused(EINVAL):
        vm.client.page_claim(top + FRAME)


def test_reset_comes_up_as_the_first_boot(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=1, deterministic=True)
    first = zones(vm), vm.client.machine_info()
    vm.client.buddy_alloc_array(0, 4096)
    vm.reset()
    assert (zones(vm), vm.client.machine_info()._replace(boot_ticks=0)) == (
        first[0],
        first[1]._replace(boot_ticks=0),
    )


def test_memory_that_keeps_its_contents(boot: Boot) -> None:
    """A reset that does not clear RAM, as the hardware's: the kernel clears what it begins with."""
    vm = boot(memory="64M", cpus=1)
    first = vm.console.run("zones"), vm.console.run("mem")
    clean = vm.client.page_info(0x3000000)
    vm.client.buddy_alloc_array(0, 4096)
    vm.client.page_map(vm.client.page_alloc(0), 0x400000)
    hellos = vm.wire.hellos
    vm.qmp.execute("set-action", reboot="reset")
    vm.qmp.execute("system_reset")
    until = time.monotonic() + WAIT
    while vm.wire.hellos == hellos:
        assert time.monotonic() < until
    assert (vm.console.run("zones"), vm.console.run("mem")) == first
    assert vm.wire.call(38, (0x3000000,), capacity=4096)[1][2] == struct.pack("<3Q8I", *clean)


def test_boot_without_memory_for_a_ring(boot: Boot) -> None:
    """The kernel comes up and offers no client; whoever connects is told why that cannot be."""
    holes, end, ring = "reserve=0-2M", 16 * MIB, 16 * FRAME
    for left in (ring + 16 * FRAME, 8 * FRAME):  # less memory has less metadata: twice
        vm = boot(memory="16M", cpus=1, append=holes)
        end -= vm.client.machine_info().free_bytes + ring - left
        holes = f"reserve=0-2M reserve={end:#x}-16M"
    with pytest.raises(CallError) as caught:
        boot(memory="16M", cpus=1, append=holes)
    assert (caught.value.call, caught.value.errno) == ("client_open", ENOMEM)


@pytest.mark.parametrize("memory", ["1G", "64M", "16G"])
def test_boot_takes_the_same_instructions_each_time(
    boot: Boot, memory: str, record_property: pytest.FixtureRequest
) -> None:
    ticks = [boot(memory=memory, cpus=1, deterministic=True).boot_ticks for _ in range(2)]
    record_property(f"boot_instructions_{memory}", ticks[0])  # type: ignore[operator]
    print(f"{memory}: {ticks[0]} instructions from entry to ready")
    assert ticks[0] == ticks[1]
    if memory == "1G":
        assert ticks[0] <= 100_000


# ---- holes ----


class Hole(NamedTuple):
    start: int
    end: int

    @property
    def word(self) -> str:
        return f"reserve={self.start:#x}-{self.end:#x}"

    @property
    def frames(self) -> range:
        """Every frame that it touches."""
        return range(self.start // FRAME, -(-self.end // FRAME))


HOLES = {
    "one": [Hole(0x2000000, 0x2800000)],
    "not on frames": [Hole(0x2345678, 0x2345679), Hole(0x2400FFF, 0x2402001)],
    "the end": [Hole(0x3FFF000, 0x4000000)],
    "past the end": [Hole(0x3F00000, 0x5000000)],
    "beyond RAM": [Hole(0x8000000, 0x9000000)],
    "all of NORMAL": [Hole(0x1000000, 0x4000000)],
    "across the zones' border": [Hole(0xFFF000, 0x1001000)],
    "most of DMA": [Hole(0x400000, 0x1000000)],
    "low memory": [Hole(0x3000, 0x9F000)],
    "below the image": [Hole(0x100000, 0x200000)],
    "many": [Hole(0x2000000 + i * 0x137000, 0x2001000 + i * 0x137000) for i in range(16)],
    "touching": [Hole(0x2100000, 0x2200000), Hole(0x2000000, 0x2100000)],
    "overlapping": [Hole(0x2100000, 0x2300000), Hole(0x2000000, 0x2200000)],
    "nested": [Hole(0x2000000, 0x2400000), Hole(0x2100000, 0x2200000)],
    "twice": [Hole(0x2000000, 0x2001000), Hole(0x2000000, 0x2001000)],
}


def take_all(vm: Machine) -> Iterator[range]:
    """Every block that the kernel gives out, largest first, as frame numbers."""
    for order in range(10, -1, -1):
        while True:
            try:
                blocks = vm.client.buddy_alloc_array(order, 256)
            except CallError as error:
                if error.errno != ENOMEM:
                    raise
                break
            for addr in blocks:
                yield range(int(addr) // FRAME, (int(addr) // FRAME) + (1 << order))


@pytest.mark.kos(leaks="allow")
@pytest.mark.parametrize("name", HOLES)
def test_holes(boot: Boot, name: str) -> None:
    holes = HOLES[name]
    vm = boot(memory="64M", append=" ".join(hole.word for hole in holes))
    ram = {*range(1, LOW_END // FRAME), *range(256, vm.memory // FRAME)}
    lost = {frame for hole in holes for frame in hole.frames} & ram

    info, zone = vm.client.machine_info(), zones(vm)
    assert "command line" not in boot_text(vm)
    assert info.cpus == 2
    assert info.total_bytes == (len(ram) - len(lost)) * FRAME
    assert sum(z.managed for z in zone) * FRAME == info.managed_bytes <= info.total_bytes
    ranges = ram_ranges(vm)
    assert {f for a, b in ranges for f in range(a // FRAME, b // FRAME + 1)} == ram - lost

    for hole in holes:
        for frame in (hole.frames[0], hole.frames[len(hole.frames) // 2], hole.frames[-1]):
            with refused(EINVAL):
                vm.client.page_claim(frame * FRAME)
            said = vm.console.run(f"page {frame * FRAME:#x}")
            assert said == f"{frame * FRAME:#x} is not RAM"
        for frame in (hole.frames[0] - 1, hole.frames[-1] + 1):
            if frame in ram - lost and vm.client.page_info(frame * FRAME).place == FREE:
                vm.client.page_claim(frame * FRAME)
                vm.client.page_free(frame * FRAME)

    taken: set[int] = set()
    for block in take_all(vm):
        assert not lost.intersection(block), f"block at {block[0] * FRAME:#x} lies in a hole"
        assert taken.isdisjoint(block)
        taken.update(block)
    assert taken <= ram
    left = sum(z.free for z in zones(vm))
    assert left <= sum(z.watermark_min for z in zones(vm)), "memory that nobody can have"


# Each goes over a part of the image, which begins at 2 MiB.
IMAGE_HOLES = {
    "whole": Hole(0x200000, 0x300000),
    "first frame": Hole(0x1FF000, 0x201000),
    "inside": Hole(0x220000, 0x221000),
    "all RAM": Hole(0, 0x4000000),
}


@pytest.mark.parametrize("name", IMAGE_HOLES)
def test_hole_over_the_image_is_refused(boot: Boot, name: str) -> None:
    hole = IMAGE_HOLES[name]
    vm = boot(memory="64M", append=f"spin=0 {hole.word}")
    assert re.search(rf"^.*{hole.word}.*$", boot_text(vm), re.MULTILINE), "refused in silence"
    assert vm.client.page_info(0x220000).place == RESERVED
    assert vm.client.machine_info().cpus == 2


@pytest.mark.parametrize("end", ["0xfffffffffffff001", "0xffffffffffffffff"])
def test_hole_to_the_end_of_addresses(boot: Boot, end: str) -> None:
    """Rounding its end up must not make it vanish without a word."""
    vm = boot(memory="64M", append=f"reserve=0x3000000-{end}")
    honoured = vm.client.machine_info().total_bytes == 0x3000000 - LEGACY_HOLES
    assert honoured or f"reserve=0x3000000-{end}" in boot_text(vm)


def test_cpus_without_low_memory(boot: Boot) -> None:
    """The others start in low memory: without any they are left out, and the console says so."""
    vm = boot(memory="64M", cpus=4, append="reserve=0-1M")
    online = vm.client.machine_info().cpus
    assert vm.client.ping(7) == 7
    assert online == 4 or re.search(r"(?m)^smp: ", boot_text(vm)), f"{online} of 4 in silence"


# ---- the command line ----


@pytest.mark.parametrize(
    "word",
    [
        "bogus",
        "Spin=1",
        "spin",
        "spin=",
        "spin=x",
        "spin=1x",
        "spin=-1",
        "cpus",
        "cpus=0",
        "cpus=many",
        "quiet=1",
        "reserve",
        "reserve=",
        "reserve=5",
        "reserve=-",
        "reserve=1M-",
        "reserve=2M-1M",
        "reserve=1M-1M",
        "reserve=1M-2M-3M",
        "=",
        "=1",
        "spin=99999999999999999999",
    ],
)
def test_bad_option_is_named_and_has_no_effect(boot: Boot, word: str) -> None:
    vm = boot(memory="64M", append=word)
    text = boot_text(vm)
    lines = [line for line in text.splitlines() if line.startswith("command line: ")]
    assert len(lines) == 1
    assert f"'{word}'" in lines[0]
    for known in ("spin=", "cpus=", "reserve=", "quiet"):
        assert known in text.replace(f"'{word}'", ""), "what is known is listed"
    info = vm.client.machine_info()
    assert (info.cpus, info.total_bytes) == (2, vm.memory - LEGACY_HOLES)
    assert "lists the commands" in text
    assert lines[0] in vm.console.run("log")


def test_good_options_beside_bad_ones(boot: Boot) -> None:
    vm = boot(
        memory="64M", cpus=4, append="  one cpus=3   two spin=0 reserve=48M-0x3800000  three "
    )
    text = boot_text(vm)
    assert re.findall(r"(?m)^command line: '(\w+)'", text) == ["one", "two", "three"]
    info = vm.client.machine_info()
    assert (info.cpus, info.total_bytes) == (3, vm.memory - LEGACY_HOLES - 8 * MIB)


def test_quiet(boot: Boot) -> None:
    vm = boot(memory="64M", append="quiet")
    assert vm.console.run("call ping 7") == "value 7"
    assert boot_text(vm).startswith("kos> ")


@pytest.mark.parametrize("length", [100, 300, 511, 512, 600, 2000])
def test_long_command_line_is_not_cut_in_silence(boot: Boot, length: int) -> None:
    """What stands at its end counts, or the console says that it does not."""
    word = "reserve=0x3000000-0x3001000"
    vm = boot(memory="64M", append="spin=0 ".ljust(length - len(word)) + word)
    reserved = vm.client.machine_info().total_bytes == vm.memory - LEGACY_HOLES - FRAME
    assert reserved or "command line" in boot_text(vm)


def test_long_word_is_named(boot: Boot) -> None:
    vm = boot(memory="64M", append="z" * 300)
    lines = [line for line in boot_text(vm).splitlines() if "command line" in line]
    assert len(lines) == 1
    assert "zzzzzzzz" in lines[0]


# ---- page tables and control registers ----

PRESENT, WRITE, USER, LARGE, NX = 1, 2, 4, 0x80, 1 << 63
ADDRESS = 0x000FFFFFFFFFF000
KERNEL_BASE = 0xFFFFFFFF80000000
DIRECT_MAP = 0xFFFF800000000000
VMEMMAP = 0xFFFFFF8000000000


class Leaf(NamedTuple):
    vaddr: int
    paddr: int
    size: int
    writable: bool
    executable: bool
    user: bool

    @property
    def mode(self) -> str:
        return f"r{'w' if self.writable else '-'}{'x' if self.executable else '-'}"


def registers(vm: Machine) -> list[dict[str, int]]:
    """Control registers of all CPUs, as QEMU has them."""
    arguments: dict[str, Any] = {"command-line": "info registers -a"}
    text = vm.qmp.execute("human-monitor-command", **arguments).replace("\r", "")
    found = []
    for part in re.split(r"^CPU#\d+$", text, flags=re.MULTILINE)[1:]:
        values = re.findall(r"\b(CR0|CR3|CR4|EFER)=([0-9a-f]+)", part)
        found.append({name: int(value, 16) for name, value in values})
    return found


def leaves(
    vm: Machine, table: int, base: int = 0, level: int = 4, upper: int = 0
) -> Iterator[Leaf]:
    """Every mapping below a table, read out of RAM; `upper` collects what forbids."""
    at = vm.ram_offset(table)
    span = 1 << 12 + 9 * (level - 1)
    for index, entry in enumerate(struct.unpack_from("<512Q", vm.ram, at)):
        if not entry & PRESENT:
            assert entry == 0, f"level {level} entry {index}: {entry:#x} is not present, not empty"
            continue
        vaddr = base + index * span
        if level == 4 and index >= 256:
            vaddr |= 0xFFFF << 48
        forbids = upper | (~entry & (WRITE | USER)) | (entry & NX)
        if level > 1 and not entry & LARGE:
            yield from leaves(vm, entry & ADDRESS, vaddr, level - 1, forbids)
        else:
            yield Leaf(
                vaddr,
                entry & ADDRESS & ~(span - 1),
                span,
                not forbids & WRITE,
                not forbids & NX,
                not forbids & USER,
            )


@pytest.fixture(scope="module")
def symbols() -> dict[str, int]:
    with image.find()[0].open("rb") as f:
        table = ELFFile(f).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}


def align_up(address: int) -> int:
    return -(-address // FRAME) * FRAME


def mode_at(vm: Machine, vaddr: int) -> str:
    """What page_walk says may be done at an address; "" where nothing is mapped."""
    entries = [int(entry) for entry in vm.client.page_walk(vaddr)]
    if not entries[-1] & PRESENT:
        return ""
    assert all(entry & PRESENT for entry in entries)
    assert not all(entry & USER for entry in entries)
    writable = all(entry & WRITE for entry in entries)
    executable = not any(entry & NX for entry in entries)
    return f"r{'w' if writable else '-'}{'x' if executable else '-'}"


def test_image_permissions(boot: Boot, symbols: dict[str, int]) -> None:
    vm = boot(memory="64M")
    parts = [
        ("kernel_start", "text_end", "r-x", "r--"),
        ("rodata_start", "rodata_end", "r--", "r--"),
        ("data_start", "kernel_end", "rw-", "rw-"),
    ]
    end = symbols["kernel_start"]
    for first, last, mode, direct in parts:
        assert symbols[first] == align_up(end), "the parts follow each other"
        end = symbols[last]
        for vaddr in range(symbols[first], align_up(end), FRAME):
            assert mode_at(vm, vaddr) == mode, f"{vaddr:#x} in {first}..{last}"
            assert mode_at(vm, vaddr - KERNEL_BASE + DIRECT_MAP) == direct, f"direct {vaddr:#x}"
    assert mode_at(vm, symbols["kernel_start"] - FRAME) == ""
    assert mode_at(vm, align_up(symbols["kernel_end"])) == ""
    shown = vm.console.run(f"pt {symbols['kernel_start']:#x}").splitlines()[-1]
    assert shown == f"physical address {symbols['kernel_start'] - KERNEL_BASE:#x}, r-xk"


@pytest.mark.parametrize(
    ("machine", "memory", "deterministic"),
    [("microvm", "64M", False), ("q35", "64M", False), ("microvm", "4G", True)],
)
def test_all_kernel_mappings(
    boot: Boot, symbols: dict[str, int], machine: str, memory: str, deterministic: bool
) -> None:
    """Walk the tables in RAM: only text is executable, and it is writable under no address."""
    vm = boot(memory=memory, cpus=4, machine=machine, deterministic=deterministic)
    vm.pause()
    (root,) = {cpu["CR3"] & ADDRESS for cpu in registers(vm)}
    found = list(leaves(vm, root))
    text = range(symbols["kernel_start"], align_up(symbols["text_end"]))
    constant = range(symbols["kernel_start"] - KERNEL_BASE, symbols["data_start"] - KERNEL_BASE)

    assert found
    assert not [leaf for leaf in found if leaf.user]
    assert not [leaf for leaf in found if leaf.vaddr < DIRECT_MAP], "the lower half is empty"
    assert not [leaf for leaf in found if leaf.writable and leaf.executable]
    executable = [leaf for leaf in found if leaf.executable]
    assert [leaf for leaf in executable if leaf.vaddr not in text] == []
    assert sum(leaf.size for leaf in executable) == len(text)
    for leaf in found:
        overlaps = leaf.paddr < constant.stop and constant.start < leaf.paddr + leaf.size
        assert not (leaf.writable and overlaps), f"constants writable at {leaf.vaddr:#x}"

    mapped = sum(leaf.size for leaf in found if DIRECT_MAP <= leaf.vaddr < VMEMMAP)
    vm.resume()
    assert mapped == vm.client.machine_info().total_bytes, "the direct map is RAM and only RAM"


def test_stacks_have_guards(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=8)
    for number in range(8):
        cpu = vm.client.cpu_info(number)
        assert mode_at(vm, cpu.stack_low - 1) == "", f"CPU {number}"
        assert mode_at(vm, cpu.stack_top) == "", f"CPU {number}"
        for vaddr in range(cpu.stack_low, cpu.stack_top, FRAME):
            assert mode_at(vm, vaddr) == "rw-"
        assert vm.console.run(f"pt {cpu.stack_low - 1:#x}").endswith("not mapped")


@pytest.mark.parametrize("vaddr", [0, 8, 0x7FFFFFFFF000, DIRECT_MAP, 0xFFFFFFFFFFFFFFFF])
def test_unmapped_addresses(boot: Boot, vaddr: int) -> None:
    vm = boot(memory="16M", cpus=1)
    assert mode_at(vm, vaddr) == ""


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_protection_is_on_in_every_cpu(boot: Boot, machine: str) -> None:
    vm = boot(memory="64M", cpus=4, machine=machine)
    found = registers(vm)
    assert len(found) == 4
    for cpu in found:
        assert cpu["CR0"] & 1 << 31, "paging"
        assert cpu["CR0"] & 1 << 16, "WP"
        assert cpu["CR4"] & 1 << 5, "PAE"
        assert cpu["CR4"] & 1 << 20, "SMEP"
        assert cpu["CR4"] & 1 << 21, "SMAP"
        assert cpu["CR4"] & 1 << 11, "UMIP"
        assert cpu["EFER"] & 1 << 8, "long mode"
        assert cpu["EFER"] & 1 << 11, "NX"


@pytest.mark.kos(leaks="allow")
def test_cpu_without_smep_and_smap(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=2, deterministic=True)
    for cpu in registers(vm):
        assert cpu["CR0"] & 1 << 16, "WP"
        assert cpu["EFER"] & 1 << 11, "NX"
        assert not cpu["CR4"] & 3 << 20, "qemu64 has neither"
    frame = vm.client.page_alloc(0)
    vm.client.page_map(frame, 0x400000)
    vm.client.mem_write(0x400000, b"still works")
    assert vm.client.mem_read(0x400000, 11) == b"still works"


# ---- what cannot be booted ----


def kernel_in(folder: Path, content: bytes, build_id: str | None = None) -> Path:
    """A kernel with the real one's ABI file beside it, or with another build id in that."""
    description = json.loads(image.find()[1].read_text())
    if build_id is not None:
        description["build_id"] = build_id
    kernel = folder / "other.elf"
    kernel.write_bytes(content)
    kernel.with_suffix(".abi.json").write_text(json.dumps(description))
    return kernel


def test_build_ids_differ(boot: Boot, tmp_path: Path) -> None:
    kernel, _ = image.find()
    right, wrong = image.build_id(kernel), "00" * 20
    other = kernel_in(tmp_path, kernel.read_bytes(), wrong)
    with pytest.raises(BootError, match="build id") as caught:
        boot(memory="64M", kernel=other)
    assert right in str(caught.value)
    assert wrong in str(caught.value)
    assert str(other) in caught.value.argv
    assert boot(memory="64M", kernel=kernel_in(tmp_path, kernel.read_bytes())).client.ping(1) == 1


def test_guest_that_never_answers(boot: Boot, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.fail("gcc compiles the guest: apt-get install --no-install-recommends gcc")
    guest = tmp_path / "tiny.elf"
    argv = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
    argv += [f"-Wl,-T,{ROOT}/tests/guests/tiny.ld", "-o", str(guest)]
    subprocess.run([*argv, str(ROOT / "tests/guests/tiny.S")], check=True, capture_output=True)
    kernel = kernel_in(tmp_path, guest.read_bytes())
    with pytest.raises(BootError, match="not ready within 2 s") as caught:
        boot(memory="16M", cpus=1, kernel=kernel, boot_timeout=2)
    assert caught.value.argv[caught.value.argv.index("-kernel") + 1] == str(kernel)
    assert caught.value.console.startswith("up 00")
    assert str(kernel) in str(caught.value)
    assert "up 00" in str(caught.value)


@pytest.mark.parametrize("what", ["a program", "text", "nothing", "half a kernel"])
def test_no_kernel_at_all(boot: Boot, tmp_path: Path, what: str) -> None:
    content = {
        "a program": Path("/bin/true").read_bytes(),
        "text": b"this is no kernel\n" * 100,
        "nothing": b"",
        "half a kernel": image.find()[0].read_bytes()[:100_000],
    }[what]
    kernel = kernel_in(tmp_path, content)
    with pytest.raises(BootError) as caught:
        boot(memory="64M", kernel=kernel, boot_timeout=2)
    assert caught.value.argv[caught.value.argv.index("-kernel") + 1] == str(kernel)
    assert caught.value.stderr or caught.value.exit_status is None
    assert str(kernel) in str(caught.value)


def test_kernel_file_is_missing(boot: Boot, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="absent") as caught:
        boot(kernel=tmp_path / "absent.elf")
    assert caught.value.mend == "make build"


@pytest.mark.parametrize(
    "memory",
    [
        *["", "abc", "64X", "1.5G", "-64M", "64MM", "0x4000000", 0, 4096, -1],
        *["15M", (16 << 20) - FRAME, "65G", (64 << 30) + FRAME, (64 << 20) + 1, 1 << 70],
    ],
)
def test_bad_memory(memory: int | str) -> None:
    sizes = {"15M": 15 << 20, "65G": 65 << 30}
    with pytest.raises(ValueError, match=r"allowed|negative") as caught:
        kos.boot(memory=memory)
    named = sizes.get(str(memory), memory)
    assert repr(named) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cpus": 0}, "cpus 0: 1 to 8"),
        ({"cpus": -1}, "cpus -1: 1 to 8"),
        ({"cpus": 9}, "cpus 9: 1 to 8"),
        ({"cpus": 1 << 40}, f"cpus {1 << 40}: 1 to 8"),
        ({"machine": "pc"}, "machine 'pc'.*microvm.*q35"),
        ({"machine": ""}, "machine ''.*microvm.*q35"),
        ({"accel": "xen"}, "accel 'xen'.*tcg"),
        ({"append": "a\0b"}, "NUL"),
    ],
)
def test_bad_options(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kos.boot(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"memory": 1.5}, {"memory": None}, {"memory": True}, {"cpus": "2"}, {"cpus": True}]
)
def test_options_of_wrong_types(options: dict[str, object]) -> None:
    (value,) = options.values()
    with pytest.raises(TypeError, match=re.escape(repr(value))):
        kos.boot(**options)  # type: ignore[arg-type]


# ---- without Python ----


def type_line(qemu: "pexpect.spawn[str]", line: str) -> str:
    """What a command printed on a plain QEMU's terminal."""
    qemu.send(f"{line}\r")
    qemu.expect_exact(line)
    qemu.expect_exact("\nkos> ")
    return str(qemu.before).replace("\r", "")


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_plain_qemu(machine: str) -> None:
    """The image alone, with the machine's own firmware: boots, answers, reboots, is clean."""
    argv = ["-M", machine, "-smp", "2", "-m", "64M", "-nographic", "-kernel"]
    qemu = pexpect.spawn(
        "qemu-system-x86_64",
        [*argv, str(image.find()[0])],
        encoding="latin-1",
        timeout=WAIT,
        dimensions=(24, 80),
    )
    try:
        qemu.expect(r"KOS: 6[34] MiB of RAM in \d ranges, 2 CPUs")
        qemu.expect_exact("kos> ")
        assert "value 7" in type_line(qemu, "call ping 7")
        before = type_line(qemu, "buddy"), type_line(qemu, "mem")
        for order in (0, 3, 9):
            assert f"order {order}," in type_line(qemu, f"alloc {order}")
        assert type_line(qemu, "buddy") != before[0]
        qemu.send("reboot\r")
        qemu.expect_exact("rebooting")
        qemu.expect(r"KOS: 6[34] MiB of RAM in \d ranges, 2 CPUs")
        qemu.expect_exact("kos> ")
        assert (type_line(qemu, "buddy"), type_line(qemu, "mem")) == before
        qemu.send("test\r")
        qemu.expect(r"# pass:(\d+) fail:(\d+)")
        assert qemu.match[2] == "0"
        assert int(qemu.match[1]) > 0
        qemu.expect_exact("kos> ")
        assert type_line(qemu, "mem") == before[1]
    finally:
        qemu.close(force=True)
