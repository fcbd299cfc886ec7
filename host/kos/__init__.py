"""KOS: a small x86-64 kernel with real memory management, and Python to drive it.

>>> import kos
>>> with kos.boot(memory="64M") as vm:
...     addr = vm.client.buddy_alloc(2)
...     vm.client.page_info(addr).order
2
"""

from typing import TYPE_CHECKING, Any

from kos._default import boot, default_machine, use
from kos.machine import Machine

if TYPE_CHECKING:
    from kos._replay import Replay, replay

__all__ = ["Machine", "Replay", "boot", "default_machine", "replay", "use"]


def __getattr__(name: str) -> Any:
    """Import what plays recordings when it is asked for: booting does not need it."""
    if name not in ("Replay", "replay"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kos import _replay

    return getattr(_replay, name)
