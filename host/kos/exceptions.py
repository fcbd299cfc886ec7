"""Every error that KOS raises.

The family has two branches under `KOSError`. The memory errors (`MemoryError` and what derives from
it) say that the kernel refused something. The machine errors say that the machine under the kernel
failed, and each class names whose fault it was: `KernelPanic` the kernel's, `HostError` the host's.

Each error prints as a few lines: what happened, then what is known about it, indented. Each can be
copied and pickled, so it crosses process boundaries whole.
"""

import builtins
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONSOLE_TAIL_LINES = 20


def _restore(cls: type["KOSError"], args: tuple[Any, ...], state: dict[str, Any]) -> "KOSError":
    """Rebuild an error without its constructor, whose arguments are keywords."""
    # Not cls.__new__: for the memory errors that finds builtins.MemoryError's, which refuses them.
    error = Exception.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _block(title: str, text: str, *, last_lines: int | None = None) -> list[str]:
    """Lay out a multi-line text under a title; nothing when there is no text."""
    lines = text.rstrip().splitlines()
    if not lines:
        return []
    if last_lines is not None:
        lines = lines[-last_lines:]
    return [f"  {title}:", *(f"    {line}" for line in lines)]


def _argv_line(argv: Sequence[str]) -> list[str]:
    return [f"  argv: {shlex.join(argv)}"] if argv else []


class KOSError(Exception):
    """The root of all errors that KOS raises.

    Args:
        message: What happened, in one line.
        errno: The kernel's error number, negative and numbered as on Linux; None when the error
            did not come from a kernel call.

    Example:
        >>> error = KOSError("no frame left", errno=-12)
        >>> error.errno
        -12
        >>> print(error)
        no frame left (errno -12)
    """

    def __init__(self, message: str = "", *, errno: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.errno = errno

    def _headline(self) -> str:
        return self.message if self.errno is None else f"{self.message} (errno {self.errno})"

    def _details(self) -> list[str]:
        """The lines under the first; a class with more to say overrides this."""
        return []

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._details()])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, dict(self.__dict__))


class MemoryError(KOSError, builtins.MemoryError):
    """A memory management call failed. It is also Python's own `MemoryError`.

    Args:
        message: What happened, in one line.
        errno: The kernel's error number, negative.

    Example:
        >>> import builtins
        >>> try:
        ...     raise MemoryError("address is no block", errno=-22)
        ... except builtins.MemoryError as error:
        ...     print(error)
        address is no block (errno -22)
    """


class AllocationError(MemoryError):
    """An allocation failed.

    Example:
        >>> print(AllocationError("order 10: no free block", errno=-12))
        order 10: no free block (errno -12)
    """


class MappingError(MemoryError):
    """A mapping could not be made, changed or removed.

    Example:
        >>> issubclass(MappingError, MemoryError)
        True
    """


class ProtectionError(MemoryError):
    """The protection of a mapping could not be changed.

    Example:
        >>> ProtectionError("write and execute together", errno=-13).errno
        -13
    """


class CallError(KOSError):
    """The kernel refused a call.

    Args:
        call: Name of the call.
        errno: The kernel's error number, negative.
        message: What the kernel objected to; made from the name when left out.
        results: What the call's results say about it, such as the index of the bad element.

    Example:
        >>> print(CallError("buddy_free", errno=-22))
        the kernel refused buddy_free (errno -22)
    """

    def __init__(
        self, call: str, *, errno: int, message: str = "", results: tuple[int, ...] = ()
    ) -> None:
        super().__init__(message or f"the kernel refused {call}", errno=errno)
        self.call = call
        self.results = results


class ProtocolError(KOSError):
    """The two ends of a line to the machine disagree about what is said on it.

    Example:
        >>> print(ProtocolError("frame 7: checksum is wrong"))
        frame 7: checksum is wrong
    """


class MonitorError(KOSError):
    """QEMU understood a monitor command and refused it.

    Args:
        command: Name of the QMP command.
        arguments: Its arguments.
        reason: QEMU's own description.
        error_class: QEMU's error class, such as `GenericError`.

    Example:
        >>> print(MonitorError("cont", {}, "no reset since the last shutdown", "GenericError"))
        QEMU refused cont: no reset since the last shutdown
    """

    def __init__(
        self, command: str, arguments: Mapping[str, Any], reason: str, error_class: str
    ) -> None:
        super().__init__(f"QEMU refused {command}: {reason}")
        self.command = command
        self.arguments = dict(arguments)
        self.reason = reason
        self.error_class = error_class

    def _details(self) -> list[str]:
        return [f"  arguments: {self.arguments}"] if self.arguments else []


