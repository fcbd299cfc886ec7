"""Exact counts: those on record against those of this kernel, and worst cases as bounds.

The machine counts instructions and has one CPU, so every count is the same in each run, on any
host. docs/measuring.md tells what the counts are and how a change is accepted.
"""

import json
from pathlib import Path

import pytest

from conftest import Boot
from kos import image
from kos.abi import Abi
from kos.bench import MEASUREMENTS, Row, exact
from kos.bench.allocator import MACHINE, SEED, worst_cases
from kos.exceptions import HostError

pytestmark = pytest.mark.plain

PLAIN, SINGLE = 1, 2  # modes of bench_mix
MAX = -1  # the last of the latencies


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [row for name in exact.EXACT for row in MEASUREMENTS[name](1)]


def test_fragmentation_repeats() -> None:
    measure = MEASUREMENTS["fragmentation"]
    rows = {row.name: row.value for row in measure(1)}
    assert {row.name: row.value for row in measure(1)} == rows
    assert len(rows) == 60
    assert rows["frag_end_free_pages"] == rows["frag_start_free_pages"]


# ---- the record ----


def test_counts_are_those_on_record(rows: list[Row]) -> None:
    record, compiler = exact.load(), Abi.load(image.find()[1]).compiler
    accept = 'kos bench --accept "why they changed"'
    assert compiler == record.compiler, (
        f"the counts on record hold for {record.compiler!r}, but this kernel was compiled with "
        f"{compiler!r}; build it with the former, or put all counts on record anew: {accept}"
    )
    moved = exact.moves(record, {row.name: row.value for row in rows})
    lines = "\n".join(f"  {move}" for move in moved)
    assert not moved, (
        f"{len(moved)} counts have moved by more than 1 %:\n{lines}\nIf that is meant: {accept}"
    )


def test_counts_repeat(rows: list[Row]) -> None:
    again = [row for name in exact.EXACT for row in MEASUREMENTS[name](1)]
    assert again == rows


def test_bars_are_kept(rows: list[Row]) -> None:
    assert [row for row in rows if row.missed] == []
    halved = [row for row in rows if row.linux and row.bar is not None]
    assert len(halved) >= 28
    for row in halved:
        assert row.ratio is not None
        assert row.ratio <= 0.5, row


def test_every_count_has_a_reason() -> None:
    for name, count in exact.load().counts.items():
        assert exact.check_reason(count.reason) == count.reason, name


# ---- worst cases ----


@pytest.fixture(scope="module")
def worst(rows: list[Row]) -> dict[str, float]:
    return {
        row.name.removeprefix("worst_"): row.value for row in rows if row.name.startswith("worst_")
    }


@pytest.mark.parametrize("limit", [16, 256, 1024, 4096, 32768])
def test_no_random_call_is_dearer_than_the_worst_case(
    boot: Boot, worst: dict[str, float], limit: int
) -> None:
    """Many seeds look for a state that is worse than those that were built to be the worst."""
    client = boot(**MACHINE).client
    for seed in range(1, 6):
        found = client.bench_mix(SINGLE, 60_000, limit, SEED * seed % 2**64)
        assert found.failed == 0
        allocs = worst["pages_alloc_refill_word"], worst["pages_alloc_refill_split"]
        assert found.alloc_ticks[MAX] <= max(allocs), f"seed {seed}"
        assert found.free_ticks[MAX] <= worst["pages_free_spill"], f"seed {seed}"


@pytest.mark.parametrize("memory", ["16M", "24M", "64M"])
def test_nor_is_one_that_finds_no_memory(boot: Boot, worst: dict[str, float], memory: str) -> None:
    """Here allocations fail, after all magazines were emptied in vain."""
    client = boot(**MACHINE | {"memory": memory}).client
    for seed in range(1, 6):
        found = client.bench_mix(SINGLE, 60_000, 32768, SEED * seed % 2**64)
        assert found.failed > 0
        assert found.alloc_ticks[MAX] <= worst["pages_alloc_drain"], f"seed {seed}"
        assert found.free_ticks[MAX] <= worst["pages_free_spill"], f"seed {seed}"


