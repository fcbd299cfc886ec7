"""The auditor: from raw RAM alone it works out again what the kernel believes of its memory.

It shares no code with the kernel and asks it nothing. Every structure of `kernel/mm` is read at its
address and compared with what the others say; every frame of RAM is given to its owner. The sum is
the RAM, or what is broken is named.
"""

import contextlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from elftools.elf.elffile import ELFFile

from kos.inspect.auditor.clients import check_clients
from kos.inspect.auditor.kernel import Account, Frames, Kernel, Target
from kos.inspect.auditor.pages import check_pages
from kos.inspect.auditor.report import Audit, Findings, Unsound, Violation
from kos.inspect.auditor.tables import check_kernel_tables
from kos.inspect.auditor.zones import check_memmap, check_zones
from kos.inspect.layouts import dtype_of

if TYPE_CHECKING:
    from kos.inspect.dump import Dump
    from kos.machine._inside import Inside

__all__ = ["Audit", "Violation", "audit"]

_BOOT_MARK = 0x4B4F5320424F4F54


def audit(target: "Inside | Dump") -> Audit:
    """Check a kernel's memory management from outside.

    A machine that runs is paused meanwhile, when no call is under way on the wire. While one is on
    a ring, a structure may be in the middle of a change; then that is told first, as `quiet`.

    Args:
        target: A machine, also one that has panicked, or a dump.

    Returns:
        What was found; its `frames` say who has how many.

    Example:
        >>> import kos
        >>> from kos.inspect import audit
        >>> with kos.boot(memory="64M") as vm:
        ...     addr = vm.client.buddy_alloc(3)
        ...     result = audit(vm)
        >>> result.sound, result.frames["client 3 (host)"], sum(result.frames.values())
        (True, 8, 16286)
    """
    pause = getattr(target, "paused", contextlib.nullcontext)
    wire = getattr(target, "wire", None)
    with wire.idle() if wire is not None else contextlib.nullcontext(), pause():
        return _audit(target)


def _audit(target: Target) -> Audit:
    found = Findings()
    result = Audit(target.memory, violations=found.violations)
    try:
        kernel = Kernel(target, found)
        account = Account(kernel)
        for check in (_check_quiet, _check_code, check_memmap):
            check(kernel)
    except (Unsound, ValueError) as error:
        if not found.violations:
            found.broken("image", f"the kernel's structures cannot be read: {error}")
        return result
    free: list[Frames] = []
    parts: tuple[Callable[[], object], ...] = (
        lambda: free.append(check_zones(kernel, account)),
        lambda: check_kernel_tables(kernel, account),
        lambda: check_pages(kernel, free[0]),
        lambda: check_clients(kernel, account),
        lambda: _check_account(kernel, account),
    )
    for part in parts:
        try:
            part()
        except Unsound:
            break
        except ValueError as error:
            found.broken("pointer", str(error))
            break
    result.frames = account.totals()
    return result


def _check_quiet(k: Kernel) -> None:
    """No lock is held: nothing is in the middle of a change.

    A ring is served under its lock, and the answer is there before that is released. So a ring's
    lock tells something only while its CPU sleeps; that a call has no answer yet, its header tells.
    """
    locks = {f"zones[{i}].lock": zone["lock"] for i, zone in enumerate(k.zones)}
    for i, cpu in enumerate(k.cpus):
        for m, magazine in enumerate(cpu["pcp"]["magazine"]):
            locks[f"cpus[{i}].pcp.magazine[{m}].lock"] = magazine["lock"]
    for i, client in enumerate(k.clients):
        locks[f"clients[{i}].owner.lock"] = client["owner"]["lock"]
        locks[f"clients[{i}].owner.aspace.lock"] = client["owner"]["aspace"]["lock"]
    for i, ring in enumerate(k.rings):
        if k.cpus[i % max(k.cpu_count, 1) % len(k.cpus)]["asleep"] or ring["lock"]["locked"] > 1:
            locks[f"rings[{i}].lock"] = ring["lock"]
        if ring["client"] and not k.number("panicking", 4):
            _check_answered(k, i)
    locks["frame_maps.lock"] = k.pool["lock"]
    for name, lock in locks.items():
        if lock["locked"]:
            k.found.broken("quiet", f"{name} is {int(lock['locked'])}: it is held")


def _check_answered(k: Kernel, index: int) -> None:
    """All calls on a ring have been answered."""
    paddr = k.direct_paddr(int(k.rings[index]["header"]), f"rings[{index}].header")
    header = np.frombuffer(k.memory.physical(paddr, 256), dtype_of(k.abi, "ring_header"))[0]
    waiting = (int(header["sq_tail"]) - int(k.rings[index]["cq_tail"])) & 0xFFFFFFFF
    if waiting:
        k.found.broken("quiet", f"rings[{index}] has {waiting} calls without an answer")


@lru_cache(maxsize=4)
def _constants(kernel: Path, mtime_ns: int) -> list[tuple[int, bytes]]:
    """What the kernel may not write to, as the linker made it: address and bytes."""
    with kernel.open("rb") as file:
        return [
            (int(s["p_vaddr"]), s.data())
            for s in ELFFile(file).iter_segments("PT_LOAD")
            if not s["p_flags"] & 2
        ]


def _check_code(k: Kernel) -> None:
    """Code and constants are those of the file."""
    kernel = k.target.kernel
    for address, expected in _constants(kernel, kernel.stat().st_mtime_ns):
        here = k.image(address, len(expected))
        if here == expected:
            continue
        wrong = np.flatnonzero(np.frombuffer(here, np.uint8) != np.frombuffer(expected, np.uint8))
        at = int(wrong[0])
        k.found.broken(
            "image.constants",
            f"the byte at {address + at:#x} is {here[at]:#x}, in {kernel.name} {expected[at]:#x}",
        )


def _check_account(k: Kernel, account: Account) -> None:
    """Nothing is left over but the page that tells one boot from the next."""
    unknown = account.unknown()
    marks = [f for f in unknown.tolist() if int(k.words(f * 4096, 1)[0]) == _BOOT_MARK]
    account.give("the kernel: mark of this boot", np.array(marks[:1], np.int64))
    unknown = account.unknown()
    if len(unknown):
        frame = int(unknown[0])
        k.found.broken(
            "account.unknown", f"{len(unknown)} frames belong to nobody, the first is {frame:#x}"
        )
