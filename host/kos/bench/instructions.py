"""Exact costs inside the kernel, in guest instructions (QEMU's -icount, one CPU)."""

import kos
from kos.bench.row import Row
from kos.rpc.client import Client

_PAGES, _ZONE, _EMPTY, _LAST = 0, 1, 2, 3
_ROUNDS = 1000
# Orders that have magazines; a pair that hits one takes no zone lock.
_MAGAZINES = (0, 1, 2, 3, 9)


def _pair(client: Client, what: int, order: int) -> float:
    """Instructions of one pair, the loop around it taken off."""
    loop = client.bench_run(_EMPTY, order, _ROUNDS)
    return (client.bench_run(what, order, _ROUNDS) - loop) / _ROUNDS


def measure_kernel(runs: int) -> list[Row]:
    """An alloc+free pair in the kernel, from the magazine and from the zone."""
    rows = []
    with kos.boot(memory="512M", cpus=1, deterministic=True) as vm:
        for order in range(11):
            pair = _pair(vm.client, _PAGES, order)
            bar = 50 if order in _MAGAZINES else 150
            rows.append(Row(f"pair of order {order}", pair, "instructions", bar))
        for order in _MAGAZINES:
            pair = _pair(vm.client, _ZONE, order)
            rows.append(Row(f"pair of order {order}, past the magazine", pair, "instructions", 150))
        for order in range(10):
            pair = _pair(vm.client, _LAST, order)
            rows.append(Row(f"pair of order {order}, its only free block", pair, "instructions"))
    return rows
