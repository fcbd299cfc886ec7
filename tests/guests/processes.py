"""Programs that own a machine and come to an end, or fork: run as `python -m guests.processes`.

`ends KERNEL` has Python processes end in many ways, and waits until nothing of them is left.
`forks KERNEL` forks a Python process that owns a machine, which must not notice.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from guests.tiny import DEADLINE, UP, Guest, readable
from kos.exceptions import HostError
from kos.machine.qemu import Qemu

MEMORY = 16 << 20
PR_SET_CHILD_SUBREAPER = 36
# Seconds after which Python is killed: before it forks, inside of each step to QEMU, and after.
DELAYS = [0, 0.001, 0.002, 0.004, 0.006, 0.009, 0.013, 0.018, 0.025, 0.035, 0.05, 0.08]


def boot(kernel: Path) -> Guest:
    """A machine that has come up."""
    guest = Guest(Qemu(kernel, memory_bytes=MEMORY))
    guest.qemu.start()
    assert guest.line() == UP
    return guest


# Ends


def own_a_machine(kernel: Path, report: int) -> None:
    """Say so when the machine is up, and then do as told."""
    guest = boot(kernel)
    os.write(report, b"u")
    order = os.read(0, 1)
    if order == b"e":
        sys.exit()  # neither closed nor collected before
    if order == b"l":
        os._exit(0)
    assert guest is not None


def run_and_end(kernel: Path, delay: float | None, order: bytes) -> list[int]:
    """Start a process with a machine, end it, and wait until nothing of it is left.

    Returns the exit statuses of what the process itself did not reap.
    """
    report, their_report = os.pipe()
    their_orders, orders = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(orders)
        os.dup2(their_orders, 0)
        own_a_machine(kernel, their_report)
        raise AssertionError("nothing ended this process")
    os.close(their_report)
    os.close(their_orders)
    if delay is None:
        assert readable(report)
        assert os.read(report, 1) == b"u"
    else:
        readable(report, delay)
    if order == b"k":
        os.kill(pid, signal.SIGKILL)
    elif order == b"t":
        os.kill(pid, signal.SIGTERM)
    else:
        os.write(orders, order)
    os.close(report)
    statuses = {}
    # Orphans become children of this process, so there is no other place to look for them.
    while True:
        try:
            child, status = os.wait()
        except ChildProcessError:
            break
        statuses[child] = os.waitstatus_to_exitcode(status)
    os.close(orders)
    expected = {b"k": -signal.SIGKILL, b"t": -signal.SIGTERM, b"e": 0, b"l": 0}[order]
    assert statuses.pop(pid) == expected
    return list(statuses.values())


def ends(kernel: Path) -> None:
    """Processes end at many moments and in many ways; prints one line for each."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def give_up(*_: object) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            print("still there:", Path(f"/proc/{child}/cmdline").read_bytes(), file=sys.stderr)
            os.kill(int(child), signal.SIGKILL)
        sys.exit(1)

    signal.signal(signal.SIGALRM, give_up)
    for delay in DELAYS:
        signal.alarm(int(DEADLINE))
        print("killed while starting", set(run_and_end(kernel, delay, b"k")) <= {1, -9}, flush=True)
    for name, order in [("killed", b"k"), ("terminated", b"t"), ("left", b"l")]:
        signal.alarm(int(DEADLINE))
        print(name, run_and_end(kernel, None, order), flush=True)
    print("exited", run_and_end(kernel, None, b"e"), flush=True)


# Forks


def closes(guest: Guest) -> None:
    """Close the machine of the parent."""
    guest.qemu.close()
    guest.qemu.close()


def exits(guest: Guest) -> None:
    """Run exit handlers and finalizers."""


def leaves(guest: Guest) -> None:
    """Run none of them."""
    os._exit(0)


def drops(guest: Guest) -> None:
    """Give up the last reference."""
    del guest.qemu


def is_refused(guest: Guest) -> None:
    """Try what is the owner's alone."""
    qemu = guest.qemu
    attempts: list[Callable[[], object]] = [
        *[qemu.start, qemu.pause, qemu.resume, qemu.reset, qemu.exit_status, qemu.wait_exit],
        lambda: qemu.execute("query-status"),
        lambda: qemu.on_event(print),
    ]
    refusals = []
    for attempt in attempts:
        try:
            attempt()
        except HostError as error:
            refusals.append(str(error))
    assert len(refusals) == len(attempts)
    assert all(str(os.getppid()) in refusal for refusal in refusals)


def has_its_own(guest: Guest) -> None:
    """Run another machine, with the parent's still there."""
    own = boot(KERNEL)
    assert own.ask(b"Z") == b"Z"
    own.qemu.close()
    assert own.qemu.exit_status() == 0


def is_killed(guest: Guest) -> None:
    """End without a chance to do anything."""
    os.kill(os.getpid(), signal.SIGKILL)


def forks(kernel: Path) -> None:
    """Children do what they like, and the parent's machine answers after each."""
    guest = boot(kernel)
    guest.ask(b"p!")
    for deed in [closes, exits, leaves, drops, is_refused, has_its_own, is_killed]:
        child = os.fork()
        signal.alarm(int(DEADLINE))  # a child does not inherit it
        if child == 0:
            deed(guest)
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (-signal.SIGKILL if deed is is_killed else 0), (deed, status)
        assert guest.ask(b"g") == b"!"
        assert guest.qemu.execute("query-status")["running"]
        print(deed.__name__, flush=True)
    # A child that has copies of everything does not keep the parent from closing.
    waits, release = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.read(waits, 1)
        sys.exit()
    guest.qemu.close()
    assert guest.qemu.exit_status() == 0
    os.close(release)
    assert os.waitpid(child, 0)[1] == 0
    print("closed beside a child", flush=True)


if __name__ == "__main__":
    KERNEL = Path(sys.argv[2])
    {"ends": ends, "forks": forks}[sys.argv[1]](KERNEL)
