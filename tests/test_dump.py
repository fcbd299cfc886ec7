"""Dumps: the machine as it was, from one file; and files that somebody has damaged."""

import contextlib
import gc
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drgn
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment, Segment

from conftest import Boot
from helpers import LONG, PAGE
from kos import image
from kos.exceptions import HostError, KernelPanic, KOSError, MachineExited
from kos.inspect import Dump, audit
from kos.machine import Machine

pytestmark = pytest.mark.kos(leaks="allow")

REFUSED = (ValueError, HostError, OSError)


def fill(vm: Machine) -> None:
    """Something of everything."""
    for order in (0, 3, 9):
        vm.client.buddy_alloc(order)
    for n in range(3):
        frame = vm.client.page_alloc(0)
        vm.client.page_map(frame, 0x400000 + n * PAGE)
    vm.client.mem_write(0x400000, b"written through")
    vm.console.run("mem")


def compare(vm: Machine, dump: Dump) -> None:
    """A machine that stands still, and its dump."""
    assert dump.ram == vm.ram
    assert dump.ram.readonly
    assert (dump.memory, dump.cpus, dump.build_id) == (vm.memory, vm.cpus, vm.abi.build_id)
    assert dump.console == vm.console.text
    assert dump.failure == (str(vm.wire.failure) if vm.wire.failure else None)
    ours, theirs = vm.view, dump.view
    for name in ("zones", "cpus", "clients"):
        assert theirs[name].to_bytes_() == ours[name].to_bytes_()
        assert str(theirs[name][1]) == str(ours[name][1])
    assert theirs.pages().tobytes() == ours.pages().tobytes()
    assert str(audit(dump)) == str(audit(vm))
    for client in (1, 3):
        assert [b.paddr for b in theirs.blocks(client)] == [b.paddr for b in ours.blocks(client)]


def notes_of(segment: Segment) -> Iterator[Any]:
    assert isinstance(segment, NoteSegment)
    return segment.iter_notes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump"


# What is in it


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_of_a_paused_machine(boot: Boot, path: Path, machine: str) -> None:
    vm = boot(machine=machine, cpus=4)
    fill(vm)
    vm.pause()
    vm.dump(path)
    assert vm.qmp.execute("query-status")["running"] is False
    with Dump(path) as dump:
        compare(vm, dump)
        assert dump.registers() == vm.registers()
        for ours, theirs in zip(vm.view.stacks(), dump.view.stacks(), strict=True):
            assert str(theirs) == str(ours)
            assert [f.locals() for f in theirs] == [f.locals() for f in ours]
        root = int(dump.view["clients"][3].owner.aspace.root)
        assert dump.view.memory.virtual(0x400000, 15, root) == b"written through"
        assert audit(dump).sound


def test_of_a_running_machine(vm: Machine, path: Path) -> None:
    fill(vm)
    for _ in range(3):
        vm.dump(path)  # replaced
        assert vm.qmp.execute("query-status")["running"] is True
        assert vm.client.ping(1) == 1
        with Dump(path) as dump:
            assert audit(dump).sound
            assert dump.view["clients"][3].name.string_() == b"host"
            assert len(dump.registers()) == len(dump.view.stacks()) == 2
            assert dump.failure is None
        vm.client.buddy_alloc(1)


def test_of_a_machine_in_the_middle_of_calls(vm: Machine, path: Path) -> None:
    """Calls go on around it, and none of them fails."""
    stop, errors = threading.Event(), list[BaseException]()

    def call() -> None:
        try:
            while not stop.is_set():
                vm.client.buddy_free(vm.client.buddy_alloc(2), 2)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    for n in range(5):
        vm.dump(path.with_name(f"dump {n}"))
        with Dump(path.with_name(f"dump {n}")) as dump:
            assert [frame.name for frame in dump.view.stack(0)]
            dump.view.pages()
    stop.set()
    thread.join(60)
    assert errors == []


