"""The typed view: what it says is what the kernel has, and reading it is nothing but reading."""

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import drgn
import numpy as np
import pytest

from conftest import Boot
from helpers import LONG, PAGE, Threads
from kos.exceptions import KernelPanic
from kos.machine import Machine
from kos.memory.constants import PG_DIRTY, PG_LOCKED, PG_MAPPED

pytestmark = pytest.mark.kos(leaks="allow")

DIRECT = 0xFFFF800000000000


@contextmanager
def stuck_in_a_call(vm: Machine) -> Iterator[None]:
    """A CPU is deep in a long call while the block runs."""
    threads = Threads()

    def endless() -> None:
        client, go_on = vm.connect("busy"), True
        while go_on:
            client.bench_run(1, 0, 1_000_000)
            go_on = not done.is_set()
        client.close()

    done = threading.Event()
    threads.start(endless)
    try:
        until = time.monotonic() + 60
        while not any(
            call and call.string_() == b"bench_run" for call in vm.view.per_cpu("current_call")
        ):
            assert time.monotonic() < until
        yield
    finally:
        done.set()
        threads.join(120)


def names(trace: drgn.StackTrace) -> list[str]:
    return [frame.name for frame in trace]


# Values


def test_globals_by_their_names(vm: Machine) -> None:
    view, info = vm.view, vm.client.machine_info()
    assert int(view["cpu_count"]) == info.cpus
    assert int(view["page_end_pfn"]) == (64 << 20) // PAGE
    zone = view["zones"][1]
    assert zone.name.string_() == vm.client.zone_info(1).name.encode()
    assert int(zone.managed) == vm.client.zone_info(1).managed
    assert view["PAGE_CLIENT"].value_() == 2
    assert view["loop_run"].type_.kind == drgn.TypeKind.FUNCTION
    assert view["crash_kinds"].string_().startswith(b"panic null")
    assert "zones" in view
    assert "no such thing" not in view
    assert 7 not in view


def test_names_that_are_near(vm: Machine) -> None:
    with pytest.raises(KeyError, match=r"no 'zone'.*zones"):
        vm.view["zone"]
    with pytest.raises(KeyError, match="no 'qqqqqqqqq'"):
        vm.view["qqqqqqqqq"]
    for bad in ("", " ", "zones[1]", "zones ", "\0", "é"):
        with pytest.raises(KeyError):
            vm.view[bad]


def test_members_and_arrays_as_in_c(vm: Machine) -> None:
    clients = vm.view["clients"]
    assert len(clients) == 256
    mine = clients[vm.client.id]
    assert mine.name.string_() == b"host"
    assert bool(mine.open)
    assert not bool(clients[200].open)
    vm.client.buddy_alloc(4)
    assert int(mine.owner.pages) == vm.client.client_info(vm.client.id).pages == 16
    assert mine.owner.pages == 16
    assert int(mine.owner.pages + 1) == 17
    assert mine.address_of_()[0].owner.pages == 16
    with pytest.raises(AttributeError):
        _ = mine.nothing
    with pytest.raises(drgn.FaultError):
        int(clients[1 << 40].open)


def test_per_cpu_variables(boot: Boot) -> None:
    vm = boot(cpus=8)
    assert [int(n) for n in vm.view.per_cpu("id")] == list(range(8))
    infos = [vm.client.cpu_info(n) for n in range(8)]
    assert [int(n) for n in vm.view.per_cpu("stack_top")] == [info.stack_top for info in infos]
    assert [int(n) for n in vm.view.per_cpu("apic_id")] == [info.apic_id for info in infos]
    assert len(vm.view.cpus) == 8
    for cpu in vm.view.cpus:
        assert cpu.self == cpu.address_of_()
    with pytest.raises(LookupError):
        vm.view.per_cpu("nothing")


