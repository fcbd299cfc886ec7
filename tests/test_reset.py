"""Reset, reboot and close: what belonged to the machine before ends, and nothing of it is left."""

import gc
import os
import signal
import threading
import time

import pytest

import kos
from conftest import Boot
from helpers import LONG, PAGE, Threads, is_gone, wait_on_paused
from kos.exceptions import HostError, KernelPanic, KOSError, MachineExited
from kos.machine import Machine

# Reset


def test_reset(boot: Boot) -> None:
    vm = boot(memory="32M", cpus=2)
    old, other = vm.client, vm.connect("other")
    fresh = other.machine_info()
    frame = other.page_alloc(0)
    at = vm.ram_offset(frame)
    vm.ram[at : at + PAGE] = b"\xa5" * PAGE
    old.buddy_alloc(10)
    pid = vm.pid
    vm.reset()
    assert vm.pid == pid
    assert vm.ram[at : at + PAGE] == bytes(PAGE)
    for client in (old, other):
        with pytest.raises(HostError):
            client.ping(1)
        with pytest.raises(HostError), client.batch() as batch:
            batch.ping(1)
        client.close()
    info = vm.client.machine_info()
    assert (info.clients, info.rings) == (fresh.clients - 1, fresh.rings - 1)
    assert info.free_bytes == fresh.free_bytes + (PAGE << 4)
    assert vm.connect("new").ping(5) == 5
    for _ in range(3):
        vm.reset()
        assert vm.client.ping(6) == 6
        assert "RAM" in vm.console.run("mem")


@pytest.mark.parametrize("paused", [True, False])
def test_reset_ends_calls_that_wait(boot: Boot, paused: bool) -> None:
    """They cannot be answered any more, and must write nothing into the new kernel's memory."""
    vm = boot(memory="32M", timeout=LONG)
    threads = Threads()
    if paused:
        wait_on_paused(vm, threads)
    else:
        together = threading.Barrier(3)

        def call_without_end() -> None:
            client = vm.connect("endless")
            client.ping(1)
            together.wait()
            while True:
                client.ping(1)

        for _ in range(2):
            threads.start(call_without_end)
        together.wait()
    vm.reset()
    errors = threads.wait()
    assert len(errors) == (5 if paused else 2)
    assert [e for e in errors if not isinstance(e, HostError)] == []
    assert vm.client.ping(1) == 1


def test_reset_of_a_machine_that_is_gone(boot: Boot) -> None:
    """It says so, and so does all that is tried afterwards."""
    vm = boot(memory="32M", timeout=LONG)
    client = vm.client
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(MachineExited):
        vm.wait()
    for call in (vm.reset, lambda: vm.connect("late"), vm.wait, lambda: vm.wire.call(1)):
        with pytest.raises(MachineExited):
            call()
    with pytest.raises(KOSError):
        client.ping(1)
    with pytest.raises(MachineExited):
        vm.console.run("mem", timeout=LONG)


def test_reset_after_a_panic(boot: Boot) -> None:
    vm = boot(memory="32M")
    for kind in ("assert", "stack"):
        with pytest.raises(KernelPanic):
            vm.client.crash(kind)
        vm.reset()
        assert vm.client.ping(1) == 1


def test_the_console_s_reboot(boot: Boot) -> None:
    vm = boot(memory="32M")
    old, hellos = vm.client, vm.wire.hellos
    old.buddy_alloc(9)
    vm.console.send("reboot\r")
    vm.console.wait_for(r"(?s)reboot.*'help' lists the commands.*kos> \Z", timeout=60)
    until = time.monotonic() + 60
    while vm.client is old:  # the machine connects anew by itself, on a thread of its own
        vm.wire.check()
        assert time.monotonic() < until
    assert vm.wire.hellos > hellos
    assert vm.client.ping(3) == 3
    assert vm.client.client_info(0).pages == 0
    with pytest.raises(HostError):
        old.ping(1)


# Closing


def test_close_twice_and_use_after_it(boot: Boot) -> None:
    vm = boot(memory="32M")
    client, ram = vm.client, vm.ram
    pidfd = os.pidfd_open(vm.pid)
    vm.close()
    vm.close()
    assert is_gone(pidfd, 0)
    os.close(pidfd)
    assert vm.closed
    for call in (
        lambda: vm.client,
        lambda: client.ping(1),
        lambda: client.echo(b"x"),
        lambda: vm.connect("late"),
        vm.batch,
        vm.pause,
        vm.reset,
        lambda: vm.qmp.execute("query-status"),
        lambda: vm.console.run("mem", timeout=LONG),
    ):
        with pytest.raises(KOSError):
            call()
    client.close()
    assert len(ram) == 32 << 20
    assert "closed" in repr(vm)
    with pytest.raises(KOSError), kos.use(vm):
        kos.default_machine().client.ping(1)


def test_close_ends_calls_that_wait(boot: Boot) -> None:
    vm = boot(memory="32M", timeout=LONG)
    threads = Threads()
    wait_on_paused(vm, threads)
    vm.close()
    errors = threads.wait()
    assert len(errors) == 5
    assert [e for e in errors if not isinstance(e, KOSError)] == []


def test_a_dropped_machine_ends_its_qemu() -> None:
    vm = kos.boot(memory="32M")
    vm.connect("held by nobody").buddy_alloc(0)
    vm.client.ping(1)
    vm.console.run("mem")
    pidfd = os.pidfd_open(vm.pid)
    del vm
    gc.collect()
    gone = is_gone(pidfd)
    os.close(pidfd)
    assert gone


def test_leaving_a_with_by_an_error_ends_qemu() -> None:
    pidfds: list[int] = []

    def work() -> None:
        with kos.boot(memory="32M") as vm:
            pidfds.append(os.pidfd_open(vm.pid))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    (pidfd,) = pidfds
    assert is_gone(pidfd, 0)
    os.close(pidfd)


def test_twenty_machines_at_once(boot: Boot) -> None:
    threads = Threads()
    machines: list[Machine] = []

    def start(n: int) -> None:
        vm = boot(memory="16M", cpus=1)
        machines.append(vm)
        assert vm.client.ping(n) == n

    for n in range(20):
        threads.start(start, n)
    threads.join(120)
    assert len({vm.pid for vm in machines}) == 20
    addresses = [vm.client.buddy_alloc(0) for vm in machines]
    assert len(set(addresses)) == 1
    fds = len(os.listdir("/proc/self/fd"))
    os.kill(machines[0].pid, signal.SIGKILL)
    with pytest.raises(MachineExited):
        machines[0].client.ping(1)
    for vm in machines[1:]:
        assert vm.client.ping(2) == 2
    for vm in machines:
        vm.close()
    assert len(os.listdir("/proc/self/fd")) <= fds - 20 * 5
