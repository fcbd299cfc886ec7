"""The QEMU process layer by itself: what runs here is a guest of a few hundred bytes, not KOS."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import pytest

from guests.tiny import CELL, DEADLINE, UP, Guest, build, readable
from kos.exceptions import (
    BootError,
    CallTimeout,
    HostError,
    KOSError,
    MachineExited,
    MonitorError,
)
from kos.machine.qemu import MachineType, Qemu, choose_accel, parse_size

MIB = 1 << 20
GIB = 1 << 30
MEMORY = 16 * MIB
MACHINES: list[MachineType] = ["microvm", "q35"]
Event = dict[str, Any]
Tiny = Callable[..., Guest]


@pytest.fixture(scope="session")
def tiny_elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_elf: Path) -> Iterator[Tiny]:
    """Boots tiny guests that end with the test."""
    with ExitStack() as machines:

        def boot(**options: Any) -> Guest:
            qemu = Qemu(tiny_elf, **({"memory_bytes": MEMORY} | options))
            machines.callback(qemu.close)
            return come_up(qemu)

        yield boot


def come_up(qemu: Qemu) -> Guest:
    guest = Guest(qemu)
    qemu.start()
    assert guest.line() == UP
    return guest


def events_of(guest: Guest) -> "SimpleQueue[Event]":
    events: SimpleQueue[Event] = SimpleQueue()
    guest.qemu.on_event(events.put)
    return events


def wait_for(events: "SimpleQueue[Event]", name: str) -> Event:
    """The next event of that name; those before it are dropped."""
    while (event := events.get(timeout=DEADLINE))["event"] != name:
        pass
    return event


def is_reaped(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def ram_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:kos-ram")


# A running guest


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("cpus", [1, 8])
def test_boots(tiny: Tiny, machine: MachineType, cpus: int) -> None:
    qemu = tiny(machine=machine, cpus=cpus).qemu
    assert len(qemu.execute("query-cpus-fast")) == cpus
    assert qemu.execute("query-status")["running"]
    assert qemu.exit_status() is None
    assert qemu.wait_exit(0.001) is None
    assert repr(qemu) == f"<Qemu pid={qemu.pid} 16 MiB>"
    assert Path(qemu.argv[0]).name == "qemu-system-x86_64"
    assert qemu.stderr_text() == ""
    # The terminal's Ctrl-C goes to a session.
    assert os.getsid(qemu.pid) == qemu.pid


@pytest.mark.parametrize("machine", MACHINES)
def test_deterministic_machine_boots(tiny: Tiny, machine: MachineType) -> None:
    assert tiny(machine=machine, deterministic=True).ask(b"Z") == b"Z"


def test_nothing_runs_before_start(tiny_elf: Path) -> None:
    with Qemu(tiny_elf, memory_bytes=MEMORY) as qemu:
        assert qemu.execute("query-status")["status"] == "prelaunch"
        assert not readable(qemu.console_fd, 0)
        come_up(qemu)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_byte_passes_both_lines(tiny: Tiny, machine: MachineType) -> None:
    guest = tiny(machine=machine)
    echoed = bytes(sorted(set(range(256)) - set(b"pgctqs")))
    guest.send(echoed)
    assert guest.received(len(echoed)) == echoed
    guest.send(b"".join(b"c%c" % byte for byte in range(256)))
    assert guest.printed(256) == bytes(range(256))
    assert not readable(guest.qemu.wire_fd, 0)


def test_lines_do_not_block(tiny: Tiny) -> None:
    qemu = tiny().qemu
    for fd in (qemu.console_fd, qemu.wire_fd):
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_ram_is_seen_from_both_sides(tiny: Tiny, machine: MachineType) -> None:
    guest = tiny(machine=machine)
    ram = guest.qemu.ram
    assert (len(ram), ram.format, ram.readonly) == (MEMORY, "B", False)
    offset = guest.qemu.phys_to_ram_offset(CELL)
    assert offset is not None
    for byte in (1, 255, 0):
        assert guest.ask(b"p%c" % byte) == b"p"
        assert ram[offset] == byte
        ram[offset] = byte ^ 0x55
        assert guest.ask(b"g") == bytes([byte ^ 0x55])


# Guest physical addresses


def human(qemu: Qemu, command: str) -> str:
    arguments: dict[str, Any] = {"command-line": command}
    text = qemu.execute("human-monitor-command", **arguments)
    assert isinstance(text, str)
    return text


def ram_ranges(qemu: Qemu) -> list[tuple[int, int, int]]:
    """What QEMU says of RAM in the guest's address space: first and last address, offset."""
    text = human(qemu, "info mtree -f")
    (memory,) = [view for view in text.split("FlatView #") if ' AS "memory"' in view]
    lines = re.findall(r"(\w{16})-(\w{16}) \(prio -?\d+, ram\): ram(?: @(\w+))?\s", memory)
    return [(int(first, 16), int(last, 16), int(at or "0", 16)) for first, last, at in lines]