def test_symbols(vm: Machine) -> None:
    symbols = vm.abi.symbols
    at = vm.view["loop_run"].address_
    assert at is not None
    assert vm.view.symbol(at).startswith("loop_run+0x0 (kernel/core/loop.c:")
    assert vm.view.symbol(at + 1).startswith("loop_run+0x1 (")
    assert vm.view.symbol(symbols["zones"] + 8) == "zones+0x8"
    for nothing in (0, 1, DIRECT, (1 << 64) - 1, symbols["kernel_end"] + PAGE):
        assert vm.view.symbol(nothing) == f"{nothing:#x}"


def test_a_wrong_member_of_cpus_and_stacks(vm: Machine) -> None:
    for wrong in (-1, 2, 1 << 70):
        with pytest.raises(ValueError, match=r"0 to 1"):
            vm.view.stack(wrong)
    for wrong in (-1, 256, 1 << 40):
        with pytest.raises(ValueError, match="0 to 255"):
            list(vm.view.blocks(wrong))


# Lists


def test_blocks_of_a_client(vm: Machine) -> None:
    """Newest first or not: all of them, each once, mapped ones among them."""
    client = vm.connect("owner")
    expected = {client.buddy_alloc(order): order for order in (0, 3, 10, 1)}
    for n in range(40):
        frame = client.page_alloc(0)
        expected[frame] = 0
        if n % 3:
            client.page_map(frame, 0x400000 + n * PAGE)
    for paused in (False, True):
        if paused:
            vm.pause()
        found = [(block.paddr, int(block.page.order)) for block in vm.view.blocks(client.id)]
        assert len(found) == len(expected)
        assert dict(found) == expected
        mapped = [b for b in vm.view.blocks(client.id) if int(b.page.flags) & PG_MAPPED]
        assert len(mapped) == 26
        for block in mapped:
            frame_map = drgn.cast("struct frame_map *", block.page.descriptor)
            assert int(frame_map.vaddr) >= 0x400000
    vm.resume()
    assert list(vm.view.blocks(200)) == []
    client.close()
    assert list(vm.view.blocks(client.id)) == []


