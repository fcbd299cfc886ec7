"""What `kos bench` measures.

Times are medians of several runs on this host; the figures that carry over to other hosts are the
ratios, taken in the same run, and the guest instructions.
"""

from collections.abc import Callable

from kos.bench import allocator, boot, calls, inspect
from kos.bench.row import Row

__all__ = ["MEASUREMENTS", "Row"]

MEASUREMENTS: dict[str, Callable[[int], list[Row]]] = {
    "boot": boot.measure_boot,
    "growth": boot.measure_growth,
    "many": boot.measure_many,
    "idle": boot.measure_idle,
    "calls": calls.measure_calls,
    "arrays": calls.measure_arrays,
    "inspect": inspect.measure_inspect,
    "allocator": allocator.measure_allocator,
    "fragmentation": allocator.measure_fragmentation,
}
