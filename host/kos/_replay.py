"""Playing a recorded run again: to its end, or to any instruction of it.

QEMU executes the kernel anew and feeds it, from its log, what came from outside, each byte at the
instruction at which it came. So all of RAM is again what it was, bit by bit.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from kos.exceptions import BootError, HostError, KernelPanic, KOSError, MachineExited, ReplayError
from kos.machine import _record, _recording
from kos.machine._argv import Log
from kos.machine._inside import Inside, Monitor
from kos.machine._recording import Run
from kos.machine.console import Console
from kos.machine.qemu import Qemu
from kos.rpc.wire import Wire

__all__ = ["Replay", "Run", "replay"]

# The recording may come from anybody, so QEMU may do no more than a replay needs.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_STALL = 60.0  # seconds; while a recorded guest was idle, QEMU still reads its log now and then
_LOOK_AGAIN = 0.5


def replay(path: str | os.PathLike[str], until: int | None = None) -> "Replay":
    """Play a recorded run again, and stop.

    Args:
        path: What `kos.boot(record=...)` wrote.
        until: Number of instructions after which to stop; the end of the run when left out.

    Returns:
        The machine as it was at that instruction. It stands still, and can be looked into.

    Raises:
        HostError: There is no such file; QEMU is missing, or another version recorded the run.
        ValueError: The file is no recording, or is damaged; `until` is not within the run.
        ReplayError: The run did not go as it was recorded.

    Example:
        >>> import tempfile
        >>> import kos
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with kos.boot(memory="32M", cpus=1, record=f"{folder}/run.kos") as vm:
        ...         addr = vm.client.buddy_alloc(3)
        ...     with kos.replay(f"{folder}/run.kos") as vm:
        ...         at_end = vm.instructions == vm.run.instructions
        ...         [block.paddr == addr for block in vm.view.blocks(3) if block.paddr == addr]
        [True]
    """
    return Replay(path, until)


class Replay(Inside):
    """A recorded run, stopped at an instruction. Made by `kos.replay()`; see there.

    It is looked into as a machine is: `ram`, `view`, `registers()`, `console.text`, `dump()`. It
    cannot be called, typed to or resumed.

    Attributes:
        run: What the recording says of the run.
        instructions: How many were executed up to here.
    """

    _sealed = True

    def __init__(self, path: str | os.PathLike[str], until: int | None = None) -> None:
        recording = _recording.load(path)
        self.run = run = recording.run
        self.instructions = run.instructions if until is None else _check_until(until, run)
        self.memory, self.machine_type, self.cpus = run.memory, run.machine, 1
        self.abi = recording.parse_abi()
        self.console = Console()
        self._closed = False
        self._log_fd, log = _file("kos-log", recording.log)
        self._kernel_fd, self.kernel = _file("kos.elf", recording.kernel)
        try:
            self._qemu = Qemu(
                self.kernel,
                memory_bytes=run.memory,
                machine=run.machine,
                deterministic=True,
                append=run.append,
                extra_args=["-sandbox", _SANDBOX],
                log=Log("replay", str(log)),
            )
        except BaseException:
            _close_files(self._log_fd, self._kernel_fd)
            raise
        self._start()

    def _start(self) -> None:
        qemu, console = self._qemu, self.console
        qemu.console_tail = console.tail
        self.qmp = Monitor(qemu, questions_only=True)
        fds = (qemu.console_fd, qemu.wire_fd, qemu.pidfd)
        self.wire = Wire(self.abi, fds, console.feed, _exited(qemu), console)
        console.failure = lambda: HostError("a recorded run takes no input, and prints no more")
        files = (self._log_fd, self._kernel_fd)
        self._ended = weakref.finalize(self, _end, self.wire, qemu, files)
        try:
            self._check_version()
            if self.instructions:
                self._play()
            self._settle()
        except (BootError, MachineExited) as error:
            self.close()
            message = f"QEMU ended before instruction {self.instructions}"
            raise ReplayError(message, stderr=error.stderr) from None
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        found, wanted = _record.qemu_version(self._qemu), self.run.qemu
        if found.split(".")[:2] != wanted.split(".")[:2]:
            raise HostError(f"the run was recorded by QEMU {wanted}; this is QEMU {found}")

    def _play(self) -> None:
        """Run to the instruction."""
        stopped = threading.Event()
        qemu = self._qemu

        def note(event: dict[str, object]) -> None:
            if event["event"] == "STOP":
                stopped.set()

        qemu.on_event(note)
        qemu.execute("replay-break", icount=self.instructions)
        qemu.start()
        self._wait(stopped)
        reached = qemu.execute("query-replay")["icount"]
        if reached != self.instructions:
            self._fail(f"the run stopped at instruction {reached}, not at {self.instructions}")

    def _wait(self, stopped: threading.Event) -> None:
        seen, since = (-1, ""), time.monotonic()
        while not stopped.wait(_LOOK_AGAIN):
            now = (self._qemu.execute("query-replay")["icount"], self._log_position())
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > _STALL:
                self._fail(f"the run hangs at instruction {seen[0]}")

    def _log_position(self) -> str:
        """How far QEMU has read its log."""
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                if os.readlink(fd).startswith("/memfd:kos-log"):
                    return Path(f"/proc/{self.pid}/fdinfo/{fd.name}").read_text()
            except OSError:
                continue
        return ""

    def _fail(self, message: str) -> None:
        raise ReplayError(message, stderr=self._qemu.stderr_text())

    def _settle(self) -> None:
        """Take in what the guest printed; compare RAM, if this is the end."""
        read = threading.Event()
        self.wire.after_output(read.set)
        read.wait()
        _record.clear_leftovers(self._qemu)
        if self.at_end and _recording.ram_hash(self.ram, self.ram_in_use()) != self.run.ram:
            self._fail("RAM at the end of the run is not what it was when the run was recorded")

    @property
    def at_end(self) -> bool:
        """Whether this is the end of the run; RAM has then been compared with what it was."""
        return self.instructions == self.run.instructions

    @property
    def failure(self) -> KOSError | None:
        """The panic, if the kernel has panicked up to here."""
        failure = self.wire.failure
        return failure if isinstance(failure, KernelPanic) else None

    def close(self) -> None:
        """End QEMU. Closing twice does nothing."""
        self._closed = True
        self._ended()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"pid {self.pid}"
        return f"<Replay at {self.instructions} of {self.run.instructions} instructions, {state}>"


def _check_until(until: int, run: Run) -> int:
    if isinstance(until, bool) or not isinstance(until, int):
        raise TypeError(f"until {until!r}: a number of instructions is allowed")
    if not 0 <= until <= run.instructions:
        raise ValueError(f"until {until}: the run has {run.instructions} instructions, from 0 on")
    return until


def _file(name: str, data: bytes) -> tuple[int, Path]:
    """A file in memory, and a path by which QEMU and this process can open it."""
    fd = os.memfd_create(name)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd, Path(f"/proc/{os.getpid()}/fd/{fd}")


def _close_files(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def _exited(qemu: Qemu) -> Callable[[bool], KOSError]:
    return lambda booted: MachineExited(
        exit_status=qemu.wait_exit(1.0), argv=qemu.argv, stderr=qemu.stderr_text()
    )


def _end(wire: Wire, qemu: Qemu, fds: tuple[int, ...]) -> None:
    wire.close()
    qemu.close()
    _close_files(*fds)
