"""The documented API: constants, exceptions, page frames, the buddy functions, settings."""

import builtins
import copy
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kos
import kos.exceptions
import kos.memory
from conftest import Boot
from helpers import PAGE, refused
from kos.exceptions import AllocationError, KOSError, MappingError, MemoryError, ProtectionError
from kos.kernel.mm.mm_wrapper import buddy_alloc, buddy_free, buddy_stats, last_error
from kos.machine import Machine
from kos.memory import constants
from kos.memory.constants import (
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENXIO,
    PG_DIRTY,
    PG_LOCKED,
    PG_MAPPED,
)
from kos.memory.manager import MemoryManager
from kos.memory.page import PageFrame, PageFrameAllocator

KERNEL, HOLE, BEYOND = 0x200000, 0xA0000, 64 << 20


class denied:
    """The block raises a documented memory error with that errno, in words."""

    def __init__(self, errno: int, kind: type[MemoryError] = MemoryError) -> None:
        self.errno, self.kind = errno, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None and not isinstance(error, MemoryError):
            return False
        assert error is not None, "it was not refused"
        assert (error.errno, type(error)) == (self.errno, self.kind)
        assert f"errno {self.errno}" in str(error)
        return True


def stats(vm: Machine) -> dict[str, Any]:
    """What blocks are free, whatever magazines and counters have seen."""
    vm.client.buddy_drain()
    state = buddy_stats(vm)
    zones = {n: (z["free_pages"], z["free_blocks"]) for n, z in state["zones"].items()}
    return {"zones": zones, "blocks": state["free_blocks"], "pages": state["free_pages"]}


# Names and values


def test_constants() -> None:
    documented = {
        **{"PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4},
        **{"PROT_RW": 3, "PROT_RWX": 7},
        **{"MAP_SHARED": 0x01, "MAP_PRIVATE": 0x02, "MAP_ANONYMOUS": 0x20, "MAP_FIXED": 0x10},
        **{"MAP_GROWSDOWN": 0x0100, "MAP_LOCKED": 0x2000, "MAP_POPULATE": 0x8000},
        **{"ZONE_DMA": 0, "ZONE_NORMAL": 1, "ZONE_HIGHMEM": 2},
        **{"ENOMEM": -12, "EINVAL": -22, "EACCES": -13, "EFAULT": -14, "ENXIO": -6},
    }
    for name, value in documented.items():
        assert getattr(constants, name) == getattr(kos.memory, name) == value
        if name.startswith(("PROT", "MAP")):
            assert getattr(MemoryManager, name) == value
    errors = {n: v for n, v in vars(constants).items() if n.startswith("E")}
    for name, value in errors.items():
        assert os.strerror(-value) == os.strerror(getattr(__import__("errno"), name))
        assert constants.errno_name(value) == name


def test_exceptions_form_the_documented_tree() -> None:
    assert issubclass(MemoryError, KOSError)
    assert issubclass(MemoryError, builtins.MemoryError)
    for kind in (AllocationError, MappingError, ProtectionError):
        assert kind.__base__ is MemoryError
    assert issubclass(KOSError, Exception)
    for name in ("BootError", "KernelPanic", "CallTimeout", "MachineExited", "HostError"):
        kind = getattr(kos.exceptions, name)
        assert issubclass(kind, KOSError)
        assert not issubclass(kind, builtins.MemoryError)


@pytest.mark.parametrize("kind", [MemoryError, AllocationError, MappingError, ProtectionError])
def test_memory_errors_cross_process_boundaries(kind: type[MemoryError]) -> None:
    for again in (copy.copy(kind("gone", errno=ENOMEM)), pickled(kind("gone", errno=ENOMEM))):
        assert (type(again), again.errno, str(again)) == (kind, ENOMEM, "gone (errno -12)")


def pickled(error: KOSError) -> KOSError:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, KOSError)
    return again


def test_memory_manager(default_vm: Machine, boot: Boot) -> None:
    manager = MemoryManager()
    assert manager.initialize() is True
    assert manager.machine is default_vm
    assert manager.total_memory == default_vm.client.machine_info().total_bytes
    before = manager.free_memory
    addr = buddy_alloc(5)
    assert before - manager.free_memory == PAGE << 5
    assert buddy_free(addr, 5) == 0
    other = boot(memory="32M")
    assert MemoryManager(machine=other).machine is other
    assert MemoryManager(other).total_memory < manager.total_memory
    other.close()
    with denied(ENXIO):
        MemoryManager(other).initialize()


# Page frames


