"""Booting, and the machine that the documented API uses when it is given none."""

import atexit
import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kos.exceptions import KOSError
from kos.machine import Machine
from kos.settings import resolve

_lock = threading.RLock()
_default: Machine | None = None
_chosen: contextvars.ContextVar[Machine | None] = contextvars.ContextVar(
    "kos_machine", default=None
)


def boot(
    memory: int | str = "256M",
    cpus: int | None = None,
    machine: Any = "microvm",
    accel: Any = "auto",
    deterministic: bool = False,
    **options: Any,
) -> Machine:
    """Boot KOS in a QEMU of its own and wait until it answers.

    Args:
        memory: RAM: bytes, or text with K, M or G; 16M to 64G.
        cpus: Number of CPUs, 1 to 8; when left out 2, or 1 for a machine that is recorded.
        machine: `microvm`, which starts fastest, or `q35`.
        accel: `tcg` (software emulation), `kvm`, or `auto`: KVM where it works.
        deterministic: Count instructions instead of time, so that equal programs give equal counts.
        options: `kernel` (path of another image), `append` (kernel command line), `carrier`
            (`rings` or `frames`), `record` (a file in which the run is kept, for `replay`),
            `timeout` and `boot_timeout` (seconds).

    Returns:
        The machine, which is a context manager: leaving its `with` ends it.

    Raises:
        ValueError: An argument is out of range.
        HostError: QEMU or the kernel image is missing.
        BootError: The kernel did not come up.

    Example:
        >>> import kos
        >>> with kos.boot(memory="32M", cpus=1) as vm:
        ...     vm.client.machine_info().cpus
        1
    """
    return Machine(
        memory=memory,
        cpus=cpus,
        machine=machine,
        accel=accel,
        deterministic=deterministic,
        **options,
    )


def default_machine() -> Machine:
    """The machine that the documented API uses: chosen by `use`, else one booted on first use.

    The default machine lives until the program ends. What it is like comes from `kos.settings`:
    `KOS_MEMORY`, `KOS_CPUS` and so on, and `[tool.kos]` in pyproject.toml.

    Example:
        >>> import kos
        >>> kos.default_machine() is kos.default_machine()
        True
    """
    global _default
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    with _lock:
        if _default is None or _is_over(_default):
            _default = boot(**resolve())
        return _default


def _is_over(machine: Machine) -> bool:
    """Closed, or booted by the parent of a forked process."""
    try:
        machine.check_owner()
    except KOSError:
        return True
    return machine.closed


def current_default() -> Machine | None:
    """The machine that `default_machine` would give without booting one, or None."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    with _lock:
        return None if _default is None or _is_over(_default) else _default


def boot_default(memory: int) -> Machine:
    """Boot the default machine with that many bytes of RAM; there must be none yet."""
    global _default
    with _lock:
        _default = boot(**resolve(memory=memory))
        return _default


@contextmanager
def use(machine: Machine) -> Iterator[Machine]:
    """Make another machine the default one inside a `with`.

    Args:
        machine: A running machine. It stays open afterwards.

    Example:
        >>> import kos
        >>> from kos.kernel.mm.mm_wrapper import buddy_alloc
        >>> with kos.boot(memory="32M") as vm, kos.use(vm):
        ...     buddy_alloc(0) < 32 << 20
        True
    """
    token = _chosen.set(machine)
    try:
        yield machine
    finally:
        _chosen.reset(token)


@atexit.register
def _close_default() -> None:
    if _default is not None and not _is_over(_default):
        _default.close()
