"""Random input for what decodes the host's bytes: on this host with libFuzzer, and in a machine.

On this host the kernel's own sources are fuzz targets (tests/fuzz/): 20,000 inputs each in `make
test`, ten million in all in `make fuzz`. The same targets are built with a bug planted into one of
the sources, and must find it.

KOS_FUZZ_SEED chooses other random numbers, here and there; each failure says which it had.
"""

import contextlib
import os
import random
import shlex
import struct
import time
from pathlib import Path

import pytest

from conftest import Boot
from fuzz import entries, targets
from fuzz.bugs import BUGS
from fuzz.targets import ROOT
from helpers import free_bytes
from kos.exceptions import CallError
from kos.machine import Machine
from kos.rpc import frames
from test_hostile import CLIENT_CLOSE, CLIENT_OPEN, CQ, DATA, RawRing, canary, settle

LONG = "KOS_TEST_MINUTES" in os.environ  # make fuzz
SEED = int(os.environ.get("KOS_FUZZ_SEED", "1"))
HOSTED_INPUTS = 10_000_000 if LONG else 40_000  # over all targets
HOSTED_SECONDS = 3600
KEPT = ROOT / "build" / "fuzz"  # targets, and inputs that broke one


# On this host


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's sources and the targets, compiled."""
    folder = tmp_path_factory.mktemp("objects")
    targets.compile_all(folder)
    return folder


def complaint(name: str, program: Path, result: targets.Result) -> str:
    """What to show of a run that ended too soon, and how to see it again."""
    lines = result.log.splitlines()
    start = next((i for i, line in enumerate(lines) if "ERROR" in line or ".c:" in line), -40)
    shown = [*lines[start:][:40], f"{name} broke at input {result.executed}, seed {SEED}"]
    if result.crash is not None:
        command = [os.path.relpath(program, ROOT), os.path.relpath(result.crash, ROOT)]
        shown.append(f"once more: {shlex.join(command)}")
    return "\n" + "\n".join(shown)


