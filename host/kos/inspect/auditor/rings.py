"""Rings: each is a block of an open client's, with a header that says what it must."""

import numpy as np

from kos.inspect.auditor.kernel import KERNEL, Account, Kernel, client_name
from kos.inspect.layouts import dtype_of

_RING_ORDER = 4
_RING_HEADER = (64, 256, 4096, 8192, (4096 << _RING_ORDER) - 8192)


def check_rings(k: Kernel, account: Account) -> dict[int, int]:
    """All rings; returns how many each client has."""
    counts: dict[int, int] = {}
    size = k.abi.layout("client").size
    live = np.frombuffer(bytes(k.image(k.symbols["live"], 64)), np.uint64)
    expected = [0] * 8
    lost = set(k.of_kind(KERNEL).tolist())
    for index, ring in enumerate(k.rings):
        pointer = int(ring["client"])
        if not pointer:
            continue
        client, rest = divmod(pointer - k.symbols["clients"], size)
        if rest or not 0 < client < len(k.clients) or not k.clients[client]["open"]:
            k.found.broken("ring.client", f"rings[{index}].client is {pointer:#x}, no open client")
            continue
        counts[client] = counts.get(client, 0) + 1
        expected[index % k.cpu_count] |= 1 << index
        frame = _check_ring(k, index, client)
        account.give(f"{client_name(k, client)}: rings", np.array([frame]), _RING_ORDER)
        lost.discard(frame)
    k.found.same("ring.live", "the masks of live rings", live.tolist(), expected)
    for frame in sorted(lost)[:1]:
        k.found.broken("page.lost", f"the kernel's block at frame {frame:#x} is no ring")
    return counts


def _check_ring(k: Kernel, index: int, client: int) -> int:
    ring, what = k.rings[index], f"rings[{index}]"
    paddr = k.direct_paddr(int(ring["header"]), f"{what}.header")
    frame = paddr >> 12
    head = int(k.heads[frame])
    expected = 1 << 32 | client << 16 | _RING_ORDER << 4 | KERNEL
    k.found.same("ring.block", f"the head of {what}'s block at {paddr:#x}", head, expected)
    header = np.frombuffer(k.memory.physical(paddr, 256), dtype_of(k.abi, "ring_header"))[0]
    names = ("entries", "cq_offset", "sq_offset", "data_offset", "data_bytes")
    for name, value in zip(names, _RING_HEADER, strict=True):
        k.found.same("ring.header", f"{what}.header->{name}", int(header[name]), value)
    k.found.same("ring.header", f"{what}.header->cpu", int(header["cpu"]), index % k.cpu_count)
    k.found.same("ring.header", f"{what}.header->client", int(header["client"]), client)
    for name in ("sq_head", "cq_tail"):
        k.found.same("ring.index", f"{what}.header->{name}", int(header[name]), int(ring[name]))
    if int(header["doorbell_wanted"]) not in (0, 1):
        k.found.broken("ring.header", f"{what}.header->doorbell_wanted is no truth value")
    return frame
