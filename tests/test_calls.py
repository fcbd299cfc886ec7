"""Calls about the machine, over both carriers: results and every documented error.

Then what holds for all calls: arguments of wrong types, and batches.
"""

import re
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers import CARRIERS, LARGEST, RING_BYTES, free_bytes, refused
from kos.exceptions import HostError, KOSError
from kos.machine import Machine
from kos.memory.constants import EINVAL, EMSGSIZE, ENOSYS, EPERM
from kos.rpc.base import Pending
from kos.rpc.client import Client


@pytest.fixture(params=CARRIERS)
def client(vm: Machine, request: pytest.FixtureRequest) -> Client:
    return vm.connect("tested", carrier=request.param)


# Calls about the machine


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32, 2**63, 2**64 - 1])
def test_ping(client: Client, value: int) -> None:
    assert client.ping(value) == value


def test_echo_at_every_size_that_matters(client: Client) -> None:
    for n in (0, 1, 7, 8, 9, 253, 254, 255, 509):
        for data in (bytes(i % 255 + 1 for i in range(n)), bytes(n)):
            assert client.echo(data) == data
    assert client.echo(bytearray(b"abc")) == client.echo(memoryview(b"abc")) == b"abc"


def test_echo_up_to_the_carrier_s_limit(client: Client) -> None:
    limit = LARGEST[client.carrier]
    data = np.random.default_rng(1).bytes(limit)
    assert client.echo(data) == data
    with refused(EMSGSIZE, "echo"):
        client.echo(data + b"x")
    assert client.ping(3) == 3


def test_machine_info(vm: Machine, client: Client) -> None:
    info = client.machine_info()
    assert (info.cpus, info.wire_errors) == (2, 0)
    assert 63 << 20 < info.total_bytes < 64 << 20
    assert info.free_bytes < info.managed_bytes < info.total_bytes
    assert info.image_bytes > 64 << 10
    with vm.connect("one more"):
        more = client.machine_info()
    assert (more.clients, more.rings) == (info.clients + 1, info.rings + 1)
    assert more.free_bytes == info.free_bytes - RING_BYTES
    assert client.machine_info().free_bytes == info.free_bytes


def test_cpu_info(client: Client) -> None:
    before = [client.cpu_info(i) for i in range(2)]
    assert [c.id for c in before] == [0, 1]
    assert all(0 < c.stack_top - c.stack_low <= 64 << 10 for c in before)
    for i in range(10):
        client.ping(i)
    assert sum(client.cpu_info(i).calls - before[i].calls for i in range(2)) >= 12
    for cpu in (2, 255, 2**32 - 1, 2**32, 2**64 - 1):
        with refused(EINVAL, "cpu_info"):
            client.cpu_info(cpu)


def test_zone_info(client: Client) -> None:
    zones = [client.zone_info(i) for i in range(3)]
    assert [z.name for z in zones] == ["DMA", "NORMAL", "HIGHMEM"]
    assert zones[0].end_pfn == zones[1].start_pfn == 4096
    assert zones[2].managed == zones[2].free == 0
    for z in zones:
        assert sum(n << order for order, n in enumerate(z.free_blocks)) == z.free <= z.managed
        assert z.watermark_min <= z.watermark_low <= z.watermark_high
    for zone in (3, 2**32 - 1, 2**32, 2**64 - 1):
        with refused(EINVAL, "zone_info"):
            client.zone_info(zone)


@pytest.mark.kos(leaks="allow")
def test_client_info(vm: Machine, client: Client) -> None:
    fresh = client.client_info(0)
    assert (fresh.name, fresh.id, fresh.rings) == ("tested", client.id, 1)
    assert (fresh.blocks, fresh.pages, fresh.tables, fresh.mapped) == (0, 0, 0, 0)
    client.buddy_alloc(3)
    frame = client.page_alloc(0)
    client.page_map(frame, 0x400000)
    with refused(EINVAL):
        client.page_free(0)
    info = vm.client.client_info(client.id)
    assert (info.blocks, info.pages, info.mapped, info.tables) == (2, 9, 1, 4)
    assert (info.calls - fresh.calls, info.refused) == (5, 1)
    for other in (client.id + 1, 255, 256, 2**32 - 1, 2**32):
        with refused(EINVAL, "client_info"):
            client.client_info(other)


def test_log_read_and_in_kernel_tests(client: Client) -> None:
    assert "KOS" in client.log_read()
    count = client.test_count()
    names = [client.test_name(i) for i in range(count)]
    assert count > 0
    assert len(set(names)) == count
    assert all(re.fullmatch(r"\w+\.\w+", name) for name in names)
    for index in (count, 2**32 - 1):
        with refused(EINVAL, "test_name"):
            client.test_name(index)
        with refused(EINVAL, "test_run"):
            client.test_run(index)
    for index in range(count) if client.carrier == "rings" else (0, count - 1):
        text, failures = client.test_run(index)
        assert failures == 0, f"{names[index]}: {text}"