@pytest.mark.fuzz
def test_decoders_on_this_host(
    objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    runs: dict[str, targets.Run] = {}
    share = HOSTED_INPUTS // len(targets.NAMES)
    began = time.monotonic()
    try:
        for name in targets.NAMES:
            targets.link(name, objects, KEPT / name)
            runs[name] = targets.Run(
                name, KEPT / name, tmp_path / name, runs=share, seed=SEED, artifacts=KEPT
            )
        results = {name: run.wait(HOSTED_SECONDS) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.stop()
    for name, result in results.items():
        said = complaint(name, KEPT / name, result)
        assert result.crash is None, said
        assert result.executed >= share, said
    if LONG:
        with capsys.disabled():
            for name, result in results.items():
                rate = result.executed / max(1.0, result.seconds)
                print(
                    f"\n{name}: {result.executed:,} inputs in {result.seconds:.0f} s, "
                    f"{rate:,.0f} a second, {result.features}",
                    end="",
                )
            total = sum(result.executed for result in results.values())
            print(f"\n{total:,} inputs in {time.monotonic() - began:.0f} s, seed {SEED}")


INPUTS_TO_FIND = 200_000


@pytest.mark.parametrize("what", BUGS)
def test_planted_bug_is_found(objects: Path, tmp_path: Path, what: str) -> None:
    bug = BUGS[what]
    source = (ROOT / bug.source).read_text()
    assert source.count(bug.text) == 1, f"{bug.source} has {bug.text!r} no more, or more than once"
    planted = tmp_path / "planted.o"
    targets.compile_source(bug.source, planted, source.replace(bug.text, bug.instead))
    program = tmp_path / bug.target
    targets.link(bug.target, objects, program, {bug.source: planted})
    run = targets.Run(
        bug.target, program, tmp_path / "corpus", runs=INPUTS_TO_FIND, seed=1, artifacts=tmp_path
    )
    try:
        result = run.wait(HOSTED_SECONDS)
    finally:
        run.stop()
    assert result.crash is not None, f"not found in {result.executed} inputs\n{result.log[-2000:]}"
    print(f"found by input {result.executed}")
    again = targets.reproduce(program, result.crash)
    assert again.returncode, f"not with the input alone:\n{again.stderr}"


# In a machine


MACHINE_ENTRIES = 100_000 if LONG else 5_000
MACHINE_FRAMES = 100_000 if LONG else 2_000  # a serial line takes some 16 bytes at a time


def seeded(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of a test; it prints the seed, which pytest shows when the test fails."""
    print(f"KOS_FUZZ_SEED={SEED} pytest {request.node.nodeid!r} does this again")
    return random.Random(f"{SEED} {request.node.name}")


class HostileRing(RawRing):
    """A ring of a client of its own, which knows what must become of each entry."""

    def __init__(self, vm: Machine, maker: entries.Maker, rng: random.Random) -> None:
        super().__init__(vm)
        self.maker, self.rng = maker, rng
        self.refused = self.served = self.tag = 0
        self.expected: list[tuple[int, int | None]] = []
        maker.known.append(self.paddr)

    def put_one(self) -> None:
        """Another entry, of any kind."""
        self.tag = self.tag + 1 & 0xFFFFFFFF
        fields = self.maker.entry(self.tag)
        self.put_fields(fields)

    def put_fields(self, fields: list[int]) -> None:
        self.put(frames.ENTRY.pack(*fields))
        self.expected.append((fields[entries.TAG], self.maker.refusal(fields)))

    def put_ping(self, value: int) -> None:
        self.put_fields([1, 0, value, value, 0, 0, 0, 0, 0, 0, 0, 0])

    def check(self) -> None:
        """Publish, wait, and compare; the entry that was put last was a ping."""
        start = self.word(1)
        end = start + len(self.expected) & 0xFFFFFFFF
        self.publish()
        settle_on(self, 17, end)
        places = range(start, start + len(self.expected))
        answers = [struct.unpack_from("<Ii", self.memory, CQ + i % 64 * 32) for i in places]
        self.set_word(1, end)
        for i, ((tag, status), (sent, refusal)) in enumerate(
            zip(answers, self.expected, strict=True)
        ):
            assert tag == sent, (i, tag, sent)
            assert status == refusal if refusal is not None else -200 < status <= 0, (i, status)
            if refusal != entries.EFAULT:  # else it is no call of the client's
                self.served += 1
                self.refused += status < 0
            if not status and self.rng.random() < 0.1:
                at = CQ + (start + i) % 64 * 32 + 8
                self.maker.learn(struct.unpack_from("<Q", self.memory, at)[0])
        assert answers[-1][1] == 0
        self.expected.clear()

    def fill_data(self) -> None:
        """Addresses that mean something, where U64S calls find them; noise elsewhere."""
        words = [self.rng.choice(self.maker.known) for _ in range(600)]
        struct.pack_into("<600Q", self.memory, DATA, *words)
        at = DATA + self.rng.randrange(57000)
        self.memory[at : at + 64] = self.rng.randbytes(64)

    def jump(self) -> None:
        """A tail that makes no sense: it is passed over, and nothing is answered."""
        self.tail = self.tail + self.rng.randrange(65, 2**32) & 0xFFFFFFFF
        before = self.word(17)
        self.publish()
        settle_on(self, 16, self.tail)
        assert self.word(17) == before
        self.set_word(1, before)

    def stall(self) -> None:
        """A head of the completions that makes no sense: all waits until it does again."""
        before = self.word(17)
        self.set_word(1, before - self.rng.randrange(64, 2**32))
        self.publish()
        settle(self.vm)
        assert self.word(17) == before
        self.set_word(1, before)

    def scribble(self) -> None:
        """The kernel's own words, of which it reads none back."""
        for index in (*range(3, 17), *range(18, 64)):
            self.set_word(index, self.rng.choice((0, 1, 2**31, 2**32 - 1)))

    def leave(self) -> None:
        """Close it; the kernel has counted what we have."""
        info = self.vm.client.client_info(self.client)
        assert (info.calls, info.refused) == (self.served, self.refused)
        self.close()


def settle_on(ring: RawRing, index: int, value: int) -> None:
    until = time.monotonic() + 60
    while ring.word(index) != value:
        ring.vm.wire.check()
        assert time.monotonic() < until, "the ring is stuck"


@pytest.mark.fuzz
def test_entries_in_a_machine(
    vm: Machine, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = seeded(request)
    innocent = vm.connect("innocent")
    innocent.ping(0)
    before = free_bytes(vm)
    errors = vm.client.machine_info().wire_errors
    blocks = canary(vm, innocent)
    maker = entries.Maker(vm.abi, rng, wire=False)
    began, done, jumps, batch = time.monotonic(), 0, 0, 0
    ring = HostileRing(vm, maker, rng)
    while done < MACHINE_ENTRIES:
        batch += 1
        size = rng.randrange(1, 64)
        ring.fill_data()
        if rng.random() < 0.05:
            ring.jump()
            jumps += 1
        if rng.random() < 0.1:
            ring.scribble()
        for _ in range(size):
            ring.put_one()
        ring.put_ping(batch)
        if rng.random() < 0.05:
            ring.stall()
        ring.check()
        done += size
        assert innocent.ping(batch) == batch
        if batch % 100 == 0:  # what it has taken is given back
            ring.leave()
            ring = HostileRing(vm, maker, rng)
    ring.leave()
    info = vm.client.machine_info()
    assert info.wire_errors == errors + jumps
    assert innocent.client_info(0).blocks == 64
    blocks()
    assert innocent.client_info(0).blocks == 0
    assert free_bytes(vm) == before
    report(capsys, f"{done:,} entries, {jumps} jumps of the tail", began)


def report(capsys: pytest.CaptureFixture[str], what: str, began: float) -> None:
    """In `make fuzz`: a line of what was done."""
    if LONG:
        with capsys.disabled():
            print(f"\n{what}, in {time.monotonic() - began:.0f} s, seed {SEED}")


class HostileLine:
    """The wire, with a client to act for, which knows what must come back for each frame."""

    def __init__(
        self, vm: Machine, maker: entries.Maker, rng: random.Random, keep: set[int]
    ) -> None:
        self.vm, self.maker, self.rng = vm, maker, rng
        self.keep = keep  # ids of clients that are not ours, and their rings
        self.expected: list[tuple[int, int | None, int | None]] = []  # kind, tag, status
        self.line = bytearray()
        status, (self.client, ring, _) = vm.wire.call(CLIENT_OPEN, (), b"hostile")
        assert status == 0
        maker.clients = [0, 0, 1, 2, *[self.client] * 12, 255, 65535]
        maker.known.append(ring)

    def tame(self, fields: list[int]) -> None:
        """Nothing in the name of those whom it must not touch.

        Frames may speak for any client and close any: that is what they are for. Left out are
        those that close or change the clients of the test itself, and those that take memory for
        the built-in clients, which cannot be closed afterwards.
        """
        if fields[entries.CLIENT] in self.keep | {0, 1, 2} and fields[entries.OP] not in (1, 2):
            fields[entries.CLIENT] = self.client
        own = (entries.CLIENT_CLOSE, entries.RING_OPEN, entries.RING_CLOSE)
        if fields[entries.OP] in own and fields[entries.ARG] in {*self.keep, self.client}:
            fields[entries.ARG] = 0

    def entry_frame(self) -> bytes:
        rng = self.rng
        fields = self.maker.entry(rng.getrandbits(32))
        self.tame(fields)
        length = min(fields[entries.LEN], 4096)
        if length > 40 and rng.random() < 0.98:  # a line is slow
            fields[entries.LEN] = length = length % 40 & -8
        words = struct.pack(
            f"<{length // 8 + 1}Q", *rng.choices(self.maker.known, k=length // 8 + 1)
        )
        entry = frames.ENTRY.pack(*fields)
        short = entry.rstrip(b"\0") if rng.random() < 0.9 else entry
        return frames.CALL.to_bytes(1, "little") + bytes([len(short)]) + short + words[:length]

    def noise(self) -> bytes:
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(1, 100)) + b"\0"
        if kind == 1:
            return frames.frame(rng.randrange(256), rng.randbytes(rng.randrange(80)))
        content = self.entry_frame()
        if kind == 2:  # other bytes under a right CRC; the first 3 name the call
            changed = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                changed[rng.choice((0, 1, rng.randrange(len(changed))))] ^= 1 << rng.randrange(8)
            return frames.frame(changed[0], self.harmless(changed[1:]))
        sent = bytearray(frames.frame(content[0], content[1:]))
        at = rng.randrange(len(sent) - 1)
        sent[at] ^= 1 << rng.randrange(8)
        return bytes(sent) if rng.random() < 0.5 else bytes(sent[:at]) + b"\0"

    def harmless(self, body: bytes | bytearray) -> bytes:
        """A body, or none if it has become a call that must not be made."""
        fields = self.decode(bytes(body))
        if fields is None:
            return bytes(body)
        same = list(fields)
        self.tame(same)
        op = fields[entries.OP]
        runs = op == entries.CRASH or self.maker.is_slow(op)
        return b"" if same != fields or runs else bytes(body)

    @staticmethod
    def decode(body: bytes) -> list[int] | None:
        """The entry in a call's body; None when it is none."""
        if not body or body[0] > min(64, len(body) - 1):
            return None
        fields = list(frames.ENTRY.unpack(body[1 : 1 + body[0]].ljust(64, b"\0")))
        rest = len(body) - 1 - body[0]
        return fields if rest == fields[entries.LEN] and rest <= 4096 else None

    def add(self) -> None:
        """One more frame, or what is none."""
        if self.rng.random() < 0.3:
            sent = self.noise()
        else:
            content = self.entry_frame()
            sent = frames.frame(content[0], content[1:])
        for received in map(self.received, sent[:-1].split(b"\0")):
            if received is not None:
                self.expected.append(received)
        self.line += sent

    def received(self, coded: bytes) -> tuple[int, int | None, int | None] | None:
        """What must be answered to the bytes before a zero byte."""
        if not coded:
            return None
        wrong = (frames.ERROR, None, None)
        got = list(frames.Decoder().feed(coded + b"\0"))
        if not got or got[0].kind not in (frames.CALL, frames.HELLO):
            return wrong
        if got[0].kind == frames.HELLO:
            return wrong if got[0].body else (frames.HELLO, None, None)
        fields = self.decode(got[0].body)
        if fields is None:
            return wrong
        return frames.REPLY, fields[entries.TAG], self.maker.refusal(fields)

    def check(self) -> None:
        """Send all, and compare what comes; last comes the answer to a ping."""
        ping = frames.ENTRY.pack(1, 0, 77, 78, *[0] * 8)
        self.line += frames.call_frame(ping)
        self.expected.append((frames.REPLY, 77, 0))
        self.vm.wire.send(bytes(self.line), time.monotonic() + 60)
        for kind, tag, refusal in self.expected:
            got = self.vm.wire._inbox.get(timeout=60)
            if got is None:
                self.vm.wire.check()
            assert got is not None
            assert got.kind == kind, (got, kind, tag)
            if kind == frames.REPLY:
                self.check_reply(got.body, tag, refusal)
        self.line.clear()
        self.expected.clear()

    def check_reply(self, body: bytes, tag: int | None, refusal: int | None) -> None:
        got, status, first, _, length, _ = frames.COMPLETION.unpack_from(body)
        assert got == tag
        assert length == len(body) - frames.COMPLETION.size
        # A client that is not there is the only thing that the entry alone does not tell.
        assert status in (refusal, -9) if refusal is not None else -200 < status <= 0, status
        if not status and self.rng.random() < 0.1:
            self.maker.learn(first)


@pytest.mark.fuzz
def test_frames_in_a_machine(
    boot: Boot, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = seeded(request)
    vm = boot(
        memory="64M", cpus=1, append="spin=0"
    )  # the line's speed depends on QEMU's own thread
    innocent = vm.connect("innocent")
    innocent.ping(0)
    before, clients = free_bytes(vm), vm.client.machine_info().clients
    rings = vm.client.machine_info().rings
    keep = {vm.client.client_info(0).id, innocent.client_info(0).id}
    blocks = canary(vm, innocent)
    began, done, batch = time.monotonic(), 0, 0
    line = HostileLine(vm, entries.Maker(vm.abi, rng, wire=True), rng, keep)
    while done < MACHINE_FRAMES:
        batch += 1
        for _ in range(50):
            line.add()
        line.check()
        done += 50
        assert innocent.ping(batch) == batch
    for client in set(range(3, 256)) - keep:
        with contextlib.suppress(CallError):  # there is none with that id
            vm.client.client_info(client)
            assert vm.wire.call(CLIENT_CLOSE, (client,))[0] == 0
    assert innocent.client_info(0).blocks == 64
    blocks()
    info = vm.client.machine_info()
    assert (info.clients, info.rings) == (clients, rings)
    assert free_bytes(vm) == before
    report(capsys, f"{done:,} frames", began)
