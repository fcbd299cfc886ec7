"""What ran in the kernel: gcc's counters, read out of guest RAM.

A kernel built with `COVERAGE=1` (`make coverage` builds one) counts each branch that it takes. Its
symbol `gcov_table` leads to gcc's own description of the counters, so that this module reads them
without the guest's help, also after a panic. Whoever runs machines sets `KOS_COVERAGE` to a folder:
each machine then adds its counters to a file there, one file a process, when its RAM goes.
`merge` adds up what a whole test run left, and `write` makes the `.gcda` files that gcov reads.

The structures and the file format are those of gcc 12 (gcov-io.h and libgcov.h in its sources).
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kos.abi import Abi
    from kos.machine.qemu import Qemu

__all__ = ["Collector", "Function", "Unit", "decode", "encode", "merge", "write"]

VARIABLE = "KOS_COVERAGE"
KERNEL_BASE = 0xFFFFFFFF80000000  # where the image's physical addresses appear, see linker.ld

_TABLE = struct.Struct("<QQQ")  # kernel/debug/gcov.c
_INFO = struct.Struct("<IxxxxQIIQ8QIxxxxQ")
_FUNCTION = struct.Struct("<QIIIxxxxIxxxxQ")
_GCC = b"B2"  # the first letters of a version that says gcc 12
_KINDS = 8  # of counters; --coverage makes the first kind only
_MOST = 1 << 20  # counters of a function, functions of a file: more is no description of ours

_GCDA_MAGIC = 0x67636461
_GCNO_MAGIC = 0x67636E6F
_TAG_FUNCTION = 0x01000000
_TAG_COUNTERS = 0x01A10000
_TAG_SUMMARY = 0xA1000000

Read = Callable[[int, int], bytes]


@dataclass
class Function:
    """The counters of one function.

    Args:
        ident: gcc's number for the function.
        lineno_checksum: Of its name and place.
        cfg_checksum: Of its blocks and branches.
        counts: How often each counted branch was taken.
    """

    ident: int
    lineno_checksum: int
    cfg_checksum: int
    counts: list[int]


@dataclass
class Unit:
    """The counters of one source file as compiled once.

    Args:
        path: The `.gcda` file that gcov looks for, beside the `.gcno` file of the compilation.
        version: Of gcc, four characters in a number.
        stamp: Tells one compilation from another; the `.gcno` file has it too.
        checksum: Of the compilation.
        functions: Its functions.
        runs: How many machines were added up.
    """

    path: str
    version: int
    stamp: int
    checksum: int
    functions: list[Function]
    runs: int = 1


# From RAM


def decode(read: Read, begin: int, end: int) -> list[Unit]:
    """Read gcc's `struct gcov_info` of each source file.

    Args:
        read: Gives so many bytes at a virtual address.
        begin: Address of the first of the pointers to the structs.
        end: Address behind the last pointer.

    Raises:
        ValueError: What is there was not compiled by gcc 12, or it is damaged.

    Example:
        >>> decode(lambda address, size: b"", 0, 0)
        []
    """
    size = _bounded((end - begin) // 8, "files") * 8
    return [_unit(read, pointer) for (pointer,) in struct.iter_unpack("<Q", read(begin, size))]


def _unit(read: Read, address: int) -> Unit:
    version, _, stamp, checksum, name, *merge, n, functions = _INFO.unpack(
        read(address, _INFO.size)
    )
    if version.to_bytes(4, "big")[:2] != _GCC:
        raise ValueError(f"the counters at {address:#x} have version {version:#x}, not gcc 12's")
    if [bool(m) for m in merge] != [True] + [False] * (_KINDS - 1):
        raise ValueError(f"the counters at {address:#x} are not those of --coverage alone")
    pointers = read(functions, 8 * _bounded(n, "functions"))
    found = [_function(read, pointer) for (pointer,) in struct.iter_unpack("<Q", pointers)]
    return Unit(_text(read, name), version, stamp, checksum, found)


def _function(read: Read, address: int) -> Function:
    _, ident, lineno_checksum, cfg_checksum, n, values = _FUNCTION.unpack(
        read(address, _FUNCTION.size)
    )
    counts = read(values, 8 * _bounded(n, "counters"))
    return Function(ident, lineno_checksum, cfg_checksum, list(struct.unpack(f"<{n}Q", counts)))


def _bounded(n: int, what: str) -> int:
    if not 0 <= n <= _MOST:
        raise ValueError(f"{n} {what} are described; at most {_MOST} are believed")
    return n


def _text(read: Read, address: int) -> str:
    text = b""
    while b"\0" not in text and len(text) < 4096:
        text += read(address + len(text), 64)
    return os.fsdecode(text.partition(b"\0")[0])


class Collector:
    """Adds one machine's counters to those of the test run, whenever its RAM is about to change.

    It does nothing unless `KOS_COVERAGE` names a folder and the kernel is one that counts, nor in a
    process that was forked from the one that made it.

    Args:
        abi: Of the kernel that the machine boots.
        qemu: The machine's QEMU, which may have ended.
    """

    def __init__(self, abi: "Abi", qemu: "Qemu") -> None:
        self._table = abi.symbols.get("gcov_table")
        self._build_id = bytes.fromhex(abi.build_id)
        self._qemu = qemu
        folder = os.environ.get(VARIABLE)
        self._folder = os.path.abspath(folder) if folder else None
        self._owner = os.getpid()
        self._base: dict[str, Unit] = {}

    def collect(self) -> None:
        """Add what ran since the kernel booted, or since `rebase`. RAM then is to be replaced."""
        base, self._base = self._base, {}
        if not self._folder or self._table is None or os.getpid() != self._owner:
            return
        units = self._read(self._table)
        for unit in units:
            if unit.path in base:
                _add(unit, base[unit.path], -1)
        if units:
            os.makedirs(self._folder, exist_ok=True)
            line = json.dumps([_to_json(unit) for unit in units], separators=(",", ":"))
            path = os.path.join(self._folder, f"{self._owner}.jsonl")
            with open(path, "ab", 0) as f:  # written in one piece, because threads write it, too
                if f.write(f"{line}\n".encode()) <= len(line):
                    raise OSError(f"{path}: no room for the counters")

    def rebase(self) -> None:
        """RAM holds what it held at an earlier time: what it counts up to here was added then."""
        if self._folder and self._table is not None:
            self._base = {unit.path: unit for unit in self._read(self._table)}

    def _read(self, table: int) -> list[Unit]:
        """The counters in RAM; none when it does not hold this kernel (yet, or any more)."""
        with self._qemu.ram as ram:

            def read(address: int, size: int) -> bytes:
                offset = self._qemu.phys_to_ram_offset(address - KERNEL_BASE)
                if offset is None or offset + size > len(ram):
                    raise ValueError(f"no RAM at {address:#x}: gcc's description is damaged")
                return bytes(ram[offset : offset + size])

            begin, end, build_id = _TABLE.unpack(read(table, _TABLE.size))
            if build_id < KERNEL_BASE or read(build_id, len(self._build_id)) != self._build_id:
                return []
            return decode(read, begin, end)


# From many machines


def _add(unit: Unit, other: Unit, sign: int = 1) -> None:
    """Add another machine's counters of the same compilation."""
    if (unit.stamp, unit.checksum) != (other.stamp, other.checksum):
        raise ValueError(f"{unit.path}: counters of two compilations cannot be added")
    for mine, theirs in zip(unit.functions, other.functions, strict=True):
        mine.counts = [a + sign * b for a, b in zip(mine.counts, theirs.counts, strict=True)]
    unit.runs += sign * other.runs


