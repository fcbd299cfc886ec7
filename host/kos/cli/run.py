"""`kos run`: the documented API at work on a machine that was booted for it, then the console."""

import argparse
import sys
import time

import kos
from kos.cli import boot_options
from kos.cli.console import converse
from kos.inspect import audit
from kos.machine import Machine

SHOW = """
from kos.kernel.mm.mm_wrapper import buddy_alloc, buddy_free, buddy_stats
from kos.memory.manager import MemoryManager
from kos.memory.page import PageFrame, PageFrameAllocator

manager = MemoryManager()
manager.total_memory, manager.free_memory

addr = buddy_alloc(2)                       # 4 pages, 16 KiB
hex(addr)
buddy_free(addr, 1)                         # not the order it has: refused
buddy_free(addr, 2)

frame = PageFrameAllocator().alloc_page()
frame, frame.ref_count, frame.flags
frame.map_virtual(0x400000)                 # a real entry in a real page table
hex(frame.virtual_addr)
frame.unmap_virtual()
PageFrameAllocator().free_page(frame)

PageFrame(0x5000)                           # exactly that frame
buddy_stats()["free_blocks"]

int(vm.view["zones"][1].free_pages)         # read out of its RAM, by its name in C
[frame.name for frame in vm.view.stack(vm.cpus - 1)]
"""


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    start = time.perf_counter()
    with kos.boot(**boot_options(args)) as vm:
        print(f"booted in {1000 * (time.perf_counter() - start):.0f} ms: {vm!r}")
        with kos.use(vm):
            show(vm)
        sys.stdout.flush()
        if sys.stdin.isatty() and sys.stdout.isatty():
            return converse(vm)
    return 0


def show(vm: Machine) -> None:
    """Run the lines of SHOW as a prompt would, and show the kernel's own view at the end."""
    names: dict[str, object] = {"vm": vm}
    for line in SHOW.strip().splitlines():
        if not line:
            print()
            continue
        print(f">>> {line}")
        source = line.split("#")[0].strip()
        if source.startswith(("from ", "import ")) or " = " in source:
            exec(source, names)
            continue
        result = eval(source, names)
        if result is not None:
            print(repr(result))
    print("\nwhat the kernel says:\n\nkos> buddy")
    print(vm.console.run("buddy"))
    print("\nwhat the auditor finds, from outside:\n")
    print(audit(vm))