@pytest.mark.parametrize(
    ("machine", "size"),
    [
        *[("microvm", 64 * MIB), ("microvm", 3 * GIB), ("microvm", 3 * GIB + 4096)],
        *[("microvm", 4 * GIB), ("microvm", 64 * GIB)],
        *[("q35", 64 * MIB), ("q35", 2 * GIB + 4096), ("q35", 0xB0000000 - 4096)],
        *[("q35", 0xB0000000), ("q35", 4 * GIB)],
    ],
)
def test_physical_addresses_are_where_qemu_has_them(
    tiny: Tiny, machine: MachineType, size: int
) -> None:
    qemu = tiny(machine=machine, memory_bytes=size).qemu
    qemu.pause()
    ranges = ram_ranges(qemu)
    hidden = range(0xF0000 if machine == "microvm" else 0xC0000, MIB)
    edges = {0, hidden.start, MIB, 1 << 31, 3 * GIB, 4 * GIB, size, 4 * GIB + size, 1 << 52}
    edges |= {edge for first, last, _ in ranges for edge in (first, last + 1)}
    seen = 0
    for paddr in sorted({edge + step for edge in edges for step in (-1, 0, 1)}):
        known = [paddr - first + at for first, last, at in ranges if first <= paddr <= last]
        expected = known[0] if known and paddr not in hidden else None
        assert qemu.phys_to_ram_offset(paddr) == expected, hex(paddr)
        if expected is not None:
            seen += 1
            qemu.ram[expected] = seen
            shown = human(qemu, f"xp/1xb {paddr:#x}")
            assert int(shown.split(":")[1], 16) == seen, shown
    first, last, at = ranges[-1]
    assert at + last - first == size - 1
    assert qemu.phys_to_ram_offset(last + 1) is None


@pytest.mark.parametrize(("machine", "low"), [("microvm", 0xC0000000), ("q35", 0x80000000)])
def test_the_hole_splits_4_gib(tiny_elf: Path, machine: MachineType, low: int) -> None:
    with Qemu(tiny_elf, memory_bytes=4 * GIB, machine=machine) as qemu:
        assert qemu.phys_to_ram_offset(low - 1) == low - 1
        assert qemu.phys_to_ram_offset(low) is None
        assert qemu.phys_to_ram_offset(4 * GIB - 1) is None
        assert qemu.phys_to_ram_offset(4 * GIB) == low
        assert qemu.phys_to_ram_offset(8 * GIB - low - 1) == 4 * GIB - 1
        assert qemu.phys_to_ram_offset(8 * GIB - low) is None
        assert qemu.phys_to_ram_offset(-1) is None


# Pause, reset, triple fault


