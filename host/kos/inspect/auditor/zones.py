"""The memory map, the zones, their bitmaps and the magazines: everything that is free.

Recomputed: bounds, watermarks and limits from the memory map; the place of each bitmap from the
zone's size; summaries, masks and counts from the bitmaps; and from what the zones were filled with
and the counters of splits, merges and blocks that came and went, how many blocks there must be.
"""

import numpy as np
from numpy.typing import NDArray

from kos.inspect.auditor.kernel import BLOCK, MAX_CPUS, ORDERS, PAGE, Account, Frames, Kernel, Words
from kos.inspect.auditor.report import Unsound

NAMES = ("DMA", "NORMAL", "HIGHMEM")
_DMA_END = 4096
_MAGAZINES = ((0, 64, 0), (1, 32, 64), (2, 16, 96), (3, 8, 112), (9, 4, 120))  # order, slots, first


def check_memmap(k: Kernel) -> None:
    """The ranges are sorted, apart and RAM; what is managed is a part of them."""
    layout, found = k.memory.layout, k.found
    for name in ("ram", "free"):
        ranges = k.memmap[name]
        count, last = int(ranges["count"]), -1
        if not 0 < count <= len(ranges["range"]):
            found.broken("memmap.count", f"memmap.{name} has {count} ranges")
            raise Unsound
        for i in range(count):
            start, end = (int(ranges["range"][i][x]) for x in ("start", "end"))
            what = f"memmap.{name}.range[{i}], {start:#x} to {end:#x},"
            if start % PAGE or end % PAGE or not last < start < end:
                found.broken("memmap.order", f"{what} is empty, unaligned or out of order")
                raise Unsound
            low, high = layout.offset(start), layout.offset(end - 1)
            if low is None or high is None or high - low != end - 1 - start:
                found.broken("memmap.ram", f"{what} is not all RAM of the machine")
                raise Unsound
            last = end
    end = int(k.memmap["ram"]["range"][int(k.memmap["ram"]["count"]) - 1]["end"])
    found.need("memmap.end", "page_end_pfn", k.page_end, end // PAGE)
    outside = np.flatnonzero(k.managed & ~k.ram)
    if len(outside):
        found.broken("memmap.free", f"frame {int(outside[0]):#x} is managed, but no RAM")


def check_zones(k: Kernel, account: Account) -> NDArray[np.int64]:
    """All zones and magazines. Returns how often each frame is free: 0 or 1 when all is well."""
    top = -(-k.page_end // BLOCK) * BLOCK
    dma = min(top, _DMA_END)
    bounds = ((0, dma), (dma, top), (top, top))
    free = np.zeros(top + 1, np.int64)
    for index, (start, end) in enumerate(bounds):
        _check_bounds(k, index, start, end)
        _check_watermarks(k, index)
        _check_buddy(k, index, free, account)
    _check_magazines(k, free, account)
    return np.cumsum(free)[: k.page_end]


def _check_bounds(k: Kernel, index: int, start: int, end: int) -> None:
    zone, name = k.zones[index], NAMES[index]
    try:
        text = bytes(k.image(int(zone["name"]), len(name) + 1))
    except ValueError:
        text = b"?"
    k.found.same("zone.name", f"the name of zones[{index}]", text, name.encode() + b"\0")
    for field, expected in (("start_pfn", start), ("end_pfn", end)):
        k.found.need("zone.bounds", f"{name}.{field}", int(zone[field]), expected)
    k.found.need("zone.bounds", f"{name}.buddy.base", int(zone["buddy"]["base"]), start)
    k.found.need("zone.bounds", f"{name}.buddy.span", int(zone["buddy"]["span"]), end - start)


def _check_watermarks(k: Kernel, index: int) -> None:
    zone, name = k.zones[index], NAMES[index]
    managed = int(k.managed[int(zone["start_pfn"]) : int(zone["end_pfn"])].sum())
    low = managed // 256
    for field, expected in (
        ("managed", managed),
        ("watermark_min", low),
        ("watermark_low", low * 5 // 4),
        ("watermark_high", low * 3 // 2),
        ("watermark_quick", low + BLOCK),
    ):
        k.found.same(f"zone.{field}", f"{name}.{field}", int(zone[field]), expected)


# Bitmaps


def _level_sizes(span: int, order: int) -> list[int]:
    """Words of the bitmap and of each summary above it."""
    sizes, n = [], (span + (1 << order) - 1) >> order
    while True:
        n = -(-n // 64)
        sizes.append(max(n, 1))
        if n <= 1:
            return sizes


def _check_buddy(k: Kernel, index: int, free: Frames, account: Account) -> None:
    zone, name = k.zones[index], NAMES[index]
    buddy, base = zone["buddy"], int(zone["start_pfn"])
    sizes = [_level_sizes(int(buddy["span"]), order) for order in range(ORDERS)]
    total = sum(map(sum, sizes))
    pointer = int(buddy["map"][0]["level"][0])
    paddr = k.direct_paddr(pointer, f"{name}.buddy.map[0].level[0]")
    frames = -(-total * 8 // PAGE)
    if paddr % PAGE or k.managed[paddr >> 12 : (paddr >> 12) + frames].any():
        k.found.broken("buddy.place", f"{name}'s bitmaps are at {paddr:#x}, among free memory")
        raise Unsound
    account.give("the kernel: bitmaps of free blocks", np.arange(frames) + (paddr >> 12))
    words = k.words(paddr, total)
    at, counts = 0, []
    for order in range(ORDERS):
        at = _check_levels(k, name, buddy["map"][order], order, sizes[order], pointer, words, at)
    at = 0
    for order in range(ORDERS):
        bitmap = words[at : at + sizes[order][0]]
        counts.append(_check_order(k, index, order, bitmap, free, account))
        at += sum(sizes[order])
    _check_counts(k, index, counts, base)


def _check_levels(
    k: Kernel, name: str, m: NDArray[np.void], order: int, sizes: list[int], pointer: int,
    words: Words, at: int,
) -> int:  # fmt: skip
    """The pointers to one order's levels, and each summary against the level below."""
    what = f"{name}.buddy.map[{order}]"
    k.found.same("buddy.levels", f"{what}.levels", int(m["levels"]), len(sizes))
    k.found.same("buddy.pad", f"{what}.pad", int(m["pad"]), 0)
    below: Words | None = None
    for level in range(len(m["level"])):
        expected = pointer + 8 * at if level < len(sizes) else 0
        k.found.same("buddy.level", f"{what}.level[{level}]", int(m["level"][level]), expected)
        if level >= len(sizes):
            continue
        here = words[at : at + sizes[level]]
        if below is not None:
            _check_summary(k, f"{what}.level[{level}]", here, below)
        below, at = here, at + sizes[level]
    return at


def _check_summary(k: Kernel, what: str, here: Words, below: Words) -> None:
    bits = np.zeros(64 * len(here), np.uint8)
    bits[: len(below)] = below != 0
    expected = np.packbits(bits, bitorder="little").view(np.uint64)
    wrong = np.flatnonzero(here != expected)
    if len(wrong):
        i = int(wrong[0])
        k.found.broken(
            "buddy.summary",
            f"{what}[{i}] is {int(here[i]):#x}, but the level below makes it {int(expected[i]):#x}",
        )


def _check_order(
    k: Kernel, index: int, order: int, bitmap: Words, free: Frames, account: Account
) -> int:
    """The free blocks of one order; returns how many there are."""
    name, base = NAMES[index], int(k.zones[index]["start_pfn"])
    blocks = np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little"))
    if order < ORDERS - 1:
        even = blocks[blocks % 2 == 0]
        pairs = even[np.isin(even + 1, blocks)]
        if len(pairs):
            at = (base + (int(pairs[0]) << order)) * PAGE
            k.found.broken(
                "buddy.unmerged", f"{name}: both blocks of order {order} from {at:#x} on are free"
            )
    first = base + (blocks << order)
    outside = first[first + (1 << order) > int(k.zones[index]["end_pfn"])]
    if len(outside):
        k.found.broken("buddy.range", f"{name}: a block of order {order} is free past its end")
        first = first[first + (1 << order) <= int(k.zones[index]["end_pfn"])]
    np.add.at(free, first, 1)
    np.add.at(free, first + (1 << order), -1)
    account.give(f"free in zone {name}", first, order)
    k.found.same(
        "buddy.blocks",
        f"{name}.buddy.map[{order}].blocks",
        int(k.zones[index]["buddy"]["map"][order]["blocks"]),
        len(blocks),
    )
    return len(blocks)


def _check_counts(k: Kernel, index: int, counts: list[int], base: int) -> None:
    zone, name = k.zones[index], NAMES[index]
    buddy = zone["buddy"]
    pages = sum(n << order for order, n in enumerate(counts))
    mask = sum(1 << order for order, n in enumerate(counts) if n)
    k.found.same("buddy.free_pages", f"{name}.buddy.free_pages", int(buddy["free_pages"]), pages)
    k.found.same("buddy.nonempty", f"{name}.buddy.nonempty", int(buddy["nonempty"]), mask)
    filled = _filled(k, base, int(zone["end_pfn"]))
    splits, merges = (buddy[x].astype(np.int64) for x in ("splits", "merges"))
    taken, given = (zone[x].astype(np.int64) for x in ("taken", "given"))
    for order in range(ORDERS):
        expected = filled[order] + int(given[order] - taken[order] - splits[order])
        expected -= 2 * int(merges[order])
        expected += 2 * int(splits[order + 1]) if order + 1 < ORDERS else 0
        expected += int(merges[order - 1]) if order else 0
        if counts[order] != expected:
            k.found.broken(
                "zone.counters",
                f"{name}, order {order}: {counts[order]} blocks are free, but {filled[order]} at "
                f"boot, {int(given[order])} given, {int(taken[order])} taken, splits "
                f"{splits.tolist()} and merges {merges.tolist()} make it {expected}",
            )
    for what, array, order in (("splits", splits, 0), ("merges", merges, ORDERS - 1)):
        k.found.same("zone.counters", f"{name}.buddy.{what}[{order}]", int(array[order]), 0)


def _filled(k: Kernel, start: int, end: int) -> list[int]:
    """Blocks of each order that the zone was filled with, in the largest pieces that fit."""
    counts = [0] * ORDERS
    ranges = k.memmap["free"]
    for one in ranges["range"][: int(ranges["count"])]:
        at, stop = max(int(one["start"]) >> 12, start), min(int(one["end"]) >> 12, end)
        while at < stop:
            order = ORDERS - 1
            while at % (1 << order) or stop - at < 1 << order:
                order -= 1
            n = (stop - at) >> order if order == ORDERS - 1 else 1
            counts[order] += n
            at += n << order
    return counts


# Magazines


def _check_magazines(k: Kernel, free: Frames, account: Account) -> None:
    if not 1 <= k.cpu_count <= MAX_CPUS:
        k.found.broken("cpu.count", f"cpu_count is {k.cpu_count}")
        raise Unsound
    index = 1 if int(k.zones[1]["managed"]) else 0
    zone = k.zones[index]
    size = k.abi.layout("zone").size
    expected = k.symbols["zones"] + index * size
    k.found.same("magazine.zone", "pcp_zone", k.number("pcp_zone"), expected)
    start = int(zone["start_pfn"])
    k.found.same("magazine.zone", "pcp_zone_start", k.number("pcp_zone_start"), start)
    share = int(zone["managed"]) // 64 // k.cpu_count
    cpu_size = k.abi.layout("cpu").size
    for cpu in range(MAX_CPUS):
        online = cpu < k.cpu_count
        if online:
            one, address = k.cpus[cpu], k.symbols["cpus"] + cpu * cpu_size
            k.found.same("cpu.self", f"cpus[{cpu}].self", int(one["self"]), address)
            k.found.same("cpu.self", f"cpus[{cpu}].id", int(one["id"]), cpu)
            k.found.same("cpu.self", f"cpus[{cpu}].online", int(one["online"]), 1)
        for m, (order, slots, first) in enumerate(_MAGAZINES):
            limit = min(share >> order, slots) if online else 0
            limit = limit if limit >= 2 else 0
            _check_magazine(k, cpu, m, order, limit, first, index, free, account)


def _check_magazine(
    k: Kernel, cpu: int, m: int, order: int, limit: int, first: int, index: int, free: Frames,
    account: Account,
) -> None:  # fmt: skip
    pcp = k.cpus[cpu]["pcp"]
    magazine, what = pcp["magazine"][m], f"cpus[{cpu}].pcp.magazine[{m}]"
    k.found.same("magazine.limit", f"{what}.limit", int(magazine["limit"]), limit)
    batch = max(limit // 4, 1) if cpu < k.cpu_count else 0
    k.found.same("magazine.batch", f"{what}.batch", int(magazine["batch"]), batch)
    count = int(magazine["count"])
    if count > max(limit, 1) or count > _MAGAZINES[m][1]:
        k.found.broken("magazine.count", f"{what}.count is {count}, above its limit {limit}")
        return
    blocks = pcp["slot"][first : first + count].astype(np.int64)
    start, end = int(k.zones[index]["start_pfn"]), int(k.zones[index]["end_pfn"])
    bad = (blocks < start) | (blocks + (1 << order) > end) | (blocks % (1 << order) != 0)
    if bad.any():
        slot = int(np.flatnonzero(bad)[0])
        k.found.broken(
            "magazine.slot",
            f"cpus[{cpu}].pcp.slot[{first + slot}] is {int(blocks[slot]):#x}, "
            f"which is no block of order {order} of zone {NAMES[index]}",
        )
        blocks = blocks[~bad]
    np.add.at(free, blocks, 1)
    np.add.at(free, blocks + (1 << order), -1)
    account.give(f"free in magazines of CPU {cpu}", blocks, order)
