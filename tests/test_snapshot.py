"""Snapshots: going back brings everything back, whatever has happened meanwhile."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from conftest import Boot
from helpers import CARRIERS, LONG, PAGE, Threads, refused, wait_on_paused
from kos.exceptions import CallTimeout, HostError, KernelPanic, MachineExited
from kos.inspect import audit
from kos.machine import Machine
from kos.machine._snapshot import Snapshot
from kos.memory.constants import EINVAL, ENOMEM
from kos.rpc import frames
from kos.rpc.client import Client

pytestmark = pytest.mark.kos(leaks="allow")


def memory_of(vm: Machine) -> bytes:
    """RAM of a paused machine."""
    return bytes(vm.ram)


@contextmanager
def prompt(seconds: float = 30.0) -> Iterator[None]:
    """What is inside does not wait for anything that cannot come."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"it took {took:.1f} s"


def patience(client: Client, seconds: float) -> None:
    """How long calls of a client may take from now on."""
    client.timeout = seconds
    for ring in client._rings:
        ring.timeout = seconds


def take_all(client: Client) -> None:
    while True:
        client.buddy_alloc(10)


def bench_long(client: Client) -> None:
    """A hundred million instructions, which no emulator carries out in 10 ms."""
    client.bench_run(1, 0, 1_000_000)


def restore_without_end(vm: Machine, snapshot: Snapshot) -> None:
    while True:
        vm.restore(snapshot)


# What comes back


@pytest.mark.parametrize("machine", ["microvm", "q35"])
@pytest.mark.parametrize("cpus", [1, 8])
def test_ram_is_identical(boot: Boot, machine: str, cpus: int) -> None:
    vm = boot(machine=machine, cpus=cpus)
    held = [vm.client.buddy_alloc(order) for order in (0, 3, 5)]
    vm.client.page_map(page := vm.client.page_alloc(0), 0x400000)
    vm.client.mem_write(0x400000, b"before")
    vm.pause()
    before = memory_of(vm)
    snapshot = vm.snapshot()
    assert memory_of(vm) == before
    vm.resume()
    vm.client.mem_write(0x400000, b"after!")
    for addr, order in zip(held, (0, 3, 5), strict=True):
        vm.client.buddy_free(addr, order)
    vm.client.page_unmap(page)
    vm.client.buddy_alloc_array(0, 4096)
    vm.connect("later").buddy_alloc(10)
    for _ in range(2):
        vm.restore(snapshot)
        assert vm.qmp.execute("query-status")["running"] is False
        assert memory_of(vm) == before
        vm.resume()
        assert vm.client.mem_read(0x400000, 6) == b"before"
        vm.client.buddy_free(held[1], 3)
        vm.client.mem_write(0x400000, b"again!")
        assert vm.client.cpu_info(cpus - 1).id == cpus - 1


def test_memory_that_was_empty_is_empty_again(vm: Machine) -> None:
    """What was never written to takes no room again, and reads as zero."""
    snapshot = vm.snapshot()
    used = sum(end - start for start, end in vm.ram_in_use())
    assert snapshot.ram_bytes <= used + (1 << 20)
    addr = vm.client.buddy_alloc(10)
    at = vm.ram_offset(addr)
    vm.ram[at : at + (PAGE << 10)] = b"\xa5" * (PAGE << 10)
    assert sum(end - start for start, end in vm.ram_in_use()) >= used + (PAGE << 10)
    vm.restore(snapshot)
    assert sum(end - start for start, end in vm.ram_in_use()) <= used + (1 << 20)
    assert vm.ram[at : at + (PAGE << 10)] == bytes(PAGE << 10)


def test_the_console_s_text(vm: Machine) -> None:
    vm.console.run("alloc 3")
    snapshot, text = vm.snapshot(), vm.console.text
    vm.console.run("help")
    assert len(vm.console.text) > len(text)
    vm.restore(snapshot)
    assert vm.console.text == text
    answer = vm.console.run("mem")
    assert "RAM" in answer
    assert vm.console.text.startswith(text)
    vm.restore(snapshot)
    assert vm.console.text == text
    assert vm.console.run("mem") == answer


def test_a_half_typed_line(vm: Machine) -> None:
    """The line editor's state lies in the guest: what was typed then is there, later keys not."""
    vm.console.run("mem")  # the prompt is there
    vm.console.send("clie")
    vm.console.wait_for(r"clie\Z")
    snapshot = vm.snapshot()
    for rest in ("xyz", "nts", ""):
        vm.console.send(rest)
        if rest:
            vm.console.wait_for(rest + r"\Z")
        vm.restore(snapshot)
        assert vm.console.text.endswith("kos> clie")
    start = vm.console.position
    vm.console.send("nts\r")
    assert "host" in vm.console.wait_for(r"(?s)nts.*kos> \Z", start=start)


