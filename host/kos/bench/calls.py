"""What a call from Python costs, beside a QMP round trip in the same run."""

import statistics
import time
from collections.abc import Callable

import kos
from kos.bench.row import Row
from kos.machine import Machine


def _p50(call: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _hot(vm: Machine, carrier: str, count: int) -> float:
    """Median of buddy_alloc(0) alone; the free in between is not timed."""
    times = []
    with vm.connect("bench", carrier=carrier) as client:
        for _ in range(count):
            start = time.perf_counter()
            addr = client.buddy_alloc(0)
            times.append(time.perf_counter() - start)
            client.buddy_free(addr, 0)
    return statistics.median(times)


def measure_calls(runs: int) -> list[Row]:
    """buddy_alloc(0) over the ring and over frames, as multiples of a QMP round trip."""
    rings, lines, monitors = [], [], []
    with kos.boot() as vm:
        for _ in range(runs):
            rings.append(_hot(vm, "rings", 2000))
            lines.append(_hot(vm, "frames", 100))
            monitors.append(_p50(lambda: vm.qmp.execute("query-status"), 200))
    ring, line, monitor = (statistics.median(t) for t in (rings, lines, monitors))
    return [
        Row("QMP query-status, p50", 1e6 * monitor, "us"),
        Row("buddy_alloc(0) over the ring, p50", 1e6 * ring, "us"),
        Row("buddy_alloc(0) over frames, p50", 1e6 * line, "us"),
        Row("ring / QMP", ring / monitor, "x", 0.05),
        Row("frames / QMP", line / monitor, "x", 20.0),
    ]


def measure_arrays(runs: int) -> list[Row]:
    """alloc+free pairs a second with the array forms of the calls."""
    rates = []
    count, rounds = 4096, 20
    with kos.boot() as vm:
        client = vm.client
        for _ in range(runs):
            start = time.perf_counter()
            for _ in range(rounds):
                client.buddy_free_array(0, client.buddy_alloc_array(0, count))
            rates.append(count * rounds / (time.perf_counter() - start))
    return [Row("pairs a second, arrays of 4096", statistics.median(rates), "1/s", 1e6, True)]
