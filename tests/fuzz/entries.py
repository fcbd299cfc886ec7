"""Entries of calls to fuzz a running machine with: valid ones, changed ones, noise.

What is known beforehand of each is said by `refusal`: whether a handler sees it at all.
"""

import random

from kos.abi import Abi, CallDescription
from kos.rpc.frames import ENTRY

DATA_BYTES = 57344  # a ring's data area
EPERM, EFAULT, EINVAL, ENOSYS = -1, -14, -22, -38
CLIENT_OPEN, CLIENT_CLOSE, RING_OPEN, RING_CLOSE = 3, 4, 5, 6
CRASH = 52

# Places in an entry's list of numbers, and their widths in bits.
OP, CLIENT, TAG, ARG, OFF, LEN, CAP = 0, 1, 2, 3, 8, 9, 10
WIDTHS = [16, 16, 32, 64, 64, 64, 64, 64, 32, 32, 32, 32]

EDGES = [
    *(0, 1, 2, 3, 4, 7, 8, 10, 11, 23, 24, 63, 64, 65, 255, 256, 4095, 4096, 4097),
    *(
        DATA_BYTES - 8,
        DATA_BYTES,
        DATA_BYTES + 8,
        0xFFFF,
        0x10000,
        0x200000,
        1 << 26,
        (1 << 26) - 1,
    ),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 8, (1 << 32) - 1, 1 << 32, (1 << 32) + 1),
    *(0x7FFFFFFFE000, 0x7FFFFFFFF000, 0x800000000000, 0xFFFF800000000000, 0xFFFFFFFF80000000),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1),
]
# What a valid argument is, by its name; others are small.
SMALL = {"order": 4, "count": 65, "zone": 3, "cpu": 2, "rounds": 50, "index": 20, "length": 4097}


class Maker:
    """Makes entries.

    Args:
        abi: The calls there are.
        rng: Where all chance comes from.
        wire: Whether they are for frames.
        slow: How many calls of `test_run` and `bench_...` there may be, which run long by design.
    """

    def __init__(self, abi: Abi, rng: random.Random, *, wire: bool, slow: int = 20) -> None:
        self._abi, self._rng, self._wire = abi, rng, wire
        self._left = slow
        # crash ends the machine by design.
        self._calls = [call for call in abi.by_number.values() if call.number != CRASH]
        self.known = [0x5000, 0x10000]  # addresses that mean something
        self.clients = [0]  # for frames: on whose behalf

    def _argument(self, name: str, kind: str) -> int:
        rng = self._rng
        if kind == "u32":
            return rng.randrange(SMALL.get(name, 4))
        if kind == "paddr":
            return rng.choice(self.known)
        return 0x1000 * rng.randrange(1, 64) if kind == "vaddr" else rng.getrandbits(64)

    def valid(self, call: CallDescription, tag: int) -> list[int]:
        """A call as a well-meaning host makes it; its data area holds `known`."""
        rng = self._rng
        args = [self._argument(p.name, p.type) for p in call.args]
        length = {
            "none": 0,
            "u64s": 8 * rng.randrange(9),
            "text": rng.randrange(1, 24),
            "bytes": rng.randrange(257),
        }[call.data_in]
        room = 0 if call.data_out == "none" else 512
        if call.data_out == "struct":
            room = self._abi.layout(call.struct).size
        fields = [call.number, rng.choice(self.clients), tag, *args, *[0] * (5 - len(args))]
        return [*fields, 0 if self._wire else 8 * rng.randrange(512), length, room, 0]

    def _change(self, fields: list[int]) -> None:
        rng = self._rng
        at = rng.randrange(len(fields))
        how = rng.randrange(5)
        if how == 0:
            fields[at] = rng.choice(EDGES)
        elif how == 1:
            fields[at] ^= 1 << rng.randrange(WIDTHS[at])
        elif how == 2:
            fields[at] += rng.choice((-8, -4, -1, 1, 4, 8, 4096))
        elif how == 3:
            fields[at] = fields[rng.randrange(len(fields))]
        else:
            fields[at] = rng.getrandbits(WIDTHS[at])
        fields[at] &= (1 << WIDTHS[at]) - 1

    def entry(self, tag: int) -> list[int]:
        """The next one, as a list of numbers: valid, changed in one to three places, or noise."""
        rng = self._rng
        if rng.random() < 0.05:
            fields = list(ENTRY.unpack(rng.randbytes(ENTRY.size)))
        else:
            fields = self.valid(rng.choice(self._calls), tag)
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                self._change(fields)
        if fields[OP] == CRASH:
            fields[OP] = 0
        if self.is_slow(fields[OP]) and self.refusal(fields) is None:
            self._left -= 1
            fields[OP] = fields[OP] if self._left >= 0 else 1
            for at in range(ARG, ARG + 5):
                fields[at] %= 1000  # rounds and steps, among others
        return fields

    def is_slow(self, op: int) -> bool:
        """Whether a call may run for seconds."""
        call = self._abi.by_number.get(op)
        return call is not None and call.name.startswith(("test_run", "bench_"))

    def refusal(self, fields: list[int]) -> int | None:
        """The error that an entry ends with before its handler; None: a handler decides."""
        op, length = fields[OP], fields[LEN]
        if not self._wire and (
            fields[OFF] % 8 or fields[OFF] + max(length, fields[CAP]) > DATA_BYTES
        ):
            return EFAULT
        call = self._abi.by_number.get(op)
        if call is None:
            return ENOSYS
        if call.scope == "wire" and not self._wire:
            return EPERM
        if (call.data_in == "none" and length) or (call.data_in == "u64s" and length % 8):
            return EINVAL
        for i in range(5):
            value = fields[ARG + i]
            if (i >= len(call.args) and value) or (
                i < len(call.args) and call.args[i].type == "u32" and value >> 32
            ):
                return EINVAL
        return None

    def learn(self, address: int) -> None:
        """Keep an address that a call answered with, in place of an older one."""
        if len(self.known) < 64:
            self.known.append(address)
        else:
            self.known[self._rng.randrange(64)] = address
