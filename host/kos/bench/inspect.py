"""What it costs to look: the view, the auditor, snapshots, dumps."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import kos
from kos.bench.row import Row
from kos.inspect import audit


def _median(work: Callable[[], object], runs: int) -> float:
    """Seconds that it takes, the median of several runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_inspect(runs: int) -> list[Row]:
    """Reading a value and the page array, an audit, a snapshot, going back to it, a dump."""
    with kos.boot(memory="256M") as vm:
        managed = vm.view["zones"][1].managed
        scalar = _median(lambda: [int(managed) for _ in range(1000)], runs) / 1000
        pages = _median(lambda: vm.view.pages(0, 65536), runs)
        check = _median(lambda: audit(vm), runs)
    with kos.boot(memory="64M") as vm, tempfile.TemporaryDirectory() as folder:
        keep = _median(vm.snapshot, runs)
        back = _median(vm.restore, runs)
        dump = _median(lambda: vm.dump(Path(folder, "dump")), runs)
    return [
        Row("one value by its name", 1e6 * scalar, "us", 5.0),
        Row("65,536 pages as a numpy structure", 1e3 * pages, "ms", 10.0),
        Row("audit of 256 MiB", 1e3 * check, "ms", 50.0),
        Row("snapshot of 64 MiB", 1e3 * keep, "ms"),
        Row("going back to it", 1e3 * back, "ms", 50.0),
        Row("dump of 64 MiB", 1e3 * dump, "ms"),
    ]
