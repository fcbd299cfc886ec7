"""Garbage on the wire and in rings: the kernel counts it, answers the rest, and loses nothing."""

import random
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Boot
from helpers import PAGE, RING_BYTES, free_bytes, stretch
from kos.machine import Machine
from kos.memory.constants import EFAULT, EINVAL
from kos.rpc import frames
from kos.rpc.client import Client
from kos.rpc.ring import Ring

DATA = 8192
DATA_BYTES = RING_BYTES - DATA
SQ, CQ = 4096, 256
CLIENT_OPEN, CLIENT_CLOSE, RING_OPEN = 3, 4, 5
BENCH_RUN, CRASH = 51, 52


def send(vm: Machine, data: bytes) -> None:
    vm.wire.send(data, time.monotonic() + 60)


def settle(vm: Machine) -> None:
    """Wait until all that was sent has been taken in: the kernel answers in order."""
    hellos = vm.wire.hellos
    send(vm, b"\0" + frames.frame(frames.HELLO))
    until = time.monotonic() + 60
    while vm.wire.hellos == hellos:
        vm.wire.check()
        assert time.monotonic() < until


def no_zeros(n: int) -> bytes:
    return bytes(random.Random(n).choices(range(1, 256), k=n))


def entry(
    op: int, *args: int, client: int = 0, tag: int = 7, length: int = 0, cap: int = 0
) -> bytes:
    padded = (*args, 0, 0, 0, 0, 0)[:5]
    return frames.ENTRY.pack(op, client, 7, *padded, 0, length, cap, 0)


def call_body(body: bytes) -> bytes:
    return frames.frame(frames.CALL, body)


GOOD = frames.call_frame(entry(1, 5))
LAST = len(GOOD) - 1
BAD_CRC = frames.cobs_encode(b"C" + bytes([64]) + entry(1, 5) + b"nope") + b"\0"