@pytest.mark.kos(leaks="allow")
def test_a_fresh_frame(default_vm: Machine) -> None:
    frame = PageFrameAllocator().alloc_page()
    assert frame.physical_addr % PAGE == 0
    assert (frame.ref_count, frame.flags, frame.virtual_addr) == (1, 0, None)
    assert (frame.is_dirty(), frame.is_locked(), frame.is_mapped()) == (False, False, False)
    assert repr(frame) == f"PageFrame({frame.physical_addr:#x})"
    same = PageFrame(frame.physical_addr)
    assert same == frame
    assert hash(same) == hash(frame)
    assert frame.ref_count == 2
    assert frame != PageFrameAllocator().alloc_page()
    assert frame != frame.physical_addr


def test_flags_and_references_are_live(default_vm: Machine) -> None:
    frame = PageFrameAllocator().alloc_page()
    twin = PageFrame(frame.physical_addr)
    frame.set_dirty()
    frame.lock()
    assert (twin.flags, twin.is_dirty(), twin.is_locked()) == (PG_DIRTY | PG_LOCKED, True, True)
    twin.clear_dirty()
    twin.unlock()
    assert (frame.flags, frame.is_dirty(), frame.is_locked()) == (0, False, False)
    frame.get()
    assert twin.ref_count == 3
    for left in (2, 1, 0):
        twin.put()
        assert frame.ref_count == left


def test_a_frame_that_is_gone_refuses_all(default_vm: Machine) -> None:
    before = stats(default_vm)
    allocator = PageFrameAllocator()
    frame = allocator.alloc_page()
    allocator.free_page(frame)
    calls: list[Callable[[], Any]] = [
        *[frame.get, frame.put, frame.lock, frame.unlock, frame.set_dirty, frame.clear_dirty],
        *[frame.is_dirty, frame.is_locked, frame.is_mapped, lambda: allocator.free_page(frame)],
        *[lambda: frame.flags, lambda: frame.virtual_addr, lambda: frame.map_virtual(0x1000)],
    ]
    for call in calls:
        with denied(EINVAL):
            call()
    with denied(EINVAL, MappingError):
        frame.unmap_virtual()
    assert frame.ref_count == 0
    assert stats(default_vm) == before


@pytest.mark.parametrize("addr", [KERNEL, KERNEL + PAGE])
def test_frames_that_are_busy(default_vm: Machine, addr: int) -> None:
    before = stats(default_vm)
    with denied(EBUSY):
        PageFrame(addr)
    other = default_vm.connect("someone else")
    theirs, block, own = other.page_alloc(0), other.buddy_alloc(2), buddy_alloc(3)
    for busy in (theirs, block, block + PAGE, own, own + 7 * PAGE):
        with denied(EBUSY):
            PageFrame(busy)
    other.close()
    assert buddy_free(own, 3) == 0
    assert stats(default_vm) == before


@pytest.mark.parametrize(
    "addr",
    [HOLE, 0xFF000, BEYOND, 1 << 40, 0xFEE00000, 2**64 - PAGE, 2**64, -1, -PAGE, 0x5001, 0x5800],
    ids=hex,
)
def test_addresses_of_no_frame(default_vm: Machine, addr: int) -> None:
    before = stats(default_vm)
    with denied(EINVAL):
        PageFrame(addr)
    assert stats(default_vm) == before


@pytest.mark.kos(leaks="allow")
@pytest.mark.parametrize("addr", [1.5, "0x5000", None, True], ids=repr)
def test_addresses_of_wrong_types(default_vm: Machine, addr: Any) -> None:
    with pytest.raises(TypeError, match="physical_addr"):
        PageFrame(addr)
    assert PageFrame(np.uint64(0x5000)).physical_addr == 0x5000  # type: ignore[arg-type]


def test_low_memory_is_claimed_frame_by_frame(default_vm: Machine) -> None:
    before = stats(default_vm)
    frames = [PageFrame(addr) for addr in range(0x1000, 0x9F000, PAGE)]
    assert all(frame.ref_count == 1 for frame in frames)
    assert stats(default_vm)["pages"] == before["pages"] - len(frames)
    for frame in frames[::2] + frames[1::2]:
        frame.put()
    assert stats(default_vm) == before


@pytest.mark.parametrize("index", [0, 1, 511, 512, 700, 1023])
def test_a_claim_splits_a_large_block_and_put_merges_it(default_vm: Machine, index: int) -> None:
    head = buddy_alloc(10)
    assert buddy_free(head, 10) == 0
    before = stats(default_vm)
    frame = PageFrame(head + index * PAGE)
    info = default_vm.client.page_info(head + (index ^ 1) * PAGE)
    assert (info.place, info.block, info.order) == (2, head + (index ^ 1) * PAGE, 0)
    after = stats(default_vm)
    assert after["blocks"][10] == before["blocks"][10] - 1
    assert after["pages"] == before["pages"] - 1
    frame.put()
    assert stats(default_vm) == before


