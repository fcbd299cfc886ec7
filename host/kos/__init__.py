"""KOS: a small x86-64 kernel with real memory management, and Python to drive it.

>>> import kos
>>> with kos.boot(memory="64M") as vm:
...     addr = vm.client.buddy_alloc(2)
...     vm.client.page_info(addr).order
2
"""

from kos._default import boot, default_machine, use
from kos.machine import Machine

__all__ = ["Machine", "boot", "default_machine", "use"]
