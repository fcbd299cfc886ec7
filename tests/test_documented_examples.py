"""The examples of the memory management API's documentation, word for word, on a real kernel."""

import re

import pytest

from kos.machine import Machine

PAGE_FRAME_MANAGEMENT = """
from kos.memory.page import PageFrameAllocator
from kos.exceptions import MemoryError

# Initialize page allocator
page_allocator = PageFrameAllocator()

try:
    # Allocate single page
    page = page_allocator.alloc_page()
    print(f"Allocated page at: 0x{page.physical_addr:x}")
    
    # Use page...
    page.set_dirty()
    
    # Check page status
    if page.is_dirty():
        print("Page is dirty")
    
    # Free page
    page_allocator.free_page(page)
    
except MemoryError as e:
    print(f"Page allocation failed: {e}")
"""  # noqa: W293

KERNEL_MEMORY_OPERATIONS = """
from kos.kernel.mm.mm_wrapper import buddy_alloc, buddy_free

# Initialize kernel memory (typically done at boot)
# buddy_init(total_memory_size)

# Allocate kernel memory using buddy allocator
# Allocate 4 pages (order 2)
addr = buddy_alloc(2)
if addr:
    print(f"Kernel memory allocated at: 0x{addr:x}")
    
    # Use memory...
    
    # Free when done
    buddy_free(addr, 2)
"""  # noqa: W293

BUDDY_ALLOC = """
from kos.kernel.mm.mm_wrapper import (
    buddy_alloc, buddy_free, buddy_init, buddy_stats
)

# Allocate 4 pages (16KB on 4KB page system)
addr = buddy_alloc(2)
if addr:
    print(f"Allocated at: 0x{addr:x}")
    buddy_free(addr, 2)
"""


def free_bytes(vm: Machine) -> int:
    return vm.client.machine_info().free_bytes


def run(example: str, vm: Machine, capsys: pytest.CaptureFixture[str]) -> str:
    """Run an example; returns what it printed. It must leave no frame behind."""
    before = free_bytes(vm)
    exec(compile(example, "example", "exec"), {"__name__": "__main__"})
    assert free_bytes(vm) == before
    return capsys.readouterr().out


def address(pattern: str, out: str) -> int:
    """The address that a pattern's group finds in the whole output."""
    found = re.fullmatch(pattern, out)
    assert found, out
    return int(found[1], 16)


def test_page_frame_management(default_vm: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(PAGE_FRAME_MANAGEMENT, default_vm, capsys)
    addr = address(r"Allocated page at: 0x([0-9a-f]+)\nPage is dirty\n", out)
    assert addr % 4096 == 0
    assert 0 < addr < default_vm.memory


@pytest.mark.parametrize(
    ("example", "says"),
    [(KERNEL_MEMORY_OPERATIONS, "Kernel memory allocated at"), (BUDDY_ALLOC, "Allocated at")],
    ids=["kernel memory operations", "buddy_alloc"],
)
def test_buddy(
    example: str, says: str, default_vm: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    addr = address(rf"{says}: 0x([0-9a-f]+)\n", run(example, default_vm, capsys))
    assert addr % (4 * 4096) == 0
    assert 0 < addr < default_vm.memory
