"""The exact counts on record, and what to do when they change.

`exact.json` beside this module has a row for each count of the measurements in `EXACT`: its value,
what it was before, and why it changed. The test suite measures again and compares: a count that has
moved by more than 1 %, up or down, must be accepted with a reason (`kos bench --accept REASON`).
What moves by less stays on record as it was, so that many small steps are noticed as well.

Another compiler makes other code, so the record names the one that it holds for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kos.exceptions import HostError

EXACT = ("allocator",)
TOLERANCE = 0.01
PATH = Path(__file__).with_name("exact.json")


class Count(NamedTuple):
    """A count on record.

    Args:
        value: The count.
        was: What it was before the last change; None for a row that is as it was first written.
        reason: Why it changed, or why it is there.
    """

    value: float
    was: float | None
    reason: str


class Record(NamedTuple):
    """All counts on record, and the compiler that they hold for."""

    compiler: str
    counts: dict[str, Count]


class Move(NamedTuple):
    """A count that is not what the record says; None: it is not there."""

    name: str
    recorded: float | None
    now: float | None

    def __str__(self) -> str:
        if self.recorded is None:
            return f"{self.name}: {self.now:,g}, not on record"
        if self.now is None:
            return f"{self.name}: {self.recorded:,g} on record, not measured any more"
        change = f"{100 * (self.now / self.recorded - 1):+.1f} %" if self.recorded else "from 0"
        return f"{self.name}: {self.now:,g}, {self.recorded:,g} on record ({change})"


def load(path: Path = PATH) -> Record:
    """Read the record.

    Args:
        path: The file.

    Returns:
        What is on record; nothing, for no compiler, when there is no such file.

    Example:
        >>> load().counts["pages_pair_o0"].value < 50
        True
    """
    if not path.exists():
        return Record("", {})
    data = json.loads(path.read_text())
    return Record(data["compiler"], {name: Count(*count) for name, count in data["counts"].items()})


def moves(record: Record, values: Mapping[str, float]) -> list[Move]:
    """What differs from the record by more than 1 %, is not on it, or only there.

    Args:
        record: What is on record.
        values: The counts now.

    Returns:
        In the order of the values; what is only on record last.

    Example:
        >>> record = Record("cc", {"a": Count(100, None, ""), "b": Count(7, None, "")})
        >>> [str(move) for move in moves(record, {"a": 101, "b": 8, "c": 1})]
        ['b: 8, 7 on record (+14.3 %)', 'c: 1, not on record']
    """
    found = []
    for name, value in values.items():
        recorded = record.counts[name].value if name in record.counts else None
        if recorded is None or abs(value - recorded) > TOLERANCE * abs(recorded):
            found.append(Move(name, recorded, value))
    gone = [name for name in record.counts if name not in values]
    return found + [Move(name, record.counts[name].value, None) for name in gone]


def check_reason(reason: str) -> str:
    """A reason for a change, without blanks around it; ValueError when it is not one line."""
    reason = reason.strip()
    if not reason or "\n" in reason:
        raise ValueError(f"a reason is one line of text, not {reason!r}")
    return reason


def accept(
    compiler: str, values: Mapping[str, float], reason: str, path: Path = PATH
) -> list[Move]:
    """Write counts that have moved to the record, with the reason.

    Args:
        compiler: What the kernel was compiled with.
        values: The counts now. With another compiler than on record all of them are written.
        reason: Why they changed: one line.
        path: The file.

    Returns:
        What was written.

    Raises:
        ValueError: There is no reason, or it is more than one line.
        HostError: The file cannot be written.
    """
    reason = check_reason(reason)
    record = load(path)
    if record.compiler != compiler:
        record = Record(compiler, {})
    moved = moves(record, values)
    counts = {name: record.counts.get(name) for name in values}
    for move in moved:
        if move.now is not None:
            counts[move.name] = Count(move.now, move.recorded, reason)
    lines = [f"    {json.dumps(name)}: {json.dumps(count)}" for name, count in counts.items()]
    head = f'{{\n  "compiler": {json.dumps(compiler)},\n  "counts": {{\n'
    try:
        path.write_text(head + ",\n".join(lines) + "\n  }\n}\n")
    except OSError as error:
        raise HostError(f"the counts cannot be written: {error}") from error
    return moved
