"""The auditor: sound machines are found sound, and every bit that goes wrong is found and named.

A machine with something of everything in it is kept still. Each test changes RAM behind its back,
has it audited, and puts back what was there.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import kos
from conftest import Boot
from helpers import PAGE, stretch
from kos import cli
from kos.inspect import Audit, audit
from kos.inspect import auditor as package
from kos.inspect.auditor.kernel import Kernel
from kos.inspect.auditor.report import Findings
from kos.machine import Machine
from kos.memory.constants import PG_DIRTY, PG_LOCKED

pytestmark = pytest.mark.kos(leaks="allow")  # owners with something to account for

NAMES = sorted(
    {
        name
        for path in Path(package.__file__).parent.glob("*.py")
        for name in re.findall(r'"([a-z]+\.[a-z_]+)"', path.read_text())
    }
    | {"quiet", "pointer"}
    # Those that are put together from a prefix and the name of a field or an area.
    | {
        f"zone.{f}"
        for f in ("managed", *(f"watermark_{w}" for w in ("min", "low", "high", "quick")))
    }
    | {"table.image", "table.direct"}
)
DIRECT = 0xFFFF800000000000


def populate(vm: Machine) -> None:
    """Blocks of several clients, references, flags, mappings near and far, full magazines."""
    client, other = vm.client, vm.connect("other")
    client.page_claim(0x5000)
    for order in (0, 1, 2, 3, 5, 9):
        client.buddy_alloc(order)
    frames = [client.page_alloc(0) for _ in range(300)]
    for i, frame in enumerate(frames[:280]):
        client.page_map(frame, 0x400000 + i * PAGE)
    for i, frame in enumerate(frames[280:284]):
        client.page_map(frame, (i + 1) << 40)
    client.page_unmap(frames[7])
    client.page_unmap(frames[100])
    client.page_get(frames[3])
    client.page_flags(frames[4], PG_LOCKED, 0)
    client.page_flags(frames[290], PG_DIRTY, 0)
    held = [other.buddy_alloc(0) for _ in range(40)]
    for addr in held[::2]:
        other.buddy_free(addr, 0)
    other.page_map(other.page_alloc(0), 0x1000)


class Still(NamedTuple):
    """A machine that is paused for good, and ways to its memory."""

    vm: Machine
    kernel: Kernel

    def at(self, symbol: str, offset: int = 0) -> int:
        """Where in RAM a byte of a variable is."""
        return self.vm.abi.symbols[symbol] - self.kernel.image_base + offset

    def field(self, symbol: str, struct: str, index: int, path: str) -> int:
        """Where in RAM a field is: `buddy.map[3].blocks` of an element of an array of structs."""
        offset = index * self.vm.abi.layout(struct).size
        for part in path.split("."):
            name, _, rest = part.partition("[")
            field = self.vm.abi.layout(struct).field(name)
            struct = field.type.removeprefix("struct:")
            size = {"u8": 1, "u16": 2, "u32": 4}.get(field.type, 8)
            if field.type.startswith("struct:"):
                size = self.vm.abi.layout(struct).size
            offset += field.offset + int(rest[:-1] or 0) * size if rest else field.offset
        return self.at(symbol, offset)

    def page(self, frame: int, word: int = 0) -> int:
        """Where in RAM a word of a frame's struct page is."""
        vaddr = self.vm.abi.symbols["layout_page_array"] + 16 * frame + 8 * word
        return self.vm.ram_offset(self.kernel.memory.translate(vaddr)[0])

    def word(self, at: int) -> int:
        return int.from_bytes(self.vm.ram[at : at + 8], "little")

    @contextmanager
    def changed(self, at: int, value: int, size: int = 8) -> Iterator[Audit]:
        """The audit while so many bytes are another value."""
        before = bytes(self.vm.ram[at : at + size])
        mask = (1 << 8 * size) - 1
        self.vm.ram[at : at + size] = (value & mask).to_bytes(size, "little")
        try:
            yield audit(self.vm)
        finally:
            self.vm.ram[at : at + size] = before


