"""Looking into a kernel from outside: its memory by the names of its source, checked and saved.

Nothing here calls the kernel. All is read from guest RAM, which QEMU and this process share, and
from QEMU's monitor, whether the guest runs, is paused or has panicked.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kos.inspect.auditor import Audit, Violation, audit
    from kos.inspect.dump import Dump
    from kos.inspect.view import View

__all__ = ["Audit", "Dump", "View", "Violation", "audit"]

_HOMES = {
    "Dump": "dump",
    "View": "view",
    "Audit": "auditor",
    "Violation": "auditor",
    "audit": "auditor",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: drgn and numpy are not needed to boot."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
