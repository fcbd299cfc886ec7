"""The documented page frames: each `PageFrame` is a page of the running kernel's memory."""

from collections.abc import Iterable

import numpy as np

from kos._default import default_machine
from kos.exceptions import CallError, MappingError, MemoryError
from kos.machine import Machine
from kos.memory._errors import LIVE, frame_error, no_memory, order_error, whole
from kos.memory.constants import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENOMEM,
    MAX_ORDER,
    PG_DIRTY,
    PG_LOCKED,
    errno_name,
)
from kos.rpc.calls import PageInfo
from kos.rpc.client import Client

__all__ = ["PageFrame", "PageFrameAllocator"]


class PageFrame:
    """A physical page frame of 4096 bytes, held by this program.

    The attributes are read from the kernel's own page each time. Making one takes exactly that
    frame: a free one is taken out of the buddy allocator; one that this program has gets one more
    reference.

    Args:
        physical_addr: Physical address of the frame, page-aligned.
        machine: The machine; the default one when left out.

    Raises:
        MemoryError: EBUSY: it belongs to somebody else, or is part of a larger block. EINVAL: there
            is no RAM at that address, or it is not page-aligned.

    Example:
        >>> frame = PageFrame(0x5000)
        >>> frame.ref_count, frame.flags, frame.virtual_addr
        (1, 0, None)
        >>> frame.put()
        >>> frame.ref_count
        0
    """

    def __init__(self, physical_addr: int, machine: Machine | None = None) -> None:
        self._client = (machine or default_machine()).client
        self.physical_addr = whole("physical_addr", physical_addr)
        try:
            self._client.page_claim(self.physical_addr)
        except CallError as error:
            raise self._error("take this frame", error) from None
        except ValueError:
            message = f"{physical_addr} is no physical address (EINVAL)"
            raise MemoryError(message, errno=EINVAL) from None

    @classmethod
    def _adopt(cls, client: Client, physical_addr: int) -> "PageFrame":
        """A frame that the kernel has just given us."""
        frame = cls.__new__(cls)
        frame._client = client
        frame.physical_addr = physical_addr
        return frame

    def _error(self, action: str, error: CallError) -> MemoryError:
        return frame_error(self._client, action, self.physical_addr, error.errno or 0)

    def _info(self) -> PageInfo | None:
        """The kernel's page while this program has it as a frame of its own, else None."""
        info = self._client.page_info(self.physical_addr)
        ours = info.place == LIVE and info.owner == self._client.id
        return info if ours and info.block == self.physical_addr and info.order == 0 else None

    def _live(self, action: str) -> PageInfo:
        info = self._info()
        if info is None:
            raise frame_error(self._client, action, self.physical_addr, EINVAL)
        return info

    @property
    def ref_count(self) -> int:
        """References to the frame; 0 when this program no longer has it."""
        info = self._info()
        return info.refs if info is not None else 0

    @property
    def flags(self) -> int:
        """PG_DIRTY, PG_LOCKED and PG_MAPPED of `kos.memory.constants`; 0 for a fresh frame."""
        return self._live("read the flags").flags

    @property
    def virtual_addr(self) -> int | None:
        """Where the frame is mapped, or None."""
        return self._live("read the mapping").vaddr or None

    def is_mapped(self) -> bool:
        """Whether the frame is mapped."""
        return self.virtual_addr is not None

    def get(self) -> None:
        """Add a reference.

        Raises:
            MemoryError: EINVAL: this program does not have the frame any more.

        Example:
            >>> frame = PageFrameAllocator().alloc_page()
            >>> frame.get()
            >>> frame.ref_count
            2
            >>> frame.put()
            >>> frame.put()
        """
        try:
            self._client.page_get(self.physical_addr)
        except CallError as error:
            raise self._error("add a reference", error) from None

    def put(self) -> None:
        """Drop a reference; the last one gives the frame back.

        Raises:
            MemoryError: EINVAL: this program does not have the frame any more. EBUSY: it is the
                last reference, and the frame is locked or mapped.
        """
        try:
            self._client.page_put(self.physical_addr)
        except CallError as error:
            raise self._error("drop the last reference", error) from None

    def _set_flags(self, set_: int, clear: int) -> None:
        try:
            self._client.page_flags(self.physical_addr, set_, clear)
        except CallError as error:
            raise self._error("change the flags", error) from None

    def is_dirty(self) -> bool:
        """Whether the frame was marked dirty, or written through its mapping."""
        return bool(self._live("read the dirty flag").flags & PG_DIRTY)

    def set_dirty(self) -> None:
        """Mark the frame as dirty."""
        self._set_flags(PG_DIRTY, 0)

    def clear_dirty(self) -> None:
        """Clear the dirty flag, and the dirty bit in the page table when the frame is mapped."""
        self._set_flags(0, PG_DIRTY)

    def is_locked(self) -> bool:
        """Whether the frame is locked in memory."""
        return bool(self._live("read the lock").flags & PG_LOCKED)

    def lock(self) -> None:
        """Lock the frame in memory: until `unlock` it cannot be freed."""
        self._set_flags(PG_LOCKED, 0)

    def unlock(self) -> None:
        """Undo `lock`."""
        self._set_flags(0, PG_LOCKED)

    def map_virtual(self, virtual_addr: int) -> None:
        """Put the frame into this program's page table, readable and writable.

        Args:
            virtual_addr: Page-aligned, 0x1000 to 0x7ffffffff000.

        Raises:
            MappingError: EINVAL: not such an address. EEXIST: something is mapped there. EBUSY:
                this frame is mapped already. ENOMEM: no memory for page tables.

        Example:
            >>> allocator = PageFrameAllocator()
            >>> frame = allocator.alloc_page()
            >>> frame.map_virtual(0x400000)
            >>> hex(frame.virtual_addr)
            '0x400000'
            >>> frame.unmap_virtual()
            >>> allocator.free_page(frame)
        """
        try:
            self._client.page_map(self.physical_addr, whole("virtual_addr", virtual_addr))
        except CallError as error:
            raise self._mapping_error(virtual_addr, error.errno or 0) from None
        except ValueError:
            raise self._mapping_error(virtual_addr, EINVAL) from None

    def _mapping_error(self, virtual_addr: int, errno: int) -> MemoryError:
        where = f"frame {self.physical_addr:#x} at {virtual_addr:#x}"
        info = self._info()
        if info is None:
            return self._error("map it", CallError("page_map", errno=errno))
        reasons = {
            EINVAL: "the address must be a multiple of 4096 from 0x1000 to 0x7ffffffff000",
            EEXIST: "another frame is mapped there",
            EBUSY: f"it is mapped at {info.vaddr:#x} already",
            ENOMEM: "there is no memory for its page tables",
        }
        reason = reasons.get(errno, "refused")
        return MappingError(f"cannot map {where}: {reason} ({errno_name(errno)})", errno=errno)

    def unmap_virtual(self) -> None:
        """Take the frame out of the page table; every CPU's TLB forgets it.

        Raises:
            MappingError: EINVAL: the frame is not mapped.
        """
        try:
            self._client.page_unmap(self.physical_addr)
        except CallError as error:
            message = f"frame {self.physical_addr:#x} is not mapped (EINVAL)"
            raise MappingError(message, errno=error.errno) from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageFrame):
            return NotImplemented
        return (self._client, self.physical_addr) == (other._client, other.physical_addr)

    def __hash__(self) -> int:
        return hash((self._client, self.physical_addr))

    def __repr__(self) -> str:
        return f"PageFrame({self.physical_addr:#x})"