def test_a_paused_guest_stands_still(tiny: Tiny) -> None:
    guest = tiny()
    qemu = guest.qemu
    guest.ask(b"p\x11")
    events = events_of(guest)
    for _ in range(3):
        qemu.pause()
        wait_for(events, "STOP")
        assert qemu.execute("query-status")["status"] == "paused"
        guest.send(b"g")
        qemu.execute("query-status")
        assert not readable(qemu.wire_fd, 0)
        qemu.ram[CELL] += 1
        qemu.resume()
        wait_for(events, "RESUME")
        assert guest.received(1) == bytes([qemu.ram[CELL]])
    assert qemu.ram[CELL] == 0x14


@pytest.mark.parametrize("machine", MACHINES)
def test_reset_boots_on_zeroed_ram(tiny: Tiny, machine: MachineType) -> None:
    guest = tiny(machine=machine)
    ram = guest.qemu.ram
    for command in (b"", b"s", b""):
        guest.ask(b"p\x5a")
        ram[MEMORY - 4096 :] = b"\xff" * 4096
        guest.send(command)
        guest.qemu.reset()
        assert guest.line() == UP
        assert ram[CELL] == 0
        assert not any(ram[MEMORY - 4096 :])
        assert guest.qemu.execute("query-status")["running"]
        assert guest.ask(b"p\x33") == b"p"
        assert ram[CELL] == 0x33


@pytest.mark.parametrize("machine", MACHINES)
def test_reset_can_keep_ram(tiny: Tiny, machine: MachineType) -> None:
    guest = tiny(machine=machine)
    guest.ask(b"p\x5a")
    guest.qemu.ram[MEMORY - 1] = 7
    guest.qemu.reset(zero_ram=False)
    assert guest.line() == b"up 005a\n"
    assert guest.qemu.ram[MEMORY - 1] == 7


def test_the_guest_goes_on_after_the_reset_only(tiny: Tiny) -> None:
    guest = tiny()
    events = events_of(guest)
    for _ in range(10):
        guest.qemu.reset()
        assert guest.line() == UP
        names = [events.get(timeout=DEADLINE)["event"] for _ in range(3)]
        assert names == ["STOP", "RESET", "RESUME"]


def test_reset_of_a_paused_guest(tiny: Tiny) -> None:
    guest = tiny()
    guest.qemu.pause()
    guest.qemu.reset()
    assert guest.line() == UP


@pytest.mark.parametrize("machine", MACHINES)
def test_triple_fault_leaves_the_machine_paused(tiny: Tiny, machine: MachineType) -> None:
    guest = tiny(machine=machine)
    qemu = guest.qemu
    for _ in range(2):
        events = events_of(guest)
        guest.ask(b"p\x5a")
        guest.send(b"t")
        shutdown = wait_for(events, "SHUTDOWN")
        assert shutdown["data"] == {"guest": True, "reason": "guest-reset"}
        wait_for(events, "STOP")
        assert qemu.execute("query-status") == {
            "status": "shutdown",
            "running": False,
            "singlestep": False,
        }
        assert qemu.exit_status() is None
        assert qemu.ram[CELL] == 0x5A
        with pytest.raises(MonitorError, match="QEMU refused cont: ") as refusal:
            qemu.resume()
        assert (refusal.value.command, refusal.value.error_class) == ("cont", "GenericError")
        qemu.reset()
        assert guest.line() == UP
        assert guest.ask(b"Z") == b"Z"


# The monitor


def test_events_reach_every_subscriber_until_it_leaves(tiny: Tiny) -> None:
    guest = tiny()
    early, late = events_of(guest), events_of(guest)
    gone: list[Event] = []
    unsubscribe = guest.qemu.on_event(gone.append)
    unsubscribe()
    unsubscribe()
    guest.qemu.pause()
    assert wait_for(early, "STOP") == wait_for(late, "STOP")
    assert not gone


