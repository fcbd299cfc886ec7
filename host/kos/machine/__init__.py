"""A machine: one QEMU with KOS running in it."""

import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kos import image
from kos.abi import Abi
from kos.coverage import Collector
from kos.exceptions import BootError, HostError, KernelPanic, KOSError, MachineExited
from kos.machine._argv import Accel, choose_accel, parse_size
from kos.machine._inside import Inside, Monitor
from kos.machine._ram import MachineType
from kos.machine._snapshot import Snapshot, States
from kos.machine.console import Console
from kos.machine.qemu import Qemu
from kos.rpc.client import Batch, Client
from kos.rpc.ring import Ring
from kos.rpc.wire import Wire

if TYPE_CHECKING:
    from kos.machine._record import Pacer, Recorder

__all__ = ["Machine", "Monitor"]

_BOOT_DEADLINE = 60.0
_CLIENT_CLOSE = 4


class Machine(Inside):
    """A running KOS. Made by `kos.boot()`; see there for the arguments.

    Example:
        >>> import kos
        >>> with kos.boot(memory="64M") as vm:
        ...     addr = vm.client.buddy_alloc(0)
        ...     vm.client.buddy_free(addr, 0)
        ...     vm.console.run("alloc 0").startswith("0x")
        True
    """

    def __init__(
        self,
        *,
        memory: int | str = "256M",
        cpus: int | None = None,
        machine: MachineType = "microvm",
        accel: Literal["auto", "tcg", "kvm"] = "auto",
        deterministic: bool = False,
        kernel: str | os.PathLike[str] | None = None,
        append: str = "",
        carrier: str | None = None,
        record: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
        boot_timeout: float = _BOOT_DEADLINE,
    ) -> None:
        self.memory = parse_size(memory)
        cpus = (2 if record is None else 1) if cpus is None else cpus
        self.cpus = cpus
        self.kernel, abi_path = image.find(kernel)
        self._sealed = record is not None
        self.deterministic = deterministic = deterministic or self._sealed
        self._check_carrier(carrier)
        self.abi = Abi.load(abi_path)
        self.clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self.abandoned: list[int] = []
        self.console = Console()
        self._owner = os.getpid()
        self._carrier = carrier or ("frames" if self._sealed else "rings")
        self._timeout = timeout
        self._boot_timeout = boot_timeout
        self._lock = threading.RLock()
        self._closed = False
        self._client: Client | None = None
        accelerator: Accel = "tcg" if deterministic else choose_accel(accel)
        if deterministic:
            append = f"spin=0 {append}"
        self._recorder: Recorder | None = None
        if record is not None:
            from kos.machine import _record

            append = f"{_record.APPEND} {append}"
            self._recorder = _record.Recorder(record, self.kernel, abi_path)
            self._recorder.describe(self.abi.build_id, machine, self.memory, append.strip())
        self._qemu = Qemu(
            self.kernel,
            memory_bytes=self.memory,
            cpus=cpus,
            machine=machine,
            accel=accelerator,
            deterministic=deterministic,
            append=append.strip(),
            log=self._recorder.log if self._recorder else None,
        )
        self.accel = accelerator
        self.machine_type = machine
        self._states = States(self._qemu)
        self._snapshot: Snapshot | None = None
        self._start()

    def _start(self) -> None:
        self._qemu.console_tail = self.console.tail
        pacers = self._recorder.pacers(self._qemu, self.abi) if self._recorder else (None, None)
        self.console.attach(self._qemu.console_fd, pacers[0])
        self.qmp = Monitor(self._qemu, questions_only=self._sealed)
        self.wire = _make_wire(self.abi, self._qemu, self.console, pacers[1])
        self._coverage = Collector(self.abi, self._qemu)
        self._ended = weakref.finalize(
            self, _end, self.wire, self._qemu, self._coverage, self._recorder
        )
        try:
            self._qemu.on_event(_event_handler(weakref.ref(self)))
            self._qemu.start(timeout=self._boot_timeout)
            self._wait_ready()
            if self._recorder is not None:
                self._recorder.booted(self._qemu)
        except BaseException:
            self.close()
            raise

    # Starting and ending

    def _wait_ready(self) -> None:
        """Wait for the kernel's hello, check that it is the kernel we know, and connect."""
        wire = self.wire
        if not wire.ready.wait(self._boot_timeout):
            raise self._boot_error(f"the kernel was not ready within {self._boot_timeout:g} s")
        if wire.failure is not None:
            raise wire.failure
        hello = self.abi.layout("frame_hello").decode(wire.hello or b"")
        build_id = bytes(hello["build_id"]).hex()  # type: ignore[arg-type]
        if build_id != self.abi.build_id:
            raise self._boot_error(
                f"the running kernel has build id {build_id}, "
                f"its ABI file is for {self.abi.build_id}"
            )
        self.boot_ticks = int(hello["boot_ticks"])  # type: ignore[arg-type]
        self._client = self._first_client(int(hello["client"]), int(hello["ring"]))  # type: ignore[arg-type]

    def _boot_error(self, message: str) -> BootError:
        return BootError(
            message,
            argv=self._qemu.argv,
            stderr=self._qemu.stderr_text(),
            console=self.console.tail(),
        )

    def check_owner(self) -> None:
        """Raise HostError in a process that was forked from the one that booted the machine."""
        if os.getpid() != self._owner:
            raise HostError("this machine belongs to the parent process; boot one here")

    def _check_open(self) -> None:
        self.check_owner()
        if self._closed:
            raise HostError("the machine is closed")

    def _check_unsealed(self, what: str) -> None:
        if self._sealed:
            raise HostError(f"{what}: a recorded machine runs from its start to its end, once")

    def _check_carrier(self, carrier: str | None) -> None:
        if self._sealed and carrier == "rings":
            raise ValueError(
                "carrier 'rings': a recorded machine's RAM is not written to, so its calls take "
                "'frames'"
            )

    def guest_stopped(self) -> None:
        """QEMU says that the guest shut down or reset itself."""
        if self.wire.leaving:
            boots = self.wire.boots
            threading.Thread(
                target=self._reboot, args=(boots,), name="kos-reboot", daemon=True
            ).start()
            return
        reason = "triple fault: the CPU reset itself, and the kernel could not say why"
        self.wire.fail(KernelPanic(reason, text=self.console.tail()))

    def _reboot(self, boots: int) -> None:
        try:
            with self._lock:
                if self.wire.boots == boots:  # else it was reset or went back in the meantime
                    self.reset()
        except KOSError as error:
            self.wire.fail(error)

    # What it offers

    @property
    def client(self) -> Client:
        """The machine's own client: its methods are the kernel's calls."""
        if self._client is None:
            raise HostError("the machine is closed")
        return self._client

    def connect(self, name: str = "client", *, carrier: str | None = None) -> Client:
        """Open one more client, which owns what it allocates.

        Args:
            name: Shown by the console's `clients`.
            carrier: `rings` or `frames`; the machine's own when left out.
        """
        self._check_carrier(carrier)
        self._reap()
        return Client(self, name, carrier=carrier or self._carrier, timeout=self._timeout)

    def _first_client(self, client: int, ring: int) -> Client:
        """The client that the kernel made ready at boot, so that connecting takes no time."""
        if not client:
            return self.connect("python")
        ready = (client, ring)
        return Client(self, "host", carrier=self._carrier, timeout=self._timeout, ready=ready)

    def _reap(self) -> None:
        """Close at the kernel the clients that were dropped without being closed."""
        while self.abandoned:
            self.wire.call(_CLIENT_CLOSE, (self.abandoned.pop(),), timeout=self._timeout)

    def batch(self) -> Batch:
        """Queue calls of `client` and send them together; see `Batch`."""
        return self.client.batch()

    @property
    def recording(self) -> Path | None:
        """The file in which the run is kept when the machine closes, or None."""
        return self._recorder.path if self._recorder else None

    def make_ring(self, paddr: int, timeout: float) -> Ring:
        """The ring that the kernel has at a physical address."""
        return Ring(self.ram, self.ram_offset(paddr), paddr, self.wire, timeout)

    def pause(self) -> None:
        """Stop all CPUs between two instructions."""
        self._qemu.pause()

    def resume(self) -> None:
        """Let the CPUs go on."""
        self._qemu.resume()

    # Going back

    def snapshot(self) -> Snapshot:
        """Keep the state of everything, so that `restore` can go back to it.

        Memory, CPUs, devices, what the console has printed, and which clients are connected are
        kept. It takes as long as copying the RAM that is in use.

        Returns:
            The snapshot. It is kept as long as somebody holds it, or it is the last one.

        Raises:
            KernelPanic, MachineExited: There is nothing to go back to any more.

        Example:
            >>> import kos
            >>> with kos.boot(memory="64M") as vm:
            ...     before = vm.snapshot()
            ...     addr = vm.client.buddy_alloc(4)
            ...     vm.restore(before)
            ...     vm.client.client_info(0).pages
            0
        """
        with self._lock:
            self._check_open()
            self._check_unsealed("snapshot")
            self.wire.check()
            with self.wire.idle():
                running = self._qemu.is_to_run()
                with self.paused():
                    self._snapshot = self._save(running)
            return self._snapshot

    def _save(self, running: bool) -> Snapshot:
        host = {
            "client": self._client,
            "boot_ticks": self.boot_ticks,
            "abandoned": list(self.abandoned),
            "console": self.console.save(),
        }
        clients = [(one, one.ring_addresses, one.timeout) for one in self.clients]
        ram = self._qemu.memory.save()
        return Snapshot(self._states, self._states.save(), ram, running, host, clients)

    def restore(self, snapshot: Snapshot | None = None) -> None:
        """Go back to a snapshot: everything is as it was when that was made.

        Clients that were connected then are connected again, with what they owned then; those that
        have come since are closed. Calls that wait for an answer end with HostError. A machine that
        has panicked meanwhile runs again.

        Args:
            snapshot: When left out, the last one that was made or gone back to. It can be used any
                number of times.

        Raises:
            ValueError: It is another machine's, or there is none.
            MachineExited: QEMU has ended.
        """
        with self._lock:
            self._check_open()
            self._check_unsealed("restore")
            snapshot = self._snapshot if snapshot is None else snapshot
            if getattr(snapshot, "states", None) is not self._states:
                if snapshot is None:
                    raise ValueError("there is no snapshot; `snapshot()` makes one")
                raise ValueError(f"{snapshot!r} is another machine's snapshot, or none at all")
            assert snapshot is not None
            self._snapshot = snapshot
            for client in list(self.clients):
                client.forget()
            self.wire.interrupt()
            try:
                self._load(snapshot)
                self.wire.ready.set()
            except KOSError as error:
                self.wire.fail(error)
                raise

    def _load(self, snapshot: Snapshot) -> None:
        qemu, host = self._qemu, snapshot.host
        qemu.pause()
        self._coverage.collect()
        qemu.reset_stopped()
        old = qemu.replace_lines()
        self.wire.replace_lines(qemu.console_fd, qemu.wire_fd)
        self.console.attach(qemu.console_fd)
        for line in old:
            line.close()
        self._states.load(snapshot.name)
        qemu.memory.load(snapshot.ram)
        self._coverage.rebase()
        self.abandoned[:] = host["abandoned"]
        for client, rings, timeout in snapshot.clients:
            client.rejoin(rings, timeout)
        self._client, self.boot_ticks = host["client"], host["boot_ticks"]
        self.console.load(host["console"])
        if snapshot.running:
            qemu.resume()

    def reset(self) -> None:
        """Boot the kernel anew, with its memory zeroed. All clients but the machine's own end."""
        with self._lock:
            self._check_open()
            self._check_unsealed("reset")
            for client in list(self.clients):
                client.forget()
            self.abandoned.clear()
            self.wire.restart()
            self.console.restart()
            try:
                self._coverage.collect()
                self._qemu.reset()
                self._wait_ready()
            except KOSError as error:
                self.wire.fail(error)
                raise

    def close(self) -> None:
        """End the machine. Closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for client in list(self.clients):
                client.forget()
            self._client = None
            self._ended()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the machine ends by itself (panic, exit); raises what ended it."""
        until = None if timeout is None else time.monotonic() + timeout
        waiter = self.wire.waiter()
        while self.wire.failure is None:
            waiter.clear()
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            if self.wire.failure is None:
                waiter.wait(left)
        self.wire.check()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"pid {self._qemu.pid}"
        return f"<Machine {self.memory >> 20}M, {self.cpus} CPUs, {state}>"


