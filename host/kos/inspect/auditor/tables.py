"""Page tables: the kernel's own, and those of clients.

The kernel's are made once, so each entry is known: the image with its permissions, RAM in the
direct map, the page array, stacks with holes below them. A client's hold exactly its mapped frames.
The CPU sets the accessed and dirty bits by itself; those two are not looked at.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kos.inspect.auditor.kernel import PAGE, TABLE, Account, Kernel, Words
from kos.inspect.auditor.report import Unsound

PRESENT, WRITE, USER, NOCACHE, LARGE, GLOBAL = 1, 2, 4, 16, 128, 256
NX = 1 << 63
HARDWARE = 0x60  # accessed, dirty
ADDRESS = 0x000FFFFFFFFFF000
_STACK, _EXCEPTION_STACK, _EXCEPTIONS = 16384, 8192, 3


class Leaf(NamedTuple):
    """An entry that maps a page: where, what, how large, with which bits."""

    vaddr: int
    paddr: int
    size: int
    flags: int


def canonical(vaddr: int) -> int:
    """The address with its upper bits as the CPU wants them."""
    return vaddr | 0xFFFF << 48 if vaddr >> 47 & 1 else vaddr


def leaves(
    k: Kernel, table: int, level: int, base: int, indices: range, tables: dict[int, int],
    upper_flags: int,
) -> Iterator[Leaf]:  # fmt: skip
    """All pages that a table maps, in order; tables that it goes through are added to `tables`.

    Only the one that stands for holes in the page array may be met twice.

    Entries that are neither zero nor present, and tables with other bits than they must have, are
    told as violations and passed over.
    """
    entries = k.words(table, 512)
    zero = k.symbols["zero_table"] - k.image_base
    span = 1 << (12 + 9 * (level - 1))
    for index in np.flatnonzero(entries):
        i, entry = int(index), int(entries[index])
        if i not in indices:
            continue
        vaddr, flags = canonical(base + i * span), entry & ~ADDRESS & ~HARDWARE
        what = f"entry {i} of the level-{level} table at {table:#x}, {entry:#x},"
        if not entry & PRESENT:
            k.found.broken("table.entry", f"{what} is neither zero nor present")
        elif level == 1 or (level < 4 and entry & LARGE):
            paddr = entry & ADDRESS & ~(span - 1)
            if entry & ADDRESS & (span - 1):
                k.found.broken("table.entry", f"{what} has bits below its page's size")
            yield Leaf(vaddr, paddr, span, flags)
        elif (entry & ADDRESS) >> 12 >= k.page_end:
            k.found.broken("table.entry", f"{what} points beyond RAM")
        else:
            below = entry & ADDRESS
            if flags not in (upper_flags, PRESENT) or entry & 0x40:
                k.found.broken("table.entry", f"{what} should have the bits {upper_flags:#x}")
            if below in tables and below != zero:
                k.found.broken("table.shared", f"{what} leads to a table that is in use already")
                continue
            tables[below] = level - 1
            yield from leaves(k, below, level - 1, base + i * span, range(512), tables, upper_flags)


def check_kernel_tables(k: Kernel, account: Account) -> None:
    """The upper half, entry by entry; its tables, stacks and the page array are accounted for."""
    root = k.memory.kernel_root
    if root % PAGE or not root or root >> 12 >= k.page_end:
        k.found.broken("table.root", f"kernel_root is {root:#x}")
        raise Unsound
    tables = {root: 4}
    lower = np.flatnonzero(k.words(root, 256))
    if len(lower):
        k.found.broken("table.root", f"entry {int(lower[0])} of the kernel's top table is not zero")
    found = list(leaves(k, root, 4, 0, range(256, 512), tables, PRESENT | WRITE))
    image = range(k.symbols["kernel_start"], k.symbols["kernel_end"])
    frames = {t >> 12 for t in tables if t + k.image_base not in image}
    account.give("the kernel: page tables", np.array(sorted(frames), np.int64))
    areas = {
        "direct map": (k.direct, 1 << 39),
        "page array": (k.symbols["layout_page_array"], 1 << 38),
        "stacks": (k.symbols["layout_stacks"], 0x3F000000),
        "devices": (k.symbols["layout_devices"], 1 << 24),
        "image": (k.image_base, 1 << 30),
    }
    for leaf in found:
        if not any(start <= leaf.vaddr < start + size for start, size in areas.values()):
            k.found.broken("table.area", f"{leaf.vaddr:#x} is mapped, where nothing should be")
    for name, (start, size) in areas.items():
        inside = [leaf for leaf in found if start <= leaf.vaddr < start + size]
        _CHECKS[name](k, inside, account)


def _bits(k: Kernel, flags: int) -> int:
    """The flags without those that this kind of CPU does not have."""
    if not k.features["nx"]:
        flags &= ~NX
    return flags if k.features["pge"] else flags & ~GLOBAL


def _check_ranges(
    k: Kernel, name: str, found: list[Leaf], expected: list[tuple[int, int, int, int]]
) -> None:
    """The pages are exactly these ranges: virtual address, physical one, size, flags."""
    at = 0
    for vaddr, paddr, size, flags in expected:
        done = 0
        while done < size:
            want = (vaddr + done, paddr + done, _bits(k, flags | PRESENT))
            if at >= len(found) or found[at].vaddr != want[0]:
                where = f"{found[at].vaddr:#x}" if at < len(found) else "nothing"
                k.found.broken(f"table.{name}", f"{want[0]:#x} should be mapped next, not {where}")
                return
            leaf = found[at]
            got = (leaf.vaddr, leaf.paddr, leaf.flags & ~(LARGE if leaf.size > PAGE else 0))
            if got != want or leaf.size > size - done:
                k.found.broken(
                    f"table.{name}",
                    f"{want[0]:#x} is mapped to {leaf.paddr:#x} with the bits {got[2]:#x} for "
                    f"{leaf.size:#x} bytes, expected {want[1]:#x} with {want[2]:#x}",
                )
                return
            done, at = done + leaf.size, at + 1
    if at < len(found):
        k.found.broken(
            f"table.{name}", f"{found[at].vaddr:#x} is mapped, but nothing belongs there"
        )


def _check_image(k: Kernel, found: list[Leaf], account: Account) -> None:
    symbols = k.symbols
    text, ro, data = (symbols[x] for x in ("kernel_start", "rodata_start", "data_start"))
    end, base = symbols["kernel_end"], k.image_base
    expected = [
        (text, text - base, ro - text, GLOBAL),
        (ro, ro - base, data - ro, NX | GLOBAL),
        (data, data - base, end - data, WRITE | NX | GLOBAL),
    ]
    _check_ranges(k, "image", found, expected)
    account.give("the kernel: image", np.arange((text - base) // PAGE, (end - base) // PAGE))


def _check_direct(k: Kernel, found: list[Leaf], account: Account) -> None:
    ro = tuple(k.symbols[x] - k.image_base for x in ("kernel_start", "data_start"))
    expected = []
    ranges = k.memmap["ram"]
    for one in ranges["range"][: int(ranges["count"])]:
        start, end = int(one["start"]), int(one["end"])
        pieces = [(start, end, WRITE)]
        if start <= ro[0] and ro[1] <= end:
            pieces = [(start, ro[0], WRITE), (ro[0], ro[1], 0), (ro[1], end, WRITE)]
        for first, last, write in pieces:
            if first < last:
                expected.append((k.direct + first, first, last - first, write | NX | GLOBAL))
    _check_ranges(k, "direct", found, expected)


def _check_page_array(k: Kernel, found: list[Leaf], account: Account) -> None:
    """Every MiB with RAM has a page of its own; the others share one that is all zero."""
    base = k.symbols["layout_page_array"]
    zero = k.symbols["zero_page"] - k.image_base
    own, shared = _bits(k, PRESENT | WRITE | NX | GLOBAL), _bits(k, PRESENT | NX | GLOBAL)
    whole = np.append(k.ram, np.zeros(-len(k.ram) % 256, np.bool_))
    starts: NDArray[np.bool_] = np.asarray(whole.reshape(-1, 256).any(axis=1))
    frames: list[int] = []
    covered = np.zeros(len(starts), np.bool_)
    for leaf in found:
        first, n = (leaf.vaddr - base) // PAGE, leaf.size // PAGE
        flags = leaf.flags & ~(LARGE if leaf.size > PAGE else 0)
        covered[first : first + n] = True
        is_shared = leaf.paddr == zero and leaf.size == PAGE
        if (
            is_shared
            and not starts[first : first + 1].any()
            and flags in (shared, shared & ~GLOBAL)
        ):
            continue
        if is_shared or flags != own:
            k.found.broken(
                "table.page_array",
                f"{leaf.vaddr:#x} is mapped to {leaf.paddr:#x} with the bits {flags:#x}",
            )
            continue
        frames += range(leaf.paddr >> 12, (leaf.paddr >> 12) + n)
    if not covered.all():
        missing = int(np.flatnonzero(~covered)[0])
        k.found.broken("table.page_array", f"{base + missing * PAGE:#x} is not mapped")
    account.give("the kernel: page array", np.array(frames, np.int64))
    bitmaps = account.totals().get("the kernel: bitmaps of free blocks", 0)
    pcp = k.abi.layout("pcp").size * k.cpu_count
    expected = (len(frames) + bitmaps) * PAGE + pcp
    k.found.same("memmap.metadata", "metadata_bytes", int(k.memmap["metadata_bytes"]), expected)
    if any(k.image(k.symbols["zero_page"], PAGE)):
        k.found.broken("table.page_array", "the page of zeros that stands for holes is not zero")


def _check_stacks(k: Kernel, found: list[Leaf], account: Account) -> None:
    """Each CPU has one, and three for exceptions, each with an unmapped page below."""
    expected, frames = [], []
    for cpu in k.cpus:
        if not int(cpu["stack_top"]):
            continue
        tops = [(int(cpu["stack_top"]), _STACK)]
        ists = [int(top) for top in cpu["desc"]["tss"]["ist"][:_EXCEPTIONS]]
        tops += [(top, _EXCEPTION_STACK) for top in ists]
        low = int(cpu["stack_low"])
        k.found.same("cpu.stack", "stack_low", low, tops[0][0] - _STACK)
        expected += [(top - size, size) for top, size in tops]
    pages = {start + at for start, size in expected for at in range(0, size, PAGE)}
    own = _bits(k, PRESENT | WRITE | NX | GLOBAL)
    for leaf in found:
        if leaf.vaddr not in pages or leaf.flags != own or leaf.size != PAGE:
            k.found.broken(
                "table.stacks", f"{leaf.vaddr:#x} is mapped with the bits {leaf.flags:#x}"
            )
            continue
        pages.remove(leaf.vaddr)
        frames.append(leaf.paddr >> 12)
    if pages:
        k.found.broken("table.stacks", f"{min(pages):#x}, part of a CPU's stack, is not mapped")
    account.give("the kernel: stacks", np.array(frames, np.int64))


def _check_devices(k: Kernel, found: list[Leaf], account: Account) -> None:
    flags = _bits(k, PRESENT | WRITE | NOCACHE | NX)
    for leaf in found:
        is_ram = leaf.paddr >> 12 < k.page_end and bool(k.ram[leaf.paddr >> 12])
        if leaf.flags != flags or is_ram or leaf.size != PAGE:
            k.found.broken(
                "table.devices",
                f"{leaf.vaddr:#x} is mapped to {leaf.paddr:#x} with the bits {leaf.flags:#x}",
            )


_CHECKS = {
    "image": _check_image,
    "direct map": _check_direct,
    "page array": _check_page_array,
    "stacks": _check_stacks,
    "devices": _check_devices,
}


def check_client_tables(k: Kernel, client: int, root: int) -> tuple[dict[int, int], list[int]]:
    """A client's tables: counts of entries, and the upper half.

    Returns:
        The virtual address of each frame that is mapped, and the addresses of all tables.
    """
    tables = {root: 4}
    upper = k.words(root, 512)[256:] & ~np.uint64(HARDWARE)
    kernel = k.words(k.memory.kernel_root, 512)[256:] & ~np.uint64(HARDWARE)
    wrong = np.flatnonzero(upper != kernel)
    if len(wrong):
        k.found.broken(
            "table.upper",
            f"client {client}: entry {256 + int(wrong[0])} of its top table at {root:#x} is not "
            f"that of the kernel's",
        )
    found = list(leaves(k, root, 4, 0, range(256), tables, PRESENT | WRITE | USER))
    flags = _bits(k, PRESENT | WRITE | USER | NX)
    mapped: dict[int, int] = {}
    for leaf in found:
        if leaf.flags != flags or leaf.size != PAGE or leaf.paddr in mapped:
            k.found.broken(
                "table.entry",
                f"client {client}: {leaf.vaddr:#x} is mapped to {leaf.paddr:#x} with the bits "
                f"{leaf.flags:#x}",
            )
        mapped[leaf.paddr] = leaf.vaddr
    for table, level in tables.items():
        _check_table_page(k, client, table, level)
    return mapped, list(tables)


def _check_table_page(k: Kernel, client: int, table: int, level: int) -> None:
    """The struct page of a table counts its entries."""
    head = int(k.heads[table >> 12])
    what = f"client {client}'s level-{level} table at {table:#x}"
    if head & 15 != TABLE:
        k.found.broken("table.page", f"{what} has a page whose head is {head:#x}")
        return
    entries: Words = k.words(table, 512)[: 256 if level == 4 else 512]
    used = int((entries != 0).sum())
    k.found.same("table.count", f"{what}: the count of entries", head >> 32, used)
    if level < 4 and not used:
        k.found.broken("table.count", f"{what} is empty")