# What is sent, and how many errors the kernel counts for it.
GARBAGE: dict[str, tuple[bytes, int]] = {
    "one byte": (b"\xff\0", 1),
    "much without a zero": (no_zeros(100_000 if stretch(0) else 10_000) + b"\0", 1),
    "many zeros": (bytes(5_000), 0),
    "truncated frames": (
        b"".join(GOOD[:n] + b"\0" for n in range(1, len(GOOD) - 1)),
        len(GOOD) - 2,
    ),
    "a wrong CRC": (BAD_CRC * 10, 10),
    "each bit of a frame turned": (
        b"".join(
            bytes(b ^ (1 << bit) if at == i else b for at, b in enumerate(GOOD[:-1])) + b"\0"
            for i in range(len(GOOD) - 1)
            for bit in range(8)
            if GOOD[i] ^ (1 << bit)
        ),
        8 * (len(GOOD) - 1) - sum(b.bit_count() == 1 for b in GOOD[:-1]),
    ),
    "unknown kinds": (b"".join(frames.frame(k) for k in range(256) if k != ord("H")), 255),
    "a hello with a body": (frames.frame(frames.HELLO, b"x"), 1),
    "no entry": (call_body(b""), 1),
    "an entry longer than the frame": (call_body(b"\x40abc"), 1),
    "an entry longer than an entry": (call_body(bytes([65]) + bytes(65)), 1),
    "an entry of 255 bytes": (call_body(b"\xff" + bytes(255)), 1),
    "data that its length denies": (call_body(b"\x40" + entry(2, length=3, cap=9) + b"12"), 1),
    "a length of 4 GiB": (call_body(b"\x40" + entry(2, length=2**32 - 1, cap=9) + b"12"), 1),
    "more data than a frame takes": (
        call_body(b"\x40" + entry(2, length=4097, cap=4097) + bytes(4097)),
        1,
    ),
    "a capacity of 4 GiB": (call_body(b"\x40" + entry(7, cap=2**32 - 1)), 0),
    "absurd calls": (
        b"".join(call_body(b"\x40" + entry(op, *[2**64 - 1] * 5)) for op in (0, 99, 255, 65535)),
        0,
    ),
    "nobody's calls": (call_body(b"\x40" + entry(1, client=65535)) * 3, 0),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_on_the_wire(vm: Machine, kind: str) -> None:
    sent, errors = GARBAGE[kind]
    before = free_bytes(vm)
    send(vm, sent)
    settle(vm)
    assert vm.client.machine_info().wire_errors == errors
    assert vm.wire.call(1, (5,))[:1] == (0,)
    assert vm.connect("after", carrier="frames").echo(b"fine") == b"fine"
    assert vm.client.ping(6) == 6
    assert free_bytes(vm) == before - RING_BYTES


@pytest.mark.parametrize("kind", ["a wrong CRC", "truncated frames"])
def test_the_next_call_over_the_wire_is_answered(vm: Machine, kind: str) -> None:
    """Also at once: errors of what came before are not taken for its own."""
    for value in range(5):
        send(vm, GARBAGE[kind][0])
        assert vm.wire.call(1, (value,), timeout=60)[:2] == (0, (value, 0, b""))


def test_a_frame_that_follows_garbage_without_an_end(vm: Machine) -> None:
    for value in range(5):
        send(vm, b"garbage without an end")
        assert vm.wire.call(1, (value,))[:2] == (0, (value, 0, b""))
    assert vm.client.machine_info().wire_errors == 5


def test_a_doorbell_that_ends_garbage_still_rings(boot: Boot) -> None:
    """On every CPU: the byte that rings is the one that ends the garbage."""
    vm = boot(memory="32M", cpus=2, append="spin=0")  # CPUs sleep as soon as they can
    clients = [vm.connect(f"ring {i}") for i in range(4)]
    for value in range(10):
        for client in clients:
            send(vm, b"\x05garbage")
            assert client.ping(value) == value


def test_random_bytes_on_the_wire(vm: Machine) -> None:
    wire_noise(vm, seconds=1.0, rounds=30)


@pytest.mark.fuzz
def test_random_bytes_on_the_wire_for_long(vm: Machine) -> None:
    wire_noise(vm, seconds=stretch(2.0), rounds=10**9)


def wire_noise(vm: Machine, *, seconds: float, rounds: int) -> None:
    rng, until = random.Random(1), time.monotonic() + seconds
    before = free_bytes(vm)
    for round_ in range(rounds):
        if time.monotonic() > until:
            break
        kind = rng.randrange(3)
        noise = rng.randbytes(rng.randrange(1, 1500))
        if kind == 1:
            frame = bytearray(frames.call_frame(entry(rng.randrange(3), rng.getrandbits(64))))
            frame[rng.randrange(len(frame))] = rng.randrange(256)
            noise = bytes(frame)
        elif kind == 2:
            noise = frames.frame(frames.CALL, noise)
        send(vm, noise)
        settle(vm)
        assert vm.client.ping(round_) == round_
    assert vm.wire.call(1, (1,))[0] == 0
    assert free_bytes(vm) == before


# Rings


class RawRing:
    """A client of its own with one ring, written to by hand."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm
        status, (self.client, self.paddr, _) = vm.wire.call(CLIENT_OPEN, (), b"hostile")
        assert status == 0
        at = vm.ram_offset(self.paddr)
        self.memory = vm.ram[at : at + RING_BYTES]
        self.words: Any = self.memory.cast("I")  # stores whole words, which struct does not
        self.tail = 0

    def word(self, index: int) -> int:
        return int(self.words[index])

    def set_word(self, index: int, value: int) -> None:
        self.words[index] = value & 0xFFFFFFFF

    def put(self, raw: bytes) -> None:
        at = SQ + self.tail % 64 * 64
        self.memory[at : at + 64] = raw
        self.tail = (self.tail + 1) & 0xFFFFFFFF

    def publish(self) -> None:
        self.set_word(0, self.tail)
        self.vm.wire.bell()

    def wait(self) -> list[tuple[int, int]]:
        """Tag and status of all that has been answered since, once all has been."""
        done = self.word(1)
        until = time.monotonic() + 60
        while self.word(17) != self.tail:
            self.vm.wire.check()
            assert time.monotonic() < until, "the ring is stuck"
        places = range(done, done + (self.tail - done & 0xFFFFFFFF))
        answers = [struct.unpack_from("<Ii", self.memory, CQ + i % 64 * 32) for i in places]
        self.set_word(1, self.tail)
        return [(int(tag), int(status)) for tag, status in answers]

    def close(self) -> None:
        assert self.vm.wire.call(CLIENT_CLOSE, (self.client,))[0] == 0


def raw_entry(
    op: int, arg: int = 0, off: int = 0, length: int = 0, cap: int = 0, tag: int = 0
) -> bytes:
    return frames.ENTRY.pack(op, 0xFFFF, tag, arg, 0, 0, 0, 0, off, length, cap, 0xFFFFFFFF)


def test_data_outside_of_the_ring(vm: Machine) -> None:
    before = free_bytes(vm)
    ring = RawRing(vm)
    big = 2**32 - 8
    cases = [
        *[(off, 0, 8) for off in (1, 4, 7, DATA_BYTES, DATA_BYTES + 8, 2**31, big, 2**32 - 1)],
        *[(0, n, 0) for n in (DATA_BYTES + 1, 2**31, 2**32 - 1)],
        *[(0, 0, n) for n in (DATA_BYTES + 1, 2**31, 2**32 - 1)],
        *[(DATA_BYTES - 8, n, m) for n, m in ((16, 0), (0, 16), (big, 8), (8, 2**32 - 1))],
        *[(8, big, big), (DATA_BYTES // 2, DATA_BYTES // 2 + 1, 0)],
    ]
    for tag, (off, length, cap) in enumerate(cases):
        ring.put(raw_entry(2, off=off, length=length, cap=cap, tag=tag))
    ring.publish()
    assert ring.wait() == [(tag, EFAULT) for tag in range(len(cases))]
    ring.put(raw_entry(2, off=DATA_BYTES, tag=1))
    ring.put(raw_entry(2, off=0, length=DATA_BYTES, cap=DATA_BYTES, tag=2))
    ring.put(raw_entry(2, off=DATA_BYTES - 8, length=8, cap=8, tag=3))
    ring.put(raw_entry(19, length=12, tag=4))
    ring.publish()
    assert ring.wait() == [(1, 0), (2, 0), (3, 0), (4, EINVAL)]
    ring.close()
    assert free_bytes(vm) == before


@pytest.mark.parametrize("jump", [65, 66, 1000, 2**16, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
def test_a_tail_that_jumps_is_passed_over(vm: Machine, jump: int) -> None:
    before = free_bytes(vm)
    ring = RawRing(vm)
    ring.put(raw_entry(1, 1, tag=1))
    ring.publish()
    assert ring.wait() == [(1, 0)]
    ring.tail = (ring.tail + jump) & 0xFFFFFFFF
    ring.publish()
    settle(vm)
    for i in range(20):
        assert vm.client.ping(i) == i
    assert vm.client.client_info(ring.client).calls == 1
    ring.close()
    assert free_bytes(vm) == before


@pytest.mark.parametrize("head", [1, 63, 64, 65, 2**31, 2**32 - 1])
def test_a_completion_head_that_makes_no_sense(vm: Machine, head: int) -> None:
    before = free_bytes(vm)
    rings = [RawRing(vm), RawRing(vm)]
    for ring in rings:
        ring.set_word(1, head)
        for i in range(64):
            ring.put(raw_entry(16, 0, tag=i))
        ring.publish()
    settle(vm)
    for i in range(20):
        assert vm.client.ping(i) == i
    for ring in rings:
        ring.close()
    assert free_bytes(vm) == before


def test_a_full_completion_queue_waits_for_the_host(vm: Machine) -> None:
    ring = RawRing(vm)
    for i in range(64):
        ring.put(raw_entry(1, i, tag=i))
    ring.publish()
    assert len(ring.wait()) == 64
    ring.set_word(1, 0)  # nothing taken: no room for one more
    ring.put(raw_entry(1, 64, tag=64))
    ring.publish()
    settle(vm)
    vm.client.ping(1)
    assert ring.word(17) == 64
    ring.set_word(1, 64)
    ring.publish()
    assert ring.wait() == [(64, 0)]
    ring.close()


def test_closing_waits_for_the_call_that_is_being_served(vm: Machine) -> None:
    """Another CPU is at work on the ring's entries: its memory is given back only afterwards."""
    before, long_calls = free_bytes(vm), 4
    ring = RawRing(vm)
    assert ring.word(37) == 1, "the ring is not on the other CPU"
    ring.put(raw_entry(1))
    for _ in range(long_calls):
        ring.put(frames.ENTRY.pack(BENCH_RUN, 0, 0, 0, 0, 1_000_000, 0, 0, 0, 0, 0, 0))
    ring.publish()
    until = time.monotonic() + 60
    while not ring.word(17):  # once the first is answered, all others are being served
        assert time.monotonic() < until
    ring.close()
    assert ring.word(17) == 1 + long_calls
    assert free_bytes(vm) == before


def test_a_header_that_is_overwritten(vm: Machine) -> None:
    """What the kernel wrote there it does not read back."""
    before, rng = free_bytes(vm), random.Random(3)
    ring = RawRing(vm)
    for i in range(200):
        for index in (*range(2, 16), *range(18, 64)):
            ring.set_word(index, rng.choice([0, 1, 2**31, 2**32 - 1, rng.getrandbits(32)]))
        ring.set_word(16, rng.getrandbits(32))
        ring.put(raw_entry(1, i, tag=i))
        ring.publish()
        assert ring.wait() == [(i, 0)]
    ring.close()
    assert free_bytes(vm) == before


def canary(vm: Machine, client: Client) -> Callable[[], None]:
    """Fill frames of a client with a pattern; the function checks that it is still there."""
    blocks = client.buddy_alloc_array(0, 64).tolist()
    spots = [vm.ram_offset(block) for block in blocks]
    for at in spots:
        vm.ram[at : at + PAGE] = struct.pack("<I", at) * 1024

    def check() -> None:
        for at in spots:
            assert vm.ram[at : at + PAGE] == struct.pack("<I", at) * 1024, hex(at)
        assert client.buddy_free_array(0, blocks) == 64

    return check


def random_entry(rng: random.Random, ops: list[int], known: list[int]) -> bytes:
    """Now and then all random; mostly a call that exists, with plausible arguments."""
    if rng.random() < 0.1:
        raw = bytearray(rng.randbytes(64))
        if raw[0] == CRASH:
            raw[0] = 0
        return bytes(raw)

    def argument() -> int:
        edges = [
            0,
            1,
            2,
            10,
            11,
            PAGE,
            2**32 - 1,
            2**32,
            2**63,
            2**64 - 1,
            0x200000,
            0x7FFFFFFFF000,
        ]
        return rng.choice(
            [*edges, *known, (rng.choice(known) + PAGE) % 2**64, rng.randrange(1 << 26) & -PAGE]
        )

    length = rng.choice([0, 0, 8, 64, 4096, DATA_BYTES, rng.getrandbits(32)])
    cap = rng.choice([0, 8, 512, 4096, DATA_BYTES, rng.getrandbits(32)])
    off = rng.choice([0, 0, 0, 8, 4096, rng.getrandbits(32)])
    count = rng.randrange(4)
    args = [argument() for _ in range(count)] + [0] * (5 - count)
    return frames.ENTRY.pack(rng.choice(ops), 3, 1, *args, off, length, cap, 0)


def ring_noise(vm: Machine, *, seed: int, seconds: float, rounds: int) -> None:
    rng, until = random.Random(seed), time.monotonic() + seconds
    # Tests and benches are the kernel's own loops: here they would only take time.
    ops = [n for n in vm.abi.by_number if n not in (CRASH, 50, 51, 54, 55, 56)] + [
        0,
        12,
        63,
        64,
        65535,
    ]
    innocent = vm.connect("innocent")
    innocent.ping(0)
    before = free_bytes(vm)
    check = canary(vm, innocent)
    ring = RawRing(vm)
    known = [ring.paddr, 0x5000, 0x10000]
    for round_ in range(rounds):
        if time.monotonic() > until:
            break
        words = [*known, *(rng.getrandbits(64) for _ in range(64))]
        struct.pack_into(f"<{len(words)}Q", ring.memory, DATA, *words)
        for _ in range(rng.randrange(1, 65)):
            ring.put(random_entry(rng, ops, known))
        ring.publish()
        start = ring.word(1)
        statuses = ring.wait()
        for i, (_, status) in enumerate(statuses):
            assert -200 < status <= 0, status
            result = struct.unpack_from("<Q", ring.memory, CQ + (start + i) % 64 * 32 + 8)[0]
            if not status and result and len(known) < 40:
                known.append(int(result))
        assert innocent.ping(round_) == round_
    check()
    ring.close()
    assert free_bytes(vm) == before


@pytest.mark.parametrize("seed", range(4))
def test_random_entries(vm: Machine, seed: int) -> None:
    ring_noise(vm, seed=seed, seconds=10.0, rounds=25)


@pytest.mark.fuzz
def test_random_entries_for_long(vm: Machine) -> None:
    ring_noise(vm, seed=99, seconds=stretch(2.0), rounds=10**9)


@pytest.mark.fuzz
def test_entries_that_change_while_they_are_served(vm: Machine) -> None:
    """One ring of a client takes blocks, another frees them, while this side rewrites both."""
    rng, until = random.Random(5), time.monotonic() + stretch(1.0)
    before = free_bytes(vm)
    while time.monotonic() < until:
        ring = RawRing(vm)
        second = vm.wire.call(RING_OPEN, (ring.client,))[1][0]
        helper = Ring(vm.ram, vm.ram_offset(second), second, vm.wire, 60.0)
        for _ in range(30):  # what is never freed, because its address was changed, adds up
            blocks = helper.full(18, (0, 64), b"", 512)[2]
            ring.memory[DATA : DATA + 512] = blocks
            for _ in range(8):
                ring.put(raw_entry(19, 0, length=512, cap=512))
            ring.publish()
            for _ in range(200):
                ring.memory[DATA + 8 * rng.randrange(64)] ^= 0x10
                ring.memory[SQ + rng.randrange(512)] ^= 1 << rng.randrange(4, 8)
            ring.wait()
            assert vm.client.ping(7) == 7
        ring.close()
        assert free_bytes(vm) == before