@pytest.mark.parametrize("kind", ["null", "stack", "assert", "triple"])
def test_of_a_machine_that_has_panicked(boot: Boot, path: Path, kind: str) -> None:
    vm = boot()
    fill(vm)
    with pytest.raises(KernelPanic):
        vm.client.crash(kind)
    if kind != "triple":
        vm.console.wait_for("memory stays as it is", timeout=60)
    vm.dump(path)
    with vm.paused(), Dump(path) as dump:
        compare(vm, dump)
        function = "recurse" if kind == "stack" else f"crash_{kind}"
        stacks = [[frame.name for frame in trace] for trace in dump.view.stacks()]
        assert sum(function in names for names in stacks) == 1
        assert dump.failure is not None
        assert ("triple fault" in dump.failure) == (kind == "triple")


def test_of_a_machine_whose_qemu_was_killed(boot: Boot, path: Path) -> None:
    vm = boot()
    fill(vm)
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(MachineExited):
        vm.wait()
    vm.dump(path)
    with Dump(path) as dump:
        compare(vm, dump)
        assert dump.registers() == []
        assert dump.view.stacks() == []
        with pytest.raises(ValueError, match="CPU 0"):
            dump.view.stack(0)
        assert dump.failure is not None
        assert "9" in dump.failure or "SIGKILL" in dump.failure


