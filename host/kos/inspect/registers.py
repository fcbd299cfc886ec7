"""The registers of all CPUs, as QEMU's monitor prints them.

QEMU is asked, not the guest, and the guest goes on meanwhile. For a CPU that is halted or paused
the values are exact. A busy one's are those with which it last left translated code: its stack is
right or almost right, its instruction pointer may lag behind.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kos.machine import Monitor

_VALUE = re.compile(r"\b([A-Z][A-Z0-9]{1,3}) ?=([0-9a-f]{8,16})\b")
_SEGMENT = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16})", re.MULTILINE)
_NARROW = {"eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "eip", "efl"}
_CPU = re.compile(r"^CPU#(\d+)\s*$", re.MULTILINE)

Registers = dict[str, int]


def parse(text: str) -> list[Registers]:
    r"""Read what `info registers -a` prints.

    Args:
        text: The monitor's output.

    Returns:
        For each CPU its registers by their usual small names; `gs_base` and `fs_base` beside the
        selectors, `halted` as 0 or 1.

    Raises:
        ValueError: That is not what the monitor prints.

    Example:
        >>> parse("CPU#0\nRIP=ffffffff80202be7 RFL=00000206 CPL=0 HLT=1")[0]["halted"]
        1
    """
    parts = _CPU.split(text)
    found = [_one(body) for body in parts[2::2]]
    if not found or any("rip" not in registers for registers in found):
        raise ValueError(f"no registers in {text[:200]!r}")
    return found


def _one(text: str) -> Registers:
    registers = {name.lower(): int(value, 16) for name, value in _VALUE.findall(text)}
    for name in _NARROW & set(registers):  # before the kernel turns on 64-bit mode
        registers["r" + name[1:]] = registers.pop(name)
    registers["rflags"] = registers.pop("rfl", 0)
    for name, selector, base in _SEGMENT.findall(text):
        registers[name.lower()] = int(selector, 16)
        registers[f"{name.lower()}_base"] = int(base, 16)
    halted = re.search(r"\bHLT=(\d)", text)
    registers["halted"] = int(halted[1]) if halted else 0
    return registers


def read(monitor: "Monitor") -> list[Registers]:
    """The registers of all CPUs of a running or paused machine."""
    return parse(monitor.human("info registers -a"))