def test_frames_come_back(vm: Machine) -> None:
    snapshot, before = vm.snapshot(), vm.client.zone_info(1)
    client = vm.connect("taker")
    with refused(ENOMEM):
        take_all(client)
    vm.restore(snapshot)
    after = vm.client.zone_info(1)
    assert after.free == before.free
    assert after.free_blocks == before.free_blocks
    assert audit(vm).sound


@pytest.mark.parametrize("carrier", CARRIERS)
def test_clients(vm: Machine, carrier: str) -> None:
    """Those of then are back, closed or not, with what they owned; the new ones are closed."""
    kept, closed = vm.connect("kept", carrier=carrier), vm.connect("closed", carrier=carrier)
    blocks = {client: client.buddy_alloc(2) for client in (kept, closed)}
    snapshot = vm.snapshot()
    for _ in range(3):
        ids = (kept.id, closed.id)
        closed.close()
        with pytest.raises(HostError):
            closed.ping(1)
        newer = vm.connect("newer", carrier=carrier)
        newer.buddy_alloc(0)
        kept.buddy_free(blocks[kept], 2)
        vm.restore(snapshot)
        with pytest.raises(HostError):
            newer.ping(1)
        newer.close()  # does nothing, least of all to the client that has its id next
        for client in (kept, closed):
            assert client.ping(7) == 7
            assert client.client_info(client.id).pages == 4
            assert [block.paddr for block in vm.view.blocks(client.id)] == [blocks[client]]
        assert (kept.id, closed.id) == ids
        with closed.batch() as batch:
            answers = [batch.ping(n) for n in range(100)]
        assert [answer.value for answer in answers] == list(range(100))
        other = vm.connect("another", carrier=carrier)
        assert other.ping(2) == 2
        newer.close()
        assert other.ping(3) == 3
    for client in (kept, closed):
        client.buddy_free(blocks[client], 2)
        with refused(EINVAL):
            client.buddy_free(blocks[client], 2)


def test_a_client_that_was_closed_before(vm: Machine) -> None:
    """It stays closed, however long somebody holds it."""
    closed = vm.connect("closed")
    closed.close()
    snapshot = vm.snapshot()
    for _ in range(2):
        vm.restore(snapshot)
        with pytest.raises(HostError):
            closed.ping(1)
        assert vm.client.ping(1) == 1
    reset = vm.connect("reset")
    vm.reset()
    again = vm.snapshot()
    vm.restore(again)
    with pytest.raises(HostError):
        reset.ping(1)
    assert vm.client.ping(2) == 2


def test_a_dropped_client_is_not_closed_twice(vm: Machine) -> None:
    """One that was dropped after the snapshot, or before it without being closed at the kernel."""
    vm.connect("dropped before").buddy_alloc(0)
    gc.collect()
    snapshot = vm.snapshot()
    for _ in range(3):
        vm.connect("dropped after").buddy_alloc(0)
        gc.collect()
        vm.restore(snapshot)
        one = vm.connect("one")  # the kernel is told now of what was dropped
        two = vm.connect("two")
        assert (one.ping(1), two.ping(2)) == (1, 2)
        assert vm.client.machine_info().clients == 6 - 1
        gc.collect()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_clients_go_on_from_several_threads(vm: Machine, carrier: str) -> None:
    """Threads that live through a restore call again afterwards, each on a ring of its own."""
    client = vm.connect("shared", carrier=carrier)
    turns = threading.Barrier(5)
    threads = Threads()

    def work(n: int) -> None:
        for turn in range(5):
            blocks = [client.buddy_alloc(0) for _ in range(20)]
            assert len(set(blocks)) == 20
            assert client.echo(bytes([n]) * 100) == bytes([n]) * 100
            turns.wait(60)
            turns.wait(60)  # between the two: restored
            assert client.ping(turn) == turn

    snapshot = vm.snapshot()
    for n in range(4):
        threads.start(work, n)
    for _ in range(5):
        turns.wait(60)
        vm.restore(snapshot)
        assert client.client_info(client.id).pages == 0
        turns.wait(60)
    threads.join()


