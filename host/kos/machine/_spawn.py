"""Child processes that cannot outlive this process, whatever ends it.

The kernel kills the child when its parent dies (PR_SET_PDEATHSIG), with two catches:

* It is the death of the forking *thread* that counts. So one daemon thread, which lives as long as
  the process, does all the forking; a machine survives the thread that asked for it.
* A parent that dies before the child has made its request goes unnoticed. So the child then
  compares its parent's pid with the expected one: death before the request shows there, death
  after it kills.

`setpriv` makes the request and a one-line `sh` the comparison, before QEMU takes their place by
exec. Doing the same in a `preexec_fn` would run Python between fork and exec, which deadlocks in a
process with threads.
"""

import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from kos.exceptions import HostError

_ONLY_BELOW_PARENT = '[ "$PPID" = "$0" ] || exit 1; exec "$@"'
_OUTPUT_LIMIT = 64 * 1024

_Child = tuple[subprocess.Popen[bytes], int]
_Request = tuple[Callable[[], _Child], "SimpleQueue[_Child | BaseException]"]


class Process:
    """A running child process, with its exit observable through a pidfd.

    Args:
        argv: Command and arguments; the command is a path or is looked up in PATH.
        pass_fds: Descriptors that the child inherits under the same numbers; it inherits no other.
    """

    def __init__(self, argv: Sequence[str], pass_fds: Sequence[int]) -> None:
        self.argv = list(argv)
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise HostError("setpriv was not found", mend="apt-get install util-linux")
        guard = [setpriv, "--pdeathsig", "KILL", "sh", "-c", _ONLY_BELOW_PARENT, str(os.getpid())]
        self._lock = threading.Lock()
        self._output_fd = os.memfd_create("kos-qemu-output")
        self._output = ""
        try:
            self._popen, self._pidfd = _spawner().run(
                lambda: _fork(guard + self.argv, pass_fds, self._output_fd)
            )
        except BaseException:
            os.close(self._output_fd)
            raise

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._popen.pid

    @property
    def pidfd(self) -> int:
        """Descriptor that becomes readable when the child exits; -1 once closed."""
        return self._pidfd

    def wait(self, timeout: float | None) -> int | None:
        """Wait for the exit and reap the child.

        Args:
            timeout: Seconds to wait at most; None for no limit, 0 to look only.

        Returns:
            The exit status, negative for a signal, or None if it is still running.
        """
        with self._lock:
            if self._popen.returncode is not None:
                return self._popen.returncode
            # A descriptor of its own: close() in another thread must not pull it away.
            pidfd = os.dup(self._pidfd)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            exited = poll.poll(None if timeout is None else max(0, int(timeout * 1000)))
        finally:
            os.close(pidfd)
        return self._popen.wait() if exited else None

    def kill(self) -> None:
        """Kill the child unless it has exited."""
        with self._lock:
            if self._popen.returncode is None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def output(self) -> str:
        """What the child wrote to stdout and stderr, the last 64 KiB of it."""
        with self._lock:
            return self._output if self._output_fd < 0 else self._read_output()

    def _read_output(self) -> str:
        size = os.fstat(self._output_fd).st_size
        tail = os.pread(self._output_fd, _OUTPUT_LIMIT, max(0, size - _OUTPUT_LIMIT))
        return tail.decode(errors="replace")

    def close(self) -> None:
        """Give back the descriptors; the output stays readable. Idempotent."""
        with self._lock:
            if self._output_fd < 0:
                return
            self._output = self._read_output()
            os.close(self._output_fd)
            os.close(self._pidfd)
            self._output_fd = self._pidfd = -1


def _fork(command: Sequence[str], pass_fds: Sequence[int], output_fd: int) -> _Child:
    popen = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        pass_fds=pass_fds,
        # Out of reach of the terminal's Ctrl-C, which is meant for the Python program.
        start_new_session=True,
    )
    return popen, os.pidfd_open(popen.pid)


class _Spawner:
    """The one thread that forks; it lives as long as the process."""

    def __init__(self) -> None:
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        threading.Thread(target=self._serve, name="kos-spawn", daemon=True).start()

    def _serve(self) -> None:
        while True:
            job, reply = self._requests.get()
            try:
                reply.put(job())
            except BaseException as error:  # noqa: BLE001 - handed to who waits for it
                reply.put(error)
            # Nothing of the last job may live on until the next one comes.
            del job, reply

    def run(self, job: Callable[[], _Child]) -> _Child:
        """Run a job on the thread and hand back its result, or raise what it raised."""
        reply: SimpleQueue[_Child | BaseException] = SimpleQueue()
        self._requests.put((job, reply))
        result = reply.get()
        if isinstance(result, BaseException):
            raise result
        return result


class _State:
    """What a forked child must have anew: threads and held locks do not survive a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spawner: _Spawner | None = None


_state = _State()
os.register_at_fork(after_in_child=_state.__init__)  # type: ignore[misc]


def _spawner() -> _Spawner:
    with _state.lock:
        if _state.spawner is None:
            _state.spawner = _Spawner()
        return _state.spawner
