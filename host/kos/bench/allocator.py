"""The page allocator's exact costs inside the kernel, and what it does to memory, beside Linux's.

All counts are guest instructions (QEMU's -icount) on a machine with one CPU, so they are the same
in each run. Rows with Linux's name are the same workload as there; docs/measuring.md tells of all.
"""

from collections.abc import Iterator
from typing import Any

import kos
from kos.bench import linux
from kos.bench.row import Row
from kos.exceptions import CallError
from kos.memory.constants import EINVAL
from kos.rpc.calls import MixResult
from kos.rpc.client import Client

SEED = 88172645463325252
MACHINE: dict[str, Any] = {"memory": "512M", "cpus": 1, "deterministic": True}
LARGEST = "64G"  # the most memory that a machine can have: the deepest summaries

_PAGES, _ZONE, _EMPTY, _LAST, _ASIS = range(5)  # `what` of bench_run
_DRY, _PLAIN, _SINGLE = range(3)  # `mode` of bench_mix
_SMALL, _BIG = (100_000, 4096), (200_000, 32768)  # steps and limit of the mixed workload
_ROUNDS = 1000
_BATCH = 1024
# Orders that have magazines; a pair that hits one takes no zone lock.
_MAGAZINES = (0, 1, 2, 3, 9)
_QUANTILES = ("n", "p50", "p90", "p99", "p999", "max")
_BARRED = _QUANTILES[1:]
_UNUSABLE = (1, 2, 3, 4, 5, 6, 9, 10)
_UNIT = "instructions"


def _row(name: str, value: float, unit: str = _UNIT, *, bar: bool = True, as_: str = "") -> Row:
    """A row with Linux's columns; the bar is half of the leanest Linux's figure."""
    columns = linux.figures().rows[as_ or name]
    return Row(
        name, round(value, 3), unit, round(columns["tiny"] / 2, 1) if bar else None, linux=columns
    )


def _pairs(client: Client) -> Iterator[Row]:
    """In memory as it is, and in states where nothing splits and merges, or all does."""
    for order in range(11):
        ticks = client.bench_run(_ASIS, order, _ROUNDS)
        yield _row(f"pages_pair_o{order}", ticks / _ROUNDS)
    empty = client.bench_run(_EMPTY, 0, 1)
    yield _row("pages_pair_o0_single", client.bench_run(_ASIS, 0, 1) - empty)
    loop = client.bench_run(_EMPTY, 0, _ROUNDS)

    def pair(what: int, order: int) -> float:
        return round((client.bench_run(what, order, _ROUNDS) - loop) / _ROUNDS, 3)

    for order in range(11):
        name, bar = ("hit", 50) if order in _MAGAZINES else ("nosplit", 150)
        yield Row(f"pages_pair_{name}_o{order}", pair(_PAGES, order), _UNIT, bar)
    for order in _MAGAZINES:
        yield Row(f"zone_pair_o{order}", pair(_ZONE, order), _UNIT, 150)
    for order in range(10):
        yield Row(f"zone_pair_last_o{order}", pair(_LAST, order), _UNIT)


def _batches(client: Client) -> Iterator[Row]:
    for how, name in enumerate(("lifo", "fifo", "rand")):
        alloc, free = client.bench_batch(how)
        yield _row(f"pages_batch1024_alloc_{name}", alloc / _BATCH)
        yield _row(f"pages_batch1024_free_{name}", free / _BATCH)


def _mixed(client: Client) -> Iterator[Row]:
    for name, (steps, limit) in (("100k", _SMALL), ("big_200k", _BIG)):
        result = client.bench_mix(_PLAIN, steps, limit, SEED)
        yield _row(f"mixpages_{name}", result.ticks / steps)
    steps, limit = _SMALL
    dry = client.bench_mix(_DRY, steps, limit, SEED)
    yield _row("mixpages_dry_100k", dry.ticks / steps, bar=False)
    single = client.bench_mix(_SINGLE, steps, limit, SEED)
    yield from _latencies("alloc", single.alloc_ticks)
    yield from _latencies("free", single.free_ticks)
    yield _row("mixpages_live_at_end", single.live, "blocks", bar=False)
    yield _row("mixpages_failed", single.failed, "blocks", bar=False)


