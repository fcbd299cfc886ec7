"""The kernel's structures as an audit sees them: read once, by address, out of raw RAM."""

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kos.abi import Abi
from kos.inspect.auditor.report import Findings, Unsound
from kos.inspect.layouts import dtype_of
from kos.inspect.memory import Memory
from kos.machine._ram import RamLayout

PAGE = 4096
ORDERS = 11
BLOCK = 1 << (ORDERS - 1)  # frames in the largest block
MAX_CPUS = 8
KINDS = {1: "kernel", 2: "client", 3: "table", 4: "pool"}
KERNEL, CLIENT, TABLE, POOL = 1, 2, 3, 4
DIRTY, LOCKED, MAPPED = 1, 2, 4

Words = NDArray[np.uint64]
Frames = NDArray[np.int64]


class Target(Protocol):
    """What can be audited: a machine or a dump."""

    kernel: Path
    abi: Abi
    memory: int

    @property
    def ram(self) -> memoryview:
        """All RAM."""

    @property
    def ram_layout(self) -> RamLayout:
        """Where in it a physical address lies."""


class Kernel:
    """One reading of everything that is checked.

    Args:
        target: The machine or dump.
        found: Where violations go.
    """

    def __init__(self, target: Target, found: Findings) -> None:
        self.target = target
        self.abi = target.abi
        self.memory = Memory(target.ram, target.ram_layout, target.abi)
        self.found = found
        self.symbols = target.abi.symbols
        self.image_base = self.symbols["KERNEL_BASE"]
        self.direct = self.symbols["layout_direct_map"]
        self.zones = self.array("zones", "zone", 3)
        self.cpus = self.array("cpus", "cpu", MAX_CPUS)
        self.clients = self.array("clients", "client", 256)
        self.rings = self.array("rings", "ring", 64)
        self.memmap = self.array("memmap", "memmap", 1)[0]
        self.pool = self.array("frame_maps", "pool", 1)[0]
        self.features = self.array("cpu_features", "cpu_features", 1)[0]
        self.cpu_count = self.number("cpu_count", 4)
        self.page_end = self.number("page_end_pfn")
        if not 0 < self.page_end <= (target.memory >> 12) + (1 << 20):
            found.broken("memmap.end", f"page_end_pfn is {self.page_end:#x}, beyond all RAM")
            raise Unsound

    # Reading

    def image(self, address: int, size: int) -> memoryview:
        """Bytes of the kernel's image, by virtual address."""
        return self.memory.physical(address - self.image_base, size)

    def number(self, symbol: str, size: int = 8) -> int:
        """A variable that is a number."""
        return int.from_bytes(self.image(self.symbols[symbol], size), "little")

    def array(self, symbol: str, struct: str, count: int) -> NDArray[Any]:
        """A variable that is an array of structs; a copy."""
        dtype = dtype_of(self.abi, struct)
        data = self.image(self.symbols[symbol], count * dtype.itemsize)
        return np.frombuffer(bytes(data), dtype)

    def words(self, paddr: int, count: int) -> Words:
        """64-bit words at a physical address.

        Raises:
            ValueError: There is no RAM.
        """
        return np.frombuffer(self.memory.physical(paddr, 8 * count), np.uint64)

    def direct_paddr(self, pointer: int, what: str) -> int:
        """The physical address of what a pointer into the direct map points to.

        Raises:
            Unsound: It points elsewhere.
        """
        paddr = pointer - self.direct
        if not 0 <= paddr >> 12 < self.page_end:
            self.found.broken("pointer", f"{what} is {pointer:#x}, which is not in the direct map")
            raise Unsound
        return paddr

    # What follows from it

    @cached_property
    def ram(self) -> NDArray[np.bool_]:
        """Which frames are RAM, as the memory map says."""
        return self._mask("ram")

    @cached_property
    def managed(self) -> NDArray[np.bool_]:
        """Which frames the zones were filled with."""
        return self._mask("free")

    def _mask(self, name: str) -> NDArray[np.bool_]:
        ranges = self.memmap[name]
        mask = np.zeros(self.page_end, bool)
        for one in ranges["range"][: min(int(ranges["count"]), len(ranges["range"]))]:
            mask[int(one["start"]) >> 12 : int(one["end"]) >> 12] = True
        return mask

    @cached_property
    def _page_words(self) -> Words:
        data = self.memory.virtual(self.symbols["layout_page_array"], 16 * self.page_end)
        return np.frombuffer(data, np.uint64).reshape(-1, 2)

    @property
    def heads(self) -> Words:
        """First word of each `struct page`: kind, order, flags, owner, references."""
        return self._page_words[:, 0]

    @property
    def links(self) -> Words:
        """Second word: the links of an owner's list, or a pointer."""
        return self._page_words[:, 1]

    @cached_property
    def live(self) -> Frames:
        """First frames of blocks that are in use."""
        return np.flatnonzero(self.heads)

    @cached_property
    def orders(self) -> Frames:
        """Of each live block."""
        return (self.heads[self.live] >> np.uint64(4) & np.uint64(15)).astype(np.int64)

    @cached_property
    def kinds(self) -> Frames:
        """Of each live block."""
        return (self.heads[self.live] & np.uint64(15)).astype(np.int64)

    @cached_property
    def flags(self) -> Frames:
        """Of each live block."""
        return (self.heads[self.live] >> np.uint64(8) & np.uint64(255)).astype(np.int64)

    @cached_property
    def owners(self) -> Frames:
        """Of each live block."""
        return (self.heads[self.live] >> np.uint64(16) & np.uint64(0xFFFF)).astype(np.int64)

    @cached_property
    def refs(self) -> Frames:
        """Of each live block."""
        return (self.heads[self.live] >> np.uint64(32)).astype(np.int64)

    def of_kind(self, kind: int) -> Frames:
        """First frames of the live blocks of a kind."""
        found: Frames = self.live[self.kinds == kind]
        return found


def client_name(k: Kernel, client: int) -> str:
    """A client as the account names it."""
    text = bytes(k.clients[client]["name"]).decode("ascii", "replace")
    return f"client {client} ({text})"


class Account:
    """Who has which frame. Each frame of RAM has one owner.

    Args:
        kernel: The kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.names = [""]
        self.owner = np.zeros(kernel.page_end, np.int32)

    def give(self, name: str, frames: Frames, order: int = 0) -> None:
        """Blocks, by their first frames, belong to an owner."""
        if not len(frames):
            return
        if not (np.diff(frames) > 0).all() and len(np.unique(frames)) != len(frames):
            self.kernel.found.broken("account.twice", f"{name} has a frame twice")
        if order:
            frames = (frames[:, None] + np.arange(1 << order)).ravel()
        frames = frames[(frames >= 0) & (frames < len(self.owner))]
        taken = frames[self.owner[frames] != 0]
        if len(taken):
            frame = int(taken[0])
            other = self.names[self.owner[frame]]
            self.kernel.found.broken(
                "account.twice", f"frame {frame:#x} belongs to {name} and to {other}"
            )
        self.owner[frames] = self._number(name)

    def _number(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def totals(self) -> dict[str, int]:
        """Frames of each owner, in the order in which they came."""
        counts = np.bincount(self.owner[self.kernel.ram], minlength=len(self.names))
        return {name: int(counts[i]) for i, name in enumerate(self.names) if i and counts[i]}

    def unknown(self) -> Frames:
        """Frames of RAM that nobody has."""
        return np.flatnonzero(self.kernel.ram & (self.owner == 0))
