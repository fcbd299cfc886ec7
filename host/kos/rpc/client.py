"""A client: one connection to the kernel, and what it owns there.

Each thread that calls gets a ring of its own; the ring of a thread that ended serves the next one.
"""

import operator
import os
import struct
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from kos._closing import Closing
from kos.exceptions import CallError, HostError, KOSError
from kos.memory.constants import EMSGSIZE, ENFILE, errno_name
from kos.rpc.base import Answer, DataLike, Pending, flat
from kos.rpc.calls import BatchCalls, Calls
from kos.rpc.ring import Request, Ring, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from kos.machine import Machine

T = TypeVar("T")

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()


def _forget_all() -> None:
    """In a forked process: the rings are the parent's, and two writers would tear them."""
    for client in list(_clients):
        client.forget()


os.register_at_fork(after_in_child=_forget_all)

_CLIENT_OPEN, _CLIENT_CLOSE, _RING_OPEN, _RING_CLOSE = 3, 4, 5, 6
_BATCH_ENTRIES = 64


class FrameCarrier:
    """Calls in frames on the wire: slow, but it needs no shared RAM.

    It is for one life of the machine, which `boots` counts: in the next, the client's id may be
    that of another.
    """

    data_bytes = 4096

    def __init__(self, machine: "Machine", client: int, timeout: float, boots: int) -> None:
        self._wire = machine.wire
        self._client = client
        self._boots = boots
        self.timeout = timeout

    @property
    def broken(self) -> bool:
        """Whether the thread needs another carrier."""
        return self._wire.boots != self._boots

    def fast(
        self, number: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0
    ) -> int:
        """A call without data; its first result."""
        return self.full(number, (a0, a1, a2, a3, a4), b"", 0)[0]

    def full(self, number: int, args: tuple[int, ...], data: DataLike, capacity: int) -> Answer:
        """Any call; both results and the answer's data."""
        ((status, answer),) = self.many([(number, args, data, capacity)])
        if status < 0:
            refuse(self._wire, number, status, answer[:2])
        return answer

    def room(self, data: DataLike, capacity: int) -> int:
        """Calls go one after another: none takes room from the next, if it fits at all."""
        need = max(len(data), capacity)
        return need if need > self.data_bytes else 0

    def many(self, requests: "list[Request]") -> list[tuple[int, Answer]]:
        """Several calls, one after another."""
        return [
            self._wire.call(
                number,
                args,
                bytes(data),
                client=self._client,
                capacity=capacity,
                timeout=self.timeout,
                boots=self._boots,
            )
            for number, args, data, capacity in requests
        ]


class _ThreadRing:
    """A thread's hold on a ring; when the thread has ended, the ring goes back to its client."""

    def __init__(self, ring: Ring, spare: list[Ring], dead: list[Ring]) -> None:
        self.ring = ring
        self._spare = spare
        self._dead = dead

    def __del__(self) -> None:
        (self._dead if self.ring.broken else self._spare).append(self.ring)