def _latencies(call: str, ticks: tuple[int, ...]) -> Iterator[Row]:
    """Of single calls; Linux's with its interrupts off too, where it was measured so."""
    for quantile, value in zip(_QUANTILES, ticks, strict=True):
        name = f"mixpages_{call}_lat_{quantile}"
        quiet = f"mixpages_{call}_lat_quiet_{quantile}"
        unit = "calls" if quantile == "n" else _UNIT
        as_ = quiet if quiet in linux.figures().rows else name
        yield _row(name, value, unit, bar=quantile in _BARRED, as_=as_)


def worst_cases(client: Client) -> dict[str, int]:
    """What single calls take in the state that is worst for them, in instructions.

    Args:
        client: A client of a deterministic machine with one CPU and at least 512 MiB.

    Returns:
        By the name of the case, as docs/measuring.md has it.

    Example:
        >>> import kos
        >>> with kos.boot(memory="512M", cpus=1, deterministic=True) as vm:
        ...     worst = worst_cases(vm.client)
        >>> worst["zone_take_one"] < worst["pages_alloc_drain"]
        True
    """
    found: dict[str, int] = {}
    while True:
        try:
            name, ticks = client.bench_worst(len(found))
        except CallError as error:
            if error.errno != EINVAL:
                raise
            return found
        found[name] = ticks


def measure_allocator(runs: int) -> list[Row]:
    """Pairs, batches and mixed workloads of pages, and worst cases, in instructions."""
    del runs  # each run gives the same
    with kos.boot(**MACHINE) as vm:
        rows = [*_pairs(vm.client), *_batches(vm.client), *_mixed(vm.client)]
        worst = worst_cases(vm.client)
    with kos.boot(**MACHINE | {"memory": LARGEST}) as vm:
        largest = worst_cases(vm.client)
    rows += [Row(f"worst_{name}", ticks, _UNIT) for name, ticks in worst.items()]
    rows += [Row(f"worst_{name}_{LARGEST}", ticks, _UNIT) for name, ticks in largest.items()]
    return rows


def unusable(blocks: tuple[int, ...], order: int) -> int:
    """The share of free memory that is in blocks too small for an order.

    Args:
        blocks: Free blocks by order.
        order: 0 to 10.

    Returns:
        Permille, rounded down; 0 when nothing is free.

    Example:
        >>> unusable((2, 1, 0, 1), 1), unusable((2, 1, 0, 1), 3)
        (166, 333)
    """
    frames = [count << at for at, count in enumerate(blocks)]
    return sum(frames[:order]) * 1000 // sum(frames) if any(frames) else 0


def _fragmentation(when: str, blocks: tuple[int, ...]) -> Iterator[Row]:
    def row(what: str, value: int, unit: str) -> Row:
        return _row(f"frag_{when}_{what}", value, unit, bar=False)

    yield row("free_pages", sum(count << order for order, count in enumerate(blocks)), "frames")
    yield row("largest_order", max(order for order, count in enumerate(blocks) if count), "")
    for order in _UNUSABLE:
        yield row(f"unusable_o{order}_permille", unusable(blocks, order), "permille")


def measure_fragmentation(runs: int) -> list[Row]:
    """Free memory by size of its blocks, before, during and after the mixed workloads."""
    del runs
    with kos.boot(**MACHINE) as vm:
        vm.client.buddy_drain()
        small: MixResult = vm.client.bench_mix(_PLAIN, *_SMALL, SEED)
        big = vm.client.bench_mix(_PLAIN, *_BIG, SEED)
        end = vm.client.bench_mix(_DRY, 1, 1, SEED).start_blocks
    states = {
        "start": small.start_blocks,
        "mix_live": small.live_blocks,
        "mix_freed": small.freed_blocks,
        "big_live": big.live_blocks,
        "big_sixteenth_left": big.sixteenth_blocks,
        "end": end,
    }
    return [row for when, blocks in states.items() for row in _fragmentation(when, blocks)]
