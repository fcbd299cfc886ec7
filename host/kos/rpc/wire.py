"""A machine's two serial lines, served by one thread: COM1 is the console, COM2 the wire.

The thread ends every wait the moment its end is known: the reply, a panic, QEMU's exit. From then
on `failure` says why nothing more will come.
"""

import contextlib
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from kos.abi import Abi
from kos.exceptions import CallTimeout, HostError, KernelPanic, KOSError, ProtocolError
from kos.machine.console import Console
from kos.rpc import frames
from kos.rpc.base import Answer

if TYPE_CHECKING:
    from kos.machine._record import Pacer

_READ = 65536


class Wire:
    """Both serial lines of one machine.

    Args:
        console_fd: Non-blocking end of COM1.
        wire_fd: Non-blocking end of COM2.
        pidfd: Readable when QEMU has exited.
        on_console: Gets the console's bytes as they come.
        on_exit: Makes the error that says how QEMU ended; told whether the kernel had booted.
        console: Waiters there are woken at the end, and errors show the last of its text.
        pacer: Sends on COM2 instead of `wire_fd`.
    """

    def __init__(
        self,
        abi: Abi,
        fds: tuple[int, int, int],
        on_console: Callable[[bytes], None],
        on_exit: Callable[[bool], KOSError],
        console: Console,
        pacer: "Pacer | None" = None,
    ) -> None:
        self._abi = abi
        self._console_fd, self._wire_fd, self._pidfd = fds
        self._on_console = on_console
        self._on_exit = on_exit
        self._console = console
        self._pacer = pacer
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._later: deque[Callable[[], None]] = deque()
        self._closing = False
        self._decoder = frames.Decoder()
        self._call_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._tag = 0
        # What a call waits for: replies, error frames, hellos; None wakes it at the machine's end.
        self._inbox: SimpleQueue[frames.Received | None] = SimpleQueue()
        self.ready = threading.Event()
        self.hello: bytes | None = None
        self.hellos = 0
        self.boots = 0
        self.leaving = False
        self.failure: KOSError | None = None
        self._waiters: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._run, name="kos-wire", daemon=True)
        self._thread.start()

    # The thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self.fail(ProtocolError(f"what the guest sent cannot be read: {error!r}"))
            while self._later:
                self._later.popleft()()
            raise

    def _serve(self) -> None:
        poll = self._poll
        for fd in (self._console_fd, self._wire_fd, self._pidfd, self._stop_fd):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._console_fd in ready and not self._take(self._console_fd, self._on_console):
                poll.unregister(self._console_fd)
            if self._wire_fd in ready and not self._take(self._wire_fd, self._on_wire):
                poll.unregister(self._wire_fd)
            if self._stop_fd in ready and self._obey():
                return
            if self._pidfd in ready:
                self._drain()
                self.fail(self._on_exit(self.hellos > 0))
                return

    @staticmethod
    def _take(fd: int, sink: Callable[[bytes], None]) -> bool:
        """Read once; False when the other end is gone."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            sink(data)
        return bool(data)

    def _obey(self) -> bool:
        """Do what other threads asked for; True when that is to end."""
        os.eventfd_read(self._stop_fd)
        while self._later:
            self._drain()
            self._later.popleft()()
        return self._closing

    def after_output(self, action: Callable[[], None]) -> None:
        """Have the thread do something once it has taken in all that the guest sent so far."""
        if not self._closing:
            self._later.append(action)
            os.eventfd_write(self._stop_fd, 1)

    def _drain(self) -> None:
        """What QEMU wrote before it died is still in the sockets."""
        for fd, sink in ((self._console_fd, self._on_console), (self._wire_fd, self._on_wire)):
            while select.select([fd], [], [], 0)[0] and self._take(fd, sink):
                pass

    def _on_wire(self, data: bytes) -> None:
        for received in self._decoder.feed(data):
            if received.kind == 0:
                self.wake()
            elif received.kind == frames.HELLO:
                self.hello = received.body
                self.hellos += 1
                self.ready.set()
                self._inbox.put(received)
            elif received.kind == frames.PANIC:
                self.fail(self._panic(received.body))
            elif received.kind == frames.BYE:
                self.leaving = True
            elif received.kind in (frames.REPLY, frames.ERROR):
                self._inbox.put(received)

    def _panic(self, body: bytes) -> KernelPanic:
        layout = self._abi.layout("panic_report")
        regs = self._abi.layout("pt_regs")
        report = layout.decode(body.ljust(layout.size, b"\0"))
        at = layout.offset("regs")
        registers = {
            n: int(v)
            for n, v in regs.decode(body[at : at + regs.size]).items()
            if isinstance(v, int)
        }
        registers |= {"cr2": int(report["cr2"]), "cr3": int(report["cr3"])}  # type: ignore[arg-type]
        text = body[layout.size :].decode(errors="replace")
        trace = [line.strip() for line in text.splitlines() if line.startswith("  #")]
        return KernelPanic(str(report["reason"]), registers=registers, trace=trace, text=text)

    # Ending

    def fail(self, error: KOSError) -> None:
        """Nothing more will come, because of this; the first reason stays."""
        if self.failure is None:
            self.failure = error
        self.ready.set()
        self._inbox.put(None)
        self.wake()
        self._console.wake()

    def interrupt(self) -> None:
        """What was asked before will not be answered: whoever waits gets an error.

        So does whoever asks before `ready` is set again.
        """
        self.failure = None
        self.leaving = False
        self.ready.clear()
        self.boots += 1
        self._inbox.put(None)
        self.wake()

    def restart(self) -> None:
        """The machine is about to boot anew: what was said before does not count."""
        self.interrupt()
        self.hello = None

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Inside the `with` no call is under way on the wire."""
        with self._call_lock:
            yield

    def replace_lines(self, console_fd: int, wire_fd: int) -> None:
        """Listen and talk on other descriptors from now on; the old ones are not used again.

        What was still in them, such as the news of a panic, is taken in and does not count.
        """
        done = threading.Event()

        def replace() -> None:
            for old, new in ((self._console_fd, console_fd), (self._wire_fd, wire_fd)):
                with contextlib.suppress(KeyError):  # its other end was gone
                    self._poll.unregister(old)
                self._poll.register(new, select.POLLIN)
            self._console_fd, self._wire_fd = console_fd, wire_fd
            self._decoder = frames.Decoder()
            self.interrupt()
            done.set()

        with self._write_lock:  # nobody is in the middle of sending a frame
            self.after_output(replace)
            while not done.wait(0.1):
                if not self._thread.is_alive():
                    self.check()
                    raise HostError("the machine has ended")

    def close(self) -> None:
        """End the thread. The descriptors belong to the caller, who may close them afterwards."""
        self.fail(HostError("the machine was closed"))
        if self._stop_fd < 0:
            return
        self._closing = True
        os.eventfd_write(self._stop_fd, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        os.close(self._stop_fd)
        self._stop_fd = -1

    def abi_call(self, number: int) -> str:
        """The name of a call, for messages."""
        call = self._abi.by_number.get(number)
        return call.name if call else f"call {number}"

    def check(self) -> None:
        """Raise what ended the machine, if anything did."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    def console_tail(self) -> str:
        """The end of what the guest has printed, for errors."""
        return self._console.tail()

    # Waiting and sending

    def wake(self) -> None:
        """Wake all who wait for a doorbell, so that they look again."""
        for waiter in list(self._waiters):
            waiter.set()

    def waiter(self) -> threading.Event:
        """An event that is set at each doorbell and at the machine's end."""
        event = threading.Event()
        self._waiters.add(event)
        return event

    def bell(self) -> None:
        """Send the doorbell: some ring has entries."""
        self.send(frames.DOORBELL, time.monotonic() + 10.0)

    def send(self, data: bytes, until: float) -> None:
        """Send bytes as they are; CallTimeout when the guest does not take them in time."""
        boots = self.boots
        with self._write_lock:
            while data:
                self._check_life(boots, "sending on the wire")
                try:
                    data = data[self._write(data) :]
                except BlockingIOError:
                    self._wait_writable(until)
                except OSError:
                    self._wait_failure(boots, until)

    def _check_life(self, boots: int, what: str) -> None:
        """Raise what ended the machine, or HostError when it has begun another life since."""
        self.check()
        if self.boots != boots:
            raise HostError(f"the machine was reset or went back before the end of {what}")

    def _write(self, data: bytes) -> int:
        return self._pacer.write(data) if self._pacer else os.write(self._wire_fd, data)

    def _wait_writable(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise CallTimeout("sending on the wire", 0.0, console=self.console_tail())
        if self._pacer:
            self._pacer.wait(left)
            return
        select.select([], [self._wire_fd], [self._pidfd], left)

    def _wait_failure(self, boots: int, until: float) -> None:
        """The line is closed: the thread is about to say why, unless the line was replaced."""
        while self.failure is None and self.boots == boots and time.monotonic() < until:
            self.ready.wait(until - time.monotonic())
        self.check()

    def call(
        self,
        number: int,
        args: tuple[int, ...] = (),
        data: bytes = b"",
        *,
        client: int = 0,
        capacity: int = 0,
        timeout: float = 10.0,
        boots: int | None = None,
    ) -> tuple[int, Answer]:
        """One call in a frame; returns its status and the answer. One at a time on a wire.

        `boots` is the life of the machine that is meant, as `self.boots` counts them: this one
        when left out.

        Raises:
            CallTimeout: There was no answer in time.
            HostError: The machine is in another life, or went into one meanwhile.
            ProtocolError: The kernel did not understand the frame, or answered another one.
            KernelPanic, MachineExited: The machine ended meanwhile.
        """
        until = time.monotonic() + timeout
        name = self.abi_call(number)
        boots = self.boots if boots is None else boots
        with self._call_lock:
            self._tag = tag = (self._tag + 1) & 0xFFFFFFFF
            padded = (*args, 0, 0, 0, 0, 0)[:5]
            entry = frames.ENTRY.pack(number, client, tag, *padded, 0, len(data), capacity, 0)
            while not self._inbox.empty():
                self._inbox.get()
            self._check_life(boots, name)
            if not self.ready.is_set():
                raise HostError(f"{name} was called while the machine was reset or went back")
            # The zero byte first ends whatever a noisy line has left unfinished.
            self.send(frames.DOORBELL + frames.call_frame(entry, data), until)
            return self._answer(name, tag, until, timeout, boots)

    def _answer(
        self, name: str, tag: int, until: float, timeout: float, boots: int
    ) -> tuple[int, Answer]:
        """Wait for the reply with the tag.

        An error frame may be about our frame or about noise before it. Frames are answered in
        order, so a hello asked for now tells: if it comes first, ours was not understood.
        """
        asked = False
        while True:
            try:
                received = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                raise CallTimeout(name, timeout, console=self.console_tail()) from None
            if received is None:
                self._check_life(boots, name)
                continue
            if received.kind == frames.HELLO and asked:
                raise ProtocolError(f"the kernel did not understand the frame of {name}")
            if received.kind == frames.ERROR and not asked:
                asked = True
                self.send(frames.frame(frames.HELLO), until)
            if received.kind != frames.REPLY or len(received.body) < frames.COMPLETION.size:
                continue
            got, status, first, second, _, _ = frames.COMPLETION.unpack_from(received.body)
            if got == tag:  # else it is the late answer to a call that was given up
                return status, (first, second, received.body[frames.COMPLETION.size :])