@pytest.fixture(scope="module")
def still() -> Iterator[Still]:
    with kos.boot(memory="32M", cpus=2) as vm:
        populate(vm)
        until = time.monotonic() + 60
        while not all(vm.view.per_cpu("asleep")):
            assert time.monotonic() < until
        vm.pause()
        kernel = Kernel(vm, Findings())
        kernel.heads, kernel.flags, kernel.kinds, kernel.owners, kernel.refs  # noqa: B018
        yield Still(vm, kernel)
        audit(vm).check()


# ---- what is sound ----


@pytest.mark.parametrize(
    "options",
    [
        {"memory": "16M", "cpus": 1},
        {"memory": "64M", "cpus": 2},
        {"memory": "256M", "cpus": 8},
        {"memory": "3G", "cpus": 2, "machine": "q35"},
        {"memory": "5G", "cpus": 1},
        {"memory": "64M", "cpus": 1, "deterministic": True},
        {"memory": "64M", "cpus": 1, "append": "reserve=0x2000000-0x2345000"},
    ],
    ids=str,
)
def test_a_machine_is_sound_and_all_of_its_ram_has_an_owner(
    boot: Boot, options: dict[str, object]
) -> None:
    vm = boot(**options)
    populate(vm)
    result = audit(vm)
    assert result.sound, str(result)
    assert sum(result.frames.values()) == vm.client.machine_info().total_bytes // PAGE
    free = sum(n for owner, n in result.frames.items() if owner.startswith("free "))
    assert free == vm.client.machine_info().free_bytes // PAGE


def test_owners_are_told_apart(vm: Machine) -> None:
    vm.client.buddy_alloc(4)
    other = vm.connect("second")
    other.buddy_alloc(2)
    assert audit(vm).held_by_clients() == {
        "client 3 (host)": 16,
        "client 3 (host): rings": 16,
        "client 4 (second)": 4,
        "client 4 (second): rings": 16,
    }
    other.close()
    assert "client 4 (second)" not in audit(vm).frames


def test_an_audit_leaves_the_machine_as_it_was(vm: Machine) -> None:
    assert audit(vm).sound
    assert vm.client.ping(3) == 3
    with vm.paused():
        assert audit(vm).sound
        assert vm.qmp.execute("query-status")["status"] == "paused"
    assert vm.client.ping(4) == 4


def test_a_panicked_machine_is_audited(vm: Machine) -> None:
    vm.client.buddy_alloc(3)
    with pytest.raises(kos.exceptions.KernelPanic):
        vm.client.crash("null")
    result = audit(vm)
    assert result.sound, str(result)
    assert result.frames["client 3 (host)"] == 8


def test_soundness_survives_the_kernels_own_tests(vm: Machine) -> None:
    vm.client.timeout = 120.0
    for index in range(vm.client.test_count()):
        vm.client.test_run(index)
    audit(vm).check()


# ---- each invariant in turn ----

Case = tuple[Callable[[Still], tuple[int, int, int]], str]


def zone(path: str, change: Callable[[int], int], index: int = 1, size: int = 8) -> Callable[
    [Still], tuple[int, int, int]
]:  # fmt: skip
    return lambda s: value(s, s.field("zones", "zone", index, path), change, size)


def value(s: Still, at: int, change: Callable[[int], int], size: int = 8) -> tuple[int, int, int]:
    now = int.from_bytes(s.vm.ram[at : at + size], "little")
    return at, change(now), size


def variable(
    symbol: str, change: Callable[[int], int], size: int = 8, offset: int = 0
) -> Callable[[Still], tuple[int, int, int]]:
    return lambda s: value(s, s.at(symbol, offset), change, size)


def client(
    path: str, change: Callable[[int], int], size: int = 8, index: int = 3
) -> Callable[[Still], tuple[int, int, int]]:
    return lambda s: value(s, s.field("clients", "client", index, path), change, size)


def cpu(
    path: str, change: Callable[[int], int], size: int
) -> Callable[[Still], tuple[int, int, int]]:
    return lambda s: value(s, s.field("cpus", "cpu", 0, path), change, size)


def head(pick: Callable[[Kernel], int], change: Callable[[int], int], word: int = 0) -> Callable[
    [Still], tuple[int, int, int]
]:  # fmt: skip
    return lambda s: value(s, s.page(pick(s.kernel), word), change)


def block(kind: int, flags: int | None = None, order: int | None = None) -> Callable[[Kernel], int]:
    """The first frame of a live block of a kind."""

    def pick(k: Kernel) -> int:
        mask = k.kinds == kind
        if flags is not None:
            mask &= k.flags == flags
        if order is not None:
            mask &= k.orders == order
        return int(k.live[mask][0])

    return pick