def test_a_callback_may_unsubscribe_itself(tiny: Tiny) -> None:
    guest = tiny()
    seen: list[str] = []

    def once(event: Event) -> None:
        seen.append(event["event"])
        unsubscribe()

    unsubscribe = guest.qemu.on_event(once)
    events = events_of(guest)
    guest.qemu.pause()
    wait_for(events, "STOP")
    guest.qemu.resume()
    wait_for(events, "RESUME")
    assert seen == ["STOP"]


def test_callbacks_can_neither_wait_nor_break_the_monitor(tiny: Tiny) -> None:
    guest = tiny()
    refusals: SimpleQueue[RuntimeError] = SimpleQueue()

    def ask(_: Event) -> None:
        try:
            guest.qemu.execute("query-status")
        except RuntimeError as error:
            refusals.put(error)
        raise LookupError("a subscriber's own fault")

    guest.qemu.on_event(ask)
    events = events_of(guest)
    guest.qemu.pause()
    assert "query-status" in str(refusals.get(timeout=DEADLINE))
    wait_for(events, "STOP")
    guest.qemu.resume()
    wait_for(events, "RESUME")


def test_a_callback_may_close_the_machine(tiny: Tiny) -> None:
    guest = tiny()
    closed = threading.Event()

    def close(_: Event) -> None:
        guest.qemu.close()
        closed.set()

    guest.qemu.on_event(close)
    guest.send(b"t")
    assert closed.wait(DEADLINE)
    assert guest.qemu.exit_status() == -signal.SIGKILL


def test_a_refused_command_says_why(tiny: Tiny) -> None:
    with pytest.raises(MonitorError) as refusal:
        tiny().qemu.execute("no-such-command", level=3)
    assert refusal.value.error_class == "CommandNotFound"
    assert refusal.value.arguments == {"level": 3}
    assert "no-such-command" in str(refusal.value)


def test_no_answer_in_time(tiny: Tiny) -> None:
    qemu = tiny().qemu
    qemu.console_tail = lambda: "the last words"
    os.kill(qemu.pid, signal.SIGSTOP)
    with pytest.raises(CallTimeout) as late:
        qemu.execute("query-status", timeout=0.01)
    assert (late.value.call, late.value.console) == ("query-status", "the last words")
    os.kill(qemu.pid, signal.SIGCONT)
    assert qemu.execute("query-status")["running"]


def test_a_deadline_in_the_handshake_harms_nobody(tiny_elf: Path) -> None:
    with Qemu(tiny_elf, memory_bytes=MEMORY) as qemu:
        os.kill(qemu.pid, signal.SIGSTOP)
        with pytest.raises(CallTimeout):
            qemu.execute("query-status", timeout=0.01)
        os.kill(qemu.pid, signal.SIGCONT)
        come_up(qemu)


# The end of QEMU


def test_qemu_killed_while_a_command_runs(tiny: Tiny, tmp_path: Path) -> None:
    qemu = tiny().qemu
    qemu.console_tail = lambda: "the last words"
    # QEMU writes to a pipe that nobody empties, so it is inside of the command for sure.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with ThreadPoolExecutor() as pool:
            arguments = {"val": 0, "size": MEMORY, "filename": str(pipe)}
            answer = pool.submit(qemu.execute, "pmemsave", timeout=2 * DEADLINE, **arguments)
            assert readable(reader)
            assert not answer.done()
            os.kill(qemu.pid, signal.SIGKILL)
            error = answer.exception(DEADLINE)
    finally:
        os.close(reader)
    assert isinstance(error, MachineExited)
    assert (error.signal, error.exit_status) == (signal.SIGKILL, None)
    assert error.argv == qemu.argv
    assert "the last words" in str(error)
    with pytest.raises(MachineExited):
        qemu.pause()
    assert qemu.exit_status() == -signal.SIGKILL


