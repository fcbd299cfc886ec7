"""One QEMU process and its plumbing: RAM, two serial lines, the monitor, its birth and its death.

Everything that connects the two processes is an inherited descriptor: no port, no socket file and
no temporary file exists, so nothing can be left behind or taken by somebody else. (A recorded
machine's serial lines are pipes, which have names until QEMU has opened them.) What the guest
runs and what goes over the lines is the business of the layers above.
"""

import os
import shutil
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos._closing import Closing
from kos.exceptions import (
    BootError,
    CallTimeout,
    HostError,
    KOSError,
    MachineExited,
    ProtocolError,
)
from kos.machine._argv import QEMU, Accel, Config, Log, build_argv, choose_accel, parse_size
from kos.machine._lines import Lines, Pipe, Pipes, Sockets
from kos.machine._ram import GuestRam, MachineType, RamLayout
from kos.machine._spawn import Process

if TYPE_CHECKING:
    from kos.machine._qmp import Event

__all__ = ["Accel", "MachineType", "Qemu", "choose_accel", "parse_size"]

START_DEADLINE = 30.0
RESET_DEADLINE = 10.0
QUIT_DEADLINE = 1.0
# How long a killed process may take to go: the kernel frees its memory before it reports the exit.
DEATH_DEADLINE = 10.0