def free_frame(k: Kernel) -> int:
    """A frame in the middle of the zone's largest free memory."""
    return k.page_end - 600


def bitmap(order: int, change: Callable[[int], int], level: int = 0) -> Callable[
    [Still], tuple[int, int, int]
]:  # fmt: skip
    """A word that is not zero of an order's bitmap, or of a summary above it."""

    def place(s: Still) -> tuple[int, int, int]:
        at = s.word(s.field("zones", "zone", 1, f"buddy.map[{order}].level[{level}]")) - DIRECT
        while not level and not s.word(at):
            at += 8
        return value(s, at, change)

    return place


def table(client: int, level: int, index: int, change: Callable[[int], int]) -> Callable[
    [Still], tuple[int, int, int]
]:  # fmt: skip
    """An entry on the way to the client's first mapping (0: the kernel's own tables)."""

    def place(s: Still) -> tuple[int, int, int]:
        root = s.kernel.memory.kernel_root
        path = DIRECT + 0x1000
        if client:
            root = s.word(s.field("clients", "client", client, "owner.aspace.root"))
            path = 0x400000
        for l in range(4, level, -1):  # noqa: E741
            root = s.word(root + (path >> 12 + 9 * (l - 1) & 511) * 8) & 0xFFFFFFFFF000
        at = root + (index if index >= 0 else path >> 12 + 9 * (level - 1) & 511) * 8
        return value(s, at, change)

    return place


def kernel_leaf(symbol: str) -> Callable[[Still], tuple[int, int, int]]:
    """The lowest entry for an address of the kernel's, writable and executable."""

    def place(s: Still) -> tuple[int, int, int]:
        root, path = s.kernel.memory.kernel_root, s.vm.abi.symbols[symbol]
        for level in (4, 3, 2):
            entry = s.word(root + (path >> 12 + 9 * (level - 1) & 511) * 8)
            if entry & 0x80:
                break
            root = entry & 0xFFFFFFFFF000
        else:
            level = 1
        at = root + (path >> 12 + 9 * (level - 1) & 511) * 8
        return value(s, at, lambda entry: entry ^ 1 << 9)

    return place


def pool_page(
    offset: int, size: int, change: Callable[[int], int], full: bool = False
) -> Callable[[Still], tuple[int, int, int]]:
    """A field in the header of a page of small objects."""

    def place(s: Still) -> tuple[int, int, int]:
        for frame in reversed(s.kernel.of_kind(4).tolist()):
            used = int.from_bytes(s.vm.ram[frame * PAGE + 8 : frame * PAGE + 12], "little")
            if (used == 254) == full:
                return value(s, frame * PAGE + offset, change, size)
        raise AssertionError("no such page")

    return place


def ring(offset: int, change: Callable[[int], int]) -> Callable[[Still], tuple[int, int, int]]:
    """A word of a ring's header."""
    return lambda s: value(
        s, s.word(s.field("rings", "ring", 0, "header")) - DIRECT + offset, change, 4
    )


def plus(n: int) -> Callable[[int], int]:
    return lambda value: value + n


def to(n: int) -> Callable[[int], int]:
    return lambda _: n


def flip(bit: int) -> Callable[[int], int]:
    return lambda value: value ^ 1 << bit


