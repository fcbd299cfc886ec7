"""A ring in guest RAM: how calls travel at memory speed. See docs/wire.md and kernel/rpc/ring.h.

A ring belongs to one thread at a time. Each index is written by one side only; a single aligned
32-bit store publishes what was written before it.
"""

import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from kos.exceptions import CallError, CallTimeout, HostError, ProtocolError
from kos.memory.constants import errno_name
from kos.rpc.base import Answer, DataLike
from kos.rpc.frames import COMPLETION, ENTRY
from kos.rpc.wire import Wire

# Words of struct ring_header.
_SQ_TAIL, _CQ_HEAD, _HOST_WAITS = 0, 1, 2
_CQ_TAIL, _DOORBELL_WANTED = 17, 18
_SHAPE = slice(32, 37)  # entries, cq_offset, sq_offset, data_offset, data_bytes

# Rounds of looking before a thread blocks: some 40 us, what an answer takes at memory speed.
_SPIN = 600
_WRAP = 0xFFFFFFFF

Request = tuple[int, tuple[int, ...], DataLike, int]


def refuse(wire: Wire, number: int, status: int, results: tuple[int, int]) -> NoReturn:
    """Raise the error that a call's status stands for."""
    call = wire.abi_call(number)
    raise CallError(call, errno=status, results=results, message=f"{call}: {errno_name(status)}")


class Ring:
    """One ring.

    Args:
        ram: Guest RAM.
        offset: Where in it the ring lies.
        paddr: Its physical address, by which the kernel knows it.
        wire: Doorbells go and come there.
        timeout: Seconds that a call may take.
    """

    def __init__(self, ram: memoryview, offset: int, paddr: int, wire: Wire, timeout: float):
        self.paddr = paddr
        self.timeout = timeout
        self.broken = False
        self._gone = False
        self._wire = wire
        words = ram[offset : offset + 4096].cast("I")
        self._words = words
        entries, cq, sq, data, data_bytes = words[_SHAPE].tolist()
        if entries & (entries - 1) or not 0 < entries <= 4096:
            raise ProtocolError(f"the ring at {paddr:#x} has {entries} entries")
        self._mask = entries - 1
        self._memory = ram[offset : offset + data + data_bytes]
        self._sq = [sq + i * ENTRY.size for i in range(entries)]
        self._cq = [cq + i * COMPLETION.size for i in range(entries)]
        self._data = data
        self.data_bytes = data_bytes
        self._tail = words[_SQ_TAIL]
        # A lock's acquisition is a locked instruction: it orders our store before our next load.
        self._fence = threading.Lock()
        self._event: threading.Event | None = None

    def fast(
        self, number: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0
    ) -> int:
        """A call without data; its first result."""
        tail = self._tail
        slot = tail & self._mask
        try:
            ENTRY.pack_into(
                self._memory, self._sq[slot], number, 0, tail, a0, a1, a2, a3, a4, 0, 0, 0, 0
            )
            self._tail = tail = (tail + 1) & _WRAP
            words = self._words
            words[_SQ_TAIL] = tail
            with self._fence:
                pass
            if words[_DOORBELL_WANTED]:
                self._wire.bell()
            rounds = _SPIN
            while words[_CQ_TAIL] != tail:
                rounds -= 1
                if not rounds:
                    self._wait(tail, number)
            _, status, first, second, _, _ = COMPLETION.unpack_from(self._memory, self._cq[slot])
            words[_CQ_HEAD] = tail
        except ValueError:
            self._fail_if_over(number)
            raise
        if status < 0:
            refuse(self._wire, number, status, (first, second))
        return int(first)

    def full(self, number: int, args: tuple[int, ...], data: DataLike, capacity: int) -> Answer:
        """Any call; both results and the answer's data."""
        ((status, answer),) = self.many([(number, args, data, capacity)])
        if status < 0:
            refuse(self._wire, number, status, answer[:2])
        return answer

    def room(self, data: DataLike, capacity: int) -> int:
        """Bytes of the data area that a call takes."""
        return (max(len(data), capacity) + 7) & ~7

    def many(self, requests: Sequence[Request]) -> list[tuple[int, Answer]]:
        """Several calls with one doorbell; they must fit the queue and the data area."""
        try:
            return self._many(requests)
        except ValueError:
            self._fail_if_over(requests[0][0])
            raise

    def _many(self, requests: Sequence[Request]) -> list[tuple[int, Answer]]:
        start = self._tail
        places = []
        at = 0
        for i, (number, args, data, capacity) in enumerate(requests):
            need = self.room(data, capacity)
            if at + need > self.data_bytes:
                raise ProtocolError(f"{at + need} bytes of data; a ring has {self.data_bytes}")
            tag = (start + i) & _WRAP
            padded = (*args, 0, 0, 0, 0, 0)[:5]
            ENTRY.pack_into(
                self._memory, self._sq[tag & self._mask],
                number, 0, tag, *padded, at, len(data), capacity, 0,
            )  # fmt: skip
            self._memory[self._data + at : self._data + at + len(data)] = data
            places.append(at)
            at += need
        self._submit(len(requests), requests[0][0])
        return [self._collect((start + i) & _WRAP, at) for i, at in enumerate(places)]

    def _submit(self, count: int, number: int) -> None:
        self._tail = tail = (self._tail + count) & _WRAP
        self._words[_SQ_TAIL] = tail
        with self._fence:
            pass
        if self._words[_DOORBELL_WANTED]:
            self._wire.bell()
        rounds = _SPIN
        while self._words[_CQ_TAIL] != tail:
            rounds -= 1
            if not rounds:
                self._wait(tail, number)
        self._words[_CQ_HEAD] = tail

    def _collect(self, tag: int, at: int) -> tuple[int, Answer]:
        place = self._cq[tag & self._mask]
        got, status, first, second, length, _ = COMPLETION.unpack_from(self._memory, place)
        if got != tag:
            self.broken = True
            raise ProtocolError(f"the ring's answer has tag {got}, not {tag}")
        length = min(length, self.data_bytes - at)
        data = bytes(self._memory[self._data + at : self._data + at + length])
        return status, (first, second, data)

    def _wait(self, tail: int, number: int) -> None:
        """Block until the completions are there."""
        words, until = self._words, time.monotonic() + self.timeout
        if self._event is None:
            self._event = self._wire.waiter()
        while True:
            self._event.clear()
            self._fail_if_over(number)
            words[_HOST_WAITS] = (words[_HOST_WAITS] + 1) & _WRAP
            with self._fence:
                pass
            if words[_CQ_TAIL] == tail:
                return
            if not self._event.wait(max(0.0, until - time.monotonic())):
                if words[_CQ_TAIL] == tail:
                    return
                self.broken = True
                name = self._wire.abi_call(number)
                raise CallTimeout(name, self.timeout, console=self._wire.console_tail())

    def abandon(self) -> None:
        """The ring's memory is no longer a ring: what waits for it ends when it wakes.

        From here on no thread can touch that memory, wherever in a call it is.
        """
        self.broken = self._gone = True
        self._words.release()
        self._memory.release()

    def _fail_if_over(self, number: int) -> None:
        if self._gone:
            name = self._wire.abi_call(number)
            raise HostError(f"the connection ended while {name} had no answer yet")
        if self._wire.failure is not None:
            self.broken = True
            self._wire.check()