def test_every_waiting_thread_learns_of_the_death(tiny: Tiny) -> None:
    qemu = tiny().qemu
    os.kill(qemu.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(qemu.wait_exit) for _ in range(2)]
        calls = [pool.submit(qemu.execute, "query-status", timeout=2 * DEADLINE) for _ in range(2)]
        os.kill(qemu.pid, signal.SIGKILL)
        assert [wait.result(DEADLINE) for wait in waits] == [-signal.SIGKILL] * 2
        assert all(isinstance(call.exception(DEADLINE), MachineExited) for call in calls)


def test_guest_that_ends_qemu(tiny: Tiny) -> None:
    guest = tiny(extra_args=["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
    guest.send(b"q")
    assert guest.qemu.wait_exit(DEADLINE) == 33
    with pytest.raises(MachineExited) as exited:
        guest.qemu.execute("query-status")
    assert (exited.value.signal, exited.value.exit_status) == (None, 33)


def test_pidfd_tells_of_the_exit(tiny: Tiny) -> None:
    qemu = tiny().qemu
    assert not readable(qemu.pidfd, 0)
    os.kill(qemu.pid, signal.SIGKILL)
    assert readable(qemu.pidfd)


# The end of Python, of its threads, and its forks


def run_program(*args: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-m", "guests.processes", *args],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_qemu_does_not_outlive_python(tiny_elf: Path) -> None:
    assert run_program("ends", str(tiny_elf)) == [
        *["killed while starting True"] * 12,
        "killed [-9]",
        "terminated [-9]",
        "left [-9]",
        "exited []",
    ]


def test_forked_processes_leave_the_machine_alone(tiny_elf: Path) -> None:
    assert run_program("forks", str(tiny_elf)) == [
        *["closes", "exits", "leaves", "drops", "is_refused", "has_its_own", "is_killed"],
        "closed beside a child",
    ]


def test_a_machine_outlives_the_thread_that_made_it(tiny: Tiny) -> None:
    guests: list[Guest] = []
    thread = threading.Thread(target=lambda: guests.append(tiny()))
    thread.start()
    thread.join()
    # Python's thread has ended; this is the kernel's.
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        os.sched_yield()
    (guest,) = guests
    assert guest.ask(b"Z") == b"Z"
    assert guest.qemu.exit_status() is None


def test_eight_machines_closed_in_mixed_order(tiny: Tiny) -> None:
    with ThreadPoolExecutor(8) as pool:
        guests = list(pool.map(lambda _: tiny(), range(8)))
    for number, guest in enumerate(guests):
        guest.ask(b"p%c" % number)
    for number in (3, 0, 7, 5, 1, 6, 2, 4):
        guests[number].qemu.close()
        assert guests[number].qemu.exit_status() == 0
        for other, guest in enumerate(guests):
            if guest.qemu.wire_fd >= 0:
                assert guest.ask(b"g") == bytes([other])


# close()


def test_close(tiny: Tiny) -> None:
    guest = tiny()
    qemu = guest.qemu
    argv = qemu.argv
    qemu.close()
    qemu.close()
    assert qemu.exit_status() == qemu.wait_exit() == 0
    assert (qemu.console_fd, qemu.wire_fd, qemu.pidfd) == (-1, -1, -1)
    assert (qemu.argv, qemu.stderr_text()) == (argv, "")
    assert is_reaped(qemu.pid)
    for forbidden in (qemu.pause, qemu.resume, qemu.reset, qemu.start):
        with pytest.raises(MachineExited, match="status 0"):
            forbidden()
    with pytest.raises(ValueError, match="released"):
        _ = qemu.ram


def test_close_from_many_threads_at_once(tiny: Tiny) -> None:
    qemu = tiny().qemu
    with ThreadPoolExecutor(4) as pool:
        for closing in [pool.submit(qemu.close) for _ in range(4)]:
            closing.result(DEADLINE)
    assert is_reaped(qemu.pid)


def test_close_of_a_machine_never_started(tiny_elf: Path) -> None:
    qemu = Qemu(tiny_elf, memory_bytes=MEMORY)
    qemu.close()
    assert qemu.exit_status() == -signal.SIGKILL
    with pytest.raises(BootError, match="before the guest was started"):
        qemu.start()


@pytest.mark.parametrize("state", ["spinning", "paused", "shut down", "killed", "hung"])
def test_close_in_any_state(tiny: Tiny, state: str) -> None:
    guest = tiny()
    qemu = guest.qemu
    if state == "spinning":
        guest.send(b"s")
    elif state == "paused":
        qemu.pause()
    elif state == "shut down":
        events = events_of(guest)
        guest.send(b"t")
        wait_for(events, "SHUTDOWN")
    else:
        os.kill(qemu.pid, signal.SIGKILL if state == "killed" else signal.SIGSTOP)
    qemu.close()
    expected = -signal.SIGKILL if state in ("killed", "hung") else 0
    assert qemu.exit_status() == expected
    assert is_reaped(qemu.pid)


def test_the_last_reference_ends_the_machine(tiny_elf: Path) -> None:
    qemu = Qemu(tiny_elf, memory_bytes=MEMORY)
    come_up(qemu)
    pid = qemu.pid
    gc.disable()
    try:
        del qemu
        assert is_reaped(pid)
    finally:
        gc.enable()


def test_views_of_ram_outlive_the_machine(tiny: Tiny) -> None:
    gc.collect()
    before = ram_mappings()
    guest = tiny()
    guest.ask(b"p\x5a")
    whole, part = guest.qemu.ram, guest.qemu.ram[CELL : CELL + 2]
    guest.qemu.close()
    assert ram_mappings() == before + 1
    assert whole[CELL] == part[0] == 0x5A
    part[1] = 0xA5
    assert whole[CELL + 1] == 0xA5
    del whole
    assert part[1] == 0xA5
    del part
    assert ram_mappings() == before


def test_nothing_is_left_behind(tiny_elf: Path, tmp_path: Path) -> None:
    no_kernel = tmp_path / "text"
    no_kernel.write_text("no kernel")

    def cycle(number: int) -> int:
        kernel = no_kernel if number % 5 == 4 else tiny_elf
        with Qemu(kernel, memory_bytes=MEMORY) as qemu:
            if number % 5 == 1:
                os.kill(qemu.pid, signal.SIGKILL)
            if number % 5 == 4:
                with pytest.raises(BootError):
                    qemu.start()
            elif number % 5 > 1:
                come_up(qemu)
        return qemu.pid

    def descriptors() -> list[str]:
        targets = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one that listed them
                targets.append(os.readlink(f"/proc/self/fd/{fd}"))
        return sorted(targets)

    cycle(2)  # the threads that stay have descriptors, too
    gc.collect()
    threads, mappings, before = threading.active_count(), ram_mappings(), descriptors()
    pids = [cycle(number) for number in range(15)]
    assert descriptors() == before
    assert ram_mappings() == mappings
    assert threading.active_count() == threads
    assert all(is_reaped(pid) for pid in pids)


# What cannot work


@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        ({"memory_bytes": 0}, ValueError, ["memory_bytes 0", "16M", "64G"]),
        ({"memory_bytes": -MEMORY}, ValueError, [f"memory_bytes -{MEMORY}", "16M"]),
        ({"memory_bytes": MEMORY - 4096}, ValueError, [f"{MEMORY - 4096}", "16M"]),
        ({"memory_bytes": MEMORY + 1}, ValueError, [f"{MEMORY + 1}", "multiple of 4096"]),
        ({"memory_bytes": 64 * GIB + 4096}, ValueError, [f"{64 * GIB + 4096}", "64G"]),
        ({"memory_bytes": "64M"}, TypeError, ["memory_bytes '64M'", "int", "parse_size"]),
        ({"memory_bytes": 64e6}, TypeError, ["memory_bytes 64000000.0", "int"]),
        ({"memory_bytes": True}, TypeError, ["memory_bytes True", "int"]),
        ({"memory_bytes": None}, TypeError, ["memory_bytes None", "int"]),
        ({"cpus": 0}, ValueError, ["cpus 0", "1 to 8"]),
        ({"cpus": 9}, ValueError, ["cpus 9", "1 to 8"]),
        ({"cpus": -1}, ValueError, ["cpus -1", "1 to 8"]),
        ({"cpus": True}, TypeError, ["cpus True", "int"]),
        ({"cpus": "2"}, TypeError, ["cpus '2'", "int"]),
        ({"cpus": 2.0}, TypeError, ["cpus 2.0", "int"]),
        ({"machine": "pc"}, ValueError, ["machine 'pc'", "microvm", "q35"]),
        ({"machine": None}, ValueError, ["machine None", "microvm", "q35"]),
        ({"machine": "q35,usb=on"}, ValueError, ["machine 'q35,usb=on'", "microvm", "q35"]),
        ({"accel": "hvf"}, ValueError, ["accel 'hvf'", "tcg", "kvm"]),
        ({"accel": "auto"}, ValueError, ["accel 'auto'", "tcg", "kvm"]),
        ({"accel": "kvm", "deterministic": True}, ValueError, ["deterministic", "'tcg'"]),
        ({"append": "a\0b"}, ValueError, ["append", "NUL"]),
    ],
)
def test_bad_arguments_are_named(
    tiny_elf: Path, options: dict[str, Any], kind: type[Exception], names: list[str]
) -> None:
    with pytest.raises(kind) as refusal:
        Qemu(tiny_elf, **({"memory_bytes": MEMORY} | options))
    assert type(refusal.value) is kind
    for name in names:
        assert name in str(refusal.value)


def test_missing_qemu(tiny_elf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="qemu-system-x86_64 was not found") as lack:
        Qemu(tiny_elf, memory_bytes=MEMORY)
    assert "qemu-system-x86" in lack.value.mend
    assert lack.value.mend in str(lack.value)


def test_missing_helper(tiny_elf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    (tmp_path / "qemu-system-x86_64").symlink_to(qemu)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="setpriv was not found") as lack:
        Qemu(tiny_elf, memory_bytes=MEMORY)
    assert lack.value.mend == "apt-get install util-linux"


def test_qemu_that_breaks_down(
    tiny_elf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text("#!/bin/sh\necho to stdout\necho to stderr >&2\nexit 77\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Qemu(tiny_elf, memory_bytes=MEMORY) as qemu, pytest.raises(BootError) as failure:
        qemu.start()
    assert failure.value.exit_status == 77
    assert failure.value.stderr == "to stdout\nto stderr\n"
    assert failure.value.argv[0] == str(fake)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "could not open kernel file"),
        ("directory", "could not load kernel"),
        ("empty", "could not load kernel"),
        ("text", "invalid kernel header"),
        ("program", "without PVH ELF Note"),
    ],
)
def test_file_that_is_no_kernel(tmp_path: Path, kind: str, reason: str) -> None:
    kernel = tmp_path / "a kernel, so to speak"
    if kind == "directory":
        kernel.mkdir()
    elif kind == "empty":
        kernel.touch()
    elif kind == "text":
        kernel.write_text("no kernel\n" * 100)
    elif kind == "program":
        kernel = Path(sys.executable).resolve()
    with Qemu(kernel, memory_bytes=MEMORY) as qemu:
        with pytest.raises(BootError, match="before the guest was started") as failure:
            qemu.start()
        error = failure.value
        assert error.exit_status == 1
        assert reason in error.stderr
        assert error.argv == qemu.argv
        assert str(kernel) in error.argv
        assert qemu.stderr_text() == error.stderr
        for part in (error.stderr.strip(), "exit status: 1", "qemu-system-x86_64"):
            assert part in str(error)


