"""Turning what the kernel refuses into the documented exceptions, with a reason in words."""

from typing import TYPE_CHECKING

from kos.exceptions import AllocationError, CallError, MemoryError
from kos.memory.constants import EINVAL, ENOMEM, PG_LOCKED, PG_MAPPED, errno_name

if TYPE_CHECKING:
    from kos.rpc.client import Client

LIVE, FREE, MAGAZINE, RESERVED, NOT_RAM = 4, 2, 3, 1, 0


def whole(name: str, value: object) -> int:
    """A number that a user gave; TypeError when it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    index = getattr(value, "__index__", None)  # numpy's integers
    if index is not None and not isinstance(value, bool):
        return int(index())
    raise TypeError(f"{name} is a whole number, not {value!r} ({type(value).__name__})")


def order_error(order: int) -> MemoryError:
    """An order that no block has."""
    return AllocationError(f"order {order} is out of range: 0 to 10", errno=EINVAL)


def no_memory(order: int) -> MemoryError:
    """Nothing left of that size."""
    return AllocationError(f"no free block of {4 << order} KiB (order {order})", errno=ENOMEM)


def describe_frame(client: "Client", paddr: int) -> str:
    """What is at a physical address, in words."""
    if paddr % 4096:
        return f"{paddr:#x} is not page-aligned"
    try:
        info = client.page_info(paddr)
    except (CallError, ValueError):
        return f"{paddr:#x} is beyond the machine's RAM"
    block = f"the order-{info.order} block at {info.block:#x}"
    if info.place == NOT_RAM:
        return f"{paddr:#x} is no RAM"
    if info.place == RESERVED:
        return f"frame {paddr:#x} is reserved for the kernel itself"
    if info.place in (FREE, MAGAZINE):
        return f"frame {paddr:#x} is free"
    if info.owner != client.id:
        return f"frame {paddr:#x} belongs to somebody else (client {info.owner})"
    if info.block != paddr:
        return f"frame {paddr:#x} is inside {block}"
    return f"frame {paddr:#x} heads {block}{_uses(info.refs, info.flags)}"


def _uses(refs: int, flags: int) -> str:
    uses = [f"{refs} references"] if refs != 1 else []
    uses += ["locked"] if flags & PG_LOCKED else []
    uses += ["mapped"] if flags & PG_MAPPED else []
    return f" and is in use ({', '.join(uses)})" if uses else ""


def frame_error(client: "Client", action: str, paddr: int, errno: int) -> MemoryError:
    """Why the kernel refused to do something with a frame."""
    why = describe_frame(client, paddr)
    kind = AllocationError if errno == ENOMEM else MemoryError
    return kind(f"cannot {action}: {why} ({errno_name(errno)})", errno=errno)
