"""Many threads on one client: no block is held twice, books balance, rings are used again."""

import threading
from typing import Any

import pytest

from conftest import Boot
from helpers import PAGE, Threads, free_bytes, refused
from kos.machine import Machine
from kos.memory.constants import EINVAL

THREADS = 8


class Held:
    """Blocks that some thread has; taking one twice, or a part of one, is an error."""

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self, addr: int, order: int, who: int) -> None:
        assert addr % (PAGE << order) == 0
        with self._lock:
            for page in range(addr, addr + (PAGE << order), PAGE):
                other = self._pages.setdefault(page, who)
                assert other is who, f"{page:#x} went to threads {other} and {who}"
                self._pages[page] = who

    def give(self, addr: int, order: int, who: int) -> None:
        with self._lock:
            for page in range(addr, addr + (PAGE << order), PAGE):
                assert self._pages.pop(page) == who

    def __len__(self) -> int:
        return len(self._pages)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_no_block_is_held_twice(boot: Boot, cpus: int) -> None:
    vm = boot(memory="64M", cpus=cpus)
    before, held = free_bytes(vm), Held()
    client, together = vm.client, threading.Barrier(THREADS)

    def hammer(who: int) -> None:
        mine: list[tuple[int, int]] = []
        together.wait()
        for i in range(150):
            order = (i * 7 + who) % 6
            addr = client.buddy_alloc(order)
            held.take(addr, order, who)
            mine.append((addr, order))
            if i % 5 == who % 5:
                blocks = client.buddy_alloc_array(0, 40).tolist()
                for block in blocks:
                    held.take(block, 0, who)
                for block in blocks:
                    held.give(block, 0, who)
                assert client.buddy_free_array(0, blocks) == 40
            if len(mine) > 8:
                addr, order = mine.pop(i % 8)
                held.give(addr, order, who)
                client.buddy_free(addr, order)
                with refused(EINVAL):
                    client.buddy_free(addr + 1, order)
        together.wait()
        for addr, order in mine:
            held.give(addr, order, who)
            client.buddy_free(addr, order)

    threads = Threads()
    for who in range(THREADS):
        threads.start(hammer, who)
    threads.join()
    assert len(held) == 0
    assert client.client_info(0).pages == 0
    rings = client.client_info(0).rings
    assert rings <= THREADS + 1
    assert free_bytes(vm) + (rings - 1) * (PAGE << 4) == before


def test_each_thread_has_its_own_answers(vm: Machine) -> None:
    client, together = vm.client, threading.Barrier(THREADS)

    def ask(who: int) -> None:
        together.wait()
        for i in range(200):
            value = who << 32 | i
            assert client.ping(value) == value
            if i % 20 == 0:
                data = bytes([who]) * (1000 + i)
                assert client.echo(data) == data
                with client.batch() as batch:
                    answers = [batch.ping(value + n) for n in range(70)]
                assert [a.value for a in answers] == [value + n for n in range(70)]

    threads = Threads()
    for who in range(THREADS):
        threads.start(ask, who)
    threads.join()


def test_threads_with_clients_of_their_own(vm: Machine) -> None:
    before = free_bytes(vm)

    def live(who: int) -> None:
        for i in range(4):
            with vm.connect(f"thread {who}") as client:
                frame = client.page_alloc(0)
                client.page_map(frame, 0x1000 * (who + 1))
                client.mem_write(0x1000 * (who + 1), bytes([who, i]))
                assert client.mem_read(0x1000 * (who + 1), 2) == bytes([who, i])
                client.buddy_alloc_array(1, 20)

    threads = Threads()
    for who in range(THREADS):
        threads.start(live, who)
    threads.join()
    assert free_bytes(vm) == before


def test_threads_that_end_leave_their_rings_to_the_next(vm: Machine) -> None:
    client = vm.connect("busy")
    for i in range(100):
        threads = Threads()
        threads.start(client.ping, i)
        threads.join()
    assert client.client_info(0).rings <= 2

    for _ in range(5):
        together, threads = threading.Barrier(6), Threads()

        def at_once(n: int, together: threading.Barrier = together) -> None:
            assert client.ping(n) == n
            together.wait()

        for n in range(6):
            threads.start(at_once, n)
        threads.join()
    assert client.client_info(0).rings <= 8


@pytest.mark.kos(leaks="allow")
def test_calls_go_on_while_the_console_is_busy(vm: Machine) -> None:
    done = threading.Event()

    def type_commands() -> None:
        try:
            for i in range(10):
                assert "0x" in vm.console.run(f"alloc {i % 4}")
                assert "RAM" in vm.console.run("mem")
        finally:
            done.set()

    calls = 0
    threads = Threads()
    threads.start(type_commands)
    while not done.is_set():
        vm.client.buddy_free(vm.client.buddy_alloc(0), 0)
        calls += 1
    threads.join()
    assert calls > 10


def test_commands_of_several_threads_keep_their_answers(vm: Machine) -> None:
    def ask(n: int) -> None:
        for _ in range(3):
            assert vm.console.run(f"alloc {20 + n}").startswith(f"'{20 + n}'")

    threads = Threads()
    for n in range(4):
        threads.start(ask, n)
    threads.join()


def test_a_client_closed_under_its_threads(vm: Machine) -> None:
    """Whatever a call meets then, it ends, and with an error of KOS's own."""
    from kos.exceptions import KOSError

    before = free_bytes(vm)
    client, together = vm.connect("short-lived"), threading.Barrier(5)

    def call_until_it_ends() -> None:
        client.ping(0)
        together.wait()
        ended: Any = None
        while ended is None:
            try:
                client.buddy_alloc(0)
            except KOSError as error:
                ended = error

    threads = Threads()
    for _ in range(4):
        threads.start(call_until_it_ends)
    together.wait()
    client.close()
    threads.join()
    assert vm.client.ping(1) == 1
    assert free_bytes(vm) == before
