"""A recorded run in one file, `run.kos`: a zip archive that needs nothing else to be played again.

    recording.json   what the machine is made of, where the run ended, a hash of RAM there
    log              QEMU's log of what came from outside, and when
    kos.elf          the kernel
    kos.abi.json     what is known of that kernel

The file may come from anybody. Nothing in it names a path or an option of QEMU: each field of
`recording.json` is checked against what `kos.boot` allows, sizes are bounded before anything is
unpacked, and nothing is unpacked to a named file.
"""

import hashlib
import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from kos import image
from kos.abi import Abi
from kos.exceptions import HostError
from kos.machine._argv import check_memory
from kos.machine._ram import MachineType

FORMAT = 1
_MAX_APPEND = 4096
_MIB = 1 << 20
#: The members of the archive, and the size that each may have.
# What is needed of a kernel's ABI file to play its run and to look into it.
_STRUCTS = ("frame_hello", "panic_report", "pt_regs")
_SYMBOLS = (
    *("KERNEL_BASE", "kernel_start", "kernel_end", "kernel_root", "uart_console", "uart_wire"),
    *("layout_direct_map", "layout_page_array", "layout_stacks"),
)
_LIMITS = {
    "recording.json": _MIB,
    "log": 512 * _MIB,
    "kos.elf": 64 * _MIB,
    "kos.abi.json": 16 * _MIB,
}
_PAGE = 4096


@dataclass(frozen=True)
class Run:
    """What a recording says of its run.

    Attributes:
        build_id: The kernel's.
        machine: `microvm` or `q35`.
        memory: Bytes of RAM.
        append: The kernel's whole command line.
        instructions: How many were executed.
        ram: Hash of RAM at the end, as `ram_hash` makes it.
        end: Why the run ended, for people.
        kos: Version of the package that recorded it.
        qemu: Version of QEMU that recorded it.
    """

    build_id: str
    machine: MachineType
    memory: int
    append: str
    instructions: int
    ram: str
    end: str
    kos: str
    qemu: str

    def check(self) -> None:
        """ValueError, or TypeError, that names the field which is not as `kos.boot` allows."""
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = int if field.name in ("memory", "instructions") else str
            if type(value) is not wanted:
                raise TypeError(f"{field.name} is {value!r:.80}, not of type {wanted.__name__}")
        check_memory(self.memory)
        if self.machine not in get_args(MachineType):
            raise ValueError(f"machine is {self.machine!r:.80}")
        if len(self.append) > _MAX_APPEND or not self.append.isprintable():
            raise ValueError(f"append is {self.append!r:.80}")
        if not 0 <= self.instructions < 1 << 63:
            raise ValueError(f"instructions is {self.instructions}")
        patterns = {"build_id": "[0-9a-f]{8,128}", "ram": "[0-9a-f]{64}", "qemu": r"\d+\.\d+\.\d+"}
        for name, pattern in patterns.items():
            if not re.fullmatch(pattern, getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}")


@dataclass(frozen=True)
class Recording:
    """A recording, unpacked: the run, QEMU's log, the kernel and the text of its ABI file."""

    run: Run
    log: bytes
    kernel: bytes
    abi: bytes

    def write(self, path: Path) -> None:
        """Save it; the file appears whole or not at all, and takes the place of an older one."""
        about = {"format": FORMAT} | asdict(self.run)
        members = {
            "recording.json": json.dumps(about, indent=1).encode(),
            "log": self.log,
            "kos.elf": self.kernel,
            "kos.abi.json": self.abi,
        }
        for member, limit in _LIMITS.items():
            if len(members[member]) > limit:
                raise HostError(f"{path}: {member} has {len(members[member])} bytes, over {limit}")
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with (
                open(fd, "wb") as file,
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            ):
                for member, data in members.items():
                    archive.writestr(member, data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def parse_abi(self) -> Abi:
        """What is known of the kernel; ValueError when the file does not make sense."""
        try:
            abi = Abi(json.loads(self.abi))
            for name in _STRUCTS:
                abi.layout(name)
            for name in _SYMBOLS:
                abi.symbols[name]
            return abi
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"its ABI file makes no sense: {error}") from None


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording and check all that is in it.

    Raises:
        HostError: There is no such file, or it cannot be read.
        ValueError: It is no recording, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpack(archive)
    except OSError as error:
        raise HostError(f"{os.fspath(path)}: {error.strerror or error}") from None
    except (
        # What zipfile raises for a file that is no archive, cut short or damaged.
        *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError),
        *(ValueError, TypeError, LookupError, struct.error, zlib.error),
    ) as error:
        raise ValueError(f"{os.fspath(path)} is no recording, or a damaged one: {error}") from None


def _unpack(archive: zipfile.ZipFile) -> Recording:
    infos = {info.filename: info for info in archive.infolist()}
    if set(infos) != set(_LIMITS) or len(archive.infolist()) != len(_LIMITS):
        raise ValueError(f"it has to hold {', '.join(_LIMITS)}, and nothing else")
    for name, limit in _LIMITS.items():
        if infos[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in a way that recordings are not")
        if infos[name].file_size > limit:
            raise ValueError(f"{name} has {infos[name].file_size} bytes; {limit} are allowed")
    run = _parse_run(archive.read("recording.json"))
    parts = [archive.read(name) for name in ("log", "kos.elf", "kos.abi.json")]
    recording = Recording(run, *parts)
    found = image.build_id_of(recording.kernel, "kos.elf")
    ids = {run.build_id, found, recording.parse_abi().build_id}
    if len(ids) != 1:
        raise ValueError(
            f"the run is of a kernel with build id {run.build_id}, the kernel in it has {found}"
        )
    return recording


def _parse_run(data: bytes) -> Run:
    about: Any = json.loads(data)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"recording.json is not of format {FORMAT}")
    wanted = {field.name for field in fields(Run)}
    if set(about) != wanted | {"format"}:
        raise ValueError(f"recording.json has to have {', '.join(sorted(wanted))}")
    run = Run(**{name: about[name] for name in wanted})
    run.check()
    return run


def ram_hash(ram: memoryview, in_use: Iterable[tuple[int, int]]) -> str:
    """SHA-256 over the pages that are not all zero, each behind its offset.

    Example:
        >>> ram = bytearray(8192)
        >>> empty = ram_hash(memoryview(ram), [(0, 8192)])
        >>> empty == ram_hash(memoryview(ram), []), empty[:8]
        (True, 'e3b0c442')
    """
    sha = hashlib.sha256()
    zero = bytes(_PAGE)
    for start, end in in_use:
        for at in range(start, end, _PAGE):
            page = ram[at : at + _PAGE]
            if page != zero:
                sha.update(struct.pack("<Q", at))
                sha.update(page)
    return sha.hexdigest()