MAPPED_FRAME = block(2, 4)
CASES: list[Case] = [
    (zone("lock", to(1), size=1), "quiet"),
    (zone("buddy.map[0].level[0]", to(0x1000)), "pointer"),
    (variable("kernel_start", flip(0), 1), "image.constants"),
    (variable("memmap", to(65), 4), "memmap.count"),
    (variable("memmap", plus(1), 8, 8), "memmap.order"),
    (variable("memmap", to(1 << 40), 8, 1032 + 16), "memmap.ram"),
    (variable("page_end_pfn", plus(-1)), "memmap.end"),
    (variable("memmap", to(0x9F000 - 0x3000), 8, 16), "memmap.free"),
    (variable("memmap", plus(PAGE), 8, 2064), "memmap.metadata"),
    (zone("name", plus(1)), "zone.name"),
    (zone("end_pfn", plus(1024)), "zone.bounds"),
    (zone("managed", plus(1)), "zone.managed"),
    (zone("watermark_min", plus(1)), "zone.watermark_min"),
    (zone("watermark_low", plus(1)), "zone.watermark_low"),
    (zone("watermark_high", plus(1)), "zone.watermark_high"),
    (zone("watermark_quick", plus(1)), "zone.watermark_quick"),
    (zone("taken[3]", plus(1)), "zone.counters"),
    (zone("buddy.splits[0]", plus(1)), "zone.counters"),
    (zone("buddy.map[4].levels", plus(1)), "buddy.levels"),
    (zone("buddy.map[4].level[1]", plus(8)), "buddy.level"),
    (zone("buddy.map[4].pad", plus(1)), "buddy.pad"),
    (zone("buddy.map[0].level[0]", plus(PAGE << 8)), "buddy.place"),
    (zone("buddy.map[2].blocks", plus(-1)), "buddy.blocks"),
    (zone("buddy.free_pages", plus(1)), "buddy.free_pages"),
    (zone("buddy.nonempty", flip(1), size=4), "buddy.nonempty"),
    (bitmap(0, flip(63), level=1), "buddy.summary"),
    (bitmap(10, lambda word: word | 1 << 63), "buddy.range"),
    (bitmap(0, lambda word: (1 << 64) - 1), "buddy.unmerged"),
    (variable("pcp_zone", plus(8)), "magazine.zone"),
    (variable("pcp_zone_start", plus(1)), "magazine.zone"),
    (variable("cpu_count", to(9), 4), "cpu.count"),
    (cpu("self", plus(8), 8), "cpu.self"),
    (cpu("stack_low", plus(PAGE), 8), "cpu.stack"),
    (cpu("pcp.magazine[0].limit", plus(1), 1), "magazine.limit"),
    (cpu("pcp.magazine[0].batch", plus(1), 1), "magazine.batch"),
    (cpu("pcp.magazine[0].count", to(65), 1), "magazine.count"),
    (cpu("pcp.slot[0]", to(1), 4), "magazine.slot"),
    (cpu("pcp.magazine[0].count", plus(-1), 1), "page.lost"),
    (head(block(2), lambda h: h & ~15 | 9), "page.kind"),
    (head(block(3), lambda h: h | 1 << 4), "page.order"),
    (head(block(2, 0, 0), flip(13)), "page.flags"),
    (head(block(2, 0, 1), flip(10)), "page.flags"),
    (head(block(4), lambda h: h | 3 << 16), "page.owner"),
    (head(block(2, 0, 0), lambda h: h & 0xFFFFFFFF), "page.refs"),
    (head(free_frame, to(1 << 32 | 3 << 16 | 2)), "page.overlap"),
    (head(lambda k: 0x200, to(1 << 32 | 3 << 16 | 2)), "page.unmanaged"),
    (head(free_frame, to(1), word=1), "page.links"),
    (variable("kernel_root", plus(8)), "table.root"),
    (table(0, 4, 300, to(1 << 20)), "table.entry"),
    (
        lambda s: value(s, table(0, 4, 300, to(0))(s)[0], to(s.kernel.memory.kernel_root | 3)),
        "table.shared",
    ),
    (
        lambda s: value(
            s,
            table(0, 4, 300, to(0))(s)[0],
            to(table(3, 4, 0, flip(2))(s)[1] & ~0xFF | 3),
        ),
        "table.area",
    ),
    (table(0, 1, -1, flip(1)), "table.direct"),
    (kernel_leaf("data_start"), "table.image"),
    (kernel_leaf("layout_page_array"), "table.page_array"),
    (lambda s: value(s, kernel_leaf("layout_stacks")(s)[0] + 8, flip(63)), "table.stacks"),
    (kernel_leaf("layout_devices"), "table.devices"),
    (table(3, 4, 300, to(0xFEED007)), "table.upper"),
    (table(3, 1, -1, to(0)), "client.mapping"),
    (head(lambda k: k.of_kind(3).tolist()[0], plus(1 << 32)), "table.count"),
    (head(lambda k: k.of_kind(3).tolist()[0], lambda h: h & ~15 | 1), "table.page"),
    (client("owner.aspace.root", to(0)), "table.lost"),
    (client("open", to(2), 1), "client.open"),
    (client("name", to(65), 1, 9), "client.closed"),
    (client("owner.id", plus(1), 2), "client.id"),
    (client("rings", plus(1), 4), "client.rings"),
    (client("owner.blocks", plus(1)), "client.sums"),
    (client("owner.dirty", plus(1), 4), "client.sums"),
    (client("owner.first", plus(1), 4), "client.list"),
    (client("owner.aspace.tables", plus(1)), "client.tables"),
    (client("owner.aspace.mapped", plus(1)), "client.mapped"),
    (head(MAPPED_FRAME, plus(16), word=1), "client.mapping"),
    (variable("live", flip(40)), "ring.live"),
    (lambda s: value(s, s.field("rings", "ring", 0, "client"), plus(8)), "ring.client"),
    (head(block(1), flip(5)), "ring.block"),
    (ring(128, plus(1)), "ring.header"),
    (ring(64, plus(1)), "ring.index"),
    (variable("frame_maps", to(24), 4, 4), "pool.size"),
    (lambda s: value(s, s.field("frame_maps", "pool", 0, "pages"), plus(1)), "pool.pages"),
    (lambda s: value(s, s.field("frame_maps", "pool", 0, "live"), plus(1)), "pool.live"),
    (lambda s: value(s, s.field("frame_maps", "pool", 0, "partial"), to(0), 4), "pool.partial"),
    (pool_page(8, 4, plus(1)), "pool.used"),
    (pool_page(12, 4, to(255)), "pool.bumped"),
    (pool_page(0, 8, to(0xFFFF800000000008)), "pool.chain"),
    (pool_page(12, 4, plus(1)), "pool.lost"),
    (lambda s: value(s, 16 << 20, to(0)), "account.unknown"),
]


