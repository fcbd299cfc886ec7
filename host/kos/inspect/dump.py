"""A machine in one file: RAM, the registers of all CPUs, what the console printed, the build id.

The file is an ELF core dump, so that gdb opens it beside `kos.elf`. Each part of RAM that is in use
is a segment, with its physical address and the address that it has in the direct map; the kernel's
image and stacks, which have addresses of their own, are told again under those, from the same
bytes. A thread stands for each CPU. All else is in one note named `KOS`, as JSON.

A dump may come from anywhere: what is read from it is checked, and none of it is ever run.
"""

import bisect
import builtins
import contextlib
import errno
import itertools
import json
import mmap
import os
import stat
import struct
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from kos import image
from kos._closing import Closing
from kos.abi import Abi
from kos.exceptions import HostError, KOSError
from kos.inspect.memory import PAGE_SIZE, Memory
from kos.inspect.registers import Registers
from kos.machine._argv import check_cpus, check_memory
from kos.machine._ram import MachineType, RamLayout

if TYPE_CHECKING:
    from kos.inspect.view import View
    from kos.machine._inside import Inside

_FORMAT = 1
_NOTE = b"KOS\0"
_MAX_NOTE = 16 << 20
_MAX_SEGMENTS = 60_000
_STACK_PAGES = 8 * (4 + 3 * 2 + 4)  # for each CPU one stack and three, a guard page below each
_NORESERVE = 0x4000  # Linux's MAP_NORESERVE: what is not in the dump takes no memory
_PRSTATUS = struct.Struct("<112s27Q8x")
_USER_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)

Range = tuple[int, int]