def _make_wire(abi: Abi, qemu: Qemu, console: Console, pacer: "Pacer | None") -> Wire:
    """The wire, whose thread must not hold the Machine: dropping that ends the thread."""
    wire = Wire(
        abi,
        (qemu.console_fd, qemu.wire_fd, qemu.pidfd),
        console.feed,
        lambda booted: _exited(qemu, console, booted),
        console,
        pacer,
    )
    console.failure = lambda: wire.failure
    return wire


def _exited(qemu: Qemu, console: Console, booted: bool) -> KOSError:
    """How QEMU ended, for those who wait for an answer."""
    status = qemu.wait_exit(1.0)
    if not booted:
        return BootError(
            "QEMU ended before the kernel was ready",
            argv=qemu.argv,
            exit_status=status,
            stderr=qemu.stderr_text(),
            console=console.tail(),
        )
    return MachineExited(
        exit_status=status,
        signal=-status if status is not None and status < 0 else None,
        argv=qemu.argv,
        stderr=qemu.stderr_text(),
        console=console.tail(),
    )


def _event_handler(machine: "weakref.ref[Machine]") -> Any:
    def handle(event: Any) -> None:
        vm = machine()
        if vm is not None and event["event"] == "SHUTDOWN" and event["data"].get("guest"):
            # The goodbye of a kernel that reboots may still be in the socket.
            vm.wire.after_output(vm.guest_stopped)

    return handle


def _end(wire: Wire, qemu: Qemu, coverage: Collector, recorder: "Recorder | None") -> None:
    """The wire's thread first: it reads from descriptors that QEMU's object closes."""
    if recorder is not None:
        recorder.stop(qemu, str(wire.failure.message) if wire.failure else "closed")
    wire.close()
    try:
        coverage.collect()
        if recorder is not None:
            recorder.finish(qemu)
    finally:
        qemu.close()