@pytest.mark.parametrize(
    ("place", "invariant"), CASES, ids=[f"{i}-{name}" for i, (_, name) in enumerate(CASES)]
)
def test_each_invariant_is_named_when_it_is_broken(
    still: Still, place: Callable[[Still], tuple[int, int, int]], invariant: str
) -> None:
    at, wrong, size = place(still)
    before = bytes(still.vm.ram[at : at + size])
    assert before != (wrong & (1 << 8 * size) - 1).to_bytes(size, "little")
    with still.changed(at, wrong, size) as result:
        assert invariant in [v.invariant for v in result.violations], str(result)
        assert re.search(r"0x|\d", result.violations[0].message)
    assert audit(still.vm).sound


def test_every_invariant_has_a_case() -> None:
    assert set(NAMES) - {"account.twice"} == {name for _, name in CASES}  # that one is below


def test_a_list_that_runs_in_a_circle(still: Still) -> None:
    """Two blocks that point to each other and to nobody else; the list goes past them."""
    k = still.kernel
    mine = k.live[(k.kinds == 2) & (k.owners == 4) & (k.flags == 0)].tolist()
    following = {f: int(k.links[f]) & 0xFFFFFFFF for f in mine}
    a = next(f for f in mine if following[f] in following and following[following[f]] in following)
    b = following[a]
    before = int(k.links[a]) >> 32
    after = following[b]
    edits = {a: b | b << 32, b: a | a << 32}
    edits[before] = int(k.links[before]) & ~0xFFFFFFFF | after
    edits[after] = int(k.links[after]) & 0xFFFFFFFF | before << 32
    assert before
    assert after
    saved = {f: still.word(still.page(f, 1)) for f in edits}
    for frame, word in edits.items():
        still.vm.ram[still.page(frame, 1) : still.page(frame, 1) + 8] = word.to_bytes(8, "little")
    result = audit(still.vm)
    for frame, word in saved.items():
        still.vm.ram[still.page(frame, 1) : still.page(frame, 1) + 8] = word.to_bytes(8, "little")
    assert [v.invariant for v in result.violations] == ["client.list"]
    assert "circle" in result.violations[0].message


def test_a_frame_with_two_owners(still: Still) -> None:
    """A magazine that has a frame which a client holds."""
    frame = next(f for f in still.kernel.live[(still.kernel.kinds == 2)].tolist() if f >= 4096)
    with still.changed(still.field("cpus", "cpu", 0, "pcp.slot[0]"), frame, 4) as result:
        twice = [v for v in result.violations if v.invariant == "account.twice"]
    assert f"frame {frame:#x} belongs to client" in twice[0].message


