"""Guest RAM: one anonymous memory file, mapped here and by QEMU at once.

QEMU sees a single RAM block. On the guest's side the block is cut in two around the hole below
4 GiB where devices live; `RamLayout` knows where, and where firmware hides a part of the first
megabyte.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

MachineType = Literal["microvm", "q35"]

_4GIB = 1 << 32
_1MIB = 1 << 20


@dataclass(frozen=True)
class RamLayout:
    """Where the RAM block appears in the guest's physical address space.

    Attributes:
        size: Bytes of RAM.
        low_size: Bytes of it that start at physical address 0; the rest starts at 4 GiB.
        firmware_start: Physical address from which up to 1 MiB firmware, not RAM, may answer.
    """

    size: int
    low_size: int
    firmware_start: int

    @classmethod
    def of(cls, machine: MachineType, size: int) -> "RamLayout":
        """The layout that QEMU gives a machine type with that much RAM."""
        if machine == "microvm":
            return cls(size, min(size, 0xC0000000), 0xF0000)
        # q35 moves the border down to 2 GiB as soon as RAM would reach its PCI Express window.
        return cls(size, size if size < 0xB0000000 else 0x80000000, 0xC0000)

    def offset(self, paddr: int) -> int | None:
        """Offset into the RAM block of a physical address; None where there is no RAM."""
        if self.firmware_start <= paddr < _1MIB:
            return None
        if 0 <= paddr < self.low_size:
            return paddr
        if _4GIB <= paddr < _4GIB + self.size - self.low_size:
            return paddr - _4GIB + self.low_size
        return None


def subtract(
    ranges: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """What of some ranges is in none of the others; both are sorted.

    Example:
        >>> list(subtract([(0, 10), (20, 30)], [(2, 4), (8, 25)]))
        [(0, 2), (4, 8), (25, 30)]
    """
    for start, end in ranges:
        at = start
        for first, last in taken:
            if last <= at or first >= end:
                continue
            if first > at:
                yield at, first
            at = max(at, last)
        if at < end:
            yield at, end


class GuestRam:
    """The memory file and this process's mapping of it.

    Pages cost nothing until somebody writes to them, so 64 GiB is as cheap to make as 16 MiB.
    """

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("kos-ram")
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._map)

    def view(self) -> memoryview:
        """A writable view of the RAM. It outlives `close()` for as long as somebody holds it."""
        # A slice, so that every holder counts by itself and close() can tell whether one is left.
        return self._view[:]

    def extents(self) -> list[tuple[int, int]]:
        """Start and end of each part that somebody has written to; all else is zero."""
        found: list[tuple[int, int]] = []
        at = 0
        while True:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return found
            at = os.lseek(self.fd, start, os.SEEK_HOLE)
            found.append((start, at))

    def save(self) -> list[tuple[int, bytes]]:
        """The contents: offset and bytes of each part that is not all zero."""
        return [(start, self._map[start:end]) for start, end in self.extents()]

    def load(self, contents: list[tuple[int, bytes]]) -> None:
        """Make the contents again what they were at `save`."""
        kept = [(start, start + len(data)) for start, data in contents]
        for start, end in subtract(self.extents(), kept):
            self._map.madvise(mmap.MADV_REMOVE, start, end - start)
        for start, data in contents:
            self._map[start : start + len(data)] = data

    def zero(self) -> None:
        """Give every page back to the host; the guest and all views read zeros afterwards."""
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Close the file, and the mapping too unless somebody still holds a view. Idempotent."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            # The last view unmaps it when it goes.
            del self._map
