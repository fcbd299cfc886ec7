"""The host's side of the tiny guest: build it, and talk to it."""

import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

from kos.machine.qemu import Qemu

SOURCES = Path(__file__).parent
CELL = 0x300000  # the byte in RAM that the commands `p` and `g` are about
UP = b"up 0000\n"  # what it prints on RAM that was zero
# Only a failure takes this long.
DEADLINE = 20.0


def build(directory: Path) -> Path:
    """Assemble and link the guest into a directory."""
    elf = directory / "tiny.elf"
    command = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
    command += ["-T", str(SOURCES / "tiny.ld"), "-o", str(elf), str(SOURCES / "tiny.S")]
    subprocess.run(command, check=True)
    return elf


def readable(fd: int, timeout: float = DEADLINE) -> bool:
    """Whether something is to be had from a descriptor before the deadline."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


class Guest:
    """A machine that runs the tiny guest."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu

    def line(self) -> bytes:
        """The next line on COM1, newline included."""
        return self._read(self.qemu.console_fd, lambda data: data.endswith(b"\n"))

    def printed(self, count: int) -> bytes:
        """The next bytes on COM1."""
        return self._read(self.qemu.console_fd, lambda data: len(data) == count)

    def send(self, data: bytes) -> None:
        """Send bytes on COM2."""
        assert os.write(self.qemu.wire_fd, data) == len(data)

    def received(self, count: int) -> bytes:
        """The next bytes on COM2."""
        return self._read(self.qemu.wire_fd, lambda data: len(data) == count)

    def ask(self, request: bytes) -> bytes:
        """Send a command that has one byte of answer."""
        self.send(request)
        return self.received(1)

    def _read(self, fd: int, complete: Callable[[bytes], bool]) -> bytes:
        data = b""
        while not complete(data):
            assert readable(fd), f"nothing more came after {data!r}"
            byte = os.read(fd, 1)
            assert byte, f"the line ended after {data!r}; QEMU said {self.qemu.stderr_text()!r}"
            data += byte
        return data
