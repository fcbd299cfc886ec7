"""Guest memory as it lies in RAM: by physical address, and by virtual ones through page tables.

The tables are followed here, in Python: nothing asks the guest, and nothing depends on whether it
runs. What is read may change while it is read unless the machine is paused.
"""

import struct
from collections.abc import Iterator

from kos.abi import Abi
from kos.machine._ram import RamLayout

PAGE_SIZE = 4096
PRESENT, LARGE = 1, 1 << 7
ADDRESS = 0x000FFFFFFFFFF000
_SHIFTS = (39, 30, 21, 12)  # of the index into each level's table; pages end at the last three


class Memory:
    """The RAM of a machine, or of a dump.

    Args:
        ram: All RAM, one byte an element.
        layout: Where in it a physical address lies.
        abi: Of the kernel that runs in it.

    Example:
        >>> import kos
        >>> memory = kos.default_machine().view.memory
        >>> memory.virtual(memory.abi.symbols["zones"], 8) == memory.physical(
        ...     memory.abi.symbols["zones"] - memory.abi.symbols["KERNEL_BASE"], 8
        ... )
        True
    """

    def __init__(self, ram: memoryview, layout: RamLayout, abi: Abi) -> None:
        self.ram = ram
        self.layout = layout
        self.abi = abi
        self._kernel_root = abi.symbols["kernel_root"] - abi.symbols["KERNEL_BASE"]

    def physical(self, paddr: int, count: int) -> memoryview:
        """RAM at a physical address, writable unless it is a dump's.

        Raises:
            ValueError: Not all of it is RAM.
        """
        _check_count(count)
        offset = self.layout.offset(paddr)
        last = self.layout.offset(paddr + count - 1) if count > 1 else offset
        is_cut = paddr < self.layout.firmware_start < paddr + count
        if offset is None or last is None or last - offset != max(count - 1, 0) or is_cut:
            raise ValueError(f"not all of the {count} bytes at physical address {paddr:#x} are RAM")
        return self.ram[offset : offset + count]

    def word(self, paddr: int) -> int:
        """The 64-bit word at a physical address."""
        value: int = struct.unpack("<Q", self.physical(paddr, 8))[0]
        return value

    @property
    def kernel_root(self) -> int:
        """Physical address of the kernel's top page table; 0 before the kernel has made it."""
        return self.word(self._kernel_root)

    def translate(self, vaddr: int, root: int | None = None) -> tuple[int, int]:
        """Follow the page tables.

        Args:
            vaddr: Virtual address.
            root: Physical address of the top table; the kernel's when left out.

        Returns:
            The physical address, and the bytes from there to the end of the page.

        Raises:
            ValueError: Nothing is mapped there, or it is no address of the CPU's.
        """
        if not 0 <= vaddr < 1 << 64 or (vaddr >> 47) not in (0, 0x1FFFF):
            raise ValueError(f"nothing is mapped at {vaddr:#x}: bits 47 to 63 are all the same")
        table = self.kernel_root if root is None else root
        for shift in _SHIFTS:
            entry = self.word((table & ADDRESS) + (vaddr >> shift & 511) * 8) if table else 0
            if not entry & PRESENT:
                break
            if shift == _SHIFTS[-1] or (shift != _SHIFTS[0] and entry & LARGE):
                inside = vaddr & (1 << shift) - 1
                base = entry & ADDRESS & ~((1 << shift) - 1)
                return base + inside, (1 << shift) - inside
            table = entry
        raise ValueError(f"nothing is mapped at {vaddr:#x}")

    def _pages(self, vaddr: int, count: int, root: int | None) -> Iterator[tuple[int, int]]:
        """Physical address and size of each piece; all pages of a table at once."""
        _check_count(count)
        while count > 0:
            paddr, room = self.translate(vaddr, root)
            if room > PAGE_SIZE or count <= room:
                piece = min(count, room)
                yield paddr, piece
                vaddr, count = vaddr + piece, count - piece
                continue
            inside = vaddr % PAGE_SIZE
            first = vaddr >> 12 & 511
            last = min(512, first + (inside + count + PAGE_SIZE - 1) // PAGE_SIZE)
            for entry in self._level1(vaddr, root)[first:last]:
                if not entry & PRESENT:
                    raise ValueError(f"nothing is mapped at {vaddr:#x}")
                piece = min(count, PAGE_SIZE - inside)
                yield (entry & ADDRESS) + inside, piece
                vaddr, count, inside = vaddr + piece, count - piece, 0

    def _level1(self, vaddr: int, root: int | None) -> memoryview:
        """The lowest table for an address that is mapped by 4 KiB pages."""
        table = self.kernel_root if root is None else root
        for shift in _SHIFTS[:-1]:
            table = self.word((table & ADDRESS) + (vaddr >> shift & 511) * 8)
        return self.physical(table & ADDRESS, PAGE_SIZE).cast("Q")

    def virtual(self, vaddr: int, count: int, root: int | None = None) -> bytes:
        """Memory at a virtual address, from as many pages as it takes.

        Args:
            vaddr: Virtual address.
            count: Bytes.
            root: Physical address of the top table; the kernel's when left out.

        Raises:
            ValueError: A part of it is not mapped, or not RAM.
        """
        return b"".join(self.physical(at, size) for at, size in self._pages(vaddr, count, root))


def _check_count(count: int) -> None:
    if count < 0:
        raise ValueError(f"{count} bytes: 0 or more can be read")