def _to_json(unit: Unit) -> list[Any]:
    functions = [[f.ident, f.lineno_checksum, f.cfg_checksum, f.counts] for f in unit.functions]
    return [unit.path, unit.version, unit.stamp, unit.checksum, functions]


def _from_json(record: list[Any]) -> Unit:
    path, version, stamp, checksum, functions = record
    return Unit(path, version, stamp, checksum, [Function(*f) for f in functions])


def _records(folder: Path) -> Iterator[Unit]:
    for file in sorted(folder.glob("*.jsonl")):
        with file.open() as lines:
            for line in lines:
                yield from map(_from_json, json.loads(line))


def merge(folder: str | os.PathLike[str]) -> list[Unit]:
    """Add up what all machines of a run have left.

    Args:
        folder: What `KOS_COVERAGE` was.

    Returns:
        One unit for each source file, by path; none when no machine left anything.

    Raises:
        ValueError: Two machines ran different kernels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     merge(folder)
        []
    """
    units: dict[str, Unit] = {}
    for unit in _records(Path(folder)):
        if unit.path in units:
            _add(units[unit.path], unit)
        else:
            units[unit.path] = unit
    return [units[path] for path in sorted(units)]


# To gcov


def encode(unit: Unit) -> bytes:
    """The content of a unit's `.gcda` file."""
    largest = max((max(f.counts, default=0) for f in unit.functions), default=0)
    words = [_GCDA_MAGIC, unit.version, unit.stamp, unit.checksum]
    words += [_TAG_SUMMARY, 8, unit.runs, min(largest, 0xFFFFFFFF)]
    out = [struct.pack(f"<{len(words)}I", *words)]
    for f in unit.functions:
        head = (_TAG_FUNCTION, 12, f.ident, f.lineno_checksum, f.cfg_checksum)
        n = len(f.counts)
        out.append(struct.pack(f"<7I{n}Q", *head, _TAG_COUNTERS, n * 8, *f.counts))
    return b"".join(out) + bytes(4)


def write(units: Iterable[Unit]) -> None:
    """Write the `.gcda` file of each unit beside its `.gcno` file, over an earlier one.

    Raises:
        ValueError: There is no `.gcno` file of the same compilation.
    """
    for unit in units:
        path = Path(unit.path)
        notes = path.with_suffix(".gcno")
        expected = struct.pack("<3I", _GCNO_MAGIC, unit.version, unit.stamp)
        if not notes.is_file() or notes.read_bytes()[:12] != expected:
            raise ValueError(f"{notes} is not there, or is not of the compilation that was counted")
        path.write_bytes(encode(unit))
