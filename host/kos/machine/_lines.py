"""The two serial lines between this process and QEMU.

They are socket pairs, whose other ends QEMU inherits. A recorded machine has pipes instead: the
guest's bytes leave QEMU one by one, a socket refuses after a few hundred of them when its reader is
late, and QEMU then sends again later, at an instant that is not recorded. A pipe takes a million.
QEMU opens pipes by name, so they are in a folder of their own, which goes as soon as it has.
"""

import contextlib
import fcntl
import os
import socket
from typing import Protocol

_NAMES = ("console", "wire")
_PIPE_BYTES = 1 << 20


class Pipe:
    """A line of two pipes: what the guest sends is read here, what it gets goes into `input_fd`.

    Args:
        path: Name of both pipes, without `.in` and `.out`, which QEMU adds.
    """

    def __init__(self, path: str) -> None:
        for end in ("in", "out"):
            os.mkfifo(f"{path}.{end}")
        # For reading and writing, so that opening one does not wait for QEMU.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = os.open(f"{path}.out", flags)
        self.input_fd = os.open(f"{path}.in", flags)
        with contextlib.suppress(PermissionError):  # the user has many large pipes already
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def fileno(self) -> int:
        """The descriptor to read from; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close both pipes. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self.input_fd)
            self._fd = self.input_fd = -1


class Lines(Protocol):
    """Both lines, while QEMU is being started.

    Attributes:
        ours: This process's ends of COM1 and COM2, which do not block.
        backends: QEMU's ends, as `-chardev` takes them.
        fds: Descriptors that QEMU inherits.
    """

    ours: list[socket.socket | Pipe]
    backends: tuple[str, str]
    fds: list[int]

    def started(self) -> None:
        """QEMU was spawned, or was not: it has inherited what it will."""

    def opened(self) -> None:
        """QEMU runs, so it has opened what it will."""

    def close(self) -> None:
        """Give back this process's ends. Idempotent."""


class Sockets:
    """Lines of socket pairs."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in _NAMES]
        self.ours: list[socket.socket | Pipe] = []
        for ours, _ in pairs:
            ours.setblocking(False)
            self.ours.append(ours)
        self._theirs = [theirs for _, theirs in pairs]
        self.fds = [theirs.fileno() for theirs in self._theirs]
        self.backends = (f"socket,fd={self.fds[0]}", f"socket,fd={self.fds[1]}")

    def started(self) -> None:
        """See `Lines`."""
        for theirs in self._theirs:
            theirs.close()

    def opened(self) -> None:
        """See `Lines`."""

    def close(self) -> None:
        """See `Lines`."""
        _close(self.ours)


class Pipes:
    """Lines of named pipes."""

    def __init__(self) -> None:
        import tempfile

        self._folder = tempfile.TemporaryDirectory(prefix="kos-", ignore_cleanup_errors=True)
        paths = [f"{self._folder.name}/{name}" for name in _NAMES]
        self.ours: list[socket.socket | Pipe] = [Pipe(path) for path in paths]
        self.fds: list[int] = []
        # A comma ends an option's value, two are one comma in it.
        console, wire = (path.replace(",", ",,") for path in paths)
        self.backends = (f"pipe,path={console}", f"pipe,path={wire}")

    def started(self) -> None:
        """See `Lines`."""

    def opened(self) -> None:
        """See `Lines`."""
        self._folder.cleanup()

    def close(self) -> None:
        """See `Lines`."""
        _close(self.ours)
        self._folder.cleanup()


def _close(lines: list[socket.socket | Pipe]) -> None:
    for line in lines:
        line.close()