def test_back_and_forth(vm: Machine) -> None:
    """Any snapshot can be gone to from any other, any number of times."""
    states = []
    for n in range(5):
        addr = vm.client.buddy_alloc(n)
        at = vm.ram_offset(addr)
        vm.ram[at : at + 8] = n.to_bytes(8, "little")
        vm.console.run(f"alloc {n}")
        vm.pause()
        states.append((vm.snapshot(), memory_of(vm), vm.console.text, n))
        vm.resume()
        if n % 2:
            vm.restore(states[n // 2][0])
            vm.resume()
    order = np.random.default_rng(1).integers(0, 5, 40).tolist()
    for which in order:
        snapshot, ram, text, n = states[which]
        vm.restore(snapshot)
        assert memory_of(vm) == ram
        assert vm.console.text == text
        vm.resume()
        assert vm.client.ping(n) == n
        vm.client.buddy_alloc_array(0, 100 + n)
    vm.restore()  # the last that was gone back to
    assert memory_of(vm) == states[order[-1]][1]
    vm.resume()


def test_paused_or_running(vm: Machine) -> None:
    running = vm.snapshot()
    vm.pause()
    paused = vm.snapshot()
    for _ in range(2):
        vm.restore(running)
        assert vm.qmp.execute("query-status")["running"] is True
        assert vm.client.ping(1) == 1
        vm.restore(paused)
        assert vm.qmp.execute("query-status")["running"] is False
    vm.resume()
    assert vm.client.ping(1) == 1


def test_other_views_of_the_machine(vm: Machine) -> None:
    """The typed view, RAM and objects made before show what is there now."""
    pages, ram = vm.view["clients"][3].owner.pages, vm.ram
    snapshot = vm.snapshot()
    addr = vm.client.buddy_alloc(4)
    assert int(pages) == 16
    at = vm.ram_offset(addr)
    ram[at] = 77
    vm.restore(snapshot)
    assert int(pages) == 0
    assert ram[at] == 0
    assert [cpu["cs"] for cpu in vm.registers()] == [8, 8]


# From whatever has happened


@pytest.mark.parametrize("kind", ["panic", "null", "stack", "assert", "triple"])
@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_after_a_crash(boot: Boot, kind: str, machine: str) -> None:
    vm = boot(machine=machine)
    addr = vm.client.buddy_alloc(1)
    snapshot = vm.snapshot()
    for _ in range(2):
        with pytest.raises(KernelPanic):
            vm.client.crash(kind)
        with pytest.raises(KernelPanic):
            vm.snapshot()
        vm.restore(snapshot)
        assert vm.wire.failure is None
        assert vm.client.ping(1) == 1
        vm.client.buddy_free(addr, 1)
        assert "PANIC" not in vm.console.text.upper()
        assert "RAM" in vm.console.run("mem")


@pytest.mark.parametrize("line", ["panic now", "reboot"])
def test_while_the_machine_ends_by_itself(boot: Boot, line: str) -> None:
    """The news of the end may come before, while, or after it goes back; it does not count."""
    vm = boot(memory="32M")
    addr = vm.client.buddy_alloc(6)
    vm.console.run("mem")
    snapshot = vm.snapshot()
    for n in range(30):
        vm.console.send(line + "\r")
        until = time.monotonic() + n % 15 / 1000
        while time.monotonic() < until:
            vm.console.position  # noqa: B018 - as any other thread would
        vm.restore(snapshot)
        assert vm.client.ping(n) == n
        assert vm.client.client_info(vm.client.id).pages == 64
        vm.wire.check()
    vm.client.buddy_free(addr, 6)
    assert vm.client.ping(1) == 1


@pytest.mark.parametrize("carrier", CARRIERS)
def test_after_a_call_that_timed_out(boot: Boot, carrier: str) -> None:
    vm = boot(memory="32M", timeout=0.5)
    client = vm.connect("hasty", carrier=carrier)
    snapshot = vm.snapshot()
    for _ in range(3):
        vm.pause()
        with pytest.raises(CallTimeout):
            client.buddy_alloc(5)
        vm.restore(snapshot)
        client.timeout = 60.0
        assert client.ping(3) == 3
        assert client.client_info(client.id).pages == 0
        client.timeout = 0.5
        vm.restore(snapshot)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_snapshot_in_the_middle_of_a_call(boot: Boot, carrier: str) -> None:
    """The call goes on in what comes back, and nobody hears its answer: the next has its own."""
    vm = boot(memory="32M", timeout=LONG)
    client = vm.connect("hasty", carrier=carrier)
    patience(client, 0.01)
    with pytest.raises(CallTimeout):
        bench_long(client)
    snapshot = vm.snapshot()
    for n in range(3):
        vm.restore(snapshot)
        patience(client, LONG)
        for one in (vm.connect("patient", carrier=carrier), client):
            assert one.ping(100 + n) == 100 + n


@pytest.mark.parametrize("n", [1, 4])
def test_calls_that_wait_end(boot: Boot, n: int) -> None:
    vm = boot(memory="32M", timeout=LONG)
    snapshot = vm.snapshot()
    for _ in range(3):
        threads = Threads()
        wait_on_paused(vm, threads, n)
        with prompt():
            vm.restore(snapshot)
            errors = threads.wait()
        assert [type(error) for error in errors] == [HostError] * (n + 1)
        assert vm.client.ping(1) == 1
        assert vm.client.client_info(vm.client.id).pages == 0


@pytest.mark.parametrize("how", ["restore", "reset"])
def test_calls_in_frames_that_wait_for_each_other(boot: Boot, how: str) -> None:
    """One is on the wire, the others are behind it: none of them is asked of the next kernel."""
    vm = boot(memory="32M", timeout=LONG)
    snapshot = vm.snapshot()
    clients = [vm.connect(f"framed {n}", carrier="frames") for n in range(4)]
    for client in clients:
        client.ping(1)
    vm.pause()
    threads = Threads()
    for client in clients:
        threads.start(client.buddy_alloc, 3)
    until = time.monotonic() + 60
    while not vm.wire._call_lock.locked():
        assert time.monotonic() < until
    with prompt():
        if how == "restore":
            vm.restore(snapshot)
        else:
            vm.reset()
        errors = threads.wait()
    assert [type(error) for error in errors] == [HostError] * 4
    other = vm.connect("other")
    assert other.client_info(other.id).pages == 0
    assert vm.client.ping(1) == 1


def test_in_the_middle_of_calls(boot: Boot) -> None:
    """Threads call all the time: they end with HostError and leave no mark on what comes back."""
    vm = boot(memory="32M", timeout=LONG)
    vm.pause()
    snapshot, before = vm.snapshot(), memory_of(vm)
    for turn in range(12):
        vm.resume()
        threads, started = Threads(), threading.Barrier(5)
        shared = vm.connect("shared")

        def call(client: object, started: threading.Barrier = started) -> None:
            client.ping(0)  # type: ignore[attr-defined]
            started.wait(60)
            while True:
                client.ping(1)  # type: ignore[attr-defined]
                client.echo(b"x" * 500)  # type: ignore[attr-defined]

        for _ in range(2):
            threads.start(call, shared)
        for n in range(2):
            threads.start(call, vm.connect(f"framed {n}", carrier="frames"))
        started.wait(60)
        for _ in range(turn * 10):
            vm.client.ping(2)
        with prompt():
            vm.restore(snapshot)
            assert memory_of(vm) == before
            errors = threads.wait()
        assert [type(error) for error in errors] == [HostError] * 4
        assert memory_of(vm) == before
    vm.resume()
    assert vm.client.ping(1) == 1


def test_bytes_stuck_on_the_wire(vm: Machine) -> None:
    snapshot = vm.snapshot()
    junk = np.random.default_rng(3).integers(1, 256, 5000, np.uint8).tobytes()
    whole = frames.call_frame(frames.ENTRY.pack(1, 0, 9, *[0] * 9), b"")
    for stuck in (junk, b"\x07", whole[:-3], whole[: len(whole) // 2], junk + whole[:9]):
        for paused in (False, True):
            if paused:
                vm.pause()
            vm.wire.send(stuck, time.monotonic() + 60)
            vm.restore(snapshot)
            assert vm.connect("first", carrier="frames").ping(5) == 5
            assert vm.client.ping(6) == 6
            assert vm.client.machine_info().wire_errors == 0
        # Half a frame that came before the snapshot is ended by the first of the next.
    vm.wire.send(whole[:-3], time.monotonic() + 60)
    half = vm.snapshot()
    for _ in range(2):
        vm.restore(half)
        assert vm.connect("first", carrier="frames").ping(5) == 5


def test_a_thread_that_cannot_send(boot: Boot) -> None:
    """The line is full: who waits to write on it is sent away too."""
    vm = boot(memory="32M", timeout=LONG)
    snapshot = vm.snapshot()
    vm.pause()
    threads = Threads()
    threads.start(vm.wire.send, b"\x01" * (4 << 20), time.monotonic() + LONG)
    until = time.monotonic() + 60
    while not vm.wire._write_lock.locked():
        assert time.monotonic() < until
    with prompt():
        vm.restore(snapshot)
        errors = threads.wait()
    assert [type(error) for error in errors] == [HostError]
    assert vm.connect("first", carrier="frames").ping(5) == 5
    assert vm.client.ping(6) == 6


def test_a_thread_at_the_console(boot: Boot) -> None:
    """Whoever waits for the console's answer does not keep the next command waiting."""
    vm = boot(memory="32M")
    vm.console.run("mem")
    snapshot = vm.snapshot()
    vm.pause()
    threads = Threads()

    def run() -> None:
        vm.console.run("mem", timeout=LONG)

    threads.start(run)
    until = time.monotonic() + 60
    while not vm.console._command_lock.locked():
        assert time.monotonic() < until
    with prompt():
        vm.restore(snapshot)
        errors = threads.wait()
        assert [type(error) for error in errors] == [HostError]
        assert "RAM" in vm.console.run("mem", timeout=LONG)


def test_junk_in_memory(vm: Machine) -> None:
    """Even a kernel whose memory was torn to pieces comes back."""
    snapshot = vm.snapshot()
    rng = np.random.default_rng(4)
    for _ in range(3):
        vm.pause()
        for start, end in vm.ram_in_use():
            vm.ram[start:end] = rng.integers(0, 256, end - start, np.uint8).tobytes()
        vm.resume()
        vm.restore(snapshot)
        assert vm.client.ping(1) == 1
        assert audit(vm).sound


# Determinism


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_deterministic_machine_counts_the_same(boot: Boot, cpus: int) -> None:
    vm = boot(memory="32M", cpus=cpus, deterministic=True)
    snapshot = vm.snapshot()
    found = set()
    for _ in range(4):
        vm.restore(snapshot)
        found.add(tuple(vm.client.bench_run(what, 0, 500) for what in range(4)))
    assert len(found) == 1, found


# What is refused


def test_none_and_another_s(boot: Boot) -> None:
    one, other = boot(memory="32M"), boot(memory="32M")
    one.client.ping(1)
    with pytest.raises(ValueError, match="no snapshot"):
        one.restore()
    theirs = other.snapshot()
    with pytest.raises(ValueError, match="another"):
        one.restore(theirs)
    mine = one.snapshot()
    with pytest.raises(ValueError, match="another"):
        one.restore(theirs)
    assert one.client.ping(2) == 2  # a refusal changes nothing
    one.restore(mine)
    other.restore(theirs)
    assert one.client.ping(3) == other.client.ping(3) == 3


def test_closed_and_dead_machines(boot: Boot) -> None:
    vm = boot(memory="32M")
    snapshot = vm.snapshot()
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(MachineExited):
        vm.wait()
    with pytest.raises(MachineExited):
        vm.restore(snapshot)
    with pytest.raises(MachineExited):
        vm.client.ping(1)
    with pytest.raises(MachineExited):
        vm.snapshot()
    vm.close()
    for go in (vm.snapshot, vm.restore, lambda: vm.restore(snapshot)):
        with pytest.raises(HostError):
            go()


def test_killed_at_any_time(boot: Boot) -> None:
    """QEMU dies before, in or after a restore: an error, never a hang."""
    for n in range(6):
        vm = boot(memory="32M", timeout=LONG)
        snapshot = vm.snapshot()
        killer = threading.Timer(n * 0.01, os.kill, (vm.pid, signal.SIGKILL))
        killer.start()
        with prompt(), pytest.raises(MachineExited):
            restore_without_end(vm, snapshot)
        killer.join()
        with pytest.raises(MachineExited):
            vm.client.ping(1)
        vm.close()


def test_a_forked_process(vm: Machine) -> None:
    snapshot = vm.snapshot()
    vm.client.buddy_alloc(0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            refusals = 0
            for go in (vm.snapshot, vm.restore, lambda: vm.restore(snapshot)):
                try:
                    go()
                except HostError:
                    refusals += 1
            status = 0 if refusals == 3 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert vm.client.client_info(vm.client.id).pages == 1
    vm.restore(snapshot)
    assert vm.client.client_info(vm.client.id).pages == 0


def test_reset_after_a_restore_and_restore_after_a_reset(vm: Machine) -> None:
    snapshot = vm.snapshot()
    client = vm.client
    addr = client.buddy_alloc(0)
    for _ in range(2):
        vm.reset()
        assert vm.client is not client
        assert vm.client.ping(1) == 1
        vm.restore(snapshot)
        assert vm.client is client
        assert client.buddy_alloc(0) == addr


# What it takes


def states_bytes() -> int:
    """Memory that all of this process's saved CPU states take."""
    total = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if "memfd:kos-states" in os.readlink(fd):
                total += os.stat(fd).st_blocks * 512
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return total


def test_what_snapshots_take_is_given_back(boot: Boot) -> None:
    vm = boot(memory="32M")
    first = vm.snapshot()
    sizes = []
    for _ in range(200):
        assert vm.snapshot() is not first
        sizes.append(states_bytes())
    assert max(sizes[100:]) <= max(sizes[:20]), sizes
    assert len(vm.qmp.human("info snapshots").splitlines()) < 12
    vm.restore(first)
    assert vm.client.ping(1) == 1


def test_descriptors(boot: Boot) -> None:
    vm = boot(memory="32M")
    snapshot = vm.snapshot()
    vm.restore(snapshot)

    def count() -> tuple[int, int, int]:
        ours, theirs = Path("/proc/self/fd"), Path(f"/proc/{vm.pid}/fd")
        return len(list(ours.iterdir())), len(list(theirs.iterdir())), threading.active_count()

    before = count()
    for _ in range(50):
        vm.restore(snapshot)
    assert vm.client.ping(1) == 1
    assert count() == before


def test_several_machines_at_once(boot: Boot) -> None:
    threads = Threads()

    def work(n: int) -> None:
        vm = boot(memory="32M", cpus=1)
        addr = vm.client.buddy_alloc(n)
        snapshot = vm.snapshot()
        for _ in range(10):
            vm.client.buddy_free(addr, n)
            vm.restore(snapshot)
        vm.client.buddy_free(addr, n)

    for n in range(4):
        threads.start(work, n)
    threads.join(120)


def test_two_threads_restore_one_machine(vm: Machine) -> None:
    snapshots = [vm.snapshot(), vm.snapshot()]
    threads = Threads()

    def work(n: int) -> None:
        for _ in range(10):
            vm.restore(snapshots[n])

    for n in range(2):
        threads.start(work, n)
    threads.join(120)
    assert vm.client.ping(1) == 1


@pytest.mark.bench
def test_it_takes_about_as_long_as_a_reset(boot: Boot) -> None:
    vm = boot(memory="64M")
    snapshot = vm.snapshot()

    times: dict[str, list[float]] = {"restore": [], "reset": []}
    for _ in range(9):
        start = time.perf_counter()
        vm.restore(snapshot)
        middle = time.perf_counter()
        vm.reset()
        times["restore"].append(middle - start)
        times["reset"].append(time.perf_counter() - middle)
    restore, reset = min(times["restore"]), min(times["reset"])
    print(f"restore {restore * 1e3:.1f} ms, reset {reset * 1e3:.1f} ms")
    assert restore < 5 * reset  # a boot takes some 10 ms


# ---- with those who keep the machine still ----


def test_a_machine_that_is_kept_still_stays_so(vm: Machine) -> None:
    """Whatever others do meanwhile, it goes on when the last one is done, if it is to run then."""
    snapshot = vm.snapshot()

    def status() -> str:
        return str(vm.qmp.execute("query-status")["status"])

    with vm.paused():
        vm.restore(snapshot)
        assert status() == "paused"
        again = vm.snapshot()
        vm.resume()
        assert status() == "paused"
    assert status() == "running"
    assert again.running
    with vm.paused():
        vm.pause()
    assert status() == "paused"
    vm.restore(again)
    assert status() == "running"
    assert vm.client.ping(1) == 1


def test_what_a_client_was_set_to_goes_back_too(vm: Machine) -> None:
    first = vm.snapshot()
    vm.client.timeout = 0.5
    second = vm.snapshot()
    vm.restore(first)
    assert vm.client.timeout == 10.0
    block = vm.client.buddy_alloc(0)
    vm.restore()  # the last one that was gone back to
    assert vm.client.client_info(0).pages == 0
    vm.restore(second)
    assert vm.client.timeout == 0.5
    assert block


def test_what_is_no_snapshot_is_refused(vm: Machine) -> None:
    with pytest.raises(ValueError, match="'x' is another machine's snapshot, or none at all"):
        vm.restore("x")  # type: ignore[arg-type]
    assert vm.client.ping(1) == 1