def test_worst_cases_are_worse_with_deeper_summaries(worst: dict[str, float]) -> None:
    small = [name for name in worst if not name.endswith("_64G")]
    assert len(small) >= 16
    for name in small:
        assert worst[name] <= worst[f"{name}_64G"] <= 2 * worst[name], name


def test_worst_cases_leave_nothing_behind(boot: Boot) -> None:
    client = boot(**MACHINE).client
    client.buddy_drain()
    before = client.machine_info().free_bytes, client.zone_info(1).free_blocks
    first = worst_cases(client)
    client.buddy_drain()
    assert (client.machine_info().free_bytes, client.zone_info(1).free_blocks) == before
    assert worst_cases(client) == first


def test_mixed_workload_leaves_nothing_behind(boot: Boot) -> None:
    client = boot(**MACHINE).client
    client.buddy_drain()
    before = client.machine_info().free_bytes, client.zone_info(1).free_blocks
    result = client.bench_mix(PLAIN, 20_000, 4096, SEED)
    client.buddy_drain()
    assert (client.machine_info().free_bytes, client.zone_info(1).free_blocks) == before
    assert result.live > 1500
    frames = [sum(n << order for order, n in enumerate(blocks)) for blocks in result[5:]]
    start, live, sixteenth, freed = frames
    assert live < sixteenth < freed <= start


# ---- accepting ----


def test_accept_keeps_what_has_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "exact.json"
    moved = exact.accept("cc 1", {"a": 100, "b": 50, "c": 7, "zero": 0}, "first", path)
    assert [move.name for move in moved] == ["a", "b", "c", "zero"]
    moved = exact.accept("cc 1", {"a": 100.9, "b": 52, "d": 1, "zero": 0}, " faster\t", path)
    assert [str(move) for move in moved] == [
        "b: 52, 50 on record (+4.0 %)",
        "d: 1, not on record",
        "c: 7 on record, not measured any more",
    ]
    record = exact.load(path)
    assert record.compiler == "cc 1"
    assert record.counts == {
        "a": exact.Count(100, None, "first"),
        "b": exact.Count(52, 50, "faster"),
        "d": exact.Count(1, None, "faster"),
        "zero": exact.Count(0, None, "first"),
    }
    assert exact.moves(record, {"a": 100.9, "b": 52, "d": 1, "zero": 0}) == []
    assert len(path.read_text().splitlines()) == 9  # a row is a line


def test_small_steps_add_up(tmp_path: Path) -> None:
    path = tmp_path / "exact.json"
    exact.accept("cc 1", {"a": 1000}, "first", path)
    assert exact.accept("cc 1", {"a": 1009}, "a little", path) == []
    assert len(exact.moves(exact.load(path), {"a": 1018})) == 1


def test_what_was_zero_may_not_grow() -> None:
    record = exact.Record("cc", {"failed": exact.Count(0, None, "never")})
    assert [str(m) for m in exact.moves(record, {"failed": 1})] == [
        "failed: 1, 0 on record (from 0)"
    ]


def test_another_compiler_is_a_new_record(tmp_path: Path) -> None:
    path = tmp_path / "exact.json"
    exact.accept("cc 1", {"a": 100}, "first", path)
    assert len(exact.accept("cc 2", {"a": 100}, "compiler", path)) == 1
    assert exact.load(path) == ("cc 2", {"a": exact.Count(100, None, "compiler")})


@pytest.mark.parametrize("reason", ["", " \n", "two\nlines"])
def test_a_reason_is_one_line(tmp_path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        exact.accept("cc 1", {"a": 1}, reason, tmp_path / "exact.json")
    assert not (tmp_path / "exact.json").exists()


def test_record_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="absent"):
        exact.accept("cc 1", {"a": 1}, "first", tmp_path / "absent" / "exact.json")


def test_the_record_is_as_accept_writes_it(tmp_path: Path) -> None:
    record = exact.load()
    values = {name: count.value for name, count in record.counts.items()}
    path = tmp_path / "exact.json"
    path.write_text(exact.PATH.read_text())
    assert exact.accept(record.compiler, values, "nothing moved", path) == []
    assert path.read_text() == exact.PATH.read_text()
    assert json.loads(path.read_text())["compiler"] == record.compiler