class Client(Calls, Closing):
    """A connection to a running kernel: its calls are this object's methods.

    Made by `Machine.connect()`; every machine has one from the start, `Machine.client`. What a
    client owns - frames, mappings - is given back when it closes.

    Args:
        machine: The machine.
        name: Shown by the kernel's console, up to 23 characters.
        carrier: `rings`, or `frames` to send every call over the serial line.
        timeout: Seconds that a call may take.
        ready: Id and ring of a client that the kernel has opened already.

    Example:
        >>> import kos
        >>> with kos.default_machine().connect("example") as client:
        ...     addr = client.buddy_alloc(3)
        ...     info = client.page_info(addr)
        >>> info.order, info.refs
        (3, 1)
    """

    def __init__(
        self,
        machine: "Machine",
        name: str,
        *,
        carrier: str = "rings",
        timeout: float = 10.0,
        ready: tuple[int, int] | None = None,
    ) -> None:
        if carrier not in ("rings", "frames"):
            raise ValueError(f"carrier is 'rings' or 'frames', not {carrier!r}")
        if len(name.encode()) > 23:
            raise ValueError(f"a client's name has at most 23 bytes, not {name!r}")
        self.machine = machine
        self.name = name
        self.abi = machine.abi
        self.carrier = carrier
        self.timeout = timeout
        self._local = threading.local()
        self._rings: weakref.WeakSet[Ring] = weakref.WeakSet()
        self._spare: list[Ring] = []
        self._dead: list[Ring] = []
        self._closed = False
        self.id, ring = ready or self._control(_CLIENT_OPEN, (), name.encode())
        _clients.add(self)
        self._join([ring])

    def _join(self, rings: list[int]) -> None:
        """Be one of the machine's clients, with these rings."""
        self._closed = False
        self.machine.clients.add(self)
        for paddr in rings:
            self._keep(paddr)
        # Dropped without being closed: the kernel is told at the machine's next connect. The list,
        # not the machine, is held: a dropped machine must be able to go.
        self._release = weakref.finalize(self, self.machine.abandoned.append, self.id)

    def _control(
        self, number: int, args: tuple[int, ...], data: bytes = b"", boots: int | None = None
    ) -> tuple[int, int]:
        status, (first, second, _) = self.machine.wire.call(
            number, args, data, timeout=self.timeout, boots=boots
        )
        if status < 0:
            refuse(self.machine.wire, number, status, (first, second))
        return first, second

    def _keep(self, paddr: int) -> None:
        ring = self.machine.make_ring(paddr, self.timeout)
        self._rings.add(ring)
        self._spare.append(ring)

    # Carrying calls

    def _attach(self) -> Ring | FrameCarrier:
        """The calling thread's carrier, made at its first call."""
        boots = self.machine.wire.boots  # first: what is open after that was open in this life
        self._check_open()
        self._close_dead()
        if self.carrier == "frames":
            return self._attach_frames(boots)
        try:
            ring = self._spare.pop()
        except IndexError:
            return self._attach_new(boots)
        self._local.hold = _ThreadRing(ring, self._spare, self._dead)
        self._local.carrier = ring
        return ring

    def _attach_new(self, boots: int) -> Ring | FrameCarrier:
        try:
            self._keep(self._control(_RING_OPEN, (self.id,), boots=boots)[0])
        except CallError as error:
            if error.errno != ENFILE:
                raise
            # The kernel has no more rings: this thread's calls take the line.
            return self._attach_frames(boots)
        return self._attach()

    def _attach_frames(self, boots: int) -> FrameCarrier:
        self._local.carrier = carrier = FrameCarrier(self.machine, self.id, self.timeout, boots)
        return carrier

    def _carrier(self) -> Ring | FrameCarrier:
        carrier: Ring | FrameCarrier | None = getattr(self._local, "carrier", None)
        if carrier is None or carrier.broken:
            self._drop_broken()
            carrier = self._attach()
        return carrier

    def _drop_broken(self) -> None:
        """Let go of this thread's ring; `_attach` gives it another."""
        for name in ("carrier", "hold"):
            self._local.__dict__.pop(name, None)

    def _close_dead(self) -> None:
        """Close rings whose call timed out: the kernel may yet write to them, so none is reused."""
        while self._dead:
            self._control(_RING_CLOSE, (self._dead.pop().paddr,))

    def _fast(
        self, number: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0
    ) -> int:
        try:
            carrier = self._local.carrier
            if carrier.broken:
                carrier = self._carrier()
        except AttributeError:
            carrier = self._attach()
        try:
            return carrier.fast(number, a0, a1, a2, a3, a4)  # type: ignore[no-any-return]
        except (struct.error, TypeError):
            self._check_arguments(number, (a0, a1, a2, a3, a4))
            raise

    def _full(self, number: int, args: tuple[int, ...], data: DataLike, capacity: int) -> Answer:
        carrier, data = self._carrier(), flat(data)
        if max(len(data), capacity) > carrier.data_bytes:
            self._check_arguments(number, args)
            refuse(self.machine.wire, number, EMSGSIZE, (0, 0))
        try:
            return carrier.full(number, args, data, capacity)
        except (struct.error, TypeError):
            self._check_arguments(number, args)
            raise

    def _check_arguments(self, number: int, args: tuple[object, ...]) -> None:
        """Name the argument that could not be packed, with what is allowed."""
        for parameter, value in zip(self.abi.by_number[number].args, args, strict=False):
            if not hasattr(value, "__index__"):
                kind = type(value).__name__
                raise TypeError(f"{parameter.name} is a whole number, not {value!r} ({kind})")
            if not 0 <= operator.index(value) < 1 << 64:
                raise ValueError(f"{parameter.name} is a number from 0 to 2^64-1, not {value}")

    def batch(self) -> "Batch":
        """Queue calls and send them together; see `Batch`."""
        return Batch(self)

    # Ending

    def _check_open(self) -> None:
        self.machine.check_owner()
        self.machine.wire.check()
        if self._closed:
            raise HostError(f"client {self.name!r} is closed")

    def forget(self) -> None:
        """The machine boots anew, or this process is a fork: the connection is gone."""
        self._closed = True
        self.machine.clients.discard(self)
        for ring in list(self._rings):
            ring.abandon()
        self._local = threading.local()
        self._spare.clear()
        self._release.detach()

    @property
    def ring_addresses(self) -> list[int]:
        """Physical addresses of the rings that this client has."""
        return sorted(ring.paddr for ring in self._rings)

    def rejoin(self, rings: list[int], timeout: float) -> None:
        """Called by the machine when it is back in a state in which the client had these rings.

        Threads that still hold one from before give it back to the lists from before.
        """
        self.forget()
        self._rings = weakref.WeakSet()
        self._spare, self._dead = [], []
        self.timeout = timeout
        self._join(rings)

    def close(self) -> None:
        """Give everything back. Closing twice, or after the machine, does nothing."""
        if self._closed:
            return
        self.forget()
        self.machine.wire.wake()
        if self.machine.wire.failure is None:
            self._control(_CLIENT_CLOSE, (self.id,))

    def __repr__(self) -> str:
        return f"<Client {self.name!r} id={self.id} of {self.machine!r}>"


