"""The memory calls over both carriers: results, every documented error, and exact books."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import Boot
from helpers import CARRIERS, LARGEST, PAGE, RING_BYTES, free_bytes, refused
from kos.exceptions import CallError
from kos.machine import Machine
from kos.memory.constants import (
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENOMEM,
    EOVERFLOW,
    PG_DIRTY,
    PG_LOCKED,
    PG_MAPPED,
)
from kos.rpc.client import Client

VMEMMAP = 0xFFFFFF8000000000
KERNEL_TEXT = 0xFFFFFFFF80000000
NOT_HERE = 0x7FFFFFFFF000  # the highest user page


@pytest.fixture(params=CARRIERS)
def client(vm: Machine, request: pytest.FixtureRequest) -> Client:
    return vm.connect("tested", carrier=request.param)


def struct_page_offset(vm: Machine, paddr: int) -> int:
    """Where in `vm.ram` the frame's struct page lies: found through the kernel's own tables."""
    vaddr = VMEMMAP + paddr // PAGE * 16
    *_, last = (int(e) for e in vm.client.page_walk(vaddr))
    size = 2 << 20 if last & 0x80 else PAGE
    return vm.ram_offset((last & 0xFFFFFFFFF000 & -size) + vaddr % size)


# Blocks


@pytest.mark.parametrize("order", range(11))
def test_a_block_of_each_order(vm: Machine, client: Client, order: int) -> None:
    before = free_bytes(vm)
    addr = client.buddy_alloc(order)
    assert addr % (PAGE << order) == 0
    assert before - free_bytes(vm) == PAGE << order
    head, tail = client.page_info(addr), client.page_info(addr + (PAGE << order) - 1)
    assert (head.block, head.order, head.refs, head.flags, head.vaddr) == (addr, order, 1, 0, 0)
    assert (head.owner, tail.owner, tail.block) == (client.id, client.id, addr)
    for wrong in {*range(11)} - {order}:
        with refused(EINVAL, "buddy_free"):
            client.buddy_free(addr, wrong)
    for wrong in (11, 16, 32, 255, 2**32 - 1, 2**32 + order):
        with refused(EINVAL, "buddy_free"):
            client.buddy_free(addr, wrong)
    for inside in {1, 8, 2048, PAGE - 1, PAGE, (PAGE << order) - PAGE} - {0, *[0] * order}:
        with refused(EINVAL, "buddy_free"):
            client.buddy_free(addr + inside, order)
    client.buddy_free(addr, order)
    with refused(EINVAL, "buddy_free"):
        client.buddy_free(addr, order)
    assert free_bytes(vm) == before


def test_frees_of_what_is_no_block(vm: Machine, client: Client) -> None:
    end = vm.client.zone_info(1).end_pfn * PAGE
    status, (_, kernel_ring, _) = vm.wire.call(3, (), b"a ring")
    assert status == 0
    before = free_bytes(vm)
    for addr in (0, PAGE, 0x200000, 0xA0000, end - PAGE, end, 1 << 40, 2**64 - PAGE, 2**64 - 1):
        for order in (0, 10):
            with refused(EINVAL):
                client.buddy_free(addr, order)
    with refused(EINVAL):
        client.buddy_free(kernel_ring, 4)
    assert free_bytes(vm) == before


def test_busy_blocks_are_not_freed(client: Client) -> None:
    addr = client.buddy_alloc(2)
    assert client.page_get(addr) == 2
    with refused(EBUSY, "buddy_free"):
        client.buddy_free(addr, 2)
    assert client.page_put(addr) == 1
    client.page_flags(addr, PG_LOCKED, 0)
    for free in (lambda: client.buddy_free(addr, 2), lambda: client.page_put(addr)):
        with refused(EBUSY):
            free()
    client.page_flags(addr, PG_DIRTY, PG_LOCKED)  # dirt does not keep it
    client.buddy_free(addr, 2)


@pytest.mark.parametrize("order", [11, 12, 63, 255, 2**31, 2**32 - 1, 2**32, 2**64 - 1])
def test_orders_out_of_range(vm: Machine, client: Client, order: int) -> None:
    before = free_bytes(vm)
    for call in (client.buddy_alloc, client.page_alloc, lambda o: client.buddy_alloc_array(o, 1)):
        with refused(EINVAL):
            call(order)
    with refused(EINVAL):
        client.buddy_free_array(order, [0])
    assert free_bytes(vm) == before


@pytest.mark.parametrize("carrier", CARRIERS)
def test_memory_runs_out_and_comes_back(boot: Boot, carrier: str) -> None:
    vm = boot(memory="16M", cpus=2)
    client = vm.connect("greedy", carrier=carrier)
    before = free_bytes(vm)
    taken: list[tuple[int, int]] = []
    for order in range(10, -1, -1):
        with refused(ENOMEM, "buddy_alloc"):
            while True:
                taken.append((client.buddy_alloc(order), order))
    for call in (client.page_alloc, lambda o: client.buddy_alloc_array(o, 100)):
        with refused(ENOMEM):
            call(0)
    assert client.client_info(0).pages == sum(1 << order for _, order in taken)
    taken_pages = {a + i * PAGE for a, order in taken for i in range(1 << order)}
    assert len(taken_pages) == sum(1 << order for _, order in taken)
    for addr, order in taken[::2] + taken[1::2]:
        client.buddy_free(addr, order)
    assert free_bytes(vm) == before
    assert len(client.buddy_alloc_array(10, 100)) < 4  # fewer than wanted is no error
    client.close()
    assert free_bytes(vm) == before + RING_BYTES


# Arrays


def test_arrays_both_ways(vm: Machine, client: Client) -> None:
    before = free_bytes(vm)
    for order in (0, 1, 9):
        blocks = client.buddy_alloc_array(order, 12 if order < 9 else 3)
        assert blocks.dtype == np.uint64
        assert len(set(blocks.tolist())) == len(blocks)
        assert not (blocks % (PAGE << order)).any()
        assert before - free_bytes(vm) == len(blocks) * (PAGE << order)
        forms: tuple[Callable[[Any], Any], ...] = (
            lambda b: b[0:1],
            lambda b: b[1:2].tolist(),
            lambda b: b[2:].astype(np.int64)[::-1],
        )
        assert sum(client.buddy_free_array(order, form(blocks)) for form in forms) == len(blocks)
    assert before == free_bytes(vm)
    assert client.page_free_array(b for b in client.buddy_alloc_array(0, 5).tolist()) == 5
    assert before == free_bytes(vm)


@pytest.mark.parametrize("kind", [list, np.array])
@pytest.mark.parametrize("bad_at", [0, 3, 6])
def test_a_wrong_element_stops_an_array_there(
    vm: Machine, client: Client, kind: Callable[[Any], Any], bad_at: int
) -> None:
    before = free_bytes(vm)
    blocks = client.buddy_alloc_array(0, 7).tolist()
    foreign = vm.client.buddy_alloc(0)
    for free in (lambda d: client.buddy_free_array(0, d), client.page_free_array):
        wrong = list(blocks)
        wrong[bad_at] = foreign
        with refused(EINVAL) as caught:
            free(kind(wrong))
        assert caught[0].results[0] == bad_at
        states = [client.page_info(b).owner == client.id for b in blocks]
        assert states == [False] * bad_at + [True] * (7 - bad_at)
        client.page_free_array(blocks[bad_at:])
        blocks = client.buddy_alloc_array(0, 7).tolist()
    client.page_flags(blocks[bad_at], PG_LOCKED, 0)
    with refused(EBUSY) as caught:
        client.page_free_array(kind(blocks))
    assert caught[0].results[0] == bad_at
    client.page_flags(blocks[bad_at], 0, PG_LOCKED)
    client.page_free_array(kind(blocks[bad_at:]))
    vm.client.buddy_free(foreign, 0)
    assert free_bytes(vm) == before


def test_counts_at_the_edges(vm: Machine, client: Client) -> None:
    before, limit = free_bytes(vm), LARGEST[client.carrier] // 8
    assert client.buddy_alloc_array(0, 0).tolist() == []
    assert client.buddy_free_array(0, []) == client.page_free_array(np.array([], np.uint64)) == 0
    full = client.buddy_alloc_array(0, limit)
    assert len(full) == limit
    assert client.buddy_free_array(0, full) == limit
    for count in (limit + 1, 2**16, 2**29, 2**32 - 1, 2**40):
        with refused(EMSGSIZE, "buddy_alloc_array"):
            client.buddy_alloc_array(0, count)
    with refused(EMSGSIZE, "page_free_array"):
        client.page_free_array([0] * (limit + 1))
    assert client.ping(1) == 1
    assert free_bytes(vm) == before


@pytest.mark.parametrize(
    "bad",
    [
        *[[-1], [PAGE, -PAGE], [2**64], [1.5], ["x"], [None], 5, None],
        *[np.array([-PAGE]), np.array([4096.7]), np.array(["x"]), np.array([True])],
    ],
    ids=repr,
)
def test_arrays_of_what_is_no_address(vm: Machine, client: Client, bad: Any) -> None:
    before = client.client_info(0).refused
    for free in (lambda d: client.buddy_free_array(0, d), client.page_free_array):
        with pytest.raises((TypeError, ValueError)):
            free(bad)
    assert client.client_info(0).refused == before, "it went to the kernel"
    assert client.ping(9) == 9


# Frames


def test_frames_of_a_run_are_freed_one_by_one(vm: Machine, client: Client) -> None:
    before = free_bytes(vm)
    first = client.page_alloc(3)
    frames = [first + PAGE * i for i in range(8)]
    assert all(client.page_info(f).order == 0 for f in frames)
    with refused(EINVAL):
        client.buddy_free(first, 3)
    for frame in frames[::2]:
        client.page_free(frame)
        with refused(EINVAL, "page_free"):
            client.page_free(frame)
    client.page_free_array(frames[1::2])
    assert free_bytes(vm) == before


def test_references(vm: Machine, client: Client) -> None:
    before, frame = free_bytes(vm), client.page_alloc(0)
    assert [client.page_get(frame) for _ in range(3)] == [2, 3, 4]
    client.page_claim(frame)
    assert client.page_info(frame).refs == 5
    with refused(EBUSY, "page_free"):
        client.page_free(frame)
    assert [client.page_put(frame) for _ in range(5)] == [4, 3, 2, 1, 0]
    for call in (client.page_put, client.page_get, client.page_unmap, client.page_free):
        with refused(EINVAL):
            call(frame)
    assert free_bytes(vm) == before


def test_references_do_not_overflow(vm: Machine, client: Client) -> None:
    frame = client.page_alloc(0)
    at = struct_page_offset(vm, frame) + 4
    refs: Any = vm.ram[at : at + 4].cast("I")
    assert refs[0] == 1
    refs[0] = 2**32 - 2
    assert client.page_get(frame) == 2**32 - 1
    for call in (client.page_get, client.page_claim):
        with refused(EOVERFLOW):
            call(frame)
    assert client.page_put(frame) == 2**32 - 2
    refs[0] = 1
    client.page_free(frame)


def test_claim(vm: Machine, client: Client) -> None:
    status, (_, kernel_ring, _) = vm.wire.call(3, (), b"a ring")
    assert status == 0
    before, head = free_bytes(vm), client.buddy_alloc(10)
    client.buddy_free(head, 10)
    middle = head + 517 * PAGE
    client.page_claim(middle)
    assert client.page_info(middle).block == middle
    assert free_bytes(vm) == before - PAGE
    theirs = vm.client.buddy_alloc(0)
    own = client.buddy_alloc(1)
    for busy in (theirs, own, own + PAGE, 0x200000, kernel_ring):
        with refused(EBUSY, "page_claim"):
            client.page_claim(busy)
    for wrong in (middle + 1, 0xA0000, 0xFEE00000, 1 << 36, 2**64 - 1, 2**64 - PAGE):
        with refused(EINVAL, "page_claim"):
            client.page_claim(wrong)
    client.buddy_free(own, 1)
    vm.client.buddy_free(theirs, 0)
    assert client.page_put(middle) == 0
    assert free_bytes(vm) == before


@pytest.mark.kos(leaks="allow")
def test_page_info_of_anything(client: Client) -> None:
    end = client.zone_info(1).end_pfn * PAGE
    for addr in (0, 0xA0000, 0x200000, 0x200001, 0x1000, end - 1, client.page_alloc(0)):
        info = client.page_info(addr)
        assert info.paddr == addr & -PAGE
    for addr in (1 << 30, 1 << 40, 2**63, 2**64 - 1):
        with refused(EINVAL, "page_info"):
            client.page_info(addr)


@pytest.mark.kos(leaks="allow")
def test_flags(client: Client) -> None:
    frame = client.page_alloc(0)
    for set_, clear, expected in ((1, 0, 1), (2, 0, 3), (0, 1, 2), (1, 3, 1), (3, 0, 3), (0, 3, 0)):
        client.page_flags(frame, set_, clear)
        assert client.page_info(frame).flags == expected
    for set_, clear in ((PG_MAPPED, 0), (0, PG_MAPPED), (8, 0), (0, 2**32 - 1), (1 << 32, 0)):
        with refused(EINVAL, "page_flags"):
            client.page_flags(frame, set_, clear)
    with refused(EINVAL, "page_flags"):
        client.page_flags(frame + 1, 0, 0)
    assert client.page_info(frame).flags == 0


# Mappings


def test_map_read_write_unmap(vm: Machine, client: Client) -> None:
    before, frames = free_bytes(vm), [client.page_alloc(0) for _ in range(2)]
    for frame, vaddr in zip(frames, (NOT_HERE - PAGE, NOT_HERE - 2 * PAGE), strict=True):
        client.page_map(frame, vaddr)
    data = np.random.default_rng(2).bytes(4000)
    client.mem_write(NOT_HERE - PAGE - 2000, data)
    assert client.mem_read(NOT_HERE - PAGE - 2000, 4000) == data
    low = vm.ram_offset(frames[1])
    assert bytes(vm.ram[low + PAGE - 2000 : low + PAGE]) == data[:2000]
    assert client.page_info(frames[0]).flags == PG_MAPPED | PG_DIRTY
    entries = client.page_walk(NOT_HERE - PAGE)
    assert len(entries) == 4
    assert int(entries[3]) & 0xFFFFFFFFF000 == frames[0]
    for vaddr, n in ((NOT_HERE - 96, 100), (NOT_HERE, 1)):
        with refused(EFAULT, "mem_read") as caught:
            client.mem_read(vaddr, n)
        assert caught[0].results[0] == NOT_HERE
    with refused(EFAULT, "mem_write") as caught:
        client.mem_write(NOT_HERE - 4, b"12345678")
    assert caught[0].results[0] == NOT_HERE
    for frame in frames:
        client.page_unmap(frame)
        with refused(EINVAL, "page_unmap"):
            client.page_unmap(frame)
    with refused(EFAULT, "mem_read") as caught:
        client.mem_read(NOT_HERE - PAGE, 1)
    assert caught[0].results[0] == NOT_HERE - PAGE
    client.page_free_array(frames)
    assert client.client_info(0).tables <= 1
    assert before - free_bytes(vm) == client.client_info(0).tables * PAGE


@pytest.mark.kos(leaks="allow")
def test_what_cannot_be_mapped(client: Client) -> None:
    frame, other, block = client.page_alloc(0), client.page_alloc(0), client.buddy_alloc(1)
    for vaddr in (0, 1, 0xFFF, 0x1001, 0x7FFFFFFFFFFF, 1 << 47, KERNEL_TEXT, 2**64 - PAGE):
        with refused(EINVAL, "page_map"):
            client.page_map(frame, vaddr)
    assert client.client_info(0).tables <= 1
    client.page_map(frame, 0x1000)
    with refused(EBUSY, "page_map"):
        client.page_map(frame, 0x2000)
    with refused(EEXIST, "page_map"):
        client.page_map(other, 0x1000)
    for wrong in (block, block + PAGE, frame + 1, 0x200000, 2**64 - 1):
        with refused(EINVAL, "page_map"):
            client.page_map(wrong, 0x3000)
    for free in (client.page_free, client.page_put, lambda f: client.buddy_free(f, 0)):
        with refused(EBUSY):
            free(frame)
    assert client.page_info(other).flags == 0


@pytest.mark.kos(leaks="allow")
def test_memory_that_no_client_may_touch(client: Client) -> None:
    client.page_map(client.page_alloc(0), 0x7FFFFFFFE000)
    for vaddr in (0, KERNEL_TEXT, 0xFFFF800000200000, 1 << 47, 0x800000000000 - 1, 2**64 - 8):
        with refused(EFAULT, "mem_read") as caught:
            client.mem_read(vaddr, 8)
        assert caught[0].results[0] in (vaddr, 1 << 47)
        with refused(EFAULT, "mem_write"):
            client.mem_write(vaddr, b"\xcc" * 8)
    with refused(EMSGSIZE, "mem_read"):
        client.mem_read(0x7FFFFFFFE000, LARGEST[client.carrier] + 8)


@pytest.mark.kos(leaks="allow")
@pytest.mark.parametrize("carrier", CARRIERS)
def test_no_memory_for_page_tables(boot: Boot, carrier: str) -> None:
    vm = boot(memory="16M", cpus=1)
    client = vm.connect("mapper", carrier=carrier)
    before = free_bytes(vm)
    frames = [client.page_alloc(0) for _ in range(12)]
    for order in range(10, -1, -1):
        with refused(ENOMEM):
            while True:
                vm.client.buddy_alloc(order)
    mapped = 0
    with refused(ENOMEM, "page_map"):
        for mapped, frame in enumerate(frames):
            client.page_map(frame, 0x1000 + (mapped << 39))
    state = client.client_info(0)
    assert (state.mapped, state.tables) == (mapped, 1 + 3 * mapped)
    held = free_bytes(vm)
    for _ in range(5):
        with refused(ENOMEM, "page_map"):
            client.page_map(frames[mapped], 0x1000 + (mapped << 39))
    assert client.client_info(0).tables == state.tables
    assert free_bytes(vm) == held
    client.close()
    assert free_bytes(vm) + vm.client.client_info(0).pages * PAGE == before + RING_BYTES


def test_the_reserve_stays_the_kernels(boot: Boot) -> None:
    """Page tables may come out of it; given back, their frames are no client's to take."""
    vm = boot(memory="32M", cpus=1)
    client = vm.client
    frame = client.page_alloc(0)
    blocks = []
    for order in range(10, -1, -1):
        while len(found := client_blocks(client, order)):
            blocks += [(order, found)]
    for i in range(8):
        client.page_map(frame, 0x400000 + (i << 30))
        client.page_unmap(frame)
        with refused(ENOMEM):
            client.buddy_alloc(0)
    for order, found in blocks:
        client.buddy_free_array(order, found)
    client.page_free(frame)


def client_blocks(client: Client, order: int) -> list[int]:
    """Up to 64 blocks; none when memory is out."""
    try:
        return [int(addr) for addr in client.buddy_alloc_array(order, 64)]
    except CallError as error:
        if error.errno != ENOMEM:
            raise
        return []


def test_large_blocks_in_a_row_are_one_again(boot: Boot) -> None:
    """A magazine of neighbours goes back as the largest blocks that they make up."""
    vm = boot(memory="1G", cpus=1)
    client = vm.client
    client.buddy_drain()
    before = client.zone_info(1).free_blocks
    for block in [client.buddy_alloc(9) for _ in range(4)]:
        client.buddy_free(block, 9)
    assert client.zone_info(1).magazine_blocks[9] == 4
    client.buddy_drain()
    assert client.zone_info(1).free_blocks == before
