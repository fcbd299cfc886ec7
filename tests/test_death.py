"""The end of machines: killed, panicked, reset, closed, dropped; what waits then ends at once."""

import gc
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import kos
from conftest import Boot
from helpers import CARRIERS, PAGE, Threads, free_bytes
from kos.exceptions import CallTimeout, HostError, KernelPanic, KOSError, MachineExited
from kos.machine import Machine

LONG = 600.0  # a timeout that no test lives to see
CRASHES = {
    "panic": (r"^asked for$", "crash_panic"),
    "null": (r"^page fault: write to 0x8, .*NULL pointer", "crash_null"),
    "write-text": (
        r"^page fault: write to 0xffffffff80200000, .*not be written",
        "crash_write_text",
    ),
    "stack": (r"^double fault: the kernel stack overflowed into its guard page", "recurse"),
    "invalid": (r"^invalid opcode", "crash_invalid"),
    "divide": (r"^divide error", "crash_divide"),
    "assert": (r"^assertion failed: found == 0: found 112$", "crash_assert"),
}
CRASH_C = (Path(__file__).resolve().parent.parent / "kernel/debug/crash.c").read_text().splitlines()


def is_gone(pidfd: int, seconds: float = 60.0) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


def wait_on_paused(vm: Machine, threads: Threads, n: int = 4) -> None:
    """Pause the machine, with n threads in a call that cannot end and one more on the wire."""
    together = threading.Barrier(n + 2)
    framed = vm.connect("framed", carrier="frames")

    def call_ring() -> None:
        vm.client.ping(0)
        together.wait()
        paused.wait()
        vm.client.buddy_alloc(0)

    def call_wire() -> None:
        framed.ping(0)
        together.wait()
        paused.wait()
        framed.buddy_alloc(0)

    paused = threading.Event()
    for _ in range(n):
        threads.start(call_ring)
    threads.start(call_wire)
    together.wait()
    vm.pause()
    paused.set()


# QEMU dies


def test_kill_during_calls(boot: Boot) -> None:
    vm = boot(memory="32M", timeout=LONG)
    threads = Threads()
    wait_on_paused(vm, threads)
    os.kill(vm.pid, signal.SIGKILL)
    errors = threads.wait()
    assert [type(e) for e in errors] == [MachineExited] * 5
    for error in errors:
        assert isinstance(error, MachineExited)
        assert (error.signal, error.exit_status) in ((9, None), (9, -9))
        assert error.argv == vm.argv
        assert "KOS" in error.console
    for call in (lambda: vm.client.ping(1), lambda: vm.wire.call(1), lambda: vm.connect("late")):
        with pytest.raises(MachineExited):
            call()
    with pytest.raises(MachineExited):
        vm.console.wait_for("never printed", timeout=LONG)
    with pytest.raises(MachineExited):
        vm.wait()
    vm.close()


def test_kill_while_the_console_is_waited_for(boot: Boot) -> None:
    vm = boot(memory="32M")
    threads = Threads()
    threads.start(lambda: vm.console.wait_for("never printed", timeout=LONG))
    threads.start(vm.wait)
    os.kill(vm.pid, signal.SIGKILL)
    assert [type(e) for e in threads.wait()] == [MachineExited] * 2


def test_quit_by_the_monitor(boot: Boot) -> None:
    vm = boot(memory="32M", timeout=LONG)
    threads = Threads()
    wait_on_paused(vm, threads, 1)
    vm.qmp.execute("quit")
    errors = threads.wait()
    assert [type(e) for e in errors] == [MachineExited] * 2


# Timeouts


def test_a_call_on_a_paused_machine_times_out(vm: Machine) -> None:
    before = free_bytes(vm)
    client = vm.connect("hasty")
    client.ping(1)
    vm.pause()
    client._local.carrier.timeout = client.timeout = 0.1
    with pytest.raises(CallTimeout) as info:
        client.buddy_alloc(3)
    assert (info.value.call, info.value.deadline) == ("buddy_alloc", 0.1)
    assert "'help' lists the commands" in info.value.console
    assert "buddy_alloc" in str(info.value)
    with pytest.raises(CallTimeout):
        client.ping(1)
    client.timeout = LONG
    vm.resume()
    for i in range(100):
        assert client.ping(i) == i
    assert client.echo(b"back") == b"back"
    client.close()
    assert free_bytes(vm) == before


def test_a_timed_out_frame_does_not_answer_the_next_call(vm: Machine) -> None:
    before = free_bytes(vm)
    client = vm.connect("hasty", carrier="frames")
    client.ping(1)
    vm.pause()
    client._local.carrier.timeout = 0.1
    for value in (11, 12):
        with pytest.raises(CallTimeout) as info:
            client.ping(value)
        assert info.value.call == "ping"
    client._local.carrier.timeout = LONG
    vm.resume()
    for value in range(20, 30):
        assert client.ping(value) == value
    client.close()
    assert free_bytes(vm) == before


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_pause_is_not_noticed_by_a_patient_call(vm: Machine, carrier: str) -> None:
    client, threads = vm.connect(carrier=carrier), Threads()
    client.timeout = LONG
    for value in range(5):
        vm.pause()
        threads.start(lambda value=value: client.echo(bytes([value])) == bytes([value]) or 1 / 0)
        vm.resume()
    threads.join()


# Panics


