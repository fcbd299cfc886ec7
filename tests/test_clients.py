"""Clients: what each owns is its own, and all of it comes back, however the client ends."""

import gc
import threading
import time

import pytest

from conftest import Boot
from helpers import CARRIERS, LONG, PAGE, RING_BYTES, Threads, free_bytes, refused
from kos.exceptions import HostError
from kos.machine import Machine
from kos.memory.constants import EBADF, EBUSY, EFAULT, EINVAL, ENFILE, ENOMEM, PG_LOCKED
from kos.rpc import frames
from kos.rpc.client import Client

RINGS, IDS = 64, 256
PING, CLIENT_OPEN, CLIENT_CLOSE, RING_OPEN, RING_CLOSE = 1, 3, 4, 5, 6


def wire_call(vm: Machine, number: int, *args: int, data: bytes = b"") -> tuple[int, int, int]:
    status, (first, second, _) = vm.wire.call(number, args, data, timeout=LONG)
    return status, first, second


@pytest.mark.kos(leaks="allow")
@pytest.mark.parametrize("carrier", CARRIERS)
def test_clients_do_not_touch_each_other_s_blocks(vm: Machine, carrier: str) -> None:
    mine, theirs = vm.connect("mine", carrier=carrier), vm.connect("theirs", carrier=carrier)
    block, frame, mapped = mine.buddy_alloc(2), mine.page_alloc(0), mine.page_alloc(0)
    mine.page_map(mapped, 0x5000)
    mine.mem_write(0x5000, b"secret")
    before = [mine.page_info(a) for a in (block, frame, mapped)], mine.client_info(0).pages
    for call in (
        lambda: theirs.buddy_free(block, 2),
        lambda: theirs.buddy_free_array(2, [block]),
        lambda: theirs.page_free(frame),
        lambda: theirs.page_free_array([frame]),
        lambda: theirs.page_get(frame),
        lambda: theirs.page_put(frame),
        lambda: theirs.page_flags(frame, PG_LOCKED, 0),
        lambda: theirs.page_map(frame, 0x5000),
        lambda: theirs.page_unmap(mapped),
    ):
        with refused(EINVAL):
            call()
    for addr in (block, block + PAGE, frame, mapped):
        with refused(EBUSY, "page_claim"):
            theirs.page_claim(addr)
    with refused(EFAULT):
        theirs.mem_read(0x5000, 6)
    assert theirs.page_info(mapped).vaddr == 0
    assert (
        [mine.page_info(a) for a in (block, frame, mapped)],
        mine.client_info(0).pages,
    ) == before
    theirs.page_map(theirs.page_alloc(0), 0x5000)
    assert theirs.mem_read(0x5000, 6) != b"secret"
    assert mine.mem_read(0x5000, 6) == b"secret"


@pytest.mark.parametrize("carrier", CARRIERS)
def test_closing_gives_everything_back(vm: Machine, carrier: str) -> None:
    before, counts = free_bytes(vm), vm.client.machine_info()
    client = vm.connect("owner", carrier=carrier)
    for order in range(11):
        client.buddy_alloc(order)
    held_frames = [client.page_alloc(3) + PAGE * (i % 8) for i in range(40)]
    client.page_claim(0x5000)
    held_frames.append(0x5000)
    for i, frame in enumerate(held_frames):
        for _ in range(i % 4):
            client.page_get(frame)
        if i % 3:
            client.page_map(frame, 0x1000 + (i << (12 + i % 30)))
        if i % 2:
            client.page_flags(frame, PG_LOCKED, 0)
    held = client.client_info(0)
    assert held.mapped == sum(bool(i % 3) for i in range(41))
    status, pages, _ = wire_call(vm, CLIENT_CLOSE, client.id)
    assert (status, pages) == (0, held.pages)
    client.forget()
    assert free_bytes(vm) == before
    after = vm.client.machine_info()
    assert (after.clients, after.rings) == (counts.clients, counts.rings)
    for addr in held_frames:
        assert vm.client.page_info(addr).owner == 0


def test_a_dropped_client_is_reaped_at_the_next_connect(vm: Machine) -> None:
    before, clients = free_bytes(vm), vm.client.machine_info().clients
    for _ in range(3):
        dropped = vm.connect("dropped")
        dropped.page_map(dropped.page_alloc(0), 0x1000)
        dropped.buddy_alloc(9)
    del dropped
    gc.collect()
    vm.connect("next").close()
    assert vm.client.machine_info().clients == clients
    assert free_bytes(vm) == before


def test_ids_run_out_and_come_back(vm: Machine) -> None:
    before, clients = free_bytes(vm), vm.client.machine_info().clients
    ids = []
    while True:
        status, client, ring = wire_call(vm, CLIENT_OPEN, data=b"crowd")
        if status:
            break
        ids.append(client)
        assert wire_call(vm, RING_CLOSE, ring)[0] == 0
    assert status == ENFILE
    assert len(ids) == len(set(ids)) == IDS - 1 - clients  # id 0 is nobody
    assert max(ids) == IDS - 1
    with refused(ENFILE, "client_open"):
        vm.connect("one too many")
    assert vm.client.ping(1) == 1
    calls = [frames.ENTRY.pack(CLIENT_CLOSE, 0, 0, i, *[0] * 8) for i in ids]
    vm.wire.send(b"".join(frames.call_frame(call) for call in calls), time.monotonic() + 30)
    assert wire_call(vm, PING, 7) == (0, 7, 0)  # answered after all of those
    assert vm.client.machine_info().clients == clients
    with vm.connect("again") as again:
        assert again.ping(2) == 2
    assert free_bytes(vm) == before