def test_argument_that_qemu_does_not_know(tiny_elf: Path) -> None:
    with (
        Qemu(tiny_elf, memory_bytes=MEMORY, extra_args=["-no-such-option"]) as qemu,
        pytest.raises(BootError, match="no-such-option"),
    ):
        qemu.start()


def test_kernel_path_may_hold_anything(tiny_elf: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "-k,id=1 'ü\n"
    kernel.write_bytes(tiny_elf.read_bytes())
    with Qemu(kernel, memory_bytes=MEMORY, append="a,b=c 'd' ü") as qemu:
        come_up(qemu)


# Sizes and accelerators


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *[(0, 0), (4096, 4096), (1 << 70, 1 << 70)],
        *[("0", 0), ("4096", 4096), ("007", 7)],
        *[("1K", 1 << 10), ("64k", 64 << 10), ("256M", 256 * MIB), ("3m", 3 * MIB)],
        *[("4G", 4 * GIB), ("1g", GIB), (" 2M\n", 2 * MIB), ("100000G", 100000 * GIB)],
    ],
)
def test_parse_size(size: int | str, expected: int) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize(
    "size",
    [
        "",
        "M",
        "1.5G",
        "-1",
        "+1",
        "1T",
        "1 M",
        "0x10",
        "1MB",
        "1_000",
        "1e6",
        "1K 1K",
        "²",
        "٣",
        -1,
    ],
)
def test_parse_size_refuses(size: int | str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"memory size {size!r}: ")):
        parse_size(size)


