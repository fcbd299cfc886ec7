"""Measure Linux's memory management in the QEMU that KOS is measured in: `make bench-linux`.

It fetches Debian's kernel and its source, builds what is needed in build/linux, boots each column's
kernel, and writes the figures into host/kos/bench/linux.json, where `kos bench` finds them.
docs/measuring.md says what the columns are. Exit status: 0 measured; 1 not, and the reason is
shown.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import debian
import guest
import kernels
from debian import LinuxBenchError, run, say

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/linux"
FIGURES = ROOT / "host/kos/bench/linux.json"
COLUMNS = tuple(kernels.COMMAND_LINES)
MOVED = 0.01  # the share by which a figure has to change to be named

#: What `kos bench` shows beside its own rows.
NEEDED = (
    *(f"pages_pair_o{order}" for order in range(11)),
    *(
        f"pages_batch1024_{what}_{order}"
        for what in ("alloc", "free")
        for order in ("lifo", "fifo", "rand")
    ),
    *("mixpages_100k", "mixpages_dry_100k", "mixpages_big_200k"),
    *("mixpages_failed", "mixpages_big_failed"),
    *(
        f"mixpages_{what}_{point}"
        for what in ("alloc_lat", "free_lat", "alloc_lat_quiet", "free_lat_quiet")
        for point in ("p50", "p90", "p99", "max")
    ),
    *(
        f"frag_{when}_{what}"
        for when in ("start", "mix_live", "mix_freed", "big_live", "big_sixteenth_left", "end")
        for what in ("free_pages", "largest_order", "unusable_o9_permille")
    ),
)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; `columns` holds those to measure.

    Raises:
        SystemExit: An argument is wrong; argparse says which.
    """
    parser = argparse.ArgumentParser(prog="make bench-linux", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=COLUMNS,
        dest="columns",
        help="measure this column (more than one: repeat it); the others stay as they are",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="compile and boot N at a time; all CPUs if not given",
    )
    parser.add_argument("--out", type=Path, default=FIGURES, metavar="FILE", help="where to write")
    arguments = parser.parse_args(words)
    arguments.columns = [name for name in COLUMNS if name in (arguments.columns or COLUMNS)]
    return arguments


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def prepare(columns: Sequence[str], jobs: int) -> dict[str, kernels.Kernel]:
    """Fetch and build what the columns need."""
    debian.ensure_tools()
    init = kernels.build_init(BUILD)
    ready = {}
    if "tiny" in columns:
        ready["tiny"] = kernels.tiny_kernel(BUILD, init, jobs)
    if "lean" in columns or "stock" in columns:
        kernel = kernels.debian_kernel(BUILD, init)
        ready |= {name: kernel for name in ("lean", "stock") if name in columns}
    return ready


def measure(column: str, kernel: kernels.Kernel) -> dict[str, float]:
    """Boot a column's kernel and read its figures; the console is kept in build/linux."""
    say(f"running {column}")
    try:
        console = guest.boot(kernel.image, kernel.initrd, kernels.COMMAND_LINES[column])
        (BUILD / f"{column}.console").write_text(console)
        rows = guest.figures(console)
    except LinuxBenchError as error:
        raise LinuxBenchError(f"column {column}: {error}") from error
    say(f"{column}: {len(rows)} figures")
    return rows


def source(kernel: kernels.Kernel, qemu: str) -> dict[str, str]:
    return {
        "package": kernel.package.name,
        "version": kernel.package.version,
        "compiler": kernel.compiler,
        "qemu": qemu,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The columns of a file of figures: of each its source and its rows.

    Raises:
        LinuxBenchError: The file is not one of figures.
    """
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        return {
            column: {
                "source": data["source"][column],
                "rows": {name: row[column] for name, row in data["rows"].items()},
            }
            for column in data["columns"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise LinuxBenchError(
            f"{path} holds no figures of Linux ({error!r}); remove it, and measure all columns"
        ) from error


def text_of(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's text, a row on a line."""
    names = [name for name in COLUMNS if name in columns]
    head = {"source": {name: columns[name]["source"] for name in names}, "columns": names}
    rows = [
        f"    {json.dumps(row)}: {json.dumps({name: columns[name]['rows'][row] for name in names})}"
        for row in sorted(columns[names[0]]["rows"])
    ]
    start = json.dumps(head, indent=2).removesuffix("\n}")
    return start + ',\n  "rows": {\n' + ",\n".join(rows) + "\n  }\n}\n"


def moved(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """What differs between two measurements of a column: a line for each row that moved."""
    lines = [f"{name}: gone" for name in sorted(before.keys() - after.keys())]
    lines += [f"{name}: new" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        if abs(new - old) > MOVED * abs(old):
            change = f"{100 * (new - old) / old:+.1f} %" if old else "from nothing"
            lines.append(f"{name}: {old:g} -> {new:g} ({change})")
    return lines


def bench(arguments: argparse.Namespace) -> None:
    """Measure, compare with what was there, and write.

    Raises:
        LinuxBenchError: Something failed; the file is as it was.
    """
    before = read(arguments.out)
    ready = prepare(arguments.columns, arguments.jobs)
    qemu = run(guest.QEMU[0], "--version").splitlines()[0].removeprefix("QEMU emulator version ")
    for name, kernel in ready.items():
        package = kernel.package
        say(f"{name} is {package.name} {package.version}, {kernel.compiler}; QEMU {qemu}")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = dict(zip(ready, pool.map(measure, ready, ready.values()), strict=True))
    columns = before | {
        name: {"source": source(ready[name], qemu), "rows": found} for name, found in rows.items()
    }
    kept = " (kept from the file: measure it as well)"
    named = {name + ("" if name in rows else kept): of["rows"] for name, of in columns.items()}
    guest.check(named, NEEDED)
    for name in (name for name in rows if name in before):
        for line in moved(before[name]["rows"], rows[name]):
            say(f"moved: {name} {line}")
    arguments.out.write_text(text_of(columns))
    say(f"wrote {arguments.out}")


def main(words: Sequence[str]) -> int:
    arguments = parse_arguments(words)
    try:
        bench(arguments)
    except LinuxBenchError as error:
        print(f"bench-linux: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
