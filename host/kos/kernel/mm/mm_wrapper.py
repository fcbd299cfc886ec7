"""The documented functions on the kernel's buddy allocator.

They return what their documentation says, also for a failure; `last_error()` then has the reason.
All take `machine=`, the default one when left out.
"""

import threading
from typing import Any

from kos._default import boot_default, current_default, default_machine
from kos.exceptions import CallError, MemoryError
from kos.machine import Machine
from kos.machine._argv import check_memory
from kos.memory._errors import frame_error, no_memory, order_error, whole
from kos.memory.constants import EBUSY, EINVAL, ENOMEM, MAX_ORDER
from kos.rpc.calls import ZoneInfo
from kos.rpc.client import Client

__all__ = ["buddy_alloc", "buddy_free", "buddy_init", "buddy_stats", "last_error"]

_thread = threading.local()
_ZONES = ("DMA", "NORMAL", "HIGHMEM")


def last_error() -> MemoryError | None:
    """Why the calling thread's last call of a function here failed; None when it did not.

    Example:
        >>> buddy_alloc(11)
        0
        >>> last_error().errno
        -22
    """
    return getattr(_thread, "error", None)


def _fail(error: MemoryError, result: int) -> int:
    _thread.error = error
    return result


def _client(machine: Machine | None) -> Client:
    _thread.error = None
    return (machine or default_machine()).client


def buddy_init(total_memory: int) -> int:
    """Boot the default machine with that much RAM.

    Args:
        total_memory: Bytes: 16 MiB to 64 GiB, a multiple of 4096.

    Returns:
        0, also when it already runs with that much; -22 (EINVAL): not such a size; -16 (EBUSY): it
        runs with another size.

    Raises:
        HostError, BootError: The machine cannot be booted.

    Example:
        >>> buddy_init(4096)
        -22
        >>> print(last_error().errno)
        -22
    """
    _thread.error = None
    total_memory = whole("total_memory", total_memory)
    try:
        check_memory(total_memory)
    except ValueError as error:
        return _fail(MemoryError(str(error), errno=EINVAL), EINVAL)
    running = current_default()
    if running is None:
        boot_default(total_memory)
    elif running.memory != total_memory:
        message = f"the default machine runs with {running.memory} bytes, not {total_memory}"
        return _fail(MemoryError(message, errno=EBUSY), EBUSY)
    return 0


def buddy_alloc(order: int, machine: Machine | None = None) -> int:
    """Take a block of 2^order contiguous pages.

    Args:
        order: 0 to 10: 4 KiB to 4 MiB.
        machine: The machine; the default one when left out.

    Returns:
        The block's physical address, a multiple of its size; 0 when it failed.

    Example:
        >>> addr = buddy_alloc(2)
        >>> addr % (4 * 4096)
        0
        >>> buddy_free(addr, 2)
        0
    """
    client = _client(machine)
    order = whole("order", order)
    if not 0 <= order <= MAX_ORDER:
        return _fail(order_error(order), 0)
    try:
        return client.buddy_alloc(order)
    except CallError as error:
        if error.errno != ENOMEM:
            raise
        return _fail(no_memory(order), 0)


def buddy_free(addr: int, order: int, machine: Machine | None = None) -> int:
    """Give a block back.

    Args:
        addr: Its physical address.
        order: The order it was taken with.
        machine: The machine; the default one when left out.

    Returns:
        0; -22 (EINVAL) unless `addr` is the start of a live block of exactly that order that this
        program has; -16 (EBUSY) while it is locked, mapped or has other references. Then nothing
        changes.

    Example:
        >>> addr = buddy_alloc(1)
        >>> buddy_free(addr, 0), buddy_free(addr, 1), buddy_free(addr, 1)
        (-22, 0, -22)
        >>> "is free" in str(last_error())
        True
    """
    client = _client(machine)
    addr, order = whole("addr", addr), whole("order", order)
    try:
        client.buddy_free(addr, order)
    except CallError as error:
        action = f"free an order-{order} block"
        return _fail(frame_error(client, action, addr, error.errno or 0), error.errno or EINVAL)
    except ValueError as error:
        return _fail(MemoryError(f"{error} (EINVAL)", errno=EINVAL), EINVAL)
    return 0


def buddy_stats(machine: Machine | None = None) -> dict[str, Any]:
    """What the buddy allocator has and has done.

    Args:
        machine: The machine; the default one when left out.

    Returns:
        `free_blocks` (by order, in zones and magazines together), `free_pages`, and `zones`: for
        DMA, NORMAL and HIGHMEM a dict with `free_pages`, `managed_pages`, `watermarks`, and by
        order `free_blocks`, `magazine_blocks`, `allocated` and `freed` (blocks that left and came
        back, a magazine counting as outside), `splits`, `merges`, and `fragmentation` (the share
        of free memory that is in blocks too small for that order, 0.0 to 1.0).

    Example:
        >>> stats = buddy_stats()
        >>> sorted(stats["zones"]["NORMAL"]["free_blocks"]) == list(range(11))
        True
    """
    client = _client(machine)
    zones = {name: _zone(client.zone_info(i)) for i, name in enumerate(_ZONES)}
    free_blocks = {
        order: sum(z["free_blocks"][order] + z["magazine_blocks"][order] for z in zones.values())
        for order in range(MAX_ORDER + 1)
    }
    free_pages = sum(count << order for order, count in free_blocks.items())
    return {"free_blocks": free_blocks, "free_pages": free_pages, "zones": zones}


def _zone(info: ZoneInfo) -> dict[str, Any]:
    def by_order(values: tuple[int, ...]) -> dict[int, int]:
        return dict(enumerate(values))

    return {
        "managed_pages": info.managed,
        "free_pages": info.free,
        "watermarks": {
            "min": info.watermark_min,
            "low": info.watermark_low,
            "high": info.watermark_high,
        },
        "free_blocks": by_order(info.free_blocks),
        "magazine_blocks": by_order(info.magazine_blocks),
        "allocated": by_order(info.taken),
        "freed": by_order(info.given),
        "splits": by_order(info.splits),
        "merges": by_order(info.merges),
        "failures": info.failures,
        "fragmentation": {o: share / 1000 for o, share in enumerate(info.fragmentation)},
    }
