"""The pool that descriptors of mappings come from: its pages, the chains of free objects."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kos.inspect.auditor.kernel import PAGE, POOL, Account, Kernel
from kos.inspect.auditor.report import Unsound
from kos.inspect.layouts import dtype_of


class Descriptor(NamedTuple):
    """What a mapped frame has instead of links: those, and the address it is mapped at."""

    next: int
    prev: int
    vaddr: int


def check_pool(k: Kernel, account: Account) -> dict[int, Descriptor]:
    """All of it. Returns the descriptors that are in use, by address."""
    pool, frames = k.pool, k.of_kind(POOL)
    size = k.abi.layout("frame_map").size
    k.found.need("pool.size", "frame_maps.object_bytes", int(pool["object_bytes"]), size)
    k.found.same("pool.pages", "frame_maps.pages", int(pool["pages"]), len(frames))
    header = dtype_of(k.abi, "pool_page")
    capacity = (PAGE - header.itemsize) // size
    result: dict[int, Descriptor] = {}
    partial: dict[int, tuple[int, int]] = {}
    for frame in frames.tolist():
        page = np.frombuffer(k.memory.physical(frame * PAGE, header.itemsize), header)[0]
        objects = _live_objects(k, frame, page, size, capacity)
        k.found.same("pool.used", f"pool page {frame:#x}: used", int(page["used"]), len(objects))
        for paddr in objects:
            links, vaddr = k.words(paddr, 2).tolist()
            result[k.direct + paddr] = Descriptor(links & 0xFFFFFFFF, links >> 32, vaddr)
        if len(objects) < capacity:
            partial[frame] = (int(page["next"]), int(page["prev"]))
    k.found.same("pool.live", "frame_maps.live", int(pool["live"]), len(result))
    _check_partial(k, partial)
    account.give("the kernel: descriptors of mappings", frames)
    return result


def _live_objects(
    k: Kernel, frame: int, page: NDArray[np.void], size: int, capacity: int
) -> list[int]:
    """Physical addresses of the objects that are not in the page's free chain."""
    first = frame * PAGE + dtype_of(k.abi, "pool_page").itemsize
    bumped = int(page["bumped"])
    if not 0 < bumped <= capacity:
        k.found.broken(
            "pool.bumped", f"pool page {frame:#x}: bumped is {bumped}, not 1 to {capacity}"
        )
        raise Unsound
    objects = {first + i * size for i in range(bumped)}
    pointer = int(page["free"])
    while pointer:
        if pointer - k.direct not in objects:
            k.found.broken(
                "pool.chain",
                f"pool page {frame:#x}: its chain of free objects leads to {pointer:#x}",
            )
            raise Unsound
        objects.remove(pointer - k.direct)
        pointer = int(k.words(pointer - k.direct, 1)[0])
    return sorted(objects)


def _check_partial(k: Kernel, partial: dict[int, tuple[int, int]]) -> None:
    """The pages with room form a list."""
    frame, before = int(k.pool["partial"]), 0
    left = dict(partial)
    while frame:
        links = left.pop(frame, None)
        if links is None:
            k.found.broken("pool.partial", f"the list of pages with room leads to {frame:#x}")
            return
        k.found.same("pool.partial", f"pool page {frame:#x}: prev", links[1], before)
        frame, before = links[0], frame
    for lost in left:
        k.found.broken("pool.partial", f"pool page {lost:#x} has room, but is not in the list")
