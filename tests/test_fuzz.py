"""Random input for what decodes the host's bytes: on this host with libFuzzer, and in a machine.

On this host the kernel's own sources are fuzz targets (tests/fuzz/): 20,000 inputs each in `make
test`, ten million in all in `make fuzz`. The same targets are built with a bug planted into one of
the sources, and must find it.

KOS_FUZZ_SEED chooses other random numbers, here and there; each failure says which it had.
"""

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuzz import targets
from fuzz.targets import ROOT

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
        assert result.crash is None and result.executed >= share, complaint(
            name, KEPT / name, result
        )
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


@dataclass(frozen=True)
class Bug:
    """A bug to plant: text of a source, and what stands there instead."""

    target: str
    source: str
    text: str
    instead: str


FRAME, RING, CALLS, COBS = (
    "kernel/rpc/frame.c",
    "kernel/rpc/ring.c",
    "kernel/rpc/calls.c",
    "kernel/lib/cobs.c",
)
ENTRY_COPY = """\
    struct rpc_entry e;
    struct rpc_completion *cq = ring_at(r, RING_CQ), c;
    memcpy(&e, (u8 *)ring_at(r, RING_SQ) + r->sq_head % RING_ENTRIES * sizeof(e), sizeof(e));
"""
ENTRY_IN_PLACE = """\
#define e (*(struct rpc_entry *)((u8 *)ring_at(r, RING_SQ) + r->sq_head % RING_ENTRIES * 64))
    struct rpc_completion *cq = ring_at(r, RING_CQ), c;
"""
BUGS = {
    "a frame shorter than a CRC": Bug("frames", FRAME, "if (len < 5)", "if (len < 0)"),
    "a CRC that is not compared": Bug(
        "frames", FRAME, "if (crc != crc32(", "if (0 && crc != crc32("
    ),
    "a frame without an end": Bug(
        "frames", FRAME, "else if (rx_len < sizeof(rx))", "else if (rx_len < sizeof(rx) + 8)"
    ),
    "a frame that fills the buffer": Bug(
        "frames", FRAME, "else if (rx_len < sizeof(rx))", "else if (rx_len <= sizeof(rx))"
    ),
    "a frame cut at the buffer's end": Bug("frames", FRAME, "rx_len = sizeof(rx) + 1;", ";"),
    "an entry longer than an entry": Bug("frames", FRAME, "body[0] > sizeof(*e) || ", ""),
    "data of another length": Bug("frames", FRAME, "rest != e->data_len || ", ""),
    "more data than a frame takes": Bug("frames", FRAME, " || rest > FRAME_DATA_MAX)", ")"),
    "an answer larger than the buffer": Bug(
        "frames", FRAME, "e.data_cap = MIN(e.data_cap, (u32)FRAME_DATA_MAX);", ""
    ),
    "a client that is not there": Bug(
        "frames", FRAME, "client_get(e.client ? e.client : CLIENT_WIRE)", "client_get(CLIENT_WIRE)"
    ),
    "a run past the end": Bug("frames", COBS, "if (!run || run - 1 > n - in)", "if (!run)"),
    "a call beyond the table": Bug("frames", CALLS, "number >= CALL_NUMBERS || ", ""),
    "data past the area": Bug(
        "rings", RING, "need <= RING_DATA_BYTES - e->data_off", "need <= RING_DATA_BYTES"
    ),
    "data one word past the area": Bug(
        "rings", RING, "need <= RING_DATA_BYTES -", "need <= RING_DATA_BYTES + 8 -"
    ),
    "data that is not checked": Bug("rings", RING, "if (likely(data_is_inside(&e)))", "if (1)"),
    "data that starts behind the area": Bug("rings", RING, "e->data_off <= RING_DATA_BYTES &&", ""),
    "room for an answer that is not checked": Bug(
        "rings", RING, "MAX(e->data_len, e->data_cap)", "e->data_len"
    ),
    "data that is not aligned": Bug("rings", RING, "e->data_off % 8 == 0 && ", ""),
    "an entry that is not copied": Bug("rings", RING, ENTRY_COPY, ENTRY_IN_PLACE),
    "an entry behind the queue": Bug("rings", RING, "r->sq_head % RING_ENTRIES", "r->sq_head"),
    "a completion behind the queue": Bug(
        "rings", RING, "cq[r->cq_tail % RING_ENTRIES]", "cq[r->cq_tail]"
    ),
    "an index that is read back": Bug(
        "rings", RING, "cq[r->cq_tail % RING_ENTRIES]", "cq[r->header->cq_tail % RING_ENTRIES]"
    ),
    "more entries than the queue has": Bug(
        "rings", RING, "if (waiting > RING_ENTRIES)", "if (waiting > RING_ENTRIES + 1)"
    ),
    "completions that overtake the host": Bug(
        "rings", RING, "MIN(waiting, RING_ENTRIES - used)", "waiting"
    ),
    "a completion queue that is overfull": Bug(
        "rings", RING, "return used < RING_ENTRIES ?", "return used < 2 * RING_ENTRIES ?"
    ),
    "a doorbell too few": Bug("rings", RING, "    ring_notify(r);\n", ""),
    "a word of the host's": Bug(
        "rings", RING, "WRITE_ONCE(r->header->sq_head,", "WRITE_ONCE(r->header->host_waits,"
    ),
    "a number beyond 32 bits": Bug(
        "rings", CALLS, "? e->arg[i] > UINT32_MAX", "? e->arg[i] > UINT64_MAX"
    ),
    "an argument too many": Bug("rings", CALLS, ": !d->args[i].type && e->arg[i])", ": false)"),
    "half a number": Bug("rings", CALLS, "e->data_len % 8", "e->data_len % 4"),
    "data for a call that has none": Bug(
        "rings", CALLS, "if (e->data_len && d->in == CALL_NONE)", "if (0)"
    ),
    "a call of the wire's on a ring": Bug(
        "rings", CALLS, "if (d->scope == CALL_WIRE && !wire)", "if (0)"
    ),
    "another call's tag": Bug("rings", CALLS, ".tag = e->tag", ".tag = e->tag & 0xfff"),
}
INPUTS_TO_FIND = 50_000


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