class Batch(BatchCalls):
    """Calls that are queued and sent together, with one doorbell.

    At the end of its `with` all have been served, in order; each answer is in its `Pending`. A
    refused call does not stop those after it. If the `with` ends by an exception, nothing is sent.

    Example:
        >>> import kos
        >>> with kos.default_machine().batch() as batch:
        ...     blocks = [batch.buddy_alloc(0) for _ in range(100)]
        >>> with kos.default_machine().batch() as batch:
        ...     for block in blocks:
        ...         _ = batch.buddy_free(block.value, 0)
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.abi = client.abi
        self._requests: list[tuple[Request, Pending[object]]] = []

    def _queue(
        self,
        number: int,
        args: tuple[int, ...],
        data: DataLike,
        capacity: int,
        decode: "Callable[[int, int, bytes], T]",
    ) -> Pending[T]:
        self._client._check_arguments(number, args)
        pending = Pending(decode)
        self._requests.append(((number, args, flat(data), capacity), pending))  # type: ignore[arg-type]
        return pending

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        requests, self._requests = self._requests, []
        if kind is None:
            self._send(requests)

    def _send(self, requests: list[tuple[Request, Pending[object]]]) -> None:
        carrier = self._client._carrier()
        while requests:
            count = self._fitting(carrier, requests)
            part, requests = requests[: count or 1], requests[count or 1 :]
            answers = [(EMSGSIZE, (0, 0, b""))]
            if count:
                answers = carrier.many([request for request, _ in part])
            for ((number, *_), pending), (status, answer) in zip(part, answers, strict=True):
                pending.settle(answer, self._error(number, status, answer))

    @staticmethod
    def _fitting(
        carrier: Ring | FrameCarrier, requests: list[tuple[Request, Pending[object]]]
    ) -> int:
        """How many of the calls fit the queue and the data area together; 0: not even one."""
        room = carrier.data_bytes
        for count, ((_, _, data, capacity), _) in enumerate(requests[:_BATCH_ENTRIES]):
            room -= carrier.room(data, capacity)
            if room < 0:
                return count
        return min(len(requests), _BATCH_ENTRIES)

    def _error(self, number: int, status: int, answer: Answer) -> KOSError | None:
        if status >= 0:
            return None
        name = self._client.machine.wire.abi_call(number)
        message = f"{name}: {errno_name(status)}"
        return CallError(name, errno=status, results=answer[:2], message=message)