def test_no_memory_for_a_ring(boot: Boot) -> None:
    """The client that was made for it is gone again."""
    vm = boot(memory="16M", cpus=1)
    before, clients = free_bytes(vm), vm.client.machine_info().clients
    for order in range(10, -1, -1):
        with refused(ENOMEM):
            while True:
                vm.client.buddy_alloc(order)
    left = free_bytes(vm)
    for _ in range(3):
        with refused(ENOMEM, "client_open"):
            vm.connect("late")
        assert wire_call(vm, RING_OPEN, vm.client.id)[0] == ENOMEM
    after = vm.client.machine_info()
    assert (after.clients, after.rings, free_bytes(vm)) == (clients, 1, left)
    vm.client.close()
    with vm.connect("next") as client:
        assert free_bytes_of(client) == before


def free_bytes_of(client: Client) -> int:
    client.buddy_drain()
    return client.machine_info().free_bytes


def test_names_of_any_bytes(vm: Machine) -> None:
    """The console shows what can be printed of them, and stays a line for each client."""
    status, client, _ = wire_call(vm, CLIENT_OPEN, data=b"a\x1b[2Jb\r\n\x7f\xffc")
    assert status == 0
    lines = vm.console.run("clients").splitlines()
    assert len(lines) == 1 + vm.client.machine_info().clients
    assert lines[-1].split()[:2] == [str(client), "a?[2Jb????c"]


def test_rings_run_out_and_threads_take_the_line(vm: Machine) -> None:
    before = free_bytes(vm)
    crowd = []
    with refused(ENFILE, "client_open"):
        while True:
            crowd.append(vm.connect("crowd"))
    info = vm.client.machine_info()
    assert info.rings == RINGS
    assert len(crowd) == RINGS - 1
    assert [c.ping(i) for i, c in enumerate(crowd)] == list(range(RINGS - 1))
    sent = info.wire_frames
    together = threading.Barrier(5)

    def work(n: int) -> None:
        together.wait()
        block = crowd[0].buddy_alloc(0)
        assert crowd[0].echo(bytes([n]) * 100) == bytes([n]) * 100
        crowd[0].buddy_free(block, 0)
        together.wait()

    threads = Threads()
    for n in range(5):
        threads.start(work, n)
    threads.join()
    after = vm.client.machine_info()
    assert after.rings == RINGS
    assert after.wire_frames - sent >= 5 * 3  # nobody but the main thread holds crowd[0]'s ring
    for client in crowd:
        client.close()
    assert vm.client.machine_info().rings == 1
    assert free_bytes(vm) == before


def test_control_calls_refuse_nonsense(vm: Machine) -> None:
    _, mine, ring = wire_call(vm, CLIENT_OPEN, data=b"owner of a ring")
    before, counts = free_bytes(vm), vm.client.machine_info()
    for client in (0, 1, 2, 250, 255, 256, 65536, 2**32 - 1, 2**32):
        assert wire_call(vm, CLIENT_CLOSE, client)[0] == EINVAL
        assert wire_call(vm, RING_OPEN, client)[0] == EINVAL
    for paddr in (0, 1, ring + 1, ring + PAGE, ring + 8, 2**64 - 1):
        assert wire_call(vm, RING_CLOSE, paddr)[0] == EINVAL
    for name in (b"x" * 24, b"x" * 4096):
        assert wire_call(vm, CLIENT_OPEN, data=name)[0] == EINVAL
    status, _ = vm.wire.call(CLIENT_CLOSE, (mine,), client=mine)
    assert status == EINVAL, "a client closed itself while it was being served"
    for nobody in (250, 255, 256, 65535):
        assert vm.wire.call(1, (1,), client=nobody)[0] == EBADF
    after = vm.client.machine_info()
    assert (after.clients, after.rings, after.free_bytes) == (
        counts.clients,
        counts.rings,
        counts.free_bytes,
    )
    assert free_bytes(vm) == before


def test_rings_of_a_client_open_and_close_by_hand(vm: Machine) -> None:
    before, rings = free_bytes(vm), vm.client.machine_info().rings
    with vm.connect("manual") as client:
        opened = [wire_call(vm, RING_OPEN, client.id)[1] for _ in range(10)]
        assert client.client_info(0).rings == 11
        for paddr in opened[::2]:
            assert wire_call(vm, RING_CLOSE, paddr)[0] == 0
            assert wire_call(vm, RING_CLOSE, paddr)[0] == EINVAL
        assert client.client_info(0).rings == 6
        for paddr in opened[1::2]:
            ring = vm.make_ring(paddr, 10.0)
            assert ring.fast(1, 77) == 77
    assert vm.client.machine_info().rings == rings
    assert free_bytes(vm) == before


@pytest.mark.parametrize("end", ["close", "forgotten"])
def test_the_machine_s_own_client_can_end_too(boot: Boot, end: str) -> None:
    vm = boot(memory="32M", cpus=1)
    other = vm.connect("other")
    first: Client = vm.client
    first.buddy_alloc(5)
    before = other.machine_info().free_bytes
    if end == "close":
        first.close()
        with pytest.raises(HostError):
            first.ping(1)
    else:
        assert wire_call(vm, CLIENT_CLOSE, first.id)[0] == 0
    assert other.machine_info().free_bytes == before + RING_BYTES + (PAGE << 5)
    assert other.ping(1) == 1