def test_benchmarks_and_crash_refuse_nonsense(vm: Machine, client: Client) -> None:
    before = free_bytes(vm)
    for what in range(5):
        assert client.bench_run(what, 0, 10) > 0
    for args in ((99, 0, 1), (0, 11, 1), (0, 0, 0), (0, 0, 1000001), (2**32 - 1,) * 3):
        with refused(EINVAL, "bench_run"):
            client.bench_run(*args)
    for how in (3, 2**32 - 1):
        with refused(EINVAL, "bench_batch"):
            client.bench_batch(how)
    assert client.bench_mix(2, 5000, 256, 1).failed == 0
    for mode, steps, limit, seed in (
        (3, 5000, 256, 1),
        (2, 0, 256, 1),
        (2, 1000001, 256, 1),
        (2, 5000, 0, 1),
        (2, 5000, 3, 1),
        (2, 5000, 65536, 1),
        (2, 5000, 256, 0),
    ):
        with refused(EINVAL, "bench_mix"):
            client.bench_mix(mode, steps, limit, seed)
    with refused(EINVAL, "bench_worst"):
        client.bench_worst(2**32 - 1)
    for kind in ("", "pani", "panicx", "x" * 31, "x" * 32, "x" * 4000, "pan\0ic", "é"):
        with refused(EINVAL, "crash"):
            client.crash(kind)
    assert free_bytes(vm) == before


def test_calls_that_do_not_exist_or_belong_on_the_wire(client: Client) -> None:
    for number in (0, 12, 15, 21, 31, 45, 63, 64, 65, 1000, 65535):
        with refused(ENOSYS):
            client._fast(number)
    if client.carrier == "rings":
        for number in (3, 4, 5, 6):
            with refused(EPERM):
                client._fast(number)
    for number, args in ((1, (1, 1)), (20, (1,)), (33, (0, 0, 0, 0, 1)), (16, (1 << 32,))):
        with refused(EINVAL):
            client._fast(number, *args)
    with refused(EINVAL):
        client._full(1, (1,), b"data that ping does not take", 0)
    for odd in (1, 7, 9):
        with refused(EINVAL, "buddy_free_array"):
            client._full(19, (0,), bytes(odd), 0)
    for number in (7, 8, 9, 10, 38, 44):
        with refused(EMSGSIZE):
            client._full(number, () if number == 7 else (0,), b"", 7)


# Wrong arguments: told by name, before anything is sent


@pytest.mark.parametrize("bad", [1.5, "1", None, [1]], ids=repr)
def test_numbers_of_a_wrong_type(client: Client, bad: Any) -> None:
    before = client.client_info(0).calls
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("value", lambda: client.ping(bad)),
        ("order", lambda: client.buddy_alloc(bad)),
        ("order", lambda: client.buddy_free(0, bad)),
        ("addr", lambda: client.page_map(bad, 0)),
        ("clear", lambda: client.page_flags(0, 0, bad)),
        ("cpu", lambda: client.cpu_info(bad)),
        ("addr", lambda: client.page_info(bad)),
        ("order", lambda: client.buddy_free_array(bad, [])),
    ]
    for name, call in calls:
        with pytest.raises(TypeError, match=re.escape(name)) as info:
            call()
        assert repr(bad) in str(info.value)
    assert client.client_info(0).calls == before + 1
    assert client.ping(4) == 4


@pytest.mark.parametrize("bad", [-1, -(2**63), 2**64, 10**30], ids=hex)
def test_numbers_out_of_range(client: Client, bad: int) -> None:
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("value", lambda: client.ping(bad)),
        ("addr", lambda: client.page_info(bad)),
        ("vaddr", lambda: client.mem_read(bad, 1)),
        ("order", lambda: client.buddy_alloc_array(bad, 1)),
    ]
    if bad < 0:
        calls.append(("length", lambda: client.mem_read(0x1000, bad)))
        calls.append(("count", lambda: client.buddy_alloc_array(0, bad)))
    for name, call in calls:
        with pytest.raises(ValueError, match=name) as info:
            call()
        assert str(bad) in str(info.value)
    assert client.ping(4) == 4


@pytest.mark.parametrize("bad", ["text", None, 5, 1.5, [1, 2]], ids=repr)
def test_data_of_a_wrong_type(client: Client, bad: Any) -> None:
    before = client.client_info(0).calls
    with pytest.raises(TypeError):
        client.echo(bad)
    with pytest.raises(TypeError):
        client.mem_write(0x1000, bad)
    assert client.client_info(0).calls == before + 1
    assert client.echo(b"still") == b"still"


@pytest.mark.kos(leaks="allow")
def test_data_in_words_is_taken_by_bytes(client: Client) -> None:
    words = array("I", range(5))
    client.page_map(client.page_alloc(0), 0x5000)
    client.mem_write(0x5000, memoryview(words))
    assert client.mem_read(0x5000, 20) == words.tobytes()


