"""One boot of a kernel: QEMU as KOS is measured in it, and what the guest prints.

With `-icount shift=0` the guest's clock shows the instructions that it has run, so what it reads in
ticks are instructions, the same ones in each run: nothing in the guest is random, and its time does
not depend on the host's.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from debian import LinuxBenchError

QEMU = (
    "qemu-system-x86_64",
    *("-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", "qemu64", "-m", "512", "-smp", "1"),
    *("-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1"),
    *("-M", "microvm,acpi=off", "-no-user-config", "-nodefaults", "-display", "none"),
    *("-vga", "none", "-serial", "stdio", "-no-reboot"),
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
)
COMPLETE = 33  # QEMU's exit status when the guest has come to its end
BOOT_SECONDS = 1800  # a run takes about a minute; this ends one that hangs
TAIL_LINES = 25

#: Where freeing memory is put off (RCU), the cheapest batch is one that paid for none of it: the
#: batch in the middle counts for these.
MEDIAN = re.compile(r"mmap_|brk_grow_(touch_)?shrink|mprotect_1p")


class Batches(NamedTuple):
    """What the guest says of a workload: ticks of a whole batch, the clock's own included.

    Args:
        operations: Operations in a batch.
        batches: How many batches there were.
        minimum: Ticks of the shortest.
        median: Ticks of the one in the middle.
        maximum: Ticks of the longest.
        mean: The mean.
    """

    operations: int
    batches: int
    minimum: int
    median: int
    maximum: int
    mean: int


def boot(kernel: Path, initrd: Path, command_line: str) -> str:
    """Run a kernel to its end.

    Returns:
        What it printed.

    Raises:
        LinuxBenchError: It did not come to its end; the message holds the console's last lines.
    """
    files = ("-kernel", str(kernel), "-initrd", str(initrd), "-append", command_line)
    try:
        done = subprocess.run(
            [*QEMU, *files],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BOOT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        console = _text(error.stdout or b"")
        what = f"{kernel} did not end within {BOOT_SECONDS} s"
        raise LinuxBenchError(f"{what}; the console:\n{tail(console)}") from error
    console = _text(done.stdout)
    if done.returncode != COMPLETE or "END" not in console.splitlines():
        what = f"{kernel} did not come to its end (QEMU's exit status {done.returncode})"
        raise LinuxBenchError(f"{what}; the console:\n{tail(console)}")
    return console


def _text(console: bytes) -> str:
    return console.decode("ascii", "replace").replace("\r", "")


def tail(console: str) -> str:
    return "\n".join(console.splitlines()[-TAIL_LINES:]) or "(nothing was printed)"


def figures(console: str) -> dict[str, float]:
    """The figures that a guest printed.

    Args:
        console: All that it printed: the lines that guest/print.h describes, and the kernel's own.

    Returns:
        For each row its figure, in instructions per operation, or a plain value.

    Raises:
        LinuxBenchError: A line cannot be understood, a workload failed, a row is there twice, or
            the calibration loop did not take the instructions that it has.
    """
    batches: dict[str, dict[str, Batches]] = {"u": {}, "k": {}}
    rows: dict[str, float] = {}
    for line in console.splitlines():
        match line.split():
            case ["R", ("u" | "k") as suite, name, *numbers] if len(numbers) == 6:
                if name in batches[suite]:
                    raise LinuxBenchError(f"the guest printed {name} twice")
                batches[suite][name] = Batches(*map(int, numbers))
            case ["V", name, value]:
                if name in rows:
                    raise LinuxBenchError(f"the guest printed {name} twice")
                rows[name] = int(value)
            case ["FAIL", *_]:
                raise LinuxBenchError(f"a workload failed in the guest: {line}")
            case ["R" | "V", *_]:
                raise LinuxBenchError(f"a line of the guest is cut or mixed up: {line!r}")
    return rows | suite_figures("u", batches["u"]) | suite_figures("k", batches["k"])


def suite_figures(suite: str, found: Mapping[str, Batches]) -> dict[str, float]:
    """Instructions per operation, the clock's own taken off; its calibration is left out."""
    clock = found.get("cal_tsc_pair")
    loop = found.get("cal_loop_2000001_insns")
    if clock is None or loop is None:
        raise LinuxBenchError(f"the calibration of suite {suite!r} is missing")
    if loop.minimum - clock.minimum != 2_000_001:
        raise LinuxBenchError(
            f"a loop of 2000001 instructions took {loop.minimum - clock.minimum} ticks: "
            "this QEMU does not count instructions as it should"
        )
    rows = {}
    for name, of in found.items():
        if name.startswith("cal_"):
            continue
        ticks = of.median if MEDIAN.match(name) else of.minimum
        exact = (ticks - clock.median) / of.operations
        rows[name] = int(exact) if exact.is_integer() else round(exact, 3)
    return rows


def check(columns: Mapping[str, Mapping[str, float]], needed: Sequence[str]) -> None:
    """All columns have to have the same rows, and those that are needed.

    Raises:
        LinuxBenchError: Rows are missing; the message names them and their columns.
    """
    expected = set(needed).union(*columns.values())
    for column, rows in columns.items():
        missing = sorted(expected - rows.keys())
        if missing:
            raise LinuxBenchError(f"column {column} has no figure for: {', '.join(missing)}")
        for name in ("mixpages_failed", "mixpages_big_failed"):
            if rows[name]:
                raise LinuxBenchError(
                    f"column {column}: allocations failed, {name} is {rows[name]}"
                )