# ---- any bit ----


class Bits(NamedTuple):
    """Bytes in which every bit of a mask counts."""

    what: str
    at: int
    mask: bytes


def struct_bits(still: Still, what: str, at: int, struct: str, leave: set[str]) -> Iterator[Bits]:
    """The fields of a struct in RAM, but those that are left out; no padding."""
    layout = still.vm.abi.layout(struct)
    for field in layout.fields:
        if field.name in leave or field.bits is not None:
            continue
        count = field.count or 1
        if field.type.startswith("struct:"):
            inner = field.type.removeprefix("struct:")
            size = still.vm.abi.layout(inner).size
            for i in range(count):
                name = f"{what}.{field.name}[{i}]"
                yield from struct_bits(still, name, at + field.offset + i * size, inner, leave)
        else:
            size = {"u8": 1, "char": 1, "u16": 2, "u32": 4}.get(field.type, 8) * count
            yield Bits(f"{what}.{field.name}", at + field.offset, b"\xff" * size)


def all_bits(still: Still) -> dict[str, list[Bits]]:
    """By kind of structure: everything in it that means something.

    Left out is what means nothing or could be anything: stale slots and links, padding, names and
    counters of calls and failures, the bits of page-table entries that the CPU sets by itself.
    """
    k, vm = still.kernel, still.vm

    def one(name: str, size: int) -> Bits:
        return Bits(name, still.at(name), b"\xff" * size)

    found: dict[str, list[Bits]] = {"variables": [
        one("cpu_count", 4), one("page_end_pfn", 8), one("pcp_zone", 8),
        one("pcp_zone_start", 8), one("kernel_root", 8), one("live", 64),
    ]}  # fmt: skip
    found["zones"] = [
        bits
        for i in range(3)
        for bits in struct_bits(
            still, f"zones[{i}]", still.field("zones", "zone", i, "name"), "zone", {"failures"}
        )
    ]
    found["bitmaps"] = []
    for i in range(3):
        at = int(k.zones[i]["buddy"]["map"][0]["level"][0]) - DIRECT
        last = k.zones[i]["buddy"]["map"][10]
        end = int(last["level"][int(last["levels"]) - 1]) - DIRECT + 8
        found["bitmaps"].append(Bits(f"bitmaps of zones[{i}]", at, b"\xff" * (end - at)))
    found["magazines"] = []
    for cpu_ in range(2):
        pcp = k.cpus[cpu_]["pcp"]
        for m, first in enumerate((0, 64, 96, 112, 120)):
            where = still.field("cpus", "cpu", cpu_, f"pcp.magazine[{m}].lock")
            found["magazines"] += struct_bits(
                still, f"cpu {cpu_} magazine {m}", where, "magazine", set()
            )
            for slot in range(first, first + int(pcp["magazine"][m]["count"])):
                where = still.field("cpus", "cpu", cpu_, f"pcp.slot[{slot}]")
                found["magazines"].append(Bits(f"cpu {cpu_} slot {slot}", where, b"\xff" * 4))
    ram = np.flatnonzero(k.ram).tolist()
    found["pages"] = [Bits(f"page {f:#x}", still.page(f), b"\xff" * 16) for f in ram]
    found["live pages"] = [
        Bits(f"page {f:#x}", still.page(f), b"\xff" * 16) for f in k.live.tolist()
    ]
    found["clients"] = []
    for i in (1, 2, 3, 4, 5, 77, 255):
        leave = {"name", "calls", "refused"} if i < 5 else set()
        where = still.field("clients", "client", i, "open")
        found["clients"] += struct_bits(still, f"clients[{i}]", where, "client", leave)
    found["pool"] = list(struct_bits(still, "frame_maps", still.at("frame_maps"), "pool", set()))
    for frame in k.of_kind(4).tolist():
        page = vm.ram[frame * PAGE : frame * PAGE + 24].cast("I")
        full = page[2] == 254
        found["pool"].append(
            Bits(f"pool page {frame:#x}", frame * PAGE, b"\xff" * (16 if full else 24))
        )
    for frame in k.live[(k.flags & 4) != 0].tolist():
        found["pool"].append(Bits(f"map of {frame:#x}", int(k.links[frame]) - DIRECT, b"\xff" * 16))
    found["rings"] = []
    for i in (0, 1):
        where = still.field("rings", "ring", i, "lock")
        found["rings"] += struct_bits(still, f"rings[{i}]", where, "ring", {"waits_seen"})
        header = int(k.rings[i]["header"]) - DIRECT
        found["rings"].append(Bits(f"header of rings[{i}]", header + 64, b"\xff" * 8))
        found["rings"].append(Bits(f"header of rings[{i}]", header + 128, b"\xff" * 28))
    found["memmap"] = []
    for name in ("ram", "free"):
        where = still.field("memmap", "memmap", 0, f"{name}.count")
        found["memmap"].append(Bits(f"memmap.{name}.count", where, b"\xff" * 4))
        for i in range(int(k.memmap[name]["count"])):
            where = still.field("memmap", "memmap", 0, f"{name}.range[{i}].start")
            found["memmap"].append(Bits(f"memmap.{name}.range[{i}]", where, b"\xff" * 16))
    where = still.field("memmap", "memmap", 0, "metadata_bytes")
    found["memmap"].append(Bits("memmap.metadata_bytes", where, b"\xff" * 8))
    found["page tables"] = [
        Bits(f"table {frame * PAGE:#x}[{i}]", frame * PAGE + 8 * i, entry_mask(still, frame, i))
        for frame in table_frames(still)
        for i in range(512)
    ]
    return found