# Batches


def test_a_batch_keeps_order_and_each_error(vm: Machine, client: Client) -> None:
    before, rounds = free_bytes(vm), 200 if client.carrier == "rings" else 20
    with client.batch() as batch:
        answers: list[Any] = []
        for n in range(rounds):
            answers += [
                batch.ping(n),
                batch.buddy_alloc(11),
                batch.echo(bytes([n])),
                batch.buddy_alloc(0),
            ]
    blocks = []
    for n in range(rounds):
        ping, wrong, echo, block = answers[4 * n : 4 * n + 4]
        assert (ping.value, echo.value) == (n, bytes([n]))
        assert (ping.error, echo.error) == (None, None)
        with refused(EINVAL, "buddy_alloc"):
            _ = wrong.value
        assert wrong.error.errno == EINVAL
        blocks.append(block.value)
    assert len(set(blocks)) == rounds
    assert client.page_free_array(blocks) == rounds
    assert free_bytes(vm) == before


def test_a_batch_whose_data_does_not_fit_at_once(client: Client) -> None:
    limit = LARGEST[client.carrier]
    sizes = [limit, 1, 0, 300]
    if client.carrier == "rings":
        sizes = [*sizes, limit - 8, 16, limit // 2, limit // 2 + 8, 3, limit]
    with client.batch() as batch:
        answers = [batch.echo(bytes([i]) * n) for i, n in enumerate(sizes)]
        info = batch.machine_info()
        walk = batch.page_walk(0xFFFFFFFF80000000)
    assert [a.value for a in answers] == [bytes([i]) * n for i, n in enumerate(sizes)]
    assert info.value.cpus == 2
    assert 2 <= len(walk.value) <= 4


def test_one_call_that_never_fits_does_not_stop_a_batch(client: Client) -> None:
    with client.batch() as batch:
        first, second = batch.ping(1), batch.echo(bytes(LARGEST[client.carrier] + 8))
        third, fourth = batch.buddy_alloc_array(0, 2**29), batch.ping(4)
    assert (first.value, fourth.value) == (1, 4)
    for too_long in (second, third):
        with refused(EMSGSIZE):
            _ = too_long.value


def test_an_exception_inside_a_batch_sends_nothing(vm: Machine, client: Client) -> None:
    before = client.client_info(0)
    queued: list[Pending[int]] = []

    def interrupted() -> None:
        with client.batch() as batch:
            queued.append(batch.buddy_alloc(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    (pending,) = queued
    with pytest.raises(RuntimeError, match="has not run"):
        _ = pending.value
    assert client.client_info(0) == before._replace(calls=before.calls + 1)
    assert client.ping(1) == 1


@pytest.mark.parametrize("bad", [-1, 2**64, "x"], ids=repr)
def test_a_wrong_argument_in_a_batch_is_named_and_nothing_is_sent(client: Client, bad: Any) -> None:
    before = client.client_info(0).blocks

    def wrong() -> None:
        with client.batch() as batch:
            for _ in range(100):
                batch.buddy_alloc(0)
            batch.ping(bad)

    with pytest.raises((TypeError, ValueError), match="value") as info:
        wrong()
    assert str(bad) in str(info.value)
    assert client.client_info(0).blocks == before
    assert client.ping(1) == 1


def test_values_before_the_end_and_empty_batches(client: Client) -> None:
    with client.batch() as batch:
        pending = batch.ping(1)
        with pytest.raises(RuntimeError, match="has not run"):
            _ = pending.value
    assert pending.value == 1
    before = client.client_info(0).calls
    with client.batch():
        pass
    assert client.client_info(0).calls == before + 1
    with batch:
        again = batch.ping(2)
    assert (pending.value, again.value) == (1, 2)


def test_a_closed_client(vm: Machine, client: Client) -> None:
    with client.batch() as batch:
        pending = batch.ping(8)
    client.ping(1)
    client.close()
    client.close()
    for call in (lambda: client.ping(1), lambda: client.echo(b"x"), client.machine_info):
        with pytest.raises(HostError, match="closed"):
            call()
    with pytest.raises(HostError, match="closed"), client.batch() as batch:
        batch.ping(1)
    assert pending.value == 8
    assert vm.client.ping(1) == 1


def test_names_of_clients(vm: Machine) -> None:
    for name in ("", "x" * 23, "é" * 11):
        with vm.connect(name) as client:
            assert len(client.client_info(0).name) in (len(name), 22)
    for name in ("x" * 24, "é" * 12):
        with pytest.raises(ValueError, match="23"):
            vm.connect(name)
    with pytest.raises(ValueError, match="carrier"):
        vm.connect(carrier="pigeons")
    assert isinstance(HostError("x"), KOSError)
