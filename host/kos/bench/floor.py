"""QEMU's own floor: from spawning it to the first byte that a guest of ten instructions prints.

The guest is a PVH image made here, byte by byte, so that no compiler is needed.
"""

import os
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

_LOAD = 0x100000
# mov $0x3f8,%dx; mov $'H',%al; out %al,%dx; cli; hlt; jmp to the hlt
_CODE = bytes.fromhex("66baf803b048eefaf4ebfd")


def image() -> bytes:
    """An ELF32 with a PVH note and one segment of code."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", _LOAD)
    headers = 52 + 2 * 32
    code_at = headers + len(note)
    size = code_at + len(_CODE)
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        b"\x7fELF\1\1\1", 2, 3, 1, _LOAD, 52, 0, 0, 52, 32, 2, 0, 0, 0,
    )  # fmt: skip
    code = struct.pack("<8I", 1, code_at, _LOAD, _LOAD, len(_CODE), len(_CODE), 7, 1)
    notes = struct.pack("<8I", 4, headers, 0, 0, len(note), len(note), 4, 4)
    return (header + code + notes + note + _CODE).ljust(size, b"\0")


def measure(machine: list[str], memory_mib: int, cpus: int) -> float:
    """Seconds from spawn to the first byte, once."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder, ours, theirs:
        path = Path(folder, "floor.elf")
        path.write_bytes(image())
        argv = ["qemu-system-x86_64", *machine, "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max"]
        argv += ["-m", str(memory_mib), "-smp", str(cpus), "-kernel", str(path)]
        argv += ["-chardev", f"socket,id=c,fd={theirs.fileno()}"]
        argv += ["-device", "isa-serial,index=0,chardev=c"]
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            theirs.close()
            if os.read(ours.fileno(), 1) != b"H":
                raise RuntimeError(f"the floor image did not print: {argv}")
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