def test_runs_of_frames(default_vm: Machine) -> None:
    before, allocator = stats(default_vm), PageFrameAllocator()
    for order in (0, 1, 4, 10):
        free = allocator.get_free_pages()
        frames = allocator.alloc_pages(order)
        assert len(frames) == 1 << order
        assert free - allocator.get_free_pages() == 1 << order
        first = frames[0].physical_addr
        assert first % (PAGE << order) == 0
        assert [f.physical_addr for f in frames] == [first + i * PAGE for i in range(1 << order)]
        allocator.free_pages(reversed(frames))
    allocator.free_pages([])
    assert stats(default_vm) == before


@pytest.mark.parametrize("order", [-1, 11, 2**32, -(2**70)])
def test_orders_out_of_range(default_vm: Machine, order: int) -> None:
    with denied(EINVAL, AllocationError):
        PageFrameAllocator().alloc_pages(order)
    assert buddy_alloc(order) == 0
    error = last_error()
    assert isinstance(error, AllocationError)
    assert (error.errno, str(order) in str(error)) == (EINVAL, True)
    for wrong in (1.5, "1", None, False):
        with pytest.raises(TypeError, match="order"):
            PageFrameAllocator().alloc_pages(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="order"):
            buddy_alloc(wrong)  # type: ignore[arg-type]


@pytest.mark.kos(leaks="allow")
def test_free_pages_stops_at_the_one_that_is_refused(default_vm: Machine, boot: Boot) -> None:
    before, allocator = stats(default_vm), PageFrameAllocator()
    frames = allocator.alloc_pages(3)
    frames[5].lock()
    with denied(EBUSY):
        allocator.free_pages(frames)
    assert [f.ref_count for f in frames] == [0] * 5 + [1] * 3
    with denied(EINVAL):
        allocator.free_pages([frames[6], frames[0], frames[7]])
    assert [f.ref_count for f in frames] == [0] * 5 + [1, 0, 1]
    for wrong in ([frames[7], 5], 5, [None]):
        with pytest.raises(TypeError):
            allocator.free_pages(wrong)  # type: ignore[arg-type]
    foreign = PageFrameAllocator(boot(memory="16M", cpus=1)).alloc_page()
    with pytest.raises(ValueError, match="different machines"):
        allocator.free_pages([frames[7], foreign])
    frames[5].unlock()
    allocator.free_pages([frames[5], frames[7]])
    assert stats(default_vm) == before


def test_what_keeps_a_frame_from_being_freed(default_vm: Machine) -> None:
    allocator = PageFrameAllocator()
    frame = allocator.alloc_page()
    pairs: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (frame.get, frame.put),
        (frame.lock, frame.unlock),
        (lambda: frame.map_virtual(0x400000), frame.unmap_virtual),
    ]
    for keep, let_go in pairs:
        keep()
        with denied(EBUSY):
            allocator.free_page(frame)
        let_go()
    for keep, let_go in pairs[1:]:
        keep()
        with denied(EBUSY):
            frame.put()
        assert frame.ref_count == 1
        let_go()
    allocator.free_page(frame)


# Mappings


@pytest.mark.kos(leaks="allow")
def test_mapping_and_hardware_dirt(default_vm: Machine) -> None:
    client, frame = default_vm.client, PageFrameAllocator().alloc_page()
    frame.map_virtual(0x7FFFFFFFE000)
    assert (frame.virtual_addr, frame.is_mapped(), frame.flags) == (0x7FFFFFFFE000, True, PG_MAPPED)
    client.mem_read(0x7FFFFFFFE000, 16)
    assert not frame.is_dirty(), "reading does not make dirty"
    client.mem_write(0x7FFFFFFFE000, b"written")
    assert frame.is_dirty()
    frame.clear_dirty()
    assert not frame.is_dirty()
    client.mem_write(0x7FFFFFFFE000, b"again")
    assert frame.is_dirty(), "the TLB still had it as dirty"
    frame.unmap_virtual()
    assert (frame.is_dirty(), frame.is_mapped(), frame.virtual_addr) == (True, False, None)
    frame.clear_dirty()
    assert frame.flags == 0
    at = default_vm.ram_offset(frame.physical_addr)
    assert bytes(default_vm.ram[at : at + 7]) == b"againen"
    with refused(EFAULT, "mem_read") as caught:
        client.mem_read(0x7FFFFFFFE010, 4)
    assert caught[0].results[0] == 0x7FFFFFFFE010


