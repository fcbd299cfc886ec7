"""The memory calls against a model: random sequences, every answer and all books compared.

After each step the auditor looks at the whole kernel from outside, and must find it sound, with
exactly the frames in the client's account that the model has.
"""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from helpers import CARRIERS, PAGE, RING_BYTES, free_bytes, refused, stretch
from kos.exceptions import CallError
from kos.inspect import audit
from kos.machine import Machine
from kos.memory.constants import EBUSY, EEXIST, EINVAL, ENOMEM, PG_DIRTY, PG_LOCKED, PG_MAPPED
from kos.rpc.client import Client

LOW = st.sampled_from(range(0x1000, 0x9F000, PAGE))
VADDRS = [0x1000, 0x2000, 0x200000, 0x40000000, 1 << 39, 1 << 46, 0x7FFFFFFFE000]
OFFSETS = st.sampled_from([0, 0, 8, PAGE])
ORDERS = st.integers(0, 6) | st.sampled_from([9, 10])


class Block:
    """What the model knows of a live block."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.refs = 1
        self.flags = 0
        self.vaddr = 0

    @property
    def busy(self) -> bool:
        return self.refs != 1 or bool(self.flags & (PG_LOCKED | PG_MAPPED))


class Memory(RuleBasedStateMachine):
    """One client; at its end it is closed, and the machine is as it was."""

    vm: Machine
    addresses = Bundle("addresses")

    def __init__(self) -> None:
        super().__init__()
        self.before = free_bytes(self.vm)
        self.client = Client(self.vm, "model", carrier=CARRIERS[0])
        self.blocks: dict[int, Block] = {}

    def teardown(self) -> None:
        held = self.client.client_info(0).pages
        assert held == sum(1 << b.order for b in self.blocks.values())
        self.client.close()
        assert free_bytes(self.vm) == self.before

    def owned(self, addr: int) -> Block | None:
        return self.blocks.get(addr)

    def overlaps(self, addr: int, order: int) -> bool:
        end = addr + (PAGE << order)
        return any(a < end and addr < a + (PAGE << b.order) for a, b in self.blocks.items())

    def forget(self, addr: int) -> None:
        del self.blocks[addr]

    def none_left(self, error: CallError | None, order: int) -> Any:
        """No zone has such a block, or may give one away; a refusal has emptied the magazines."""
        assert error is None or error.errno == ENOMEM
        for zone in (self.client.zone_info(i) for i in range(3)):
            if any(zone.free_blocks[order:]):
                assert zone.free < zone.watermark_min + (1 << order)
        return multiple()

    # Taking

    @rule(target=addresses, order=ORDERS)
    def alloc(self, order: int) -> Any:
        try:
            addr = self.client.buddy_alloc(order)
        except CallError as error:
            return self.none_left(error, order)
        assert addr % (PAGE << order) == 0
        assert not self.overlaps(addr, order)
        self.blocks[addr] = Block(order)
        return addr

    @rule(target=addresses, order=st.integers(0, 2), count=st.integers(0, 20))
    def alloc_array(self, order: int, count: int) -> Any:
        try:
            addrs = [int(a) for a in self.client.buddy_alloc_array(order, count)]
        except CallError as error:
            return self.none_left(error, order)
        if len(addrs) < count:
            self.none_left(None, order)
        for addr in addrs:
            assert not self.overlaps(addr, order)
            self.blocks[addr] = Block(order)
        return multiple(*addrs[:3])

    @rule(target=addresses, order=st.integers(0, 3))
    def page_alloc(self, order: int) -> Any:
        try:
            first = self.client.page_alloc(order)
        except CallError as error:
            return self.none_left(error, order)
        assert not self.overlaps(first, order)
        frames = [first + i * PAGE for i in range(1 << order)]
        for frame in frames:
            self.blocks[frame] = Block(0)
        return multiple(*frames)

    @rule(target=addresses, addr=addresses | LOW, offset=st.sampled_from([0, PAGE]))
    def claim(self, addr: int, offset: int) -> int:
        addr += offset
        block = self.owned(addr)
        if block is None and self.overlaps(addr, 0):
            with refused(EBUSY):
                self.client.page_claim(addr)
        elif block is None:
            place = self.client.page_info(addr).place
            if place in (2, 3):
                self.client.page_claim(addr)
                self.blocks[addr] = Block(0)
            else:
                with refused(EINVAL if place == 0 else EBUSY):
                    self.client.page_claim(addr)
        elif block.order:
            with refused(EBUSY):
                self.client.page_claim(addr)
        else:
            self.client.page_claim(addr)
            block.refs += 1
        return addr

    # Giving back

    @rule(addr=addresses, order=ORDERS, right=st.booleans(), offset=OFFSETS)
    def free(self, addr: int, order: int, right: bool, offset: int) -> None:
        block = self.owned(addr + offset)
        if block and right:
            order = block.order
        if block is None or block.order != order:
            with refused(EINVAL):
                self.client.buddy_free(addr + offset, order)
        elif block.busy:
            with refused(EBUSY):
                self.client.buddy_free(addr + offset, order)
        else:
            self.client.buddy_free(addr + offset, order)
            self.forget(addr + offset)

    @rule(addrs=st.lists(addresses, max_size=6))
    def page_free_array(self, addrs: list[int]) -> None:
        for index, addr in enumerate(addrs):
            block = self.owned(addr)
            wrong = block is None or block.order or addr in addrs[:index]
            if wrong or (block and block.busy):
                with refused(EINVAL if wrong else EBUSY) as caught:
                    self.client.page_free_array(addrs)
                assert caught[0].results[0] == index
                break
        else:
            index = len(addrs)
            assert self.client.page_free_array(addrs) == index
        for addr in addrs[:index]:
            self.forget(addr)

    # References, flags, mappings

    @rule(addr=addresses)
    def get(self, addr: int) -> None:
        block = self.owned(addr)
        if block is None:
            with refused(EINVAL):
                self.client.page_get(addr)
        else:
            block.refs += 1
            assert self.client.page_get(addr) == block.refs

    @rule(addr=addresses)
    def put(self, addr: int) -> None:
        block = self.owned(addr)
        if block is None:
            with refused(EINVAL):
                self.client.page_put(addr)
        elif block.refs == 1 and block.busy:
            with refused(EBUSY):
                self.client.page_put(addr)
        else:
            block.refs -= 1
            assert self.client.page_put(addr) == block.refs
            if not block.refs:
                self.forget(addr)

    @rule(addr=addresses, set_=st.integers(0, 4), clear=st.integers(0, 4))
    def flags(self, addr: int, set_: int, clear: int) -> None:
        block = self.owned(addr)
        if block is None or (set_ | clear) & PG_MAPPED:
            with refused(EINVAL):
                self.client.page_flags(addr, set_, clear)
        else:
            self.client.page_flags(addr, set_, clear)
            block.flags = block.flags & ~clear | set_

    @rule(addr=addresses, vaddr=st.sampled_from(VADDRS), bad=st.sampled_from([0, 0, 0, 1, 1 << 47]))
    def map(self, addr: int, vaddr: int, bad: int) -> None:
        block = self.owned(addr)
        taken = any(b.vaddr == vaddr for b in self.blocks.values())
        if block is None or block.order:
            errno = EINVAL
        elif block.flags & PG_MAPPED:
            errno = EBUSY
        elif bad:
            errno = EINVAL
        elif taken:
            errno = EEXIST
        else:
            self.client.page_map(addr, vaddr)
            block.vaddr, block.flags = vaddr, block.flags | PG_MAPPED
            return
        with refused(errno):
            self.client.page_map(addr, vaddr + bad)

    @rule(addr=addresses)
    def unmap(self, addr: int) -> None:
        block = self.owned(addr)
        if block is None or not block.flags & PG_MAPPED:
            with refused(EINVAL):
                self.client.page_unmap(addr)
        else:
            self.client.page_unmap(addr)
            block.vaddr, block.flags = 0, block.flags & ~PG_MAPPED

    @rule(vaddr=st.sampled_from(VADDRS), data=st.binary(min_size=1, max_size=64))
    def write(self, vaddr: int, data: bytes) -> None:
        frames = {b.vaddr: (a, b) for a, b in self.blocks.items() if b.vaddr}
        if vaddr in frames:
            addr, block = frames[vaddr]
            self.client.mem_write(vaddr, data)
            block.flags |= PG_DIRTY
            at = self.vm.ram_offset(addr)
            assert self.vm.ram[at : at + len(data)] == data
            assert self.client.mem_read(vaddr, len(data)) == data

    @rule()
    def drain(self) -> None:
        self.client.buddy_drain()
        assert self.client.machine_info().magazine_bytes == 0

    # What holds all the time

    @invariant()
    def the_books_agree(self) -> None:
        info = self.client.client_info(0)
        mapped = [b for b in self.blocks.values() if b.vaddr]
        pages = sum(1 << b.order for b in self.blocks.values())
        assert (info.blocks, info.pages, info.mapped) == (len(self.blocks), pages, len(mapped))
        result = audit(self.vm)
        result.check()
        assert result.frames.get(f"client {self.client.id} (model)", 0) == pages
        objects = PAGE if mapped else 0  # one page holds all descriptors of mappings
        used = (pages + info.tables) * PAGE + objects + RING_BYTES
        assert self.client.machine_info().free_bytes == self.before - used

    @rule(addr=addresses, offset=st.sampled_from([0, 0, PAGE]))
    def look(self, addr: int, offset: int) -> None:
        block, info = self.owned(addr + offset), self.client.page_info(addr + offset)
        if block is not None:
            seen = (info.block, info.order, info.refs, info.flags, info.vaddr, info.owner)
            expected = (addr + offset, block.order, block.refs, block.flags, block.vaddr)
            assert seen == (*expected, self.client.id)
        elif self.overlaps(addr + offset, 0):
            assert (info.owner, info.block != addr + offset) == (self.client.id, True)
        else:
            assert info.owner != self.client.id


@pytest.fixture
def memory(vm: Machine) -> type[Memory]:
    class OnThisMachine(Memory):
        pass

    OnThisMachine.vm = vm
    return OnThisMachine


def run(machine: type[Memory], examples: int, steps: int, **options: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_memory_does_what_the_model_says(memory: type[Memory]) -> None:
    run(memory, 30, 40, derandomize=True)


@pytest.mark.soak
def test_memory_does_what_the_model_says_for_long(memory: type[Memory]) -> None:
    examples = max(3, int(stretch(0.3) * 10))
    run(memory, examples, 100, derandomize="KOS_TEST_MINUTES" not in os.environ)
