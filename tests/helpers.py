"""What several test files use: asserting a refusal, and reading the machine's books."""

import os
import threading
from collections.abc import Callable
from typing import Any

from kos.exceptions import CallError
from kos.machine import Machine

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
