"""What several test files use: asserting a refusal, and reading the machine's books."""

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from kos.exceptions import CallError
from kos.machine import Machine
from kos.rpc.client import Client
from kos.rpc.ring import Ring

PAGE = 4096
RING_BYTES = 64 << 10
CARRIERS = ["rings", "frames"]
LARGEST = {"rings": 57344, "frames": 4096}  # bytes of data that go with one call


class refused:
    """The block raises CallError with exactly that errno; the list that it gives has it then."""

    def __init__(self, errno: int, call: str = "") -> None:
        self.errno, self.call = errno, call
        self.caught: list[CallError] = []

    def __enter__(self) -> list[CallError]:
        return self.caught

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None and not isinstance(error, CallError):
            return False
        assert error is not None, f"{self.call or 'it'} was not refused"
        assert error.errno == self.errno, str(error)
        assert not self.call or error.call == self.call
        self.caught.append(error)
        return True


def free_bytes(vm: Machine) -> int:
    """Free memory, with all of it in the zones."""
    vm.client.buddy_drain()
    info = vm.client.machine_info()
    assert info.magazine_bytes == 0
    return info.free_bytes


def stretch(seconds: float) -> float:
    """How long a test that repeats itself may: that many seconds, or KOS_TEST_MINUTES."""
    return (
        60 * float(os.environ["KOS_TEST_MINUTES"]) if "KOS_TEST_MINUTES" in os.environ else seconds
    )


class Threads:
    """Threads whose errors are kept; `join` waits for all and raises the first error."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[..., Any], *args: Any) -> threading.Thread:
        """Run `work(*args)` on a thread of its own."""

        def run() -> None:
            try:
                work(*args)
            except BaseException as error:  # noqa: BLE001 - raised again by join
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, seconds: float = 60.0) -> None:
        """Wait until all have ended."""
        self.wait(seconds)
        if self.errors:
            raise self.errors[0]

    def wait(self, seconds: float = 60.0) -> list[BaseException]:
        """Wait until all have ended; the errors they ended with."""
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a thread is stuck"
        return self.errors


LONG = 600.0  # a timeout that no test lives to see


def is_gone(pidfd: int, seconds: float = 60.0) -> bool:
    """Whether the process ends."""
    return bool(select.select([pidfd], [], [], seconds)[0])


def wait_on_paused(vm: Machine, threads: Threads, n: int = 4) -> None:
    """Pause the machine with n threads in calls on rings that cannot end, and one on the wire."""
    together, paused = threading.Barrier(n + 2), threading.Event()
    rings: list[Any] = []

    def call(client: Client) -> None:
        client.ping(0)
        rings.append(client._local.carrier)
        together.wait()
        paused.wait()
        client.buddy_alloc(0)

    for _ in range(n):
        threads.start(call, vm.client)
    threads.start(call, vm.connect("framed", carrier="frames"))
    together.wait()
    vm.pause()
    paused.set()
    until = time.monotonic() + 60
    # Word 0 of a ring counts what was submitted, word 17 what was answered.
    while any(isinstance(r, Ring) and r._words[0] == r._words[17] for r in rings):
        assert time.monotonic() < until
    while not vm.wire._call_lock.locked():
        assert time.monotonic() < until
