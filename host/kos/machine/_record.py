"""Recording a run: QEMU logs what comes from outside, and when; the rest follows from that.

What has to hold while a machine is recorded:

* All input goes through QEMU: calls take the wire, RAM is not written to. See `Machine`.
* No byte of input is lost. A recorded line has no flow control: QEMU takes bytes out of the pipe
  at once, and drops what the UART has no room for when it passes them on. So `Pacer` looks into
  RAM, at the kernel's count of bytes received, and never has more under way than the UART holds.
* RAM at power-on is the same each time. QEMU's loader leaves bytes of its own stack in the page at
  0x1000; the kernel is told to leave that page alone, and it is cleared here.
"""

import contextlib
import importlib.metadata
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kos.abi import Abi
from kos.exceptions import HostError, KOSError
from kos.machine._argv import Log
from kos.machine._ram import MachineType
from kos.machine._recording import Recording, Run, ram_hash
from kos.machine.qemu import Qemu

_LEFTOVERS = slice(0x1000, 0x2000)
#: What a recorded kernel has on its command line.
APPEND = f"reserve={_LEFTOVERS.start:#x}-{_LEFTOVERS.stop - 1:#x}"

_UART_BYTES = 16
_LOOK_AGAIN = 0.0002  # seconds; the kernel empties a UART in some 0.5 ms
_QUIT_DEADLINE = 60.0


def _version() -> str:
    try:
        return importlib.metadata.version("kos")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def qemu_version(qemu: Qemu) -> str:
    """The version of QEMU, as `7.2.22`."""
    return "{major}.{minor}.{micro}".format(**qemu.execute("query-version")["qemu"])


def clear_leftovers(qemu: Qemu) -> None:
    """Clear the page in which QEMU's loader leaves what differs from run to run."""
    qemu.ram[_LEFTOVERS] = bytes(_LEFTOVERS.stop - _LEFTOVERS.start)


class Pacer:
    """Sends on a recorded line as fast as the kernel takes it.

    Args:
        fd: The line.
        received: Counts the bytes that the kernel has taken, modulo 2^32.
    """

    def __init__(self, fd: int, received: Callable[[], int]) -> None:
        self._fd = fd
        self._received = received
        self._sent = 0
        self._lock = threading.Lock()

    def _room(self) -> int:
        return _UART_BYTES - ((self._sent - self._received()) & 0xFFFFFFFF)

    def write(self, data: bytes) -> int:
        """Send what there is room for; BlockingIOError when there is none."""
        with self._lock:
            room = self._room()
            if room <= 0:
                raise BlockingIOError
            count = os.write(self._fd, data[:room])
            self._sent += count
            return count

    def wait(self, seconds: float) -> None:
        """Wait until there is room, but not longer than that or a moment."""
        until = time.monotonic() + min(seconds, 0.05)
        while self._room() <= 0 and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN)


class Recorder:
    """Records one machine, from before it starts until its `close`.

    Args:
        path: The file to write at the end.
        kernel: The kernel's ELF file.
        abi: Its ABI file.
    """

    def __init__(self, path: str | os.PathLike[str], kernel: Path, abi: Path) -> None:
        self.path = Path(path).absolute()
        if self.path.is_dir() or not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise HostError(f"record: {self.path} cannot be written: no folder, or no permission")
        self._kernel, self._abi = kernel.read_bytes(), abi.read_bytes()
        self._owner = os.getpid()
        self._fd = os.memfd_create("kos-log")
        self._close = weakref.finalize(self, os.close, self._fd)
        self._about: dict[str, Any] = {}
        self._run: Run | None = None

    @property
    def log(self) -> Log:
        """What QEMU has to be told."""
        return Log("record", f"/proc/{self._owner}/fd/{self._fd}")

    def describe(self, build_id: str, machine: MachineType, memory: int, append: str) -> None:
        """Note what the machine is made of."""
        self._about = {"build_id": build_id, "machine": machine, "memory": memory, "append": append}

    @staticmethod
    def pacers(qemu: Qemu, abi: Abi) -> tuple[Pacer, Pacer]:
        """What is to send on COM1 and COM2."""
        head = abi.layout("uart").offset("head")

        def counter(uart: str) -> Callable[[], int]:
            at = abi.symbols[uart] - abi.symbols["KERNEL_BASE"] + head
            word = qemu.ram[at : at + 4].cast("I")
            return lambda: word[0]

        console, wire = qemu.input_fds
        return Pacer(console, counter("uart_console")), Pacer(wire, counter("uart_wire"))

    @staticmethod
    def booted(qemu: Qemu) -> None:
        """The kernel is up, and the page that it leaves alone can be cleared."""
        clear_leftovers(qemu)

    def stop(self, qemu: Qemu, end: str) -> None:
        """Stop the guest for good and note where it stands. What it sent is read meanwhile."""
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(KOSError):  # QEMU has ended: `finish` says so
            qemu.pause()
            clear_leftovers(qemu)
            self._run = Run(
                **self._about,
                instructions=qemu.execute("query-replay")["icount"],
                ram=ram_hash(qemu.ram, qemu.memory.extents()),
                end=end,
                kos=_version(),
                qemu=qemu_version(qemu),
            )

    def finish(self, qemu: Qemu) -> None:
        """Have QEMU end its log, and write the recording. Call it once, after `stop`."""
        if os.getpid() != self._owner:
            self._close()
            return
        try:
            if self._run is None or not self._quit(qemu):
                message = f"{self.path} was not written: QEMU had ended before its log did"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
                return
            size = os.fstat(self._fd).st_size
            log = os.pread(self._fd, size, 0)
            Recording(self._run, log, self._kernel, self._abi).write(self.path)
        except OSError as error:
            raise HostError(f"{self.path} was not written: {error}") from None
        finally:
            self._close()

    @staticmethod
    def _quit(qemu: Qemu) -> bool:
        with contextlib.suppress(KOSError):
            qemu.execute("quit", timeout=_QUIT_DEADLINE)
        return qemu.wait_exit(_QUIT_DEADLINE) == 0