def table_frames(still: Still) -> list[int]:
    """The clients' tables and the kernel's."""
    names = ("the kernel: page tables",)
    result: list[int] = still.kernel.of_kind(3).tolist()
    found = [still.kernel.memory.kernel_root >> 12]
    for frame in found:
        for entry in still.vm.ram[frame * PAGE : frame * PAGE + PAGE].cast("Q").tolist():
            below = (entry & 0xFFFFFFFFF000) >> 12
            is_table = (
                entry & 1 and not entry & 0x80 and len(found) < audit(still.vm).frames[names[0]]
            )
            if is_table and below not in found and not still.kernel.managed[below]:
                found.append(below)
    return result + found[:4]


def entry_mask(still: Still, frame: int, index: int) -> bytes:
    """All bits of an entry but accessed and dirty; all, when it is zero."""
    entry = still.word(frame * PAGE + 8 * index)
    return (~0x60 & (1 << 64) - 1 if entry else (1 << 64) - 1).to_bytes(8, "little")


def test_a_thousand_random_bits(still: Still) -> None:
    """Structures in turn, so that the small ones get their share."""
    seed = 20_261_125
    rng, kinds = random.Random(seed), all_bits(still)
    names, missed = list(kinds), []
    for n in range(int(stretch(0) * 2000) or 1000):
        bits = rng.choice(kinds[names[n % len(names)]])
        while True:
            byte, bit = rng.randrange(len(bits.mask)), rng.randrange(8)
            if bits.mask[byte] >> bit & 1:
                break
        at = bits.at + byte
        with still.changed(at, still.vm.ram[at] ^ 1 << bit, 1) as result:
            if result.sound:
                missed.append(f"{bits.what}: byte {byte}, bit {bit}, at {at:#x}")
    assert not missed, f"seed {seed}\n" + "\n".join(missed)


# ---- telling ----


def test_the_report(still: Still) -> None:
    with still.changed(still.field("zones", "zone", 1, "managed"), 7) as result:
        text = str(result)
    assert "broken" in text.splitlines()[0]
    assert "zone.managed: NORMAL.managed is 7, expected 0x" in text
    with pytest.raises(AssertionError, match=r"zone\.managed"):
        result.check()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--memory", "64M", "--cpus", "1"]) == 0
    out = capsys.readouterr().out
    assert "sound" in out
    assert "free in zone NORMAL" in out
    assert cli.main(["audit", "--memory", "64M", "--json"]) == 0
    assert '"sound": true' in capsys.readouterr().out


def test_the_command_on_a_dump(
    still: Still, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump"
    with still.changed(still.field("zones", "zone", 1, "managed"), 7):
        still.vm.dump(path)
    assert cli.main(["audit", str(path)]) == 1
    assert "zone.managed" in capsys.readouterr().out
    still.vm.dump(path)
    assert cli.main(["audit", str(path)]) == 0
