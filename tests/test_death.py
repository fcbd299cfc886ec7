"""The end of machines: killed, panicked, reset, closed, dropped; what waits then ends at once."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Boot
from helpers import CARRIERS, LONG, PAGE, Threads, free_bytes, is_gone, wait_on_paused
from kos.exceptions import CallTimeout, HostError, KernelPanic, MachineExited
from kos.machine import Machine

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


@pytest.mark.parametrize(("use", "table"), [("unmap", 2), ("unmap", 3), ("flags", 2)])
def test_a_mapping_that_got_lost(boot: Boot, use: str, table: int) -> None:
    """Something wrote over a page table: the kernel stops instead of going on from there."""
    vm = boot(memory="32M", timeout=LONG)
    client, vaddr = vm.client, 0x7654321000
    calls: dict[str, Callable[[int], object]] = {
        "unmap": client.page_unmap,
        "flags": lambda addr: client.page_flags(addr, 0, 1),
    }
    frame = client.page_alloc(0)
    client.page_map(frame, vaddr)
    above = int(client.page_walk(vaddr)[table - 1]) & 0x000FFFFFFFFFF000
    at = vm.ram_offset(above) + 8 * (vaddr >> 12 + 9 * (3 - table) & 511)
    vm.ram[at : at + 8] = bytes(8)
    with pytest.raises(KernelPanic) as info:
        calls[use](frame)
    assert info.value.reason.startswith("assertion failed: ")
    assert info.value.reason.endswith(f"{vaddr:#x} is not mapped")


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


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "os._exit(4)", "1 / 0"])
def test_python_that_ends_without_closing_leaves_no_qemu(end: str) -> None:
    code = f"""
        import kos, os
        vm = kos.boot(memory="32M")
        print(vm.pid, kos.default_machine().pid, flush=True)
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert ("ZeroDivisionError" in done.stderr) == ("/" in end)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
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
