"""QEMU's monitor behind a blocking face.

`qemu.qmp` speaks the protocol and is written for asyncio. One event loop in one daemon thread
serves the monitors of all machines; callers in other threads hand it a command and wait. The loop
watches each QEMU's pidfd as well: the end of the socket alone would not do, since a process forked
at the wrong moment may hold its other end open.

Importing this module imports asyncio, which takes longer than QEMU needs to start. So it is
imported after QEMU has been spawned, and the two go on side by side.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from kos.exceptions import CallTimeout, MonitorError

Event = dict[str, Any]
_Result = TypeVar("_Result")

# qemu.qmp logs an error each time a QEMU exits; here that is an exception or of no interest.
_logger = logging.getLogger("kos.machine.qmp")
_logger.setLevel(logging.CRITICAL)


class MonitorLost(Exception):
    """The connection has ended. The caller knows how QEMU fared and turns this into a KOSError."""


class _Client(QMPClient):
    logger = _logger


class _Dispatcher(EventListener):
    """Hands events straight on, where its base class would queue and remember them for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: list[Callable[[Event], None]] = []

    async def put(self, event: Message) -> None:
        # A copy, because a callback may unsubscribe itself.
        for callback in list(self.callbacks):
            try:
                callback(dict(event))
            except Exception:
                # One subscriber's fault must not end the connection that all depend on.
                logging.getLogger(__name__).exception("event callback %r failed", callback)


class Monitor:
    """The monitor connection of one QEMU. The handshake begins at once, in the background.

    Args:
        sock: Our end of the monitor's socket pair; the monitor takes it over.
        pidfd: QEMU's pidfd; it is duplicated.
    """

    Lost = MonitorLost

    def __init__(self, sock: socket.socket, pidfd: int) -> None:
        self._dispatcher = _Dispatcher()
        self._pidfd = os.dup(pidfd)
        self._finished = threading.Event()
        sock.setblocking(False)
        self._loop = _event_loop()
        self._submit(self._open(sock))

    def _submit(self, job: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    async def _open(self, sock: socket.socket) -> None:
        self._client = _Client()
        self._client.register_listener(self._dispatcher)
        self._connecting = asyncio.ensure_future(self._client.connect(sock))
        self._loop.add_reader(self._pidfd, self._qemu_exited)
        # The connection is awaited by those who need it.
        self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _qemu_exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._closing = self._loop.create_task(self._disconnect())

    async def _disconnect(self) -> None:
        """End the connection, which also ends all commands that wait for an answer."""
        self._connecting.cancel()
        await asyncio.wait([self._connecting])
        # It raises whatever ended the connection, a bare EOFError as a rule.
        with contextlib.suppress(Exception):
            await self._client.disconnect()
        self._finished.set()

    async def _execute(self, command: str, arguments: Mapping[str, Any]) -> Any:
        try:
            # Shielded: one command's deadline must not end the connection for the others.
            await asyncio.shield(self._connecting)
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            reason, kind = str(error), error.error_class
            raise MonitorError(command, arguments, reason, kind) from None
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLost(repr(error)) from None
        except asyncio.CancelledError:
            if self._connecting.cancelled():
                raise MonitorLost("QEMU exited during the handshake") from None
            raise

    def in_loop_thread(self) -> bool:
        """Whether the caller is a callback, which must not wait for the monitor."""
        return threading.get_ident() == _state.thread_id

    def execute(self, command: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Run a QMP command and wait for its answer.

        Raises:
            MonitorError: QEMU refused it.
            CallTimeout: There was no answer in time.
            MonitorLost: The connection ended before or while waiting.
        """
        if self.in_loop_thread():
            raise RuntimeError(f"{command}: an event callback cannot wait for the monitor")
        answer = self._submit(self._execute(command, arguments))
        try:
            return answer.result(timeout)
        except TimeoutError:
            answer.cancel()
            raise CallTimeout(command, timeout) from None

    def send_fd(self, fd: int, name: str, timeout: float) -> None:
        """Hand QEMU a copy of a descriptor, which commands then know by that name.

        Raises:
            MonitorError, CallTimeout, MonitorLost: As `execute`.
        """

        async def send() -> None:
            await asyncio.shield(self._connecting)
            self._client.send_fd_scm(fd)

        try:
            self._submit(send()).result(timeout)
        except (QMPError, OSError, TimeoutError, asyncio.CancelledError) as error:
            raise MonitorLost(repr(error)) from None
        self.execute("getfd", {"fdname": name}, timeout)

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call back for each event, on the loop's thread; returns what ends the subscription."""
        self._dispatcher.callbacks.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._dispatcher.callbacks.remove(callback)

        return unsubscribe

    def wait_finished(self, timeout: float) -> bool:
        """Wait until QEMU's exit has been noticed and the socket is closed."""
        return self.in_loop_thread() or self._finished.wait(timeout)


class _State:
    """The loop and its thread, which a forked child must have anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread_id = 0


_state = _State()
# Loops of the processes this one was forked from. They share their epoll set with the parent, so
# they are neither used nor closed here, and kept so that no destructor does.
_parents_loops: list[asyncio.AbstractEventLoop] = []


def _after_fork() -> None:
    if _state.loop is not None:
        _parents_loops.append(_state.loop)
    _state.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)


def _event_loop() -> asyncio.AbstractEventLoop:
    with _state.lock:
        if _state.loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="kos-qmp", daemon=True)
            thread.start()
            assert thread.ident is not None
            _state.loop, _state.thread_id = loop, thread.ident
        return _state.loop
