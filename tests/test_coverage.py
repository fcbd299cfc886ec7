"""Coverage of the kernel: counters are read out of memory, added up, and gcov believes them."""

import ctypes
import dataclasses
import gc
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import coverage_report
import kos
from conftest import Boot
from helpers import Threads, is_gone
from kos import coverage, image
from kos.abi import Abi
from kos.exceptions import BootError, KernelPanic
from kos.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ROOT / "build" / "coverage" / "kos.elf"
BUILD_SECONDS = 600
SECONDS = 120

# Two functions in this process's memory, with the symbols that the linker makes for a section.
C = """
extern const void *const __start_gcov_info[], *const __stop_gcov_info[];
void __gcov_merge_add(void) {}
const void *begin(void) { return __start_gcov_info; }
const void *end(void) { return __stop_gcov_info; }
int sign(int x)
{
    if (x < 0)
        return -1;
    return x > 0;
}
int never(void)
{
    return 1;
}
"""


def gcov(gcno: Path) -> dict[str, Any]:
    """What gcov says of the files beside a `.gcno`: executions by function, by line, branches."""
    argv = ["gcov", "--branch-probabilities", "--json-format", "--stdout", gcno.name]
    done = subprocess.run(argv, cwd=gcno.parent, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (file, *_) = json.loads(done.stdout)["files"]
    return {
        "functions": {f["name"]: f["execution_count"] for f in file["functions"]},
        "lines": {line["line_number"]: line["count"] for line in file["lines"]},
        "branches": {
            line["line_number"]: [b["count"] for b in line["branches"]]
            for line in file["lines"]
            if line["branches"]
        },
    }


# gcc's structures


@pytest.fixture
def library(tmp_path: Path) -> ctypes.CDLL:
    """The functions of C, compiled to count."""
    (tmp_path / "sign.c").write_text(C)
    flags = ["--coverage", "-fprofile-info-section=gcov_info", "-fPIC", "-O0"]
    for argv in (
        ["gcc", *flags, "-c", "sign.c"],
        ["gcc", "-shared", "-nostdlib", "-o", "sign.so", "sign.o"],
    ):
        subprocess.run(argv, cwd=tmp_path, check=True, timeout=SECONDS)
    loaded = ctypes.CDLL(str(tmp_path / "sign.so"))
    loaded.begin.restype = loaded.end.restype = ctypes.c_void_p
    return loaded


def read(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def test_memory_to_gcov(library: ctypes.CDLL, tmp_path: Path) -> None:
    for x in (-5, -6, 0, 1, 2, 3, 4):
        library.sign(x)
    (unit,) = coverage.decode(read, library.begin(), library.end())
    assert unit.path == str(tmp_path / "sign.gcda")
    coverage.write([unit])
    seen = gcov(tmp_path / "sign.gcno")
    assert seen["functions"] == {
        "__gcov_merge_add": 0,
        "begin": 1,
        "end": 1,
        "never": 0,
        "sign": 7,
    }
    assert [seen["lines"][n] for n in (8, 9, 10, 14)] == [7, 2, 5, 0]
    assert sorted(seen["branches"][8]) == [2, 5]


def test_a_hand_made_image() -> None:
    """Two files with two functions and no function, at addresses of the kernel's."""
    base = coverage.KERNEL_BASE
    memory = bytearray(4096)

    def put(at: int, form: str, *values: Any) -> int:
        struct.pack_into(form, memory, at, *values)
        return base + at

    name = put(0x100, "16s", b"/some/where.gcda")
    counts = put(0x200, "<3Q", 1, 2**40, 3), put(0x220, "<Q", 0)
    functions = [
        put(0x300 + 0x40 * i, "<QIIIxxxxIxxxxQ", 0, 10 + i, 20 + i, 30 + i, n, values)
        for i, (n, values) in enumerate(zip((3, 1), counts, strict=True))
    ]
    pointers = put(0x400, "<2Q", *functions)
    version, merge = 0x4232322A, (base, *[0] * 7)
    form = "<IxxxxQIIQ8QIxxxxQ"
    infos = [
        put(0x500, form, version, 0, 77, 88, name, *merge, 2, pointers),
        put(0x600, form, version, 0, 78, 89, name, *merge, 0, pointers),
    ]
    begin = put(0x700, "<2Q", *infos)

    def at(address: int, size: int) -> bytes:
        return bytes(memory[address - base : address - base + size])

    first, second = coverage.decode(at, begin, begin + 16)
    assert first == coverage.Unit(
        path="/some/where.gcda",
        version=version,
        stamp=77,
        checksum=88,
        functions=[
            coverage.Function(10, 20, 30, [1, 2**40, 3]),
            coverage.Function(11, 21, 31, [0]),
        ],
    )
    assert (second.stamp, second.checksum, second.functions) == (78, 89, [])
    damage: list[tuple[int, str, int, str]] = [
        (0x500, "<I", 0x4233312A, "not gcc 12's"),
        (0x500 + 40, "<Q", base, "not those of --coverage"),
        (0x500 + 96, "<I", 2**31, "2147483648 functions"),
        (0x300 + 24, "<I", 2**31, "2147483648 counters"),
    ]
    for where, part, value, message in damage:
        good = bytes(memory)
        put(where, part, value)
        with pytest.raises(ValueError, match=message):
            coverage.decode(at, begin, begin + 16)
        memory[:] = good


def test_write_wants_the_compilation_that_was_counted(library: ctypes.CDLL, tmp_path: Path) -> None:
    (unit,) = coverage.decode(read, library.begin(), library.end())
    with pytest.raises(ValueError, match=r"sign\.gcno is not there, or is not of the compilation"):
        coverage.write([dataclasses.replace(unit, stamp=unit.stamp ^ 1)])
    (tmp_path / "sign.gcno").unlink()
    with pytest.raises(ValueError, match=r"sign\.gcno is not there"):
        coverage.write([unit])
    assert not (tmp_path / "sign.gcda").exists()


def test_merge_refuses_two_builds(tmp_path: Path) -> None:
    for i, stamp in enumerate((5, 5, 6)):
        record = [["/a.gcda", 1, stamp, 2, [[1, 2, 3, [10, i]]]]]
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"/a\.gcda: counters of two compilations"):
        coverage.merge(tmp_path)
    (tmp_path / "2.jsonl").unlink()
    (unit,) = coverage.merge(tmp_path)
    assert (unit.functions[0].counts, unit.runs) == ([20, 1], 2)


# A kernel that counts


@pytest.fixture(scope="session")
def counting() -> Path:
    """The kernel of `make coverage`, built when it is not there or is older than its sources."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    argv = ["make", "coverage-kernel", "CC=gcc"]
    done = subprocess.run(
        argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=BUILD_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return KERNEL


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the machines of a test leave their counters."""
    monkeypatch.setenv("KOS_COVERAGE", str(tmp_path / "counts"))
    return tmp_path / "counts"


@pytest.fixture
def start(boot: Boot, counting: Path, folder: Path) -> Callable[..., Machine]:
    """Boots machines that count, with one CPU unless told otherwise."""

    def with_options(**options: Any) -> Machine:
        return boot(**{"memory": "32M", "cpus": 1, "kernel": counting, **options})

    return with_options


def counted(folder: Path, source: str, tmp_path: Path) -> dict[str, Any]:
    """What gcov says of one kernel source, in a folder of the test's own."""
    (unit,) = [u for u in coverage.merge(folder) if u.path.endswith(f"/{source}.gcda")]
    copy = tmp_path / Path(unit.path).name
    shutil.copy(Path(unit.path).with_suffix(".gcno"), copy.with_suffix(".gcno"))
    coverage.write([dataclasses.replace(unit, path=str(copy))])
    return gcov(copy.with_suffix(".gcno"))


def calls(folder: Path, name: str, tmp_path: Path) -> int:
    """How often the handler of a call of calls_sys.c has run."""
    return int(counted(folder, "kernel/rpc/calls_sys", tmp_path)["functions"][f"call_{name}"])


def test_every_source_is_counted(start: Callable[..., Machine], folder: Path) -> None:
    start().close()
    paths = {Path(u.path).relative_to(KERNEL.parent / "obj") for u in coverage.merge(folder)}
    sources = [s for part in ("mm", "rpc") for s in (ROOT / "kernel" / part).glob("*.c")]
    assert {s.relative_to(ROOT).with_suffix(".gcda") for s in sources} <= paths
    assert not [p for p in paths if p.parts[:2] not in (("kernel", "mm"), ("kernel", "rpc"))]


def test_counters_are_exact_on_all_cpus(
    start: Callable[..., Machine], folder: Path, tmp_path: Path
) -> None:
    vm, threads = start(cpus=4), Threads()

    def work() -> None:
        with vm.connect("counter") as client, client.batch() as batch:
            for value in range(2000):
                batch.ping(value)

    for _ in range(4):
        threads.start(work)
    threads.join()
    vm.close()
    assert calls(folder, "ping", tmp_path) == 8000


def test_a_panic_and_a_killed_qemu_are_counted(
    start: Callable[..., Machine], folder: Path, tmp_path: Path
) -> None:
    vm = start()
    vm.client.ping(1)
    with pytest.raises(KernelPanic):
        vm.client.crash("null")
    vm.close()
    assert calls(folder, "crash", tmp_path) == 1
    vm = start()
    vm.client.ping(2)
    pidfd = os.pidfd_open(vm.pid)
    os.kill(vm.pid, signal.SIGKILL)
    assert is_gone(pidfd)
    os.close(pidfd)
    vm.close()
    assert calls(folder, "ping", tmp_path) == 2


def test_resets_and_machines_that_are_dropped_are_counted(
    start: Callable[..., Machine], folder: Path, counting: Path, tmp_path: Path
) -> None:
    vm = start()
    for pings in (1, 2):
        for value in range(pings):
            vm.client.ping(value)
        vm.reset()
    boots = vm.wire.boots
    vm.client.ping(3)
    vm.console.send("reboot\r")  # the guest resets itself
    until = time.monotonic() + SECONDS
    while vm.wire.boots == boots or not vm.wire.ready.is_set():
        assert time.monotonic() < until
    vm.reset()  # first waits until that one has ended
    vm.close()
    assert calls(folder, "ping", tmp_path) == 4
    dropped = kos.boot(memory="32M", cpus=1, kernel=counting)
    dropped.client.ping(1)
    del dropped
    gc.collect()
    assert calls(folder, "ping", tmp_path) == 5
    (unit, *_) = coverage.merge(folder)
    assert unit.runs == 6  # times that a kernel was booted


def test_other_processes_are_counted(counting: Path, folder: Path, tmp_path: Path) -> None:
    code = "import kos; kos.default_machine().client.ping(5)"
    env = {**os.environ, "KOS_KERNEL": str(counting)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=SECONDS)
    assert len(list(folder.iterdir())) == 2
    assert calls(folder, "ping", tmp_path) == 2


def test_a_forked_child_counts_nothing(
    start: Callable[..., Machine], folder: Path, tmp_path: Path
) -> None:
    vm = start()
    vm.client.ping(1)
    child = os.fork()
    if not child:
        try:
            vm.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert not folder.exists()
    vm.close()
    assert calls(folder, "ping", tmp_path) == 1


def test_what_a_snapshot_had_counted_is_not_counted_again(
    start: Callable[..., Machine], folder: Path, tmp_path: Path
) -> None:
    vm = start()
    vm.client.ping(1)
    vm.client.ping(2)
    before = vm.snapshot()
    for calls_after in (1, 3):
        for value in range(calls_after):
            vm.client.ping(value)
        vm.restore(before)
    with pytest.raises(KernelPanic):
        vm.client.crash("triple")
    vm.restore(before)
    vm.client.ping(5)
    vm.close()
    assert calls(folder, "ping", tmp_path) == 2 + 1 + 3 + 1
    assert calls(folder, "crash", tmp_path) == 1


def test_kernels_that_do_not_count_leave_nothing(
    boot: Boot, counting: Path, folder: Path, tmp_path: Path
) -> None:
    plain = ROOT / "build" / "kos.elf"
    assert "gcov_table" not in Abi.load(image.find(plain)[1]).symbols
    boot(memory="32M", kernel=plain).close()
    # The description of a kernel that counts, beside one that does not.
    other = tmp_path / "other.elf"
    shutil.copy(plain, other)
    shutil.copy(counting.with_suffix(".abi.json"), other.with_suffix(".abi.json"))
    with pytest.raises(BootError, match="build id"):
        boot(memory="32M", kernel=other)
    assert not folder.exists()


# The verdict

REPORT = {
    "files": [
        {
            "file": "a.c",
            "lines": [
                {"line_number": 1, "count": 3, "function_name": "f"},
                {"line_number": 2, "count": 0, "function_name": "f"},
                {"line_number": 3, "count": 0, "function_name": "g"},
                {"line_number": 4, "count": 0, "function_name": "g"},
            ],
        }
    ]
}
GOOD = {"branch_percent": 95.0, "branch_covered": 95, "branch_total": 100}
POOR = {"branch_percent": 94.9, "branch_covered": 949, "branch_total": 1000}
TEXT, FUNCTION = ("a.c", "text", "return x;"), ("a.c", "function", "g")


@pytest.mark.parametrize(
    ("excuses", "summary", "expected"),
    [
        ([TEXT, FUNCTION], GOOD, []),
        ([TEXT, FUNCTION], POOR, ["949 of 1000 branches were taken, less than 95 %"]),
        ([FUNCTION], GOOD, ["a.c:2: not reached: return x;"]),
        ([TEXT], GOOD, ["a.c:3: not reached: one", "a.c:4: not reached: two"]),
        (
            [TEXT, FUNCTION, ("a.c", "text", "ran"), ("b.c", "function", "gone")],
            GOOD,
            [
                "coverage-allowed.toml: a.c: no line that was not reached has text 'ran'",
                "coverage-allowed.toml: b.c: no line that was not reached has function 'gone'",
            ],
        ),
    ],
)
def test_verdict(
    excuses: list[tuple[str, str, str]],
    summary: dict[str, Any],
    expected: list[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "a.c").write_text("ran\n    return x;\none\ntwo\n")
    reasons = dict.fromkeys(excuses, "because")
    assert coverage_report.faults(REPORT, summary, reasons, tmp_path) == expected


def test_the_excuses_name_what_is_there() -> None:
    for (path, kind, what), reason in coverage_report.read_excuses(coverage_report.ALLOWED).items():
        lines = [line.strip() for line in (ROOT / path).read_text().splitlines()]
        assert reason
        assert any(what == line if kind == "text" else f" {what}(" in line for line in lines)


@pytest.mark.parametrize(
    "entry",
    [
        'path = "a.c"\ntext = "x"',
        'path = "a.c"\ntext = "x"\nfunction = "f"\nreason = "r"',
        'path = "a.c"\nline = "x"\nreason = "r"',
        'path = "a.c"\ntext = ""\nreason = "r"',
    ],
)
def test_an_excuse_that_is_not_whole(entry: str, tmp_path: Path) -> None:
    (tmp_path / "list.toml").write_text(f"[[unreached]]\n{entry}\n")
    with pytest.raises(SystemExit, match="expected path, reason, and text or function"):
        coverage_report.read_excuses(tmp_path / "list.toml")