def merged(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Sorted ranges, those less than a gap apart joined.

    Example:
        >>> merged([(0, 4), (5, 8), (20, 30)], 2)
        [(0, 8), (20, 30)]
    """
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start - found[-1][1] < gap:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


class _Writer:
    """Collects what goes into the file, and writes it."""

    def __init__(self, vm: "Inside") -> None:
        self.vm = vm
        self.memory = Memory(vm.ram, vm.ram_layout, vm.abi)
        self.extents = self._extents()
        #: Where in the file's data each of them begins.
        self._places = [0, *itertools.accumulate(end - start for start, end in self.extents)]
        #: Address, physical address and size of what is told in the file.
        self.segments = [*self._direct(), *self._image(), *self._stacks()]

    def _extents(self) -> list[Range]:
        symbols = self.vm.abi.symbols
        base = symbols["KERNEL_BASE"]
        kernel = (symbols["kernel_start"] - base, symbols["kernel_end"] - base)
        low = self.memory.layout.low_size
        used = [*self.vm.ram_in_use(), kernel]
        gap = PAGE_SIZE
        while True:
            parts = merged(used, gap)
            # RAM is cut in two around the hole below 4 GiB; so is a part that lies on both sides.
            cut = [
                piece
                for start, end in parts
                for piece in ((start, min(end, low)), (max(start, low), end))
                if piece[0] < piece[1]
            ]
            if len(cut) < _MAX_SEGMENTS:
                return cut
            gap *= 2

    def _direct(self) -> list[tuple[int, int, int]]:
        base = self.vm.abi.symbols["layout_direct_map"]
        return [
            (base + self._paddr(start), self._paddr(start), end - start)
            for start, end in self.extents
        ]

    def _paddr(self, offset: int) -> int:
        low = self.memory.layout.low_size
        return offset if offset < low else offset - low + (1 << 32)

    def _image(self) -> list[tuple[int, int, int]]:
        symbols = self.vm.abi.symbols
        start = symbols["kernel_start"]
        return [(start, start - symbols["KERNEL_BASE"], symbols["kernel_end"] - start)]

    def _stacks(self) -> list[tuple[int, int, int]]:
        """Page by page, as the kernel's tables have them; none before there are tables."""
        found = []
        first = self.vm.abi.symbols["layout_stacks"]
        for at in range(first, first + _STACK_PAGES * PAGE_SIZE, PAGE_SIZE):
            with contextlib.suppress(ValueError):  # a guard page, or past the last stack
                paddr, _ = self.memory.translate(at)
                if self._file_offset(paddr) is not None:
                    found.append((at, paddr, PAGE_SIZE))
        return found

    def _file_offset(self, paddr: int) -> int | None:
        """Where in the file's data a physical address lies."""
        ram = self.memory.layout.offset(paddr) if paddr >= 1 << 20 else paddr
        if ram is None:
            return None
        i = bisect.bisect_right(self.extents, (ram, 1 << 64)) - 1
        if i < 0 or ram >= self.extents[i][1]:
            return None
        return self._places[i] + ram - self.extents[i][0]

    def _note(self, name: bytes, kind: int, data: bytes) -> bytes:
        head = struct.pack("<III", len(name), len(data), kind)
        return b"".join(part.ljust(-(-len(part) // 4) * 4, b"\0") for part in (head, name, data))

    def notes(self, registers: list[Registers]) -> bytes:
        """A thread for each CPU, then what only KOS knows."""
        vm = self.vm
        found = b""
        for number, one in enumerate(registers):
            status = struct.pack("<32xi76x", number + 1)
            words = [one.get(name, 0) for name in _USER_REGS]
            found += self._note(b"CORE\0", 1, _PRSTATUS.pack(status, *words))
        failure = vm.wire.failure
        told = {
            "format": _FORMAT,
            "build_id": vm.abi.build_id,
            "memory": vm.memory,
            "machine": vm.machine_type,
            "cpus": vm.cpus,
            "registers": registers,
            "console": vm.console.text,
            "failure": str(failure) if failure else None,
        }
        return found + self._note(_NOTE, 1, json.dumps(told).encode())

    def write(self, file: Any, registers: list[Registers]) -> None:
        """Write header, segments, notes, then the data."""
        notes = self.notes(registers)
        count = 1 + len(self.segments)
        head = 64 + 56 * count
        data = -(-(head + len(notes)) // PAGE_SIZE) * PAGE_SIZE
        ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
        file.write(
            ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
        )
        file.write(struct.pack("<IIQQQQQQ", 4, 0, head, 0, 0, len(notes), len(notes), 4))
        for vaddr, paddr, size in self.segments:
            at = self._file_offset(paddr)
            assert at is not None
            file.write(
                struct.pack("<IIQQQQQQ", 1, 7, data + at, vaddr, paddr, size, size, PAGE_SIZE)
            )
        file.write(notes)
        file.seek(data)
        for start, end in self.extents:
            file.write(self.memory.ram[start:end])


def write(vm: "Inside", path: str | os.PathLike[str]) -> None:
    """Write a dump of a machine; `Machine.dump` is the way to it.

    Args:
        vm: The machine; it is paused meanwhile.
        path: The file. It is there as a whole or not at all.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        # As a folder; or a device, in whose place a file would be put.
        raise FileExistsError(errno.EEXIST, "not a file, and not replaced by a dump", str(target))
    part = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
    with vm.paused():
        try:
            registers = vm.registers()
        except KOSError:
            registers = []  # QEMU is gone; its RAM is still here
        try:
            with part.open("xb") as file:
                _Writer(vm).write(file, registers)
            part.rename(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


#: What reading a damaged file may raise beside ValueError.
_DAMAGES = (
    *(ELFError, ConstructError, struct.error, KeyError, TypeError, AttributeError, ValueError),
    *(OverflowError, RecursionError, builtins.MemoryError),
)


def _is_number(value: Any) -> bool:
    """Whether it is a whole number of 64 bits."""
    return type(value) is int and 0 <= value < 1 << 64


def _open_now(path: str, flags: int) -> int:
    """Open without waiting for somebody at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


class Dump(Closing):
    """A saved machine. It is looked into as a running one: `view`, `ram`, `registers`.

    Args:
        path: The file that `Machine.dump` wrote.
        kernel: The kernel's ELF file; the one that `kos.boot` would take when left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no dump, or a damaged one.
        HostError: The kernel is another one than the dump's.

    Example:
        >>> import tempfile
        >>> import kos
        >>> from kos.inspect import Dump
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kos.default_machine().dump(f"{folder}/dump")
        ...     with Dump(f"{folder}/dump") as dump:
        ...         dump.view["zones"][0].name.string_()
        b'DMA'
    """

    def __init__(
        self, path: str | os.PathLike[str], *, kernel: str | os.PathLike[str] | None = None
    ) -> None:
        self.path = Path(path)
        with open(self.path, "rb", opener=_open_now) as file:
            try:
                told = self._read(file)
            except _DAMAGES as error:
                what = f"{error}" if isinstance(error, ValueError) else f"{error!r}"
                raise ValueError(f"{self.path} is no dump, or a damaged one: {what}") from None
        self.build_id: str = told["build_id"]
        #: What the console had printed.
        self.console: str = told["console"]
        #: What ended the machine, or None.
        self.failure: str | None = told["failure"]
        self.cpus: int = told["cpus"]
        self._registers: list[Registers] = told["registers"]
        self.kernel, abi_path = image.find(kernel)
        self.abi = Abi.load(abi_path)
        if self.abi.build_id != self.build_id:
            raise HostError(
                f"{self.path} is of the kernel with build id {self.build_id}; "
                f"{self.kernel} has {self.abi.build_id}"
            )

    def _read(self, file: Any) -> dict[str, Any]:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or file.read(7) != b"\x7fELF\2\1\1":
            raise ValueError("no KOS machine is in it")
        file.seek(0)
        elf = ELFFile(file)
        told = self._note(elf)
        #: Bytes of RAM.
        self.memory: int = told["memory"]
        self.ram_layout = RamLayout.of(told["machine"], self.memory)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._map = mmap.mmap(-1, self.memory, flags=flags)
        left = 2 * state.st_size  # the image and the stacks are told twice
        for segment in elf.iter_segments("PT_LOAD"):
            left -= segment["p_filesz"]
            if left < 0:
                raise ValueError("it tells more than it has")
            self._load(file, segment["p_offset"], segment["p_paddr"], segment["p_filesz"])
        return told

    def _note(self, elf: ELFFile) -> dict[str, Any]:
        for segment in elf.iter_segments("PT_NOTE"):
            if not isinstance(segment, NoteSegment) or segment["p_filesz"] > _MAX_NOTE:
                raise ValueError(f"{segment['p_filesz']} bytes of notes are too many")
            for note in segment.iter_notes():
                if note["n_name"] == "KOS":
                    return self._checked(json.loads(note["n_descdata"]))
        raise ValueError("no KOS machine is in it")

    def _checked(self, told: Any) -> dict[str, Any]:
        """What the note says, if all of it is of the kind that it should be."""
        if not _is_number(told["format"]) or told["format"] != _FORMAT:
            raise ValueError(f"it has format {told['format']!r}; this KOS reads {_FORMAT}")
        check_memory(told["memory"])
        check_cpus(told["cpus"])
        good = (
            told["machine"] in get_args(MachineType)
            and all(isinstance(told[name], str) for name in ("build_id", "console"))
            and isinstance(told["failure"], str | None)
            and all(_is_number(told[name]) for name in ("memory", "cpus"))
            and isinstance(told["registers"], list)
            and len(told["registers"]) in (0, told["cpus"])
            and all(_is_number(v) for one in told["registers"] for v in one.values())
        )
        if not good:
            raise ValueError("its note does not make sense")
        return dict(told)

    def _load(self, file: Any, at: int, paddr: int, size: int) -> None:
        low = self.ram_layout.low_size
        offset = paddr if paddr < low else paddr - (1 << 32) + low
        end = low if paddr < low else self.memory
        if low <= paddr < 1 << 32 or offset + size > end:
            raise ValueError(f"it has a part at {paddr:#x}, where there is no RAM")
        file.seek(at)
        if file.readinto(memoryview(self._map)[offset : offset + size]) != size:
            raise ValueError("it is cut short")

    @property
    def ram(self) -> memoryview:
        """All RAM, read-only, one byte an element."""
        return memoryview(self._map).toreadonly()

    def registers(self) -> list[Registers]:
        """The registers of each CPU, by name."""
        return self._registers

    @cached_property
    def view(self) -> "View":
        """The dump by the names of the kernel's source; see `kos.inspect.view`."""
        from kos.inspect.view import View

        return View(self.kernel, self.abi, self.ram, self.ram_layout, self.registers)

    def close(self) -> None:
        """Let go of the RAM, once nobody looks at it any more."""
        self.__dict__.pop("view", None)

    def __repr__(self) -> str:
        return f"<Dump {self.path}, {self.memory >> 20}M, {self.cpus} CPUs>"
