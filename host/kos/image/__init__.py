"""Where the kernel image is: `kos.elf` and the ABI file `kos.abi.json` that belongs to it.

An installed package carries both in this folder. In a source tree (an editable install, or tests
run from it) they are what `make build` left in `build/`. `KOS_KERNEL` names another kernel.
"""

import os
import struct
from pathlib import Path

from kos.exceptions import HostError

__all__ = ["build_id", "find"]

_HERE = Path(__file__).resolve().parent
_MEND = "make build"

_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3


def find(kernel: str | os.PathLike[str] | None = None) -> tuple[Path, Path]:
    """Find the kernel image to boot and its ABI file.

    The first of these that is there: `kernel`, the file named by the environment variable
    `KOS_KERNEL`, the image installed with the package, `build/` of the source tree. A kernel that
    was named must exist: nothing else is taken in its place.

    Args:
        kernel: The kernel's ELF file; its ABI file is beside it (`kos.elf`, `kos.abi.json`).

    Returns:
        The absolute paths of the kernel and of its ABI file.

    Raises:
        HostError: One of the files is missing; says which were looked for.

    Example:
        >>> from kos import image
        >>> kernel, abi = image.find()
        >>> abi.name
        'kos.abi.json'
    """
    named = kernel if kernel is not None else os.environ.get("KOS_KERNEL")
    if named:
        candidates = [Path(named).absolute()]
    else:
        candidates = [folder / "kos.elf" for folder in _folders()]
    pairs = [(path, path.with_suffix(".abi.json")) for path in candidates]
    for pair in pairs:
        if all(path.is_file() for path in pair):
            return pair
    looked_for = "; ".join(f"{path} with {beside.name}" for path, beside in pairs)
    raise HostError(f"no kernel image: looked for {looked_for}", mend=_MEND)


def _folders() -> list[Path]:
    """The folders that may hold the image: the package's own, then the source tree's `build/`."""
    folders = [_HERE]
    root = _HERE.parents[2]
    if _HERE.parents[1].name == "host" and (root / "linker.ld").is_file():
        folders.append(root / "build")
    return folders


def build_id(kernel: str | os.PathLike[str]) -> str:
    """Read the build id out of a kernel's ELF notes.

    Args:
        kernel: A 64-bit little-endian ELF file.

    Returns:
        The id in hexadecimal, as `readelf -n` shows it.

    Raises:
        ValueError: The file is no such ELF file or has no build id.
        OSError: The file cannot be read.

    Example:
        >>> len(build_id(find()[0]))
        40
    """
    return build_id_of(Path(kernel).read_bytes(), os.fspath(kernel))


def build_id_of(data: bytes, name: str) -> str:
    """The same for the contents of a file; the name is for the error."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{name} is no 64-bit little-endian ELF file")
    try:
        found = _note(data, b"GNU\0", _NT_GNU_BUILD_ID)
    except (struct.error, OverflowError):
        raise ValueError(f"{name} is cut short") from None
    if found is None:
        raise ValueError(f"{name} has no build id")
    return found.hex()


def _note(data: bytes, name: bytes, kind: int) -> bytes | None:
    """The content of the first ELF note of that name and type."""
    (phoff,) = struct.unpack_from("<Q", data, 32)
    phentsize, phnum = struct.unpack_from("<HH", data, 54)
    for header in range(phoff, phoff + phnum * phentsize, phentsize):
        p_type, _, at, _, _, size = struct.unpack_from("<IIQQQQ", data, header)
        end = at + size
        while p_type == _PT_NOTE and at + 12 <= end:
            namesz, descsz, n_type = struct.unpack_from("<III", data, at)
            desc = at + 12 + (namesz + 3 & ~3)
            if n_type == kind and data[at + 12 : at + 12 + namesz] == name:
                return data[desc : desc + descsz]
            at = desc + (descsz + 3 & ~3)
    return None
