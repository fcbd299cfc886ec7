"""Clients: the list of blocks that each owns, the sums over it, its mappings."""

import numpy as np
from numpy.typing import NDArray

from kos.inspect.auditor.kernel import (
    CLIENT,
    DIRTY,
    LOCKED,
    MAPPED,
    ORDERS,
    PAGE,
    TABLE,
    Account,
    Frames,
    Kernel,
    client_name,
)
from kos.inspect.auditor.pool import Descriptor, check_pool
from kos.inspect.auditor.rings import check_rings
from kos.inspect.auditor.tables import check_client_tables

_BUILT_IN = (1, 2)  # the console and the bare wire


def check_clients(k: Kernel, account: Account) -> None:
    """All clients, open or not, and what they have."""
    check = _Check(k, account)
    for client in range(len(k.clients)):
        check.client(client)
    check.nobodys()


class _Check:
    def __init__(self, k: Kernel, account: Account) -> None:
        self.k = k
        self.account = account
        self.descriptors = check_pool(k, account)
        self.rings = check_rings(k, account)
        self.used: set[int] = set()  # descriptors that belong to a frame
        self.tables: set[int] = set()  # page tables that belong to a client

    def client(self, client: int) -> None:
        """One client."""
        if not self.k.clients[client]["open"]:
            self._closed(client)
            return
        k, owner = self.k, self.k.clients[client]["owner"]
        if client == 0:
            k.found.broken("client.open", "clients[0] is open, but 0 is nobody")
        k.found.same("client.open", f"clients[{client}].open", int(k.clients[client]["open"]), 1)
        k.found.same("client.id", f"clients[{client}].owner.id", int(owner["id"]), client)
        rings = self.rings.get(client, 0)
        k.found.same(
            "client.rings", f"clients[{client}].rings", int(k.clients[client]["rings"]), rings
        )
        mine = (k.kinds == CLIENT) & (k.owners == client)
        self._sums(client, mine)
        mapped = self._mappings(client, mine)
        self._list(client, mine, mapped)
        for order in range(ORDERS):  # a larger one was told, and would be all of memory many times
            blocks = k.live[mine & (k.orders == order)]
            self.account.give(client_name(k, client), blocks, order)

    def _closed(self, client: int) -> None:
        k, size = self.k, self.k.abi.layout("client").size
        data = bytes(k.image(k.symbols["clients"] + client * size, size))
        if any(data):
            at = next(i for i, byte in enumerate(data) if byte)
            k.found.broken(
                "client.closed",
                f"clients[{client}] is not open, but has {data[at]:#x} at offset {at}",
            )
        if client in _BUILT_IN:
            k.found.broken("client.open", f"clients[{client}] is not open, and always should be")

    def _sums(self, client: int, mine: NDArray[np.bool_]) -> None:
        k, owner = self.k, self.k.clients[client]["owner"]
        orders, flags, refs = k.orders[mine], k.flags[mine], k.refs[mine]
        for field, expected in (
            ("blocks", len(orders)),
            ("pages", int((1 << orders).sum())),
            ("dirty", int(((flags & DIRTY) != 0).sum())),
            ("locked", int(((flags & LOCKED) != 0).sum())),
            ("extra_refs", int(refs.sum()) - len(refs)),
        ):
            what = f"clients[{client}].owner.{field}"
            k.found.same("client.sums", what, int(owner[field]), expected)

    # The list

    def _list(self, client: int, mine: NDArray[np.bool_], maps: dict[int, Descriptor]) -> None:
        """The blocks form one list, through their pages or the descriptors of their mappings."""
        k = self.k
        blocks, first = k.live[mine], int(k.clients[client]["owner"]["first"])
        words = k.links[blocks]
        following = (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
        before = (words >> np.uint64(32)).astype(np.int64)
        for i in np.flatnonzero(k.flags[mine] & MAPPED):
            one = maps.get(int(blocks[i]), Descriptor(0, 0, 0))
            following[i], before[i] = one.next, one.prev
        what = f"client {client}'s list"
        if (following >= k.page_end).any() or (before >= k.page_end).any() or first >= k.page_end:
            k.found.broken("client.list", f"{what} leads beyond the last frame")
            return
        place = np.zeros(k.page_end, np.int64)  # index in `blocks` plus one
        place[blocks] = np.arange(len(blocks)) + 1
        for name, links, back in (("next", following, before), ("prev", before, following)):
            has = np.flatnonzero(links)
            other = place[links[has]] - 1
            wrong = has[(other < 0) | (back[other] != blocks[has])]
            if len(wrong):
                frame, value = int(blocks[wrong[0]]), int(links[wrong[0]])
                k.found.broken(
                    "client.list",
                    f"{what}: frame {frame:#x} has {name} {value:#x}, which does not fit",
                )
                return
        heads = blocks[before == 0].tolist()
        if heads != ([first] if first else []):
            k.found.broken(
                "client.list",
                f"{what} begins at {first:#x}, but before {heads[:3]} there is none",
            )
            return
        self._reach(what, blocks, following, place)

    def _reach(self, what: str, blocks: Frames, following: Frames, place: Frames) -> None:
        """From each block the end is reached: by following twice as far in each round."""
        step = np.concatenate(([0], place[following]))  # index plus one; 0 is the end
        for _ in range(len(blocks).bit_length()):
            step = step[step]
        if step.any():
            frame = int(blocks[int(np.flatnonzero(step)[0]) - 1])
            self.k.found.broken("client.list", f"{what} runs in a circle through frame {frame:#x}")

    # Mappings

    def _mappings(self, client: int, mine: NDArray[np.bool_]) -> dict[int, Descriptor]:
        """Each mapped frame has a descriptor, and its entry where that says. Returns these."""
        k = self.k
        entries = self._entries(client)
        frames = k.live[mine & ((k.flags & MAPPED) != 0)].tolist()
        aspace = k.clients[client]["owner"]["aspace"]
        what = f"clients[{client}].owner.aspace.mapped"
        k.found.same("client.mapped", what, int(aspace["mapped"]), len(frames))
        found: dict[int, Descriptor] = {}
        for frame in frames:
            pointer = int(k.links[frame])
            one = self.descriptors.get(pointer)
            if one is None or pointer in self.used:
                k.found.broken(
                    "client.mapping",
                    f"frame {frame:#x} points to {pointer:#x}, no descriptor of its own",
                )
                continue
            self.used.add(pointer)
            found[frame] = one
            vaddr = entries.pop(frame * PAGE, None)
            what = f"the address that frame {frame:#x} is mapped at"
            k.found.same("client.mapping", what, one.vaddr, vaddr)
        for paddr, vaddr in entries.items():
            k.found.broken(
                "client.mapping",
                f"client {client} has {paddr:#x} mapped at {vaddr:#x}, unknown to it",
            )
        return found

    def _entries(self, client: int) -> dict[int, int]:
        """What its page tables map: the virtual address of each physical one."""
        k, aspace = self.k, self.k.clients[client]["owner"]["aspace"]
        root = int(aspace["root"])
        entries: dict[int, int] = {}
        tables: list[int] = []
        if root and (root % PAGE or root >> 12 >= k.page_end or not k.managed[root >> 12]):
            k.found.broken("table.root", f"client {client}'s top table is at {root:#x}")
        elif root:
            entries, tables = check_client_tables(k, client, root)
        what = f"clients[{client}].owner.aspace.tables"
        k.found.same("client.tables", what, int(aspace["tables"]), len(tables))
        frames = np.array(sorted(tables), np.int64) >> 12
        self.account.give(f"{client_name(k, client)}: page tables", frames)
        self.tables.update(tables)
        return entries

    def nobodys(self) -> None:
        """What is in use, but belongs to nobody."""
        k = self.k
        is_open = k.clients["open"].astype(bool)
        known = (k.owners < len(is_open)) & is_open[np.minimum(k.owners, len(is_open) - 1)]
        for frame in k.live[(k.kinds == CLIENT) & ~known][:1].tolist():
            k.found.broken("page.owner", f"page {frame:#x} belongs to a client that is not open")
        lost = [f * PAGE for f in k.of_kind(TABLE).tolist() if f * PAGE not in self.tables]
        for table in lost[:1]:
            k.found.broken("table.lost", f"the page table at {table:#x} is in no address space")
        for pointer in sorted(self.descriptors.keys() - self.used)[:1]:
            k.found.broken("pool.lost", f"the descriptor at {pointer:#x} is no mapped frame's")