@pytest.mark.parametrize("size", [None, True, 1.5, b"1M", ["1M"]])
def test_parse_size_takes_ints_and_text(size: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"memory size {size!r}: an int or a text")):
        parse_size(size)


@pytest.fixture
def kvm(tmp_path: Path) -> Path:
    """Stands in for the device: it opens."""
    path = tmp_path / "kvm"
    path.touch()
    return path


def cpuinfo(directory: Path, flags: str) -> Path:
    path = directory / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n")
    return path


@pytest.mark.parametrize("flag", ["vmx", "svm"])
@pytest.mark.parametrize("requested", ["auto", "kvm"])
def test_kvm_is_chosen(
    tmp_path: Path, kvm: Path, requested: Literal["auto", "kvm"], flag: str
) -> None:
    flags = cpuinfo(tmp_path, f"fpu {flag} sse")
    assert choose_accel(requested, kvm=kvm, cpuinfo=flags) == "kvm"
    assert choose_accel("tcg", kvm=kvm, cpuinfo=flags) == "tcg"


@pytest.mark.parametrize(
    ("device", "flags", "reason", "mend"),
    [
        ("none", "vmx", "there is no ", "modprobe kvm_intel kvm_amd"),
        ("unopenable", "vmx", "Is a directory", "usermod --append --groups kvm $USER"),
        ("kvm", "fpu vmx_flags nosvm", "neither vmx nor svm", ""),
        ("kvm", "", "neither vmx nor svm", ""),
    ],
)
def test_kvm_is_not_usable(
    tmp_path: Path, kvm: Path, device: str, flags: str, reason: str, mend: str
) -> None:
    (tmp_path / "unopenable").mkdir()
    paths = {"kvm": tmp_path / device, "cpuinfo": cpuinfo(tmp_path, flags)}
    assert choose_accel("auto", **paths) == "tcg"
    assert choose_accel("tcg", **paths) == "tcg"
    with pytest.raises(HostError, match=reason) as lack:
        choose_accel("kvm", **paths)
    assert lack.value.mend == mend
    assert isinstance(lack.value, KOSError)


def test_unknown_accel(tmp_path: Path) -> None:
    unknown: Any = "hvf"
    with pytest.raises(ValueError, match="accel 'hvf': 'auto', 'tcg' and 'kvm' are allowed"):
        choose_accel(unknown, kvm=tmp_path, cpuinfo=tmp_path)