def test_of_a_closed_machine(boot: Boot, path: Path) -> None:
    vm = boot(memory="32M")
    vm.close()
    with pytest.raises((KOSError, ValueError)):
        vm.dump(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_of_5_gib(boot: Boot, path: Path, machine: str) -> None:
    """The file is as large as what is in use, and what lies above 4 GiB is in it."""
    vm = boot(memory="5G", machine=machine)
    addr = max(vm.client.buddy_alloc_array(10, 900).tolist())
    assert addr >= 1 << 32
    at = vm.ram_offset(addr)
    vm.ram[at : at + 5] = b"above"
    with vm.paused():
        used = sum(end - start for start, end in vm.ram_in_use())
        vm.dump(path)
        size = path.stat().st_size
        assert used <= size <= used + used // 4 + (8 << 20)
        assert size < 512 << 20
        with Dump(path) as dump:
            assert dump.view.read(vm.abi.symbols["layout_direct_map"] + addr, 5) == b"above"
            assert bytes(dump.view.memory.physical(addr, 5)) == b"above"
            assert (
                dump.view.pages(addr // PAGE, 4).tolist() == vm.view.pages(addr // PAGE, 4).tolist()
            )
            assert dump.view["zones"].to_bytes_() == vm.view["zones"].to_bytes_()
            for start, end in vm.ram_in_use():
                assert dump.ram[start:end] == vm.ram[start:end]


def test_it_is_an_elf_core(vm: Machine, path: Path) -> None:
    """With a thread for each CPU; each segment has what RAM has at its physical address."""
    vm.pause()
    vm.dump(path)
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert (elf["e_type"], elf["e_machine"]) == ("ET_CORE", "EM_X86_64")
        notes = [n for s in elf.iter_segments("PT_NOTE") for n in notes_of(s)]
        threads = [n for n in notes if n["n_type"] in ("NT_PRSTATUS", 1) and n["n_name"] == "CORE"]
        assert len(threads) == 2
        assert len([n for n in notes if n["n_name"] == "KOS"]) == 1
        loads = list(elf.iter_segments("PT_LOAD"))
        assert loads
        for segment in loads:
            data, at = segment.data(), segment["p_paddr"]  # below 4 GiB as in RAM
            assert len(data) == segment["p_filesz"] == segment["p_memsz"]
            assert data == bytes(vm.ram[at : at + len(data)])
            with contextlib.suppress(drgn.FaultError):  # firmware's, which the kernel does not map
                assert vm.view.read(segment["p_vaddr"], 16) == data[:16]
    vm.resume()


# Where it goes


def test_where_it_cannot_be_written(vm: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = sorted(tmp_path.rglob("*"))
    for wrong in (tmp_path / "none" / "dump", folder, fifo, tmp_path / ("x" * 300), "", "/"):
        with pytest.raises((OSError, ValueError)):
            vm.dump(wrong)
        assert sorted(tmp_path.rglob("*")) == before
        assert vm.qmp.execute("query-status")["running"] is True
    assert fifo.is_fifo()
    assert vm.client.ping(1) == 1


def test_devices_are_not_replaced(vm: Machine, tmp_path: Path) -> None:
    """A dump put in the place of a device would be the end of it."""
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with pytest.raises(OSError, match="null"):
        vm.dump(link)
    assert link.is_symlink()
    assert Path("/dev/null").is_char_device()


def test_a_full_disk(vm: Machine, path: Path) -> None:
    """The file that was there stays as it was."""
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError):  # noqa: PT011 - EFBIG here, ENOSPC elsewhere
            vm.dump(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]
    assert vm.client.ping(1) == 1
    vm.dump(str(path))
    with Dump(str(path)) as dump:
        assert dump.failure is None
    assert list(path.parent.iterdir()) == [path]


# Damaged files


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dump, of 16 MiB."""
    import kos

    path = tmp_path_factory.mktemp("good") / "dump"
    with kos.boot(memory="16M", cpus=2) as vm:
        vm.client.buddy_alloc(3)
        vm.dump(path)
    return path


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """What is inside does not grow this process much, nor take long."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    yield
    after = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    assert after - before < 256 << 20


def use(path: Path) -> None:
    """Open it and look around; only the errors of a file that is damaged may come."""
    with Dump(path) as dump:
        for look in (
            lambda: int(dump.view["zones"][0].managed),
            dump.view.stacks,
            lambda: list(dump.view.blocks(3)),
            dump.view.pages,
            lambda: dump.view.symbol(0),
        ):
            with contextlib.suppress(drgn.FaultError, ValueError, LookupError):
                look()


def use_damaged(path: Path) -> bool:
    """Whether it was still taken for a dump."""
    with little_memory():
        try:
            use(path)
        except REFUSED:
            return False
    return True


def head_and_notes(data: bytes) -> int:
    """Where the data begins."""
    starts: list[int] = [
        struct.unpack_from("<Q", data, 64 + 56 * n + 8)[0]
        for n in range(1, struct.unpack_from("<H", data, 56)[0])
    ]
    return min(starts)


def told(data: bytes) -> tuple[int, int, dict[str, Any]]:
    """Place, size and meaning of the JSON."""
    at = data.index(b'{"format"')
    size = struct.unpack_from("<I", data, at - 12)[0]
    return at, size, json.loads(data[at : at + size])


def with_note(good: Path, path: Path, text: bytes) -> Path:
    """The dump with another text in the note; it is put at the file's end with a header to it."""
    data = bytearray(good.read_bytes())
    note = struct.pack("<III", 4, len(text), 1) + b"KOS\0" + text
    struct.pack_into("<QQQQQ", data, 64 + 8, len(data), 0, 0, len(note), len(note))
    path.write_bytes(bytes(data) + note)
    return path


def changed_note(good: Path, path: Path, **changes: Any) -> Path:
    _, _, meaning = told(good.read_bytes())
    meaning |= changes
    return with_note(good, path, json.dumps(meaning).encode())


def test_the_undamaged_one(good: Path, path: Path) -> None:
    use(good)
    use(changed_note(good, path))


def test_not_a_dump(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "file"
    for data in (b"", b"\x7f", b"\x7fELF", b"\x7fELF\2\1\1", b"hello\n" * 99, bytes(1 << 16)):
        path.write_bytes(data)
        with pytest.raises(ValueError):  # noqa: PT011
            Dump(path)
    for other in (image.find()[0], Path(sys.executable), Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(ValueError):  # noqa: PT011
            Dump(other)
    for missing in (tmp_path, tmp_path / "none", good / "below"):
        with pytest.raises(OSError):  # noqa: PT011
            Dump(missing)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises((OSError, ValueError)):
        Dump(fifo)


def test_cut_short(good: Path, path: Path) -> None:
    data = good.read_bytes()
    start = head_and_notes(data)
    rng = random.Random(1)
    places = {*range(0, 600, 7), *(rng.randrange(len(data)) for _ in range(60)), start, start - 1}
    places |= {len(data) - 1, len(data) - PAGE}
    for place in sorted(places):
        path.write_bytes(data[:place])
        with pytest.raises(REFUSED), little_memory():
            Dump(path)


def test_flipped_bytes_of_the_header(good: Path, path: Path) -> None:
    """Every byte of the ELF header and the first program headers, to several values."""
    data = bytearray(good.read_bytes())
    taken = 0
    for place in range(64 + 56 * 3):
        for value in (0, 0xFF, data[place] ^ 0x80):
            kept, data[place] = data[place], value
            path.write_bytes(data)
            data[place] = kept
            taken += use_damaged(path)
    assert taken  # paddings, for example


def test_flipped_bytes_anywhere(good: Path, path: Path) -> None:
    data = good.read_bytes()
    start, rng = head_and_notes(data), random.Random(2)
    for n in range(300):
        damaged = bytearray(data)
        end = start if n % 3 else len(data)
        for _ in range(rng.choice((1, 2, 8, 64))):
            damaged[rng.randrange(end)] = rng.randrange(256)
        path.write_bytes(damaged)
        use_damaged(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((8, v) for v in ((1 << 64) - 1, 1 << 63, 1 << 40, 1 << 32)),  # p_offset
        *((24, v) for v in ((1 << 64) - 1, 1 << 63, 1 << 40, (16 << 20) - 1, 1 << 32)),  # p_paddr
        *((32, v) for v in ((1 << 64) - 1, 1 << 63, 1 << 40, 17 << 20)),  # p_filesz
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_wild_program_headers(good: Path, path: Path, field: int, value: int, which: int) -> None:
    data = bytearray(good.read_bytes())
    struct.pack_into("<Q", data, 64 + 56 * which + field, value)
    path.write_bytes(data)
    if which == 0 and field == 24:
        use(path)  # the notes' address means nothing
        return
    with pytest.raises(REFUSED), little_memory():
        Dump(path)


@pytest.mark.parametrize("place", [32, 40, 54, 56, 58, 60, 62])
def test_wild_elf_headers(good: Path, path: Path, place: int) -> None:
    for value in (0, 1, 0x7FFF, 0xFFFF):
        data = bytearray(good.read_bytes())
        struct.pack_into("<H", data, place, value)
        if place in (32, 40):
            struct.pack_into("<Q", data, place, value << 48 | value)
        path.write_bytes(data)
        use_damaged(path)


def test_one_part_of_the_file_many_times(good: Path, path: Path) -> None:
    """Program headers that all tell the same megabytes, for 64 GiB: it is not believed."""
    _, _, meaning = told(good.read_bytes())
    note = json.dumps(meaning | {"memory": 64 << 30}).encode()
    note = struct.pack("<III", 4, len(note), 1) + b"KOS\0" + note
    count, size = 1000, 32 << 20
    head = 64 + 56 * (count + 1)
    data = b"\x7fELF\2\1\1".ljust(16, b"\0")
    data += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count + 1, 0, 0, 0)
    data += struct.pack("<IIQQQQQQ", 4, 0, head, 0, 0, len(note), len(note), 4)
    for n in range(count):
        paddr = (4 << 30) + n * size
        data += struct.pack("<IIQQQQQQ", 1, 7, 1 << 20, 0, paddr, size, size, PAGE)
    path.write_bytes((data + note).ljust(1 << 20, b"\0"))
    with path.open("r+b") as file:
        file.truncate((1 << 20) + size)
    with pytest.raises(REFUSED), little_memory():
        Dump(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format": 1}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": NaN}',
    ],
    ids=lambda text: text[:12].decode(errors="replace"),
)
def test_notes_that_are_none(good: Path, path: Path, text: bytes) -> None:
    with pytest.raises(ValueError), little_memory():  # noqa: PT011
        Dump(with_note(good, path, text))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("format", [0, 2, "1", None, [], True, 1.0]),
        ("build_id", ["", "00", 7, None, [], "x" * 100_000]),
        ("memory", [0, -1, 1, "16M", None, 16.5 * (1 << 20), [1], 1 << 62, 1 << 100, True]),
        ("machine", ["pc", "", 7, None, [], {}]),
        ("cpus", [0, -1, 9, "2", None, 2.0, [], 1 << 70, True]),
        ("console", [7, None, [], {}]),
        ("failure", [7, [], {}, True]),
        (
            "registers",
            [
                *(7, "x", None, {}, {"a": {}}, [7], [[]], ["x"], [None], [{"rip": "x"}]),
                *([{"rip": None}], [{"rip": 1.5}], [{"rip": -1}], [{"rip": 1 << 64}]),
                *([{"rip": [1]}], [{}] * 100_000, [{"rip": True}]),
            ],
        ),
    ],
)
def test_notes_of_wrong_types(good: Path, path: Path, name: str, values: list[Any]) -> None:
    for value in values:
        changed_note(good, path, **{name: value})
        assert not use_damaged(path), f"{name} = {value!r:.50}"


