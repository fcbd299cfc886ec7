"""The page array: each frame is free, or part of one live block whose head says so.

Everything that is not a live block's first frame has a first word of zero, and a second one of
zero; so a word that is set anywhere else is found. Whatever the zones manage is free, in a
magazine, or in a live block: a frame that is none of these is lost.
"""

import numpy as np
from numpy.typing import NDArray

from kos.inspect.auditor.kernel import (
    CLIENT,
    DIRTY,
    KERNEL,
    KINDS,
    LOCKED,
    MAPPED,
    ORDERS,
    PAGE,
    POOL,
    TABLE,
    Frames,
    Kernel,
)


def check_pages(k: Kernel, free: Frames) -> None:
    """All of the array.

    Args:
        k: The kernel.
        free: How often each frame is free.
    """
    _check_heads(k)
    _check_blocks(k, free)
    _check_second_words(k)


def _where(k: Kernel, index: int) -> str:
    frame = int(k.live[index])
    return f"page {frame:#x} (frame at {frame * PAGE:#x}, head {int(k.heads[frame]):#x})"


def _first(mask: NDArray[np.bool_]) -> int | None:
    """Index of the first that is set."""
    found = np.flatnonzero(mask)
    return int(found[0]) if len(found) else None


def _check_heads(k: Kernel) -> None:
    """Kind, order, flags, owner and references of each live block fit together."""
    kinds, orders, flags, owners, refs = k.kinds, k.orders, k.flags, k.owners, k.refs
    plain = (kinds == TABLE) | (kinds == POOL)
    rules = (
        ("page.kind", ~np.isin(kinds, list(KINDS)), "has no known kind"),
        ("page.order", (orders >= ORDERS) | (plain & (orders != 0)), "cannot have that order"),
        ("page.order", k.live % (1 << np.minimum(orders, 15)) != 0, "is not aligned to its order"),
        ("page.flags", (flags & ~(DIRTY | LOCKED | MAPPED)) != 0, "has a flag that is not known"),
        ("page.flags", (kinds != CLIENT) & (flags != 0), "has flags that its kind does not know"),
        ("page.flags", ((flags & MAPPED) != 0) & (orders != 0), "is a block, but mapped"),
        ("page.owner", plain & (owners != 0), "has an owner that its kind does not know"),
        ("page.owner", ~plain & (owners == 0), "has no owner"),
        ("page.refs", (kinds == CLIENT) & (refs == 0), "has no references"),
        ("page.refs", ((kinds == KERNEL) | (kinds == POOL)) & (refs != 1), "has not 1 reference"),
    )
    for invariant, wrong, message in rules:
        at = _first(wrong)
        if at is not None:
            k.found.broken(invariant, f"{_where(k, at)} {message}")


def _check_blocks(k: Kernel, free: Frames) -> None:
    """No frame is in two blocks, or in a block and free; none that is managed is in neither."""
    used = np.zeros(k.page_end + 1, np.int64)
    ends = np.minimum(k.live + (1 << np.minimum(k.orders, ORDERS - 1)), k.page_end)
    np.add.at(used, k.live, 1)
    np.add.at(used, ends, -1)
    times = np.cumsum(used)[: k.page_end]
    for invariant, wrong, message in (
        (
            "page.unmanaged",
            (times + free > 0) & ~k.managed,
            "is not managed, but free or in a block",
        ),
        ("page.overlap", times > 1, "is in two live blocks"),
        ("page.overlap", free > 1, "is free twice: in two blocks, or in a zone and a magazine"),
        ("page.overlap", (times > 0) & (free > 0), "is free and in a live block"),
        ("page.lost", k.managed & (times + free == 0), "is not free and in no live block"),
    ):
        at = _first(wrong)
        if at is not None:
            head = int(k.heads[at])
            k.found.broken(
                invariant, f"frame {at:#x}, at {at * PAGE:#x}, head {head:#x}, {message}"
            )


def _check_second_words(k: Kernel) -> None:
    """Only clients' blocks use the second word."""
    wrong = k.links != 0
    wrong[k.of_kind(CLIENT)] = False
    at = _first(wrong)
    if at is not None:
        value = int(k.links[at])
        k.found.broken("page.links", f"page {at:#x}: its second word is {value:#x}, expected 0")