class BootError(KOSError):
    """The machine did not come up.

    Args:
        message: What happened, in one line.
        argv: The command that was started.
        exit_status: Exit status of QEMU, negative for a signal; None if it did not exit.
        stderr: What QEMU printed.
        console: What the guest printed before.

    Example:
        >>> print(
        ...     BootError(
        ...         "QEMU refused to start",
        ...         argv=["qemu", "-M", "a b"],
        ...         exit_status=1,
        ...         stderr="qemu: unsupported machine type",
        ...     )
        ... )
        QEMU refused to start
          argv: qemu -M 'a b'
          exit status: 1
          stderr:
            qemu: unsupported machine type
    """

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str] = (),
        exit_status: int | None = None,
        stderr: str = "",
        console: str = "",
    ) -> None:
        super().__init__(message)
        self.argv = list(argv)
        self.exit_status = exit_status
        self.stderr = stderr
        self.console = console

    def _details(self) -> list[str]:
        status = [] if self.exit_status is None else [f"  exit status: {self.exit_status}"]
        return [
            *_argv_line(self.argv),
            *status,
            *_block("stderr", self.stderr),
            *_block("console", self.console, last_lines=CONSOLE_TAIL_LINES),
        ]


class KernelPanic(KOSError):
    """The kernel stopped itself.

    Args:
        reason: The kernel's own words.
        registers: Register names and values at the panic.
        trace: The call chain, innermost first, one line for each frame.
        text: The whole panic message as the console showed it.
        dump: File with the memory dump, if one was written.

    Example:
        >>> print(
        ...     KernelPanic(
        ...         "buddy: double free",
        ...         registers={"rip": 0xFFFFFFFF80001234},
        ...         trace=["buddy_free", "rpc_dispatch"],
        ...     )
        ... )
        kernel panic: buddy: double free
          registers:
            rip 0xffffffff80001234
          trace:
            buddy_free
            rpc_dispatch
    """

    def __init__(
        self,
        reason: str,
        *,
        registers: Mapping[str, int] | None = None,
        trace: Sequence[str] = (),
        text: str = "",
        dump: Path | None = None,
    ) -> None:
        super().__init__(f"kernel panic: {reason}")
        self.reason = reason
        self.registers = dict(registers or {})
        self.trace = list(trace)
        self.text = text
        self.dump = dump

    def _details(self) -> list[str]:
        registers = "\n".join(f"{name} {value:#018x}" for name, value in self.registers.items())
        dump = [] if self.dump is None else [f"  dump: {self.dump}"]
        return [
            *_block("registers", registers),
            *_block("trace", "\n".join(self.trace)),
            *_block("console", self.text, last_lines=CONSOLE_TAIL_LINES),
            *dump,
        ]


class CallTimeout(KOSError):
    """A call had no answer before its deadline, and the machine was alive all that time.

    Args:
        call: Name of the call.
        deadline: How long it was waited for, in seconds.
        console: What the guest printed last.

    Example:
        >>> print(CallTimeout("buddy_alloc", 2.5, console="kos> "))
        no answer to buddy_alloc within 2.5 s
          console:
            kos>
    """

    def __init__(self, call: str, deadline: float, console: str = "") -> None:
        super().__init__(f"no answer to {call} within {deadline:g} s")
        self.call = call
        self.deadline = deadline
        self.console = console

    def _details(self) -> list[str]:
        return _block("console", self.console, last_lines=CONSOLE_TAIL_LINES)


class MachineExited(KOSError):
    """QEMU is gone, so there is no machine to ask.

    Args:
        exit_status: Exit status of QEMU; None when a signal ended it.
        signal: Number of the signal that ended it, or None.
        argv: The command that had been started.
        stderr: What QEMU printed.
        console: What the guest printed last.

    Example:
        >>> print(MachineExited(signal=9, stderr="qemu: bad device"))
        the machine has exited: QEMU was killed by signal 9
          stderr:
            qemu: bad device
    """

    def __init__(
        self,
        *,
        exit_status: int | None = None,
        signal: int | None = None,
        argv: Sequence[str] = (),
        stderr: str = "",
        console: str = "",
    ) -> None:
        how = f"QEMU exited with status {exit_status}"
        if signal is not None:
            how = f"QEMU was killed by signal {signal}"
        super().__init__(f"the machine has exited: {how}")
        self.exit_status = exit_status
        self.signal = signal
        self.argv = list(argv)
        self.stderr = stderr
        self.console = console

    def _details(self) -> list[str]:
        return [
            *_argv_line(self.argv),
            *_block("stderr", self.stderr),
            *_block("console", self.console, last_lines=CONSOLE_TAIL_LINES),
        ]


class HostError(KOSError):
    """The host lacks something that KOS needs.

    Args:
        message: What is missing, in one line.
        mend: The command that mends it; empty when no command can.

    Example:
        >>> print(HostError("make was not found", mend="apt-get install make"))
        make was not found
          mend it with: apt-get install make
    """

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.mend = mend

    def _details(self) -> list[str]:
        return [f"  mend it with: {self.mend}"] if self.mend else []


class ReplayError(KOSError):
    """A recorded run, played again, did not do what it did when it was recorded.

    Args:
        message: What differed, in one line.
        stderr: What QEMU printed.

    Example:
        >>> print(ReplayError("RAM differs at the end", stderr="qemu: bad event"))
        RAM differs at the end
          stderr:
            qemu: bad event
    """

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr

    def _details(self) -> list[str]:
        return _block("stderr", self.stderr)