def test_a_note_without_a_name(good: Path, path: Path) -> None:
    _, _, meaning = told(good.read_bytes())
    for name in meaning:
        less = {key: value for key, value in meaning.items() if key != name}
        with pytest.raises(ValueError):  # noqa: PT011
            Dump(with_note(good, path, json.dumps(less).encode()))


def test_another_kernel(good: Path, path: Path) -> None:
    with pytest.raises(HostError, match="0123456789"):
        Dump(changed_note(good, path, build_id="0123456789" * 4))
    with pytest.raises(KOSError):
        Dump(good, kernel=path / "none")


def test_dumps_do_not_pile_up(good: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with little_memory():
        for _ in range(30):
            with Dump(good) as dump:
                assert dump.view["zones"][0].name.string_() == b"DMA"
            dump.close()
            gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


# The command


def inspect(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kos", "inspect", *words],
        input=typed,
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def test_inspect_an_expression(good: Path) -> None:
    done = inspect(str(good), "cpu_count")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "2", "")
    done = inspect(str(good), "zones[0].name.string_()")
    assert (done.returncode, done.stdout.strip()) == (0, "b'DMA'")
    done = inspect(str(good), "audit(vm).sound, len(view.pages())")
    assert (done.returncode, done.stdout.strip()) == (0, "(True, 4096)")
    done = inspect("cpu_count + 1")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "3", "")