class Qemu(Closing):
    """A QEMU process. It is spawned by the constructor and waits, paused, for `start()`.

    It ends with `close()`, with the last reference to this object, or with this Python process,
    whatever ends that. All methods may be called from any thread. A process forked from this one
    does not own the machine: there every method but `close()` raises HostError, and `close()` only
    gives up the child's copies.

    Args:
        kernel: ELF file with a PVH note, or anything else that QEMU's `-kernel` takes.
        memory_bytes: RAM size: 16 MiB to 64 GiB, a multiple of 4096.
        cpus: Number of CPUs, 1 to 8.
        machine: `microvm`, which starts fastest, or `q35`.
        accel: `tcg` or `kvm`; see `choose_accel`.
        deterministic: Count instructions instead of time, so that equal runs are equal.
        append: The kernel's command line.
        extra_args: More QEMU arguments.
        log: Record the run in this log, or play it again from there.

    Raises:
        ValueError: An argument is out of range.
        HostError: QEMU or a helper is not installed.

    Example:
        >>> with Qemu(kernel, memory_bytes=64 << 20) as qemu:  # doctest: +SKIP
        ...     qemu.start()
        ...     qemu.execute("query-status")["running"]
        True
    """

    def __init__(
        self,
        kernel: Path,
        *,
        memory_bytes: int,
        cpus: int = 1,
        machine: MachineType = "microvm",
        accel: Accel = "tcg",
        deterministic: bool = False,
        append: str = "",
        extra_args: Sequence[str] = (),
        log: Log | None = None,
    ) -> None:
        config = Config(
            Path(kernel), memory_bytes, cpus, machine, accel, deterministic, append, extra_args, log
        )
        #: Called for the console text that this object's errors carry; set by whoever reads it.
        self.console_tail: Callable[[], str] = str
        self._layout = RamLayout.of(machine, memory_bytes)
        self._owner = os.getpid()
        self._started = False
        self._close_lock = threading.Lock()
        self._still_lock = threading.Lock()
        self._still = 0
        self._goes_on = False
        self._spawn(config)

    def _spawn(self, config: Config) -> None:
        qemu = shutil.which(QEMU)
        if qemu is None:
            mend = "apt-get install --no-install-recommends qemu-system-x86"
            raise HostError(f"{QEMU} was not found", mend=mend)
        with ExitStack() as undo, ExitStack() as guest_ends:
            self._ram = GuestRam(config.memory_bytes)
            undo.callback(self._ram.close)
            monitor_socket, monitor = socket.socketpair()
            undo.callback(monitor_socket.close)
            guest_ends.callback(monitor.close)
            self._ends: Lines = Sockets() if config.log is None else Pipes()
            #: Our ends of COM1 and COM2.
            self._lines = self._ends.ours
            undo.callback(self._ends.close)
            guest_ends.callback(self._ends.started)
            console, wire = self._ends.backends
            fds = {"ram_fd": self._ram.fd, "monitor_fd": monitor.fileno()}
            argv = build_argv(config, qemu, console=console, wire=wire, **fds)
            self._process = Process(argv, [*fds.values(), *self._ends.fds])
            undo.callback(_end, self._process)
            # Here, while QEMU starts, because it takes as long as that.
            from kos.machine._qmp import Monitor

            self._monitor = Monitor(monitor_socket, self._process.pidfd)
            undo.pop_all()
        resources = (self._process, self._ram, self._ends)
        self._release = weakref.finalize(self, _release, self._owner, *resources)

    # What it is

    @property
    def argv(self) -> list[str]:
        """The command line of QEMU."""
        return list(self._process.argv)

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._process.pid

    @property
    def pidfd(self) -> int:
        """Descriptor that becomes readable when QEMU exits; -1 after `close()`."""
        return self._process.pidfd

    @property
    def console_fd(self) -> int:
        """Our non-blocking end of COM1; -1 after `close()`."""
        return self._lines[0].fileno()

    @property
    def wire_fd(self) -> int:
        """Our non-blocking end of COM2; -1 after `close()`."""
        return self._lines[1].fileno()

    @property
    def input_fds(self) -> tuple[int, int]:
        """Where what is typed on COM1 and COM2 goes in; with sockets, the same as the lines."""
        console, wire = (x.input_fd if isinstance(x, Pipe) else x.fileno() for x in self._lines)
        return console, wire

    @property
    def memory(self) -> GuestRam:
        """Guest RAM as a file: which parts are in use, saving and loading all of it."""
        return self._ram

    @property
    def layout(self) -> RamLayout:
        """Where in RAM a physical address lies."""
        return self._layout

    @property
    def ram(self) -> memoryview:
        """All of guest RAM, writable, one byte an element; see `phys_to_ram_offset`.

        The view stays valid, with the last contents, for as long as it is held, even after
        `close()`; afterwards no new one can be had (ValueError).
        """
        return self._ram.view()

    def phys_to_ram_offset(self, paddr: int) -> int | None:
        """Where in `ram` a guest physical address is.

        Args:
            paddr: Guest physical address.

        Returns:
            The offset, or None where the guest has no RAM: beyond its end, in the hole below 4 GiB,
            and where firmware may cover it below 1 MiB.
        """
        return self._layout.offset(paddr)

    def stderr_text(self) -> str:
        """What QEMU has printed to stdout and stderr, the last 64 KiB; also after `close()`."""
        return self._process.output()

    # The monitor

    def execute(self, command: str, *, timeout: float = 10.0, **arguments: Any) -> Any:
        """Run a QMP command and wait for its result.

        Args:
            command: Name of the command.
            timeout: Seconds to wait at most.
            arguments: Its arguments; a name with a dash goes in as `**{"command-line": ...}`.

        Raises:
            MonitorError: QEMU refused it.
            CallTimeout: There was no answer in time.
            BootError: QEMU ended before it had been started.
            MachineExited: QEMU ended, before or while waiting.
            RuntimeError: Called from an event callback.
        """
        self._check_owner()
        try:
            return self._monitor.execute(command, arguments, timeout)
        except self._monitor.Lost:
            raise self._exit_error() from None
        except CallTimeout as error:
            error.console = self.console_tail()
            raise

    def human(self, command: str) -> str:
        """Run a command of QEMU's monitor for people, and return what it printed."""
        said: str = self.execute("human-monitor-command", **{"command-line": command})  # type: ignore[arg-type]
        return said

    def on_event(self, callback: "Callable[[Event], None]") -> Callable[[], None]:
        """Call back for each QMP event from now on.

        The callback gets the event as QMP has it (`event`, `data`, `timestamp`), on a thread that
        serves all machines: it must be brief, and it cannot call `execute`. It is held until the
        machine has ended, and so is what it holds.

        Returns:
            A function that ends the subscription.
        """
        self._check_owner()
        return self._monitor.subscribe(callback)

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise HostError(
                f"this machine belongs to process {self._owner}, from which this one was forked"
            )

    def _exit_error(self) -> KOSError:
        """What to raise once the monitor's connection is gone."""
        status = self._process.wait(DEATH_DEADLINE)
        stderr, console = self.stderr_text(), self.console_tail()
        if status is None:
            return ProtocolError("QEMU closed its monitor connection, but runs on")
        if not self._started:
            return BootError(
                "QEMU ended before the guest was started",
                argv=self.argv,
                exit_status=status,
                stderr=stderr,
                console=console,
            )
        return MachineExited(
            exit_status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            argv=self.argv,
            stderr=stderr,
            console=console,
        )

    # Running

    def start(self, *, timeout: float = START_DEADLINE) -> None:
        """Let the guest run, once QEMU is ready.

        Raises:
            BootError: QEMU ended instead; the error has its argv, exit status and stderr.
        """
        self.execute("cont", timeout=timeout)
        self._started = True
        self._ends.opened()

    def pause(self) -> None:
        """Stop all CPUs of the guest; RAM keeps still afterwards."""
        with self._still_lock:
            self._goes_on = False
            self.execute("stop")

    def resume(self) -> None:
        """Let a paused guest go on. One that has shut down needs `reset()` instead.

        While somebody keeps it `still` it goes on when the last of them is done.
        """
        with self._still_lock:
            self._goes_on = True
            if not self._still:
                self.execute("cont")

    def is_to_run(self) -> bool:
        """Whether the CPUs run, or will once nobody keeps them still."""
        with self._still_lock:
            return self._goes_on if self._still else self.is_running()

    def is_running(self) -> bool:
        """Whether the CPUs run: not paused, and not stopped by a triple fault."""
        return bool(self.execute("query-status")["running"])

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep the guest paused inside a `with`, until the last thread that does so is done."""
        with self._still_lock:
            if not self._still:
                self._goes_on = self._stop()
            self._still += 1
        try:
            yield
        finally:
            with self._still_lock:
                self._still -= 1
                if not self._still and self._goes_on:
                    self.execute("cont")

    def _stop(self) -> bool:
        """Pause the guest if it runs; whether it did."""
        try:
            running = self.is_running()
            if running:
                self.execute("stop")
        except MachineExited:
            return False  # its RAM is still here, and still
        return running

    def reset(self, *, zero_ram: bool = True) -> None:
        """Boot the guest anew in the same process, also after a triple fault.

        Bytes in flight on the serial lines stay in flight; views of `ram` stay valid.

        Args:
            zero_ram: Clear RAM as well, as if the power had been off.
        """
        self.pause()
        if zero_ram:
            self._ram.zero()
        self._reset_cpus()
        self.resume()

    def _reset_cpus(self) -> None:
        # The command only notes the request. Were the guest resumed before the event says that it
        # was carried out, it would run a while in the old state, on RAM that has been cleared.
        done = threading.Event()

        def note(event: "Event") -> None:
            if event["event"] == "RESET":
                done.set()

        unsubscribe = self.on_event(note)
        self.execute("set-action", reboot="reset")
        try:
            self.execute("system_reset")
            if not done.wait(RESET_DEADLINE):
                raise CallTimeout("system_reset", RESET_DEADLINE, self.console_tail())
        finally:
            unsubscribe()
            self.execute("set-action", reboot="shutdown")

    def reset_stopped(self) -> None:
        """After a triple fault nothing but a reset lets the guest run again; it stays paused."""
        if self.execute("query-status")["status"] == "shutdown":
            self._reset_cpus()

    def send_fd(self, fd: int, name: str) -> None:
        """Hand QEMU a copy of a descriptor, which commands then know by that name."""
        self._check_owner()
        try:
            self._monitor.send_fd(fd, name, DEATH_DEADLINE)
        except self._monitor.Lost:
            raise self._exit_error() from None

    def replace_lines(self) -> list[socket.socket | Pipe]:
        """Give both serial lines new sockets: what is under way in the old ones is never read.

        Returns:
            The old ones, for the caller to close once nobody waits for them.
        """
        old = list(self._lines)
        for index, name in enumerate(("console", "wire")):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self._lines[index] = ours
            with theirs:
                self.send_fd(theirs.fileno(), f"kos-{name}")
            address = {"type": "fd", "data": {"str": f"kos-{name}"}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            self.execute("chardev-change", id=name, backend=backend)
        return old

    # The end

    def exit_status(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs."""
        return self.wait_exit(0)

    def wait_exit(self, timeout: float | None = None) -> int | None:
        """Wait until QEMU ends.

        Args:
            timeout: Seconds to wait at most; None for no limit.

        Returns:
            The exit status, negative for a signal; None if QEMU still runs.
        """
        self._check_owner()
        return self._process.wait(timeout)

    def close(self) -> None:
        """End QEMU and give back every resource. It may be called twice, and from two threads."""
        if os.getpid() != self._owner:
            self._release()
            return
        with self._close_lock:
            if self._release.alive:
                self._quit()
                self._release()
                self._monitor.wait_finished(DEATH_DEADLINE)

    def _quit(self) -> None:
        """Let QEMU flush and leave by itself, if it can and there is anything to flush."""
        if not self._started or self._monitor.in_loop_thread():
            return
        deadline = time.monotonic() + QUIT_DEADLINE
        with suppress(KOSError):
            self.execute("quit", timeout=QUIT_DEADLINE)
            self._process.wait(max(0.0, deadline - time.monotonic()))

    def __repr__(self) -> str:
        return f"<Qemu pid={self.pid} {self._layout.size >> 20} MiB>"


def _end(process: Process) -> None:
    process.kill()
    if process.wait(DEATH_DEADLINE) is not None:
        process.close()


def _release(owner: int, process: Process, ram: GuestRam, lines: Lines) -> None:
    """Kill QEMU and close what connected it to this process; in a forked child, only the latter."""
    if os.getpid() == owner:
        _end(process)
    lines.close()
    ram.close()
