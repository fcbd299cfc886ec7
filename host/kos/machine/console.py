"""The machine's console: COM1, where the kernel prints and takes commands."""

import os
import re
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from typing import TYPE_CHECKING

from kos.exceptions import CallTimeout, HostError, KOSError

if TYPE_CHECKING:
    from kos.machine._record import Pacer

PROMPT = "kos> "
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_LEAVE = b"\x1d"  # Ctrl-]


class Console:
    """What the kernel has printed, and a way to type.

    All text since boot is kept, up to a megabyte. Times are seconds.

    Example:
        >>> import kos
        >>> print(kos.default_machine().console.run("alloc 99"))
        '99': expected an order, 0 to 10
    """

    KEEP = 1 << 20

    def __init__(self) -> None:
        self._fd = -1
        self._pacer: Pacer | None = None
        self._changed = threading.Condition()
        self._raw = bytearray()
        self._dropped = 0
        self._echo: Callable[[bytes], None] | None = None
        self._command_lock = threading.Lock()
        self._booted_at = 0
        self._prompted = False
        self._loads = 0
        self.failure: Callable[[], KOSError | None] = lambda: None

    def attach(self, fd: int, pacer: "Pacer | None" = None) -> None:
        """Called by the machine: type into this descriptor, or with the pacer."""
        self._fd = fd
        self._pacer = pacer

    def feed(self, data: bytes) -> None:
        """Called by the machine's thread: the guest printed this."""
        echo = self._echo
        with self._changed:
            self._raw += data
            if len(self._raw) > self.KEEP:
                excess = len(self._raw) - self.KEEP
                del self._raw[:excess]
                self._dropped += excess
            self._changed.notify_all()
        if echo is not None:
            echo(data)

    def restart(self) -> None:
        """Called by the machine before it boots anew: the next prompt is that of another kernel."""
        self._booted_at = self.position
        self._prompted = False

    def save(self) -> tuple[bytes, int, int, bool]:
        """Called by the machine: what `load` needs to make the console what it is now."""
        with self._changed:
            return bytes(self._raw), self._dropped, self._booted_at, self._prompted

    def load(self, saved: tuple[bytes, int, int, bool]) -> None:
        """Called by the machine when it goes back to an earlier state: so does the text.

        Who waits for what was to come gets an error.
        """
        with self._changed:
            self._loads += 1
            raw, self._dropped, self._booted_at, self._prompted = saved
            self._raw[:] = raw
            self._changed.notify_all()

    def wake(self) -> None:
        """Called at the machine's end, so that nobody waits for text that cannot come."""
        with self._changed:
            self._changed.notify_all()

    @property
    def text(self) -> str:
        """All that was printed, without terminal escapes and carriage returns."""
        return self._clean(bytes(self._raw))

    @staticmethod
    def _clean(raw: bytes) -> str:
        return _ESCAPE.sub("", raw.decode(errors="replace")).replace("\r", "")

    def tail(self, lines: int = 20) -> str:
        """The last lines of `text`."""
        return "\n".join(self.text.splitlines()[-lines:])

    @property
    def position(self) -> int:
        """Bytes printed so far: a mark for `wait_for`."""
        with self._changed:
            return self._dropped + len(self._raw)

    def send(self, text: str | bytes) -> None:
        """Type: bytes go to the kernel as they are."""
        data = text.encode() if isinstance(text, str) else text
        until = time.monotonic() + 10.0
        while data:
            self._check()
            try:
                data = data[self._write(data) :]
            except BlockingIOError:
                if time.monotonic() > until:
                    raise CallTimeout("typing on the console", 10.0, self.tail()) from None
                self._wait_writable(max(0.0, until - time.monotonic()))
            except OSError:
                # The line is closed: the machine's thread is about to say why.
                with self._changed:
                    if not self._changed.wait_for(lambda: self.failure() is not None, timeout=10.0):
                        raise

    def _write(self, data: bytes) -> int:
        return self._pacer.write(data) if self._pacer else os.write(self._fd, data)

    def _wait_writable(self, seconds: float) -> None:
        if self._pacer:
            self._pacer.wait(seconds)
        else:
            select.select([], [self._fd], [], seconds)

    def _check(self) -> None:
        """Raise what ended the machine; its descriptor may be somebody else's by now."""
        error = self.failure()
        if error is not None:
            raise error.with_traceback(None)

    def wait_for(self, pattern: str, *, start: int | None = None, timeout: float = 10.0) -> str:
        """Wait until text that was printed since `start` matches a regular expression.

        Args:
            pattern: Searched for in the cleaned text, as by `re.search` with MULTILINE.
            start: A `position`; the beginning when left out.
            timeout: Seconds.

        Returns:
            The text from `start` to the end of the match.

        Raises:
            CallTimeout: It did not come in time.
            HostError: The machine went back to an earlier state meanwhile.
            KernelPanic, MachineExited: It can no longer come.
        """
        until = time.monotonic() + timeout
        regex = re.compile(pattern, re.MULTILINE)
        with self._changed:
            loads = self._loads
            while True:
                if self._loads != loads:
                    raise HostError(f"the machine went back before the text {pattern!r} came")
                raw = bytes(self._raw[max(0, (start or 0) - self._dropped) :])
                text = self._clean(raw)
                found = regex.search(text)
                if found:
                    return text[: found.end()]
                self._check()
                if not self._changed.wait(until - time.monotonic()) and time.monotonic() > until:
                    raise CallTimeout(f"the text {pattern!r}", timeout, self.tail())

    def run(self, command: str, *, timeout: float = 10.0) -> str:
        """Type a command line and return what it printed.

        Args:
            command: One line, without its end.
            timeout: Seconds that it may take.

        Raises:
            ValueError: It has a control character, such as a line end.
            CallTimeout: The prompt did not come back in time.
        """
        if any(ord(c) < 32 or ord(c) > 126 for c in command) or len(command) > 255:
            raise ValueError(f"a command is one line of at most 255 plain characters: {command!r}")
        with self._command_lock:
            self._wait_prompt(timeout)
            start = self.position
            self.send(command + "\r")
            text = self.wait_for(
                r"\n(.*\n)*?" + re.escape(PROMPT) + r"\Z", start=start, timeout=timeout
            )
        return text.split("\n", 1)[1].removesuffix(PROMPT).rstrip("\n")

    def _wait_prompt(self, timeout: float) -> None:
        """What is typed before the first prompt would be taken for what the boot prints."""
        if not self._prompted:
            self.wait_for(f"^{re.escape(PROMPT)}", start=self._booted_at, timeout=timeout)
            self._prompted = True

    def interact(self) -> None:
        """Give the terminal to the console until Ctrl-] is typed or the machine ends."""
        fd = sys.stdin.fileno()
        saved = termios.tcgetattr(fd)
        self._echo = self._to_terminal
        try:
            tty.setraw(fd, termios.TCSANOW)  # what was typed ahead is kept
            self.send("\r")  # only now: the prompt that answers it is to be seen
            self._relay(fd)
        finally:
            self._echo = None
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)
            print()

    @staticmethod
    def _to_terminal(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]

    def _relay(self, fd: int) -> None:
        while self.failure() is None:
            ready, _, _ = select.select([fd], [], [], 0.25)
            typed = os.read(fd, 1024) if ready else None
            if typed == b"" or (typed and _LEAVE in typed):
                return
            if typed:
                self.send(typed)