def test_inspect_lines(good: Path) -> None:
    lines = "x = int(cpu_count)\nx * 2\n\nfor i in range(2):\n    print('cpu', i)\n"
    lines += "\nzones[0].name\n"
    done = inspect(str(good), typed=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["4", "cpu 0", "cpu 1"]
    assert '"DMA"' in done.stdout.splitlines()[3]
    assert inspect(str(good), typed="").returncode == 0
    done = inspect(str(good), typed="def f(n):\n    return n + 1\nf(int(cpu_count))")
    assert (done.returncode, done.stdout.strip()) == (0, "3")
    done = inspect(typed="len(clients)\n")
    assert (done.returncode, done.stdout.strip()) == (0, "256")


@pytest.mark.parametrize(
    "lines", ["zonez\n1 + 1\n", "1 +\n1 + 1\n", "1 / 0\n1 + 1", "1+1\n(", "1+1\nx y"]
)
def test_inspect_lines_that_fail(good: Path, lines: str) -> None:
    """The others are still carried out; the status tells."""
    done = inspect(str(good), typed=lines)
    assert done.returncode == 1
    assert done.stdout.strip() == "2"
    assert done.stderr


def test_inspect_refuses(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("no dump")
    cases: list[tuple[int, list[str]]] = [
        (2, [str(bad)]),
        (2, [str(good), "1 +"]),
        (2, [str(good), "zonez"]),
        (2, [str(good), "cpu_count", "more"]),
        (2, ["--nothing"]),
        (3, [str(tmp_path / "none")]),
        (3, [str(tmp_path)]),
        (3, [str(changed_note(good, tmp_path / "other", build_id="00"))]),
    ]
    for status, words in cases:
        done = inspect(*words)
        assert done.returncode == status, (words, done.stderr)
        assert done.stdout == ""
        assert done.stderr
        assert "Traceback" not in done.stderr