def test_a_list_in_a_circle(vm: Machine) -> None:
    client = vm.connect("owner")
    frames = [client.buddy_alloc(0) for _ in range(5)]
    vm.pause()
    page = vm.view.page(frames[0] // PAGE)
    links = vm.view.memory.translate(page.links.address_of_().value_())[0]
    at = vm.ram_offset(links)
    kept = bytes(vm.ram[at : at + 4])
    for target in (frames[0], frames[4]):  # to itself, and to the list's first
        vm.ram[at : at + 4] = struct.pack("<I", target // PAGE)
        with pytest.raises(ValueError, match="circle"):
            list(vm.view.blocks(client.id))
    vm.ram[at : at + 4] = b"\xff" * 4  # far outside the array
    with pytest.raises(drgn.FaultError):
        list(vm.view.blocks(client.id))
    vm.ram[at : at + 4] = kept
    vm.resume()
    assert len(list(vm.view.blocks(client.id))) == 5


def test_a_chain(vm: Machine) -> None:
    """Any list with a pointer to the next; here one that the test lays into free memory."""
    view = vm.view
    addr = vm.client.buddy_alloc(0)
    at, base = vm.ram_offset(addr), vm.abi.symbols["layout_direct_map"] + addr
    pointer = view.program.pointer_type(view.program.type("struct cpu"))
    offset = drgn.offsetof(view.program.type("struct cpu"), "self")
    places = [base + n * 1024 for n in range(4)]
    for place, following in zip(places, [*places[1:], 0], strict=True):
        start = at + place - base + offset
        vm.ram[start : start + 8] = struct.pack("<Q", following)
    first = drgn.Object(view.program, pointer, places[0])
    assert [one.value_() for one in view.chain(first, "self")] == places
    assert list(view.chain(drgn.Object(view.program, pointer, 0), "self")) == []
    start = at + places[3] - base + offset
    vm.ram[start : start + 8] = struct.pack("<Q", places[1])
    with pytest.raises(ValueError, match="circle"):
        list(view.chain(first, "self"))
    vm.ram[start : start + 8] = struct.pack("<Q", 1 << 60)
    with pytest.raises(drgn.FaultError):
        list(view.chain(first, "self"))
    with pytest.raises(LookupError):
        list(view.chain(first, "nothing"))


# Stacks


@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_stacks_of_halted_cpus(boot: Boot, cpus: int, machine: str) -> None:
    """While the guest runs: a halted CPU's registers are exact."""
    vm = boot(cpus=cpus, machine=machine)
    until = time.monotonic() + 60
    while not all(cpu["halted"] for cpu in vm.registers()):
        assert time.monotonic() < until
    for cpu, trace in enumerate(vm.view.stacks()):
        assert names(trace)[:3] == ["cpu_irq_enable_halt", "loop_halt", "loop_run"]
        outermost = "smp_ap_main" if cpu else "kernel_continue"
        assert outermost in names(trace)
        run = trace[2]
        file, line, _ = run.source()
        assert file.endswith("kernel/core/loop.c")
        assert line > 0
        assert "cpu" in run.locals()
        assert int(run["cpu"].id) == cpu
    assert names(vm.view.stack(cpus - 1)) == names(vm.view.stacks()[cpus - 1])


def test_the_stack_of_a_cpu_in_a_call(vm: Machine) -> None:
    """Down to the function of the call, with the arguments that it was called with."""
    until, found = time.monotonic() + 60, False
    with stuck_in_a_call(vm):
        while not found:  # it may be between two calls
            assert time.monotonic() < until
            with vm.paused():
                for trace in vm.view.stacks():
                    if "time_pairs" in names(trace):
                        found = True
                        check_bench_stack(trace)
                        again = [names(trace) for trace in vm.view.stacks()]
                        assert names(trace) in again  # nothing moves


def check_bench_stack(trace: drgn.StackTrace) -> None:
    order = ["time_pairs", "call_bench_run", "call_serve", "ring_serve_one", "loop_run"]
    places = [names(trace).index(name) for name in order]
    assert places == sorted(places)
    assert trace[places[1]].source()[0].endswith("kernel/rpc/calls_sys.c")
    known = []
    for frame in list(trace)[: places[1]]:
        with contextlib.suppress(KeyError, drgn.ObjectAbsentError):  # the compiler keeps not all
            known.append(int(frame["rounds"]))
    assert set(known) == {1_000_000}
    with pytest.raises(KeyError):
        trace[places[0]]["nothing"]


def test_stacks_of_busy_cpus(vm: Machine) -> None:
    """Whatever a running CPU does at that moment, there is a trace, and it can be printed."""
    with stuck_in_a_call(vm):
        for _ in range(50):
            for trace in vm.view.stacks():
                assert str(trace)
                for frame in trace:
                    for name in frame.locals() if frame.name else ():
                        try:
                            str(frame[name])
                        except (drgn.FaultError, drgn.ObjectAbsentError):
                            continue  # it has moved on meanwhile
    assert vm.client.ping(1) == 1


CRASHES = {
    "panic": "crash_panic",
    "null": "crash_null",
    "write-text": "crash_write_text",
    "stack": "recurse",
    "invalid": "crash_invalid",
    "divide": "crash_divide",
    "assert": "crash_assert",
    "triple": "crash_triple",
}


@pytest.mark.parametrize("kind", CRASHES)
@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_the_stack_after_a_crash(boot: Boot, kind: str, machine: str) -> None:
    """It goes through the exception to the function that failed, and on to the loop."""
    vm = boot(memory="32M", machine=machine, timeout=LONG)
    with pytest.raises(KernelPanic) as info:
        vm.client.crash(kind)
    if kind != "triple":
        vm.console.wait_for("memory stays as it is", timeout=60)
    found = [trace for trace in vm.view.stacks() if CRASHES[kind] in names(trace)]
    assert len(found) == 1
    trace = found[0]
    at = names(trace).index(CRASHES[kind])
    if kind not in ("panic", "assert", "triple"):
        assert "exception" in names(trace)[:at]
        assert trace[at].pc == info.value.registers["rip"]
    assert trace[at].source()[0].endswith("kernel/debug/crash.c")
    outer = names(trace)[at:]
    assert [n for n in ("call_crash", "call_serve", "loop_run") if n not in outer] == []
    others = [trace for trace in vm.view.stacks() if CRASHES[kind] not in names(trace)]
    assert all("loop_run" in names(trace) for trace in others)


def test_the_trace_of_a_panic_s_registers(vm: Machine) -> None:
    """Registers that were saved in memory are a stack too."""
    order = (
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx"),
        *("rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss"),
    )
    with vm.paused():
        registers = vm.registers()[1]
        saved = struct.pack("<21Q", *(registers.get(name, 0) for name in order))
        assert names(vm.view.trace(saved)) == names(vm.view.stack(1))
        nowhere = vm.view.trace(bytes(168))
        assert len(nowhere) <= 1
        assert str(nowhere) is not None
    with pytest.raises(ValueError):  # noqa: PT011 - drgn's own words
        vm.view.trace(bytes(7))


# Arrays


def test_numpy_of_structs(vm: Machine) -> None:
    view = vm.view
    vm.client.buddy_alloc(3)
    with vm.paused():
        clients = view.numpy(view["clients"])
        assert clients.shape == (256,)
        assert clients["owner"]["pages"].tolist() == [int(c.owner.pages) for c in view["clients"]]
        assert clients["name"][vm.client.id] == b"host"
        assert clients["open"].astype(bool).tolist() == [bool(c.open) for c in view["clients"]]
        zones = view.numpy(view["zones"])
        for zone, one in zip(zones, view["zones"], strict=True):
            assert zone["managed"] == int(one.managed)
            assert zone["name"] == one.name.value_()  # a pointer is a number
            blocks = [int(m.blocks) for m in one.buddy.map]
            assert zone["buddy"]["map"]["blocks"].tolist() == blocks
        cpus = view.numpy(view["cpus"], 2)
        assert cpus["id"].tolist() == [0, 1]
        assert view.numpy(view["cpus"][1].address_of_(), 1)["id"].tolist() == [1]


def test_numpy_of_unions_and_bit_fields(vm: Machine) -> None:
    client = vm.client
    addr = client.buddy_alloc(5)
    client.page_flags(addr, PG_LOCKED | PG_DIRTY, 0)
    pages = vm.view.pages(addr // PAGE, 2)
    assert pages["kind"].tolist() == [2, 0]
    assert pages["order"].tolist() == [5, 0]
    assert pages["flags"].tolist() == [PG_LOCKED | PG_DIRTY, 0]
    assert pages["owner"].tolist() == [client.id, 0]
    head = int(vm.view.page(addr // PAGE).head)
    assert pages["head"].tolist() == [head, 0]
    page = vm.view.page(addr // PAGE)
    assert pages["links"]["next"][0] == int(page.links.next)
    assert pages["descriptor"][0] == page.descriptor.value_()


def test_numpy_of_bit_fields_in_a_nested_struct(vm: Machine) -> None:
    """A struct of the user's own, around one of the kernel's with bit fields."""
    program = vm.view.program
    addr = vm.client.buddy_alloc(5)
    page = program.type("struct page")
    pair = program.struct_type(
        "pair", 32, [drgn.TypeMember(page, "a"), drgn.TypeMember(page, "b", 128)]
    )
    first = vm.view.page(addr // PAGE)
    pairs = drgn.Object(program, program.array_type(pair, 1), address=first.address_)
    found = vm.view.numpy(pairs)
    assert found["a"]["order"].tolist() == [5]
    assert found["a"]["kind"].tolist() == [2]
    assert found["b"]["order"].tolist() == [0]
    rows = program.array_type(program.array_type(page, 2), 1)
    assert vm.view.numpy(drgn.Object(program, rows, address=first.address_))["order"].tolist() == [
        [5, 0]
    ]
    holder = program.struct_type("holder", 32, [drgn.TypeMember(program.array_type(page, 2), "p")])
    holders = drgn.Object(program, program.array_type(holder, 1), address=first.address_)
    assert vm.view.numpy(holders)["p"]["order"].tolist() == [[5, 0]]


def test_numpy_of_signed_and_wide_bit_fields(vm: Machine) -> None:
    program = vm.view.program
    signed, wide = program.int_type("int", 4, True), program.int_type("long", 8, False)
    bits = program.struct_type(
        "bits",
        8,
        [
            drgn.TypeMember(drgn.Object(program, signed, bit_field_size=3), "small", 0),
            drgn.TypeMember(drgn.Object(program, wide, bit_field_size=40), "wide", 3),
        ],
    )
    addr = vm.client.buddy_alloc(0)
    at = vm.ram_offset(addr)
    vm.ram[at : at + 8] = struct.pack("<Q", 0b101 | 0xABCDEF1234 << 3)
    base = vm.abi.symbols["layout_direct_map"] + addr
    one = drgn.Object(program, program.array_type(bits, 1), address=base)
    assert (int(one[0].small), int(one[0].wide)) == (-3, 0xABCDEF1234)
    found = vm.view.numpy(one)
    assert found["small"].tolist() == [-3]
    assert found["wide"].tolist() == [0xABCDEF1234]


def test_numpy_refuses(vm: Machine) -> None:
    view = vm.view
    program = view.program
    page = view.page(1).address_of_()
    cases: list[tuple[object, object]] = [
        (view["cpu_count"], None),  # no array
        (view["cpu_count"], 3),
        (view["zones"][0], None),
        (page, None),  # a pointer without a count
        (page, -1),
        (view["zones"], -1),
        (view["loop_run"], None),
        (view["loop_run"].address_of_(), 1),  # an array of functions
        (drgn.Object(program, program.pointer_type(program.void_type()), 0x1000), 1),
        (drgn.Object(program, program.array_type(program.type("u32"), 2), [1, 2]), None),
    ]
    for array, count in cases:
        with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
            view.numpy(array, count)  # type: ignore[arg-type]
    for address in (0, 8, 1 << 47, DIRECT + (64 << 20), (1 << 64) - 8):
        pointer = drgn.Object(program, page.type_, address)
        with pytest.raises(drgn.FaultError):
            view.numpy(pointer, 4)
    with pytest.raises(drgn.FaultError):  # past the end of the array of pages
        view.numpy(page, 1 << 24)
    for count in (1.5, "2"):
        with pytest.raises(TypeError):
            view.numpy(view["zones"], count)  # type: ignore[arg-type]
    assert view.numpy(view["zones"], 0).shape == (0,)
    assert view.numpy(page, 0).shape == (0,)


def test_numpy_is_a_copy(vm: Machine) -> None:
    before = vm.view.pages()
    addr = vm.client.buddy_alloc(0)
    assert before["kind"][addr // PAGE] != 2
    assert vm.view.pages()["kind"][addr // PAGE] == 2


@pytest.mark.kos(memory="256M")
def test_pages_against_the_kernel(vm: Machine) -> None:
    """65,536 frames: what the kernel says of blocks of every order, and of frames around them."""
    client = vm.client
    blocks = {client.buddy_alloc(order): order for order in range(11)}
    client.page_get(min(blocks))
    frames = [client.page_alloc(0) for _ in range(20)]
    for n, frame in enumerate(frames[:10]):
        client.page_map(frame, 0x400000 + n * PAGE)
    pages = vm.view.pages()
    assert len(pages) == 65536
    asked = {*range(0, 65536, 1013)}
    for addr, order in blocks.items():
        asked |= {addr // PAGE + k for k in (-1, 0, 1, (1 << order) - 1, 1 << order)}
        assert pages["order"][addr // PAGE] == order
    asked |= {frame // PAGE for frame in frames}
    for pfn in asked:
        info = client.page_info(pfn * PAGE)
        assert pages["head"][pfn] == 0 or info.block == pfn * PAGE, pfn
        if info.kind:  # of a frame within a block, what its first has
            page = pages[info.block // PAGE]
            for field in ("kind", "order", "flags", "owner", "refs"):
                assert getattr(info, field) == page[field], (pfn, field)
        else:
            assert pages["head"][pfn] == 0
    held = pages[(pages["kind"] == 2) & (pages["owner"] == client.id)]
    assert len(held) == 31
    assert (1 << held["order"].astype(np.int64)).sum() == client.client_info(client.id).pages


def test_parts_of_pages(vm: Machine) -> None:
    vm.client.buddy_alloc(3)
    end = (64 << 20) // PAGE
    with vm.paused():
        whole = vm.view.pages()
        for first, count in ((0, 1), (100, 300), (255, 2), (end - 1, 1), (end, 0), (0, 0)):
            part = vm.view.pages(first, count)
            assert part.tobytes() == whole[first : first + count].tobytes()
        assert vm.view.pages(end - 5).shape == (5,)
    for wrong in ((-1, 1), (0, end + 1), (end, 1), (end + 1, None), (0, -1), (1 << 60, 1)):
        with pytest.raises(ValueError, match="frames"):
            vm.view.pages(*wrong)


# Expressions


def test_expressions(vm: Machine) -> None:
    evaluate = vm.view.evaluate
    assert evaluate("cpu_count").value_() == 2
    assert int(evaluate("  zones[1].managed + 1 ")) == int(vm.view["zones"][1].managed) + 1
    assert evaluate("len(clients)") == 256
    assert evaluate("[int(cpus[i].id) for i in range(int(cpu_count))]") == [0, 1]
    assert evaluate("sum(int(z.managed) for z in zones)") > 0
    assert evaluate("(lambda n: int(cpus[n].id))(1)") == 1
    assert evaluate("mine + 1", {"mine": 4}) == 5
    assert evaluate("cpu_count", {"cpu_count": 9}) == 9
    assert evaluate("[mine for _ in range(2)]", {"mine": 3}) == [3, 3]


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("zone", NameError, "zones"),
        ("[clientz for _ in range(2)]", NameError, "clients"),
        ("cpu_cuont + 1", NameError, "cpu_count"),
        ("qqqqqqqqqqq", NameError, "qqqqqqqqqqq"),
        ("1 +", SyntaxError, ""),
        ("a = 1", SyntaxError, ""),
        ("import os", SyntaxError, ""),
        ("", SyntaxError, ""),
        ("  ", SyntaxError, ""),
        ("(", SyntaxError, ""),
        ("1\0", SyntaxError, ""),
        ("zones[1].nothing", AttributeError, "nothing"),
        ("1 / 0", ZeroDivisionError, ""),
    ],
)
def test_wrong_expressions(vm: Machine, text: str, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named or None):
        vm.view.evaluate(text)


# Addresses


def test_virtual_and_physical(vm: Machine) -> None:
    memory, client = vm.view.memory, vm.client
    addr = client.buddy_alloc(1)
    at = vm.ram_offset(addr)
    vm.ram[at : at + 2 * PAGE] = bytes(range(256)) * 32
    direct = vm.abi.symbols["layout_direct_map"]
    assert memory.translate(direct + addr)[0] == addr
    assert memory.virtual(direct + addr, 2 * PAGE) == bytes(range(256)) * 32
    assert memory.virtual(direct + addr + 5, 7) == bytes(range(5, 12))
    assert bytes(memory.physical(addr, 2 * PAGE)) == bytes(range(256)) * 32
    assert vm.view.read(direct + addr, 4) == b"\0\1\2\3"
    assert memory.virtual(direct + addr, 0) == b""
    assert bytes(memory.physical(addr, 0)) == b""
    memory.physical(addr, 1)[0] = 99
    assert vm.ram[at] == 99


def test_addresses_where_nothing_is(vm: Machine) -> None:
    memory = vm.view.memory
    direct, size = vm.abi.symbols["layout_direct_map"], 64 << 20
    nowhere = (
        *(0, 0x400000, 1 << 46, direct + size, direct - 1, direct + (1 << 40)),
        *((1 << 64) - 1, (1 << 64) - PAGE, vm.abi.symbols["layout_stacks"]),
    )
    for vaddr in nowhere:
        with pytest.raises(ValueError, match=r"mapped|RAM"):
            memory.virtual(vaddr, 1)
        with pytest.raises(drgn.FaultError):
            vm.view.read(vaddr, 1)
    for vaddr in (1 << 47, direct & (1 << 48) - 1, 0x0001000000000000 | direct, -1, 1 << 64):
        with pytest.raises(ValueError):  # noqa: PT011 - not an address of the machine's
            memory.translate(vaddr)
    for start, count in (
        *((direct + size - 4, 5), (direct + size - 4, 1 << 40)),
        *((vm.abi.symbols["layout_page_array"], 1 << 30), (direct - 2, 4)),
    ):
        with pytest.raises(ValueError, match=r"mapped|RAM"):
            memory.virtual(start, count)
        with pytest.raises(drgn.FaultError):
            vm.view.read(start, count)
    for paddr, count in (
        *((size, 1), (size - 1, 2), (1 << 32, 1), (1 << 60, 8), (-1, 1), (-8, 16)),
        *((0xF0000, 1), (0xEFFFF, 2), (0xE0000, 0x40000), (0, 1 << 40)),
    ):
        with pytest.raises(ValueError, match="RAM"):
            memory.physical(paddr, count)


def test_addresses_of_clients(vm: Machine) -> None:
    """Each through its own root; the kernel's half is the same in all."""
    memory = vm.view.memory
    clients = [vm.connect(f"client {n}") for n in range(3)]
    for n, client in enumerate(clients):
        for k, vaddr in enumerate((0x400000, 0x401000, 0x7FFFFFFFE000, 1 << 40)):
            client.page_map(client.page_alloc(0), vaddr)
            client.mem_write(vaddr, f"{n} at {k}".encode())
        client.mem_write(0x400FFE, b"over")
    for n, client in enumerate(clients):
        root = int(vm.view["clients"][client.id].owner.aspace.root)
        assert root % PAGE == 0
        for k, vaddr in enumerate((0x400000, 0x401000, 0x7FFFFFFFE000, 1 << 40)):
            text = f"{n} at {k}".encode()
            if vaddr != 0x401000:
                assert memory.virtual(vaddr, len(text), root) == text
        assert memory.virtual(0x400FFE, 4, root) == b"over"
        assert memory.virtual(0x400000, 2 * PAGE, root)[PAGE - 2 : PAGE + 2] == b"over"
        with pytest.raises(ValueError, match="mapped"):
            memory.virtual(0x401000, PAGE + 1, root)
        with pytest.raises(ValueError, match="mapped"):
            memory.virtual(0x400000, 1)
        zones = vm.abi.symbols["zones"]
        assert memory.virtual(zones, 64, root) == memory.virtual(zones, 64)
    paddr, room = memory.translate(
        0x400010, int(vm.view["clients"][clients[0].id].owner.aspace.root)
    )
    assert (paddr % PAGE, room) == (16, PAGE - 16)


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_ram_above_4_gib(boot: Boot, machine: str) -> None:
    vm = boot(memory="5G", machine=machine)
    client, memory = vm.client, vm.view.memory
    held = client.buddy_alloc_array(10, 900).tolist()
    addr = max(held)
    assert addr >= 1 << 32
    at, direct = vm.ram_offset(addr), vm.abi.symbols["layout_direct_map"]
    vm.ram[at : at + 5] = b"above"
    assert vm.view.read(direct + addr, 5) == b"above"
    assert memory.virtual(direct + addr, 5) == b"above"
    assert bytes(memory.physical(addr, 5)) == b"above"
    assert bytes(vm.view.program.read(addr, 5, True)) == b"above"
    low = vm.ram_layout.low_size
    for paddr, count in ((low, 1), (low - 1, 2), (low - 1, 1 << 31), ((1 << 32) - 1, 2)):
        with pytest.raises(ValueError, match="RAM"):
            memory.physical(paddr, count)
    with pytest.raises(drgn.FaultError):
        vm.view.read(direct + low, 1)
    pages = vm.view.pages()
    assert len(pages) == ((5 << 30) - low + (1 << 32)) // PAGE
    assert not pages["head"][low // PAGE : (1 << 32) // PAGE].any()
    assert pages["order"][addr // PAGE] == 10
    assert sorted(block.paddr for block in vm.view.blocks(client.id)) == sorted(held)
    assert vm.view.stack(1)


# That reading is only reading


COUNTERS = ("calls", "interrupts", "timer_interrupts", "sleeps", "wakeups_sent", "tlb_flushes")


def test_reading_does_not_change_the_guest(vm: Machine) -> None:
    view = vm.view
    vm.client.buddy_alloc(2)
    until = time.monotonic() + 60
    while not all(cpu["halted"] for cpu in vm.registers()):
        assert time.monotonic() < until

    def counters() -> list[int]:
        return [int(cpu.member_(name)) for cpu in view.cpus for name in COUNTERS]

    before, ram = counters(), hash(bytes(vm.ram))
    for _ in range(20):
        view.pages()
        view.numpy(view["clients"])
        view.stacks()
        list(view.blocks(vm.client.id))
        view.evaluate("[int(z.managed) for z in zones]")
        view.symbol(int(vm.registers()[0]["rip"]))
        view.memory.virtual(vm.abi.symbols["zones"], 64)
    assert counters() == before
    assert hash(bytes(vm.ram)) == ram


def test_paused_within_paused(vm: Machine) -> None:
    def running() -> bool:
        return bool(vm.qmp.execute("query-status")["running"])

    with vm.paused():
        with vm.paused():
            assert not running()
        assert not running()
    assert running()
    vm.pause()
    with vm.paused():
        assert not running()
    assert not running()
    vm.resume()
    with pytest.raises(ZeroDivisionError), vm.paused():
        raise ZeroDivisionError
    assert running()


def test_paused_in_two_threads(vm: Machine) -> None:
    """It is still until the last of them is done."""
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()
    threads = Threads()

    def other() -> None:
        with vm.paused():
            inside.set()
            leave.wait(60)
        left.set()

    threads.start(other)
    inside.wait(60)
    with vm.paused():
        leave.set()
        assert left.wait(60)
        assert vm.qmp.execute("query-status")["running"] is False
    threads.join()
    assert vm.qmp.execute("query-status")["running"] is True


def test_registers(vm: Machine) -> None:
    with vm.paused():
        found = vm.registers()
        assert found == vm.registers() == vm.view.registers
    assert len(found) == 2
    root = vm.view.memory.kernel_root
    for number, registers in enumerate(found):
        assert registers["cs"] == 8
        assert registers["gs_base"] == vm.view["cpus"][number].address_of_().value_()
        assert registers["cr3"] & ~0xFFF == root
        top, low = int(vm.view.cpus[number].stack_top), int(vm.view.cpus[number].stack_low)
        assert low <= registers["rsp"] <= top
        assert vm.view.symbol(registers["rip"]).partition("+")[0] in vm.view
        assert registers["rflags"] & 2


# What it costs


def cpu_time(work: Callable[[], object], rounds: int, runs: int = 7) -> float:
    """CPU seconds of this thread for one call of `work`: the best of several runs."""
    found = []
    for _ in range(runs):
        start = time.thread_time()
        for _ in range(rounds):
            work()
        found.append((time.thread_time() - start) / rounds)
    return min(found)


@pytest.mark.bench
def test_one_scalar_takes_5_us(vm: Machine) -> None:
    owner = vm.view["clients"][3].owner
    took = cpu_time(lambda: int(owner.pages), 20_000)
    print(f"one scalar: {took * 1e6:.2f} us")
    assert took <= 5e-6


@pytest.mark.bench
@pytest.mark.kos(memory="256M")
def test_65536_pages_take_10_ms(vm: Machine) -> None:
    assert len(vm.view.pages()) == 65536
    took = cpu_time(vm.view.pages, 5)
    print(f"65,536 pages: {took * 1e3:.2f} ms")
    assert took <= 10e-3