class PageFrameAllocator:
    """Takes page frames from the kernel's buddy allocator and gives them back.

    Args:
        machine: The machine; the default one when left out.

    Example:
        >>> allocator = PageFrameAllocator()
        >>> before = allocator.get_free_pages()
        >>> frames = allocator.alloc_pages(2)
        >>> before - allocator.get_free_pages()
        4
        >>> allocator.free_pages(frames)
        >>> allocator.get_free_pages() == before
        True
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine

    @property
    def _client(self) -> Client:
        return (self._machine or default_machine()).client

    def alloc_page(self) -> PageFrame:
        """Take one frame.

        Raises:
            MemoryError: ENOMEM: no frame is free.
        """
        return self.alloc_pages(0)[0]

    def alloc_pages(self, order: int) -> list[PageFrame]:
        """Take 2^order contiguous frames, each of which is used and freed by itself.

        Args:
            order: 0 to 10.

        Returns:
            The frames, by rising address; the first is aligned to the size of all.

        Raises:
            MemoryError: EINVAL: the order is out of range. ENOMEM: there is no such run of frames.
        """
        order = whole("order", order)
        if not 0 <= order <= MAX_ORDER:
            raise order_error(order)
        client = self._client
        try:
            first = client.page_alloc(order)
        except CallError:
            raise no_memory(order) from None
        return [PageFrame._adopt(client, first + 4096 * i) for i in range(1 << order)]

    def free_page(self, page: PageFrame) -> None:
        """Give one frame back.

        Args:
            page: A frame with one reference, not locked and not mapped.

        Raises:
            MemoryError: EBUSY: it has other references, is locked or mapped. EINVAL: it is not
                this program's any more. Nothing changes.
        """
        self.free_pages([page])

    def free_pages(self, pages: Iterable[PageFrame]) -> None:
        """Give several frames back, in order.

        Raises:
            MemoryError: As for `free_page`, for the first frame that is refused; those before it
                have been freed, those after it have not.
        """
        frames = list(pages)
        for page in frames:
            if not isinstance(page, PageFrame):
                raise TypeError(f"pages are PageFrame, not {page!r} ({type(page).__name__})")
        for i in range(0, len(frames), 512):
            self._free_some(frames[i : i + 512])

    @staticmethod
    def _free_some(frames: list[PageFrame]) -> None:
        client = frames[0]._client
        if any(page._client is not client for page in frames):
            raise ValueError("the frames are of different machines")
        addresses = np.array([page.physical_addr for page in frames], dtype=np.uint64)
        try:
            client.page_free_array(addresses)
        except CallError as error:
            refused = frames[error.results[0]].physical_addr
            raise frame_error(client, "free a page", refused, error.errno or 0) from None

    def get_free_pages(self) -> int:
        """Free frames of the machine, in its zones and in magazines."""
        return self._client.machine_info().free_bytes // 4096