@pytest.mark.kos(leaks="allow")
def test_what_cannot_be_mapped(default_vm: Machine) -> None:
    frame, other = PageFrameAllocator().alloc_pages(1)
    for vaddr in (0, 0x1001, 0xFFF, 0x7FFFFFFFF001, 1 << 47, 0xFFFF800000000000, 2**64, -PAGE):
        with denied(EINVAL, MappingError):
            frame.map_virtual(vaddr)
    with denied(EINVAL, MappingError):
        frame.unmap_virtual()
    frame.map_virtual(0x1000)
    with denied(EBUSY, MappingError):
        frame.map_virtual(0x2000)
    with denied(EBUSY, MappingError):
        frame.map_virtual(0x1000)
    with denied(EEXIST, MappingError):
        other.map_virtual(0x1000)
    with pytest.raises(TypeError, match="virtual_addr"):
        other.map_virtual("0x2000")  # type: ignore[arg-type]
    assert (frame.virtual_addr, other.virtual_addr) == (0x1000, None)


# The buddy functions


@pytest.mark.kos(leaks="allow")
def test_wrong_frees_change_nothing(default_vm: Machine) -> None:
    other = default_vm.connect("someone else")
    theirs, live, freed, busy = other.buddy_alloc(2), buddy_alloc(3), buddy_alloc(0), buddy_alloc(1)
    assert buddy_free(freed, 0) == 0
    frame = PageFrame(freed)
    frame.put()
    default_vm.client.page_get(busy)
    before = stats(default_vm)
    wrong: list[tuple[int, int, int, str]] = [
        (live, 2, EINVAL, "heads the order-3 block"),
        (live, 4, EINVAL, "heads the order-3 block"),
        (live, 11, EINVAL, ""),
        (live, -1, EINVAL, ""),
        (live + PAGE, 0, EINVAL, "is inside the order-3 block"),
        (live + 4 * PAGE, 2, EINVAL, "is inside the order-3 block"),
        (live + 1, 3, EINVAL, "not page-aligned"),
        (freed, 0, EINVAL, "is free"),
        (theirs, 2, EINVAL, "somebody else"),
        (busy, 1, EBUSY, "2 references"),
        (KERNEL, 0, EINVAL, "reserved"),
        (HOLE, 0, EINVAL, "is no RAM"),
        (0, 0, EINVAL, ""),
        (1 << 40, 0, EINVAL, "beyond"),
        (2**64, 0, EINVAL, ""),
        (-PAGE, 0, EINVAL, ""),
    ]
    for addr, order, errno, words in wrong:
        assert buddy_free(addr, order) == errno, hex(addr)
        error = last_error()
        assert error is not None
        assert error.errno == errno
        assert words in str(error)
        assert constants.errno_name(errno) in str(error)
    assert stats(default_vm) == before
    default_vm.client.page_put(busy)
    assert [buddy_free(live, 3), buddy_free(busy, 1)] == [0, 0]
    for args in ((None, 0), (live, "0"), (1.0, 0)):
        with pytest.raises(TypeError):
            buddy_free(*args)


def test_last_error_is_of_the_last_call_of_this_thread(default_vm: Machine) -> None:
    assert buddy_alloc(99) == 0
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(last_error()))
    thread.start()
    thread.join()
    assert seen == [None]
    assert last_error() is not None
    buddy_stats()
    assert last_error() is None


def test_stats_count(default_vm: Machine) -> None:
    state = buddy_stats()
    assert sorted(state) == ["free_blocks", "free_pages", "zones"]
    assert list(state["zones"]) == ["DMA", "NORMAL", "HIGHMEM"]
    assert state["free_pages"] == PageFrameAllocator().get_free_pages()
    taken = [buddy_alloc(6) for _ in range(10)]
    assert buddy_stats()["free_pages"] == state["free_pages"] - (10 << 6)
    normal = buddy_stats()["zones"]["NORMAL"]
    assert normal["allocated"][6] == state["zones"]["NORMAL"]["allocated"][6] + 10
    assert [buddy_free(addr, 6) for addr in taken] == [0] * 10
    after = buddy_stats()["zones"]["NORMAL"]
    assert after["freed"][6] == state["zones"]["NORMAL"]["freed"][6] + 10
    assert sum(after["splits"].values()) == sum(after["merges"].values()) + sum(
        state["zones"]["NORMAL"]["splits"].values()
    ) - sum(state["zones"]["NORMAL"]["merges"].values())


def test_until_nothing_is_left(boot: Boot) -> None:
    vm = boot(memory="16M", cpus=2)
    before = stats(vm)
    taken = []
    for order in range(10, -1, -1):
        while addr := buddy_alloc(order, machine=vm):
            taken.append((addr, order))
        error = last_error()
        assert isinstance(error, AllocationError)
        assert (error.errno, f"order {order}" in str(error)) == (ENOMEM, True)
    allocator = PageFrameAllocator(vm)
    with denied(ENOMEM, AllocationError):
        allocator.alloc_page()
    assert allocator.get_free_pages() * 64 < before["pages"]
    assert sum(1 << order for _, order in taken) + allocator.get_free_pages() == before["pages"]
    for addr, order in taken[1::2] + taken[::2]:
        assert buddy_free(addr, order, machine=vm) == 0
    assert stats(vm) == before