@pytest.mark.parametrize("kind", CRASHES)
def test_crashes(boot: Boot, kind: str) -> None:
    reason, function = CRASHES[kind]
    vm = boot(memory="32M", timeout=LONG)
    with pytest.raises(KernelPanic) as info:
        vm.client.crash(kind)
    panic = info.value
    assert re.search(reason, panic.reason)
    text = range(0xFFFFFFFF80200000, 0xFFFFFFFF80400000)
    assert panic.registers["rip"] in text
    assert panic.registers["rsp"] > 1 << 63
    assert panic.registers["cr3"] % PAGE == 0
    innermost = re.match(
        r"#0 +([0-9a-f]{16}) (\w+)\S* \(kernel/debug/crash\.c:(\d+)\)$", panic.trace[0]
    )
    assert innermost, panic.trace[0]
    assert int(innermost[1], 16) == panic.registers["rip"]
    assert innermost[2] == function
    assert CRASH_C[int(innermost[3]) - 1].strip(), "the line is empty"
    assert len(panic.trace) >= 4
    assert all(re.search(r"\w+\+0x[0-9a-f]+ \([\w/.]+:\d+\)$", line) for line in panic.trace)
    names = " ".join(panic.trace)
    if kind != "stack":  # its trace ends inside of the recursion
        assert [n for n in ("call_crash", "call_serve") if n not in names] == []
    assert "while serving the call crash" in panic.text
    vm.console.wait_for("memory stays as it is")
    for line in panic.text.splitlines():
        assert line in vm.console.text
    for call in (lambda: vm.client.ping(1), lambda: vm.wire.call(1), lambda: vm.connect("late")):
        with pytest.raises(KernelPanic) as again:
            call()
        assert again.value.reason == panic.reason
    assert vm.ram[vm.ram_offset(0x200000) : vm.ram_offset(0x200000) + PAGE] != bytes(PAGE)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_triple_fault(boot: Boot, carrier: str) -> None:
    vm = boot(memory="32M", timeout=LONG)
    client = vm.connect("victim", carrier=carrier)
    frame = vm.client.page_alloc(0)
    at = vm.ram_offset(frame)
    vm.ram[at : at + PAGE] = b"\xa5" * PAGE
    with pytest.raises(KernelPanic, match="triple fault"):
        client.crash("triple")
    with pytest.raises(KernelPanic, match="triple fault"):
        vm.client.ping(1)
    assert vm.qmp.execute("query-status")["running"] is False
    assert vm.ram[at : at + PAGE] == b"\xa5" * PAGE
    vm.reset()
    assert vm.client.ping(2) == 2


def test_a_panic_wakes_all(boot: Boot) -> None:
    """Threads that call without end, on rings and in frames, and one at the console."""
    vm = boot(memory="32M", timeout=LONG)
    together, threads = threading.Barrier(6), Threads()

    def call_without_end(carrier: str) -> None:
        client = vm.connect(carrier=carrier)
        client.ping(0)
        together.wait()
        while True:
            client.ping(1)

    for carrier in ("rings", "rings", "rings", "frames"):
        threads.start(call_without_end, carrier)
    threads.start(lambda: (together.wait() and 0) or vm.console.wait_for("never", timeout=LONG))
    together.wait()
    with pytest.raises(KernelPanic):
        vm.client.crash("null")
    errors = threads.wait()
    assert [type(e) for e in errors] == [KernelPanic] * 5


def test_a_panic_from_the_console(boot: Boot) -> None:
    vm = boot(memory="32M", timeout=LONG)
    with pytest.raises(KernelPanic) as info:
        vm.console.run("panic in these words", timeout=LONG)
    assert info.value.reason == "in these words"
    with pytest.raises(KernelPanic):
        vm.wait()
    with pytest.raises(KernelPanic, match="in these words"):
        vm.client.ping(1)


# This process dies


def test_python_killed_in_a_call_leaves_no_qemu(tmp_path: Path) -> None:
    code = """
        import kos, sys
        vm = kos.boot(memory="32M", timeout=600)
        vm.client.ping(1)
        vm.pause()
        print(vm.pid, flush=True)
        vm.client.ping(2)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        pidfd = os.pidfd_open(int(child.stdout.readline()))
        child.kill()
    try:
        assert is_gone(pidfd)
    finally:
        os.close(pidfd)


def test_python_that_ends_without_closing_leaves_no_qemu() -> None:
    code = "import kos; vm = kos.boot(memory='32M'); other = kos.default_machine(); print(vm.pid, other.pid)"
    for end in ("", "; raise SystemExit(3)", "; import os; os._exit(4)"):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code.replace("print(", "print(flush=True, *[").replace("pid)", "pid])") + end,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stderr == ""
        for pid in map(int, done.stdout.split()):
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            assert is_gone(pidfd)
            os.close(pidfd)


def test_a_forked_child_may_not_call(vm: Machine) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            vm.client.ping(1)
        except HostError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert vm.client.ping(1) == 1


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
    while vm.client is old:  # the machine connects anew by itself, on a thread of its own
        vm.wire.check()
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
        lambda: vm.console.run("mem"),
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
    pidfd = -1
    with pytest.raises(ZeroDivisionError), kos.boot(memory="32M") as vm:
        pidfd = os.pidfd_open(vm.pid)
        raise ZeroDivisionError
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
