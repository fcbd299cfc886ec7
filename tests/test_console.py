"""The console: what its commands print is what the calls answer, and nothing typed harms it."""

import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pexpect
import pytest

from conftest import Boot
from helpers import Threads, refused
from kos.machine import Machine
from kos.rpc.calls import ZoneInfo

COLUMNS = 80
FRAME = 4096
WAIT = 60.0  # seconds after which a terminal counts as hung
COMMANDS = [
    *["alloc", "buddy", "call", "calls", "clients", "cpus", "crash", "free", "help", "log"],
    *["mem", "page", "panic", "pt", "reboot", "test", "zones"],
]
ORDERS = range(11)
NOT_RAM, RESERVED, FREE, MAGAZINE, LIVE = range(5)
PRESENT, WRITE, USER, LARGE, NX = 1, 2, 4, 0x80, 1 << 63


def lines_of(vm: Machine, command: str) -> list[str]:
    """The lines that a command printed; none is wider than the terminal."""
    lines = vm.console.run(command).splitlines()
    for line in lines:
        assert len(line) <= COLUMNS, f"{len(line)} columns: {line!r}"
    return lines


def numbers(line: str) -> list[int]:
    return [int(word) for word in line.split() if word.isdecimal()]


# ---- commands that show ----


def test_help(vm: Machine) -> None:
    lines = lines_of(vm, "help")
    assert [line.split()[0] for line in lines[:-1]] == COMMANDS
    assert lines[-1].startswith("Tab completes")
    for name, line in zip(COMMANDS, lines, strict=False):
        assert lines_of(vm, f"help {name}") == [line]
        assert len(line.split()) > 2


@pytest.mark.kos(leaks="allow")
def test_mem(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=2)
    vm.client.buddy_alloc_array(0, 1000)
    vm.client.buddy_alloc(5)
    with vm.connect("second") as second:
        second.page_alloc(3)
        info = vm.client.machine_info()
        clients = [vm.client.client_info(number).pages for number in clients_of(vm)]
        lines = lines_of(vm, "mem")
    found = [re.match(r"(.+?) +(\d+) KiB(?: +(.+) %)?$", line) for line in lines]
    rows = {m[1].strip(): int(m[2]) for m in found if m}
    shares = {m[1].strip(): float(m[3]) for m in found if m and m[3]}
    assert rows["RAM"] << 10 == info.total_bytes
    assert rows["managed by zones"] << 10 == info.managed_bytes
    assert rows["free in zones"] << 10 == info.free_bytes - info.magazine_bytes
    assert rows["free in magazines"] << 10 == info.magazine_bytes > 0
    assert rows["used by clients"] << 10 == sum(clients) * FRAME == (1000 + 32 + 8) * FRAME
    kernel = info.managed_bytes - info.free_bytes - sum(clients) * FRAME
    assert rows["used by the kernel"] << 10 == kernel > 0
    assert rows["reserved"] << 10 == info.total_bytes - info.managed_bytes
    assert rows["kernel image"] == info.image_bytes >> 10
    assert rows["metadata"] == info.metadata_bytes >> 10
    for name, share in shares.items():
        assert abs(share - 100 * rows[name] / rows["RAM"]) < 0.01
    at = lines.index("physical addresses of RAM")
    ranges = [re.findall(r"0x([0-9a-f]+)", line) for line in lines[at + 1 :]]
    assert sum(int(b, 16) + 1 - int(a, 16) for a, b in ranges) == info.total_bytes


@pytest.mark.kos(leaks="allow")
def test_zones(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=1)
    vm.client.buddy_alloc_array(10, 100)
    header, *lines = lines_of(vm, "zones")
    assert header.split() == [
        "zone",
        "addresses",
        "managed",
        "free",
        "min",
        "low",
        "high",
        "failed",
    ]
    for number, line in enumerate(lines):
        zone = vm.client.zone_info(number)
        if zone.managed == 0:
            assert line.split() == [zone.name, "empty"]
            continue
        first, last = zone.start_pfn * FRAME, zone.end_pfn * FRAME - 1
        assert line.split()[:2] == [zone.name, f"{first:#012x}-{last:#012x}"]
        watermarks = [zone.watermark_min, zone.watermark_low, zone.watermark_high]
        assert numbers(line) == [zone.managed, zone.free, *watermarks, zone.failures]
        assert zone.failures > 0 or number == 0
    assert len(lines) == 3


def expected_map(vm: Machine, zone: ZoneInfo) -> list[str]:
    """The picture of a zone, from what page_info says of every frame."""
    span = zone.end_pfn - zone.start_pfn
    cell = 1
    while cell * 1024 < span:
        cell *= 2
    frames = range(zone.start_pfn, zone.end_pfn)
    ram_frames = vm.memory // FRAME
    place = [
        vm.client.page_info(pfn * FRAME).place if pfn < ram_frames else NOT_RAM for pfn in frames
    ]
    chars = []
    for at in range(0, span, cell):
        here = place[at : at + cell]
        free = sum(p in (FREE, MAGAZINE) for p in here)
        managed = free + here.count(LIVE)
        if not managed:
            chars.append("k" if RESERVED in here else " ")
        elif free == managed:
            chars.append(".")
        else:
            chars.append(str(max(free * 10 // managed, 1)) if free else "#")
    return [
        f"{(zone.start_pfn + at * cell) * FRAME:#012x}  {''.join(chars[at : at + 64])}".rstrip()
        for at in range(0, len(chars), 64)
    ]


@pytest.mark.kos(leaks="allow")
@pytest.mark.parametrize(("memory", "name"), [("64M", "NORMAL"), ("64M", "dma"), ("16M", "")])
def test_buddy(boot: Boot, memory: str, name: str) -> None:
    vm = boot(memory=memory, cpus=2)
    rng = random.Random(7)
    count = 150 if memory == "64M" else 40
    blocks = [(vm.client.buddy_alloc(o), o) for o in rng.choices(range(8), k=count)]
    for addr, order in rng.sample(blocks, count // 2):
        vm.client.buddy_free(addr, order)
    lines = lines_of(vm, f"buddy {name}".strip())
    shown = [0] if name == "dma" or memory == "16M" else [1]
    at = 0
    for number in shown:
        zone = vm.client.zone_info(number)
        magazines = sum(count << order for order, count in enumerate(zone.magazine_blocks))
        assert lines[at] == (
            f"zone {zone.name}: {zone.managed} frames, {zone.free} free in the zone, "
            f"{magazines} free in magazines"
        )
        for order in ORDERS:
            words = lines[at + 2 + order].split()
            size = FRAME << order
            unit = f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
            counts = [
                column[order]
                for column in (
                    zone.free_blocks,
                    zone.magazine_blocks,
                    zone.taken,
                    zone.given,
                    zone.splits,
                    zone.merges,
                )
            ]
            assert words == [str(order), *unit.split(), *map(str, counts)]
        at += 2 + len(ORDERS) + 1
    zone = vm.client.zone_info(shown[-1])
    assert re.fullmatch(rf"map of {zone.name}, a character for \d+ [KM]iB", lines[at])
    assert lines[at + 1 : -1] == expected_map(vm, zone)
    assert lines[-1].startswith("# in use")


@pytest.mark.parametrize("memory", ["16M", "1G", "4G", "64G"])
def test_buddy_fits_the_terminal(boot: Boot, memory: str) -> None:
    vm = boot(memory=memory)
    for command in ("buddy", "buddy dma", "buddy Normal", "buddy HIGHMEM", "mem", "zones"):
        lines = lines_of(vm, command)
        assert len([line for line in lines if re.match(r"0x[0-9a-f]{10}  [.#k1-9]", line)]) <= 16
    assert lines_of(vm, "buddy highmem") == ["zone HIGHMEM is empty"]
    both = lines_of(vm, "buddy")
    assert sum(line.startswith("zone ") for line in both) == (1 if memory == "16M" else 2)


def test_buddy_map_of_a_hole(boot: Boot) -> None:
    vm = boot(memory="64M", append="reserve=0x2000000-0x2400000")
    lines = lines_of(vm, "buddy")
    assert "0x0002000000" in lines
    assert "0x0002400000  " + 64 * "." in lines


@pytest.mark.kos(leaks="allow")
def test_page(vm: Machine) -> None:
    me = vm.client.client_info(0)
    block = vm.client.buddy_alloc(4)
    single = vm.client.page_alloc(0)
    vm.client.page_map(single, 0x400000)
    vm.client.page_flags(single, 1, 0)
    locked = vm.client.page_alloc(0)
    vm.client.page_flags(locked, 2, 0)
    assert lines_of(vm, f"page {block:#x}") == [
        f"frame {block:#x}, number {block // FRAME}, zone NORMAL",
        "  place  in use",
        f"  block  {block:#x}-{block + 0xFFFF:#x}, order 4, 64 KiB",
        "  kind   client",
        f"  owner  client {me.id}, {me.name}",
        "  refs   1",
        "  flags  none",
    ]
    tail = lines_of(vm, f"page {block + 5 * FRAME + 123}")
    assert tail[:2] == [
        f"frame {block + 5 * FRAME:#x}, number {block // FRAME + 5}, zone NORMAL",
        "  place  in use, not the first of its block",
    ]
    mapped = lines_of(vm, f"page {single}")
    assert mapped[-2:] == ["  flags  dirty mapped", "  vaddr  0x400000"]
    assert lines_of(vm, f"page {locked}")[-1] == "  flags  locked"
    root = lines_of(vm, "pt 0x400000 3")
    table = re.findall(r"-> (0x[0-9a-f]+)  table", "\n".join(root))[0]
    assert "  kind   page table" in lines_of(vm, f"page {table}")
    vm.client.buddy_free(block, 4)
    assert lines_of(vm, f"page {block:#x}")[1] == "  place  free, in the zone"
    assert lines_of(vm, "page 0x200000")[1:] == ["  place  reserved: the kernel image"]
    stack = lines_of(vm, f"pt {vm.client.cpu_info(0).stack_low:#x}")[-1].split()[2].rstrip(",")
    reserved = "  place  reserved: page tables, stacks, metadata"
    assert lines_of(vm, f"page {stack}")[1:] == [reserved]
    assert lines_of(vm, "page 2M") == lines_of(vm, "page 0x200000")
    for addr in (0, 0xA0000, vm.memory, (1 << 64) - 1):
        assert lines_of(vm, f"page {addr:#x}") == [f"{addr:#x} is not RAM"]


def test_page_in_a_magazine(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=1)
    addr = vm.client.page_alloc(0)
    vm.client.page_free(addr)
    info = vm.client.page_info(addr)
    assert info.place == MAGAZINE
    assert lines_of(vm, f"page {addr:#x}")[1] == f"  place  free, in a magazine of CPU {info.cpu}"


@pytest.mark.kos(leaks="allow")
def test_pt(vm: Machine) -> None:
    frame = vm.client.page_alloc(0)
    vm.client.page_map(frame, 0x7FFFFFFFE000)
    stack = vm.client.cpu_info(1).stack_low
    addresses = [0x7FFFFFFFE123, 0x7FFFFFFFD000, 0, 0xFFFFFFFF80200000, 0xFFFF800000200000]
    for vaddr in [*addresses, stack, stack - 1, 0xFFFF800001000000, 0xFFFFFFFFFFFFFFFF]:
        entries = [int(entry) for entry in vm.client.page_walk(vaddr)]
        *steps, end = lines_of(vm, f"pt {vaddr:#x} 3")
        assert len(steps) == len(entries)
        for level, step, entry in zip((4, 3, 2, 1), steps, entries, strict=False):
            index = vaddr >> 12 + 9 * (level - 1) & 511
            assert step.startswith(f"  level {level}  [{index:3}]  ")
            if not entry & PRESENT:
                assert step.endswith("]  not present")
                continue
            assert f"-> {entry & 0x000FFFFFFFFFF000:#011x}  " in step
            mode = f"r{'w' if entry & WRITE else '-'}{'-' if entry & NX else 'x'}"
            assert f"  {mode}{'u' if entry & USER else 'k'}" in step
        if entries[-1] & PRESENT:
            assert re.fullmatch(r"physical address 0x[0-9a-f]+, r[w-][x-][uk]", end)
        else:
            assert end == "not mapped"
    assert lines_of(vm, "pt 0x7fffffffe123 3")[-1] == f"physical address {frame + 0x123:#x}, rw-u"
    assert lines_of(vm, "pt 0x7fffffffe123")[-1] == "not mapped"
    assert lines_of(vm, "pt 0x1000 1")[-2:] == ["client 1 has no page tables yet", "not mapped"]


@pytest.mark.kos(leaks="allow")
def test_cpus(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=8)
    vm.client.buddy_alloc_array(0, 10)
    lines = lines_of(vm, "cpus")
    at = lines.index("")
    counters, stacks = lines[1:at], lines[at + 3 :]
    assert len(counters) == len(stacks) == 8
    magazines = np.zeros(5, dtype=int)
    for number in range(8):
        cpu = vm.client.cpu_info(number)
        words = counters[number].split()
        assert words[:2] == [str(cpu.id), str(cpu.apic_id)]
        assert words[2] in ("asleep", "running")
        for shown, now in zip(map(int, words[3:]), cpu[3:8], strict=True):
            assert shown <= now
        words = stacks[number].split()
        assert words[:2] == [str(number), f"{cpu.stack_low:#x}-{cpu.stack_top - 1:#x}"]
        magazines += [int(word.split("/")[0]) for word in words[2:]]
        assert all(int(w.split("/")[0]) <= int(w.split("/")[1]) for w in words[2:])
    blocks = vm.client.zone_info(1).magazine_blocks
    assert list(magazines) == [blocks[order] for order in (0, 1, 2, 3, 9)]


def clients_of(vm: Machine) -> list[int]:
    """The ids of the clients that there are."""
    return [numbers(line)[0] for line in lines_of(vm, "clients")[1:]]


def test_clients(vm: Machine) -> None:
    with vm.connect("a name of 23 characters") as second:
        frame = second.page_alloc(2)
        second.page_map(frame, 0x10000)
        header, *lines = lines_of(vm, "clients")
        assert header.split() == [
            "id",
            "name",
            "rings",
            "calls",
            "refused",
            "blocks",
            "frames",
            "tables",
            "mapped",
        ]
        assert len(lines) == 4
        for line in lines:
            number = int(line[:4])
            info = vm.client.client_info(number)
            assert line[4:28].strip() == info.name
            rings, calls, refused, *owned = map(int, line[28:].split())
            assert (rings, refused) == (info.rings, info.refused)
            assert calls <= info.calls
            assert owned == [info.blocks, info.pages, info.tables, info.mapped]
        assert sum("a name of 23 characters" in line for line in lines) == 1
    assert len(lines_of(vm, "clients")) == 4


def test_calls(vm: Machine) -> None:
    lines = lines_of(vm, "calls")
    assert [int(line.split()[0]) for line in lines] == sorted(vm.abi.by_number)
    for line in lines:
        call = vm.abi.by_number[int(line.split()[0])]
        assert line.split()[1] == call.name
        words = line.split("->")[0].split()[2:]
        given = [f"<{value.name}>" for value in call.args]
        assert words[: len(given)] == given
        assert ("(wire only)" in line) == (call.scope == "wire")
    for call in vm.abi.calls.values():
        text = " ".join(" ".join(lines_of(vm, f"calls {call.name}")).split())
        assert text.startswith(call.name)
        assert call.doc in text
        assert text.count(f" number {call.number}") == 1
        for value in (*call.args, *call.results):
            assert f"{value.name} {value.type} {value.doc}" in text
        for error in call.errors:
            assert error in text


def test_log(boot: Boot) -> None:
    vm = boot(memory="64M", append="unknown")
    text = vm.console.run("log")
    assert text == vm.client.log_read().rstrip("\n")
    assert text.startswith("command line: 'unknown'")


def test_log_fits_the_terminal(boot: Boot) -> None:
    assert lines_of(boot(memory="64M", append="unknown"), "log")


# ---- commands that do ----


def test_alloc_and_free(vm: Machine) -> None:
    for order in ORDERS:
        (line,) = lines_of(vm, f"alloc {order}")
        found = re.fullmatch(r"(0x[0-9a-f]+), order (\d+), (\d+) KiB", line)
        assert found
        addr = int(found[1], 16)
        assert (int(found[2]), int(found[3])) == (order, 4 << order)
        info = vm.client.page_info(addr)
        assert (info.place, info.order, info.owner) == (LIVE, order, 1)
        with refused(-22):
            vm.client.buddy_free(addr, order)
        assert lines_of(vm, f"free {addr:#x} {order}") == [f"freed {addr:#x}, order {order}"]
        assert vm.client.page_info(addr).place in (FREE, MAGAZINE)
        (said,) = lines_of(vm, f"free {addr:#x} {order}")
        assert said == f"refused: {addr:#x}: it is free already"
    assert vm.client.client_info(1).blocks == 0


@pytest.mark.kos(leaks="allow")
def test_what_free_refuses(vm: Machine) -> None:
    mine = int(lines_of(vm, "alloc 3")[0].split(",")[0], 16)
    me = vm.client.client_info(0)
    theirs = vm.client.buddy_alloc(2)
    low = vm.client.cpu_info(0).stack_low
    stack = int(lines_of(vm, f"pt {low:#x}")[-1].split()[2].rstrip(","), 16)
    cases = {
        (mine, 2): "its order is 3, not 2",
        (mine + FRAME, 0): f"it is inside the block of order 3 at {mine:#x}",
        (mine + 1, 3): "it is not the start of a frame, a multiple of 4096",
        (theirs, 2): f"it belongs to client {me.id}, {me.name}",
        (stack, 0): "it is reserved for the kernel",
        (0x200000, 0): "it is reserved for the kernel",
        (0, 0): "it is not RAM",
        (vm.memory, 0): "it is not RAM",
    }
    for (addr, order), why in cases.items():
        assert lines_of(vm, f"free {addr:#x} {order}") == [f"refused: {addr:#x}: {why}"]
    assert vm.client.client_info(1).pages == 8
    assert vm.client.client_info(3).pages == 4
    lines_of(vm, f"free {mine} 3")


def test_why_free_refuses_frames_in_use(vm: Machine) -> None:
    status, (ring, _, _) = vm.wire.call(5, (vm.client.id,))
    assert status == 0
    assert lines_of(vm, f"free {ring:#x} 4") == [f"refused: {ring:#x}: it belongs to the kernel"]
    frame = int(lines_of(vm, "call page_alloc 0")[0].split()[1], 16)
    for use, undo, why in (
        (f"page_flags {frame} 2 0", f"page_flags {frame} 0 2", "it is locked"),
        (f"page_map {frame} 0x400000", f"page_unmap {frame}", "it is mapped"),
        (f"page_get {frame}", f"page_put {frame}", "it has 2 references"),
    ):
        lines_of(vm, f"call {use}")
        assert lines_of(vm, f"free {frame:#x} 0") == [f"refused: {frame:#x}: {why}"]
        lines_of(vm, f"call {undo}")
    assert lines_of(vm, f"free {frame:#x} 0") == [f"freed {frame:#x}, order 0"]


def test_alloc_without_memory(boot: Boot) -> None:
    vm = boot(memory="16M", cpus=1)
    held = []
    while (line := lines_of(vm, "alloc 10")[0]).startswith("0x"):
        held.append(line.split(",")[0])
    assert re.fullmatch(
        r"refused: no block of order 10; \d+ frames are free, \d+ kept in reserve", line
    )
    assert held
    for addr in held:
        assert lines_of(vm, f"free {addr} 10") == [f"freed {addr}, order 10"]


def test_call(vm: Machine) -> None:
    assert lines_of(vm, "call ping 7") == ["value 7"]
    assert lines_of(vm, "call ping 0xffffffffffffffff") == [f"value {(1 << 64) - 1}"]
    assert lines_of(vm, "call ping 4K") == ["value 4096"]
    assert lines_of(vm, "call ping 0") == ["value 0"]
    assert lines_of(vm, "  call   ping    7  ") == ["value 7"]
    assert lines_of(vm, "call echo two words")[0].endswith("|two words|")
    assert lines_of(vm, "call test_name 0") == [vm.client.test_name(0)]
    assert lines_of(vm, "call test_count") == [f"count {vm.client.test_count()}"]
    assert lines_of(vm, "call buddy_alloc 11") == ["-22 EINVAL"]
    assert lines_of(vm, "call mem_read 0x400000 8") == ["-14 EFAULT", "fault 0x400000"]
    (line,) = lines_of(vm, "call buddy_alloc 1")
    addr = int(line.removeprefix("addr "), 16)
    assert vm.client.page_info(addr).owner == 1
    assert lines_of(vm, f"call buddy_free {addr} 1") == ["ok"]
    assert lines_of(vm, f"call buddy_free {addr} 1") == ["-22 EINVAL"]
    got = [int(word, 16) for word in lines_of(vm, "call buddy_alloc_array 0 5")]
    assert len(set(got)) == 5
    assert lines_of(vm, f"call buddy_free_array 0 {' '.join(map(str, got))}") == ["freed 5"]
    assert lines_of(vm, "call client_open name") == ["-1 EPERM"]
    dumped = lines_of(vm, "call zone_info 1")
    size = vm.abi.layout("zone_info").size
    assert dumped[0] == f"struct zone_info, {size} bytes"
    data = bytes.fromhex("".join(line[5:54] for line in dumped[1:]))
    layout = vm.abi.layout("zone_info")
    zone = vm.client.zone_info(1)
    assert layout.decode(data)["managed"] == zone.managed
    assert layout.decode(data)["name"] == "NORMAL"


def test_calls_by_the_console_are_those_of_python(vm: Machine) -> None:
    """Every call without arguments, made both ways, ends the same."""
    for name in ("machine_info", "buddy_drain", "test_count", "log_read"):
        lines = lines_of(vm, f"call {name}")
        assert lines
        assert not lines[0].startswith("-")


# ---- what makes no sense ----

ADDRESS = "expected an address: a number such as "
BAD = {
    "xyzzy": ("'xyzzy'", "'help' lists them"),
    "HELP": ("'HELP'", "'help' lists them"),
    "helpme": ("'helpme'", "'help' lists them"),
    "help xyzzy": ("'xyzzy'", "the name of a command"),
    "help mem extra": ("'extra'", "the end of the line"),
    "mem x": ("'x'", "the end of the line"),
    "zones 1": ("'1'", "the end of the line"),
    "cpus 0": ("'0'", "the end of the line"),
    "clients all": ("'all'", "the end of the line"),
    "log 10": ("'10'", "the end of the line"),
    "reboot now": ("'now'", "the end of the line"),
    "buddy foo": ("'foo'", "a zone: dma, normal or highmem"),
    "buddy norma": ("'norma'", "a zone"),
    "buddy normalx": ("'normalx'", "a zone"),
    "buddy dma 1": ("'1'", "the end of the line"),
    "page": ("page", "<addr>"),
    "page x": ("'x'", ADDRESS),
    "page 0x": ("'0x'", ADDRESS),
    "page 12Q": ("'12Q'", ADDRESS),
    "page -1": ("'-1'", ADDRESS),
    "page 1.5": ("'1.5'", ADDRESS),
    "page 0x10000000000000000": ("'0x10000000000000000'", "an address"),
    "page 99999999999999999999": ("'99999999999999999999'", "an address"),
    "page 17179869184G": ("'17179869184G'", "an address"),
    "page 1 2": ("'2'", "the end of the line"),
    "pt": ("pt", "<addr>"),
    "pt x": ("'x'", ADDRESS),
    "pt 0x800000000000": ("'0x800000000000'", "canonical"),
    "pt 0xffff7fffffffffff": ("'0xffff7fffffffffff'", "canonical"),
    "pt 0 0": ("'0'", "the id of a client, 1 to "),
    "pt 0 x": ("'x'", "the id of a client, 1 to "),
    "pt 0 99999": ("'99999'", "client"),
    "pt 0 9": ("'9'", "an open client; 'clients' lists them"),
    "pt 0 1 2": ("'2'", "the end of the line"),
    "alloc": ("alloc", "<order>"),
    "alloc 11": ("'11'", "an order, 0 to 10"),
    "alloc -1": ("'-1'", "an order, 0 to 10"),
    "alloc one": ("'one'", "an order, 0 to 10"),
    "alloc 18446744073709551616": ("'18446744073709551616'", "an order, 0 to 10"),
    "alloc 1 2": ("'2'", "the end of the line"),
    "free": ("free", "<addr> <order>"),
    "free 0x300000": ("free", "<addr> <order>"),
    "free x 0": ("'x'", ADDRESS),
    "free 0x300000 11": ("'11'", "an order, 0 to 10"),
    "free 0x300000 x": ("'x'", "an order, 0 to 10"),
    "free 0x300000 0 0": ("'0'", "the end of the line"),
    "call": ("call", "<name>"),
    "call xyzzy": ("'xyzzy'", "the name of a call; 'calls' lists them"),
    "call ping": ("'ping'", "<value> (u64)"),
    "call ping x": ("'x'", "value (u64): a number"),
    "call ping 1 2": ("'2'", "the end of the line"),
    "call buddy_alloc 4294967296": ("'4294967296'", "order (u32), 0 to 4294967295"),
    "call buddy_free 1": ("'buddy_free'", "<order> (u32)"),
    "call machine_info 1": ("'1'", "the end of the line"),
    "call buddy_free_array 0 1 x": ("'x'", "data: a number"),
    "call echo 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15": ("'14'", "the end of the line"),
    "calls xyzzy": ("'xyzzy'", "the name of a call; 'calls' lists them"),
    "calls ping echo": ("'echo'", "the end of the line"),
    "crash xyzzy": ("'xyzzy'", "panic null "),
    "crash null x": ("'x'", "the end of the line"),
    "test xyzzy": ("'xyzzy'", "how a test's name begins"),
    "test pool x": ("'x'", "the end of the line"),
}


def test_bad_input_is_named_in_one_line(vm: Machine) -> None:
    before = vm.client.machine_info().free_bytes
    faults = []
    for command, (word, expected) in BAD.items():
        text = vm.console.run(command)
        if "\n" in text or word not in text or expected not in text:
            faults.append(f"{command}: {text!r}, not {word} and {expected!r} in one line")
    assert not faults, "\n".join(faults)
    assert vm.client.machine_info().free_bytes == before
    assert vm.client.client_info(1).blocks == 0


def test_bad_input_fits_the_terminal(vm: Machine) -> None:
    said = {command: vm.console.run(command) for command in BAD}
    for call in vm.abi.calls.values():
        for count in range(len(call.args)):
            command = f"call {call.name} {'1 ' * count}"
            said[command] = vm.console.run(command)
            assert f"<{call.args[count].name}> ({call.args[count].type})" in said[command]
            assert "\n" not in said[command]
            command += "x"
            said[command] = vm.console.run(command)
            assert said[command].startswith("'x': expected ")
    wide = [
        f"{len(text)}: {text}"
        for command, text in said.items()
        if len(text) > COLUMNS and max(map(len, command.split()[1:]), default=0) <= 8
    ]
    assert not wide, "\n".join(wide)


@pytest.mark.parametrize("command", ["", " ", "          "])
def test_empty_lines_do_nothing(vm: Machine, command: str) -> None:
    assert vm.console.run(command) == ""
    assert vm.console.run("call ping 7") == "value 7"


def test_long_lines(vm: Machine) -> None:
    word = "x" * 255
    assert vm.console.run(word) == f"'{word}' is no command; 'help' lists them"
    assert vm.console.run("call ping 7".rjust(255)) == "value 7"
    assert vm.console.run("call echo " + "y" * 245).count("y") == 245
    start = vm.console.position
    vm.console.send("z" * 2_000 + "\r")
    vm.console.wait_for(r"'z{255}' is no command.*\nkos> \Z", start=start)
    assert vm.console.run("call ping 8") == "value 8"


@pytest.mark.parametrize("line", ["a\rb", "a\nb", "\x1b[A", "x" * 256, "ä"])
def test_run_takes_one_plain_line(vm: Machine, line: str) -> None:
    with pytest.raises(ValueError, match="one line of at most 255"):
        vm.console.run(line)


# ---- with others at work ----


def test_console_while_python_calls(boot: Boot) -> None:
    vm = boot(memory="64M", cpus=2)
    until = threading.Event()
    made = [0, 0]

    def work(number: int) -> None:
        with vm.connect(f"worker {number}") as client:
            while not until.is_set():
                order = made[number] % 4
                addr = client.buddy_alloc(order)
                assert client.ping(made[number]) == made[number]
                client.buddy_free(addr, order)
                made[number] += 1

    threads = Threads()
    for number in range(2):
        threads.start(work, number)
    try:
        while min(made) == 0:
            assert not threads.errors
            time.sleep(0)
        for number in range(10):
            assert lines_of(vm, f"call ping {number}") == [f"value {number}"]
            for command in ("zones", "mem", "buddy", "cpus", "clients", "log", "calls"):
                assert lines_of(vm, command)
            found = re.search(r"^(0x\w+), order 2", vm.console.run("alloc 2"))
            assert found
            assert lines_of(vm, f"free {found[1]} 2") == [f"freed {found[1]}, order 2"]
        count = list(made)
        while any(now == then for now, then in zip(made, count, strict=True)):
            assert not threads.errors
            time.sleep(0)
    finally:
        until.set()
        threads.join()
    vm.client.buddy_drain()
    assert vm.client.client_info(1).blocks == 0


def test_many_threads_type_one_after_another(vm: Machine) -> None:
    """Each gets the answer to its own line."""
    threads = Threads()

    def ask(number: int) -> None:
        for i in range(20):
            value = 1000 * number + i
            assert vm.console.run(f"call ping {value}") == f"value {value}"

    for number in range(5):
        threads.start(ask, number)
    threads.join()


def test_paste_of_many_lines(vm: Machine) -> None:
    start = vm.console.position
    vm.console.send("".join(f"call ping {i}\r" for i in range(50)))
    text = vm.console.wait_for(r"^value 49\n", start=start)
    assert [int(n) for n in re.findall(r"^value (\d+)$", text, re.MULTILINE)] == list(range(50))


@pytest.mark.parametrize("ends", ["\r", "\n", "\r\n"])
def test_line_ends(vm: Machine, ends: str) -> None:
    """Enter of a terminal, of a file, of a file from elsewhere: each is one line's end."""
    start = vm.console.position
    vm.console.send(f"call ping 1{ends}call ping 2{ends}call ping 3{ends}")
    text = vm.console.wait_for(r"^value 3\n", start=start)
    assert [line for line in text.splitlines() if line.startswith("value")] == [
        "value 1",
        "value 2",
        "value 3",
    ]


DANGEROUS = re.compile(rb"^\s*(crash|panic|reboot|call)")
WORDS = [b"mem", b"zones", b"alloc", b"help", b"buddy", b"0x1000", b"12", b"log", b"'", b"\\"]
KEYS = [b"\t", b"\x12", b"\x10", b"\x0e", b"\x17", b"\x15", b"\x19", b"\x14", b"\x0b", b"\x03"]
SEQUENCES = [b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b[3~", b"\x1b[1;5D", b"\x1bOH"]
SEQUENCES += [b"\x1b[200~", b"\x1b]0;title\x07", b"\x1b[999999999999C", b"\x1b[[A", b"\x1b\x1b"]


def garbage(seed: int, size: int) -> bytes:
    """Bytes of all kinds; no line in them begins with a command that ends the kernel."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        kind = rng.randrange(6)
        if kind == 0:
            out += rng.randbytes(rng.randrange(40))
        elif kind == 1:
            out += bytes(rng.randrange(32) for _ in range(rng.randrange(20)))
        elif kind == 2:
            out += rng.choice(WORDS) + b" "
        elif kind == 3:
            out += rng.choice(KEYS)
        elif kind == 4:
            out += rng.choice(SEQUENCES)
        else:
            out += b"\r" if rng.randrange(3) else b"\n"
    lines = re.split(rb"(?<=[\r\n])", bytes(out))
    return b"".join(line for line in lines if not DANGEROUS.match(line))[:size]


@pytest.mark.parametrize(("seed", "size"), [(1, 20_000), (2, 4_000), (3, 4_000)])
def test_garbage(boot: Boot, seed: int, size: int) -> None:
    vm = boot(memory="64M", cpus=2)
    vm.console.run("call ping 1")
    before = vm.client.machine_info()
    typed = garbage(seed, size)
    assert len(typed) > size * 9 // 10
    assert set(range(32)) <= set(typed)
    vm.console.send(typed)
    start = vm.console.position
    vm.console.send(b"\x03\x03\rcall ping 987654\r")
    vm.console.wait_for(r"^value 987654\nkos> \Z", start=start, timeout=WAIT)
    assert lines_of(vm, "call ping 7") == ["value 7"]
    assert lines_of(vm, "help")[0].startswith("  alloc ")
    after = vm.client.machine_info()
    assert (after.clients, after.rings, after.wire_errors) == (
        before.clients,
        before.rings,
        before.wire_errors,
    )
    held = vm.client.client_info(1).pages * FRAME
    vm.client.buddy_drain()
    assert vm.client.machine_info().free_bytes == before.free_bytes - held


# ---- on a terminal ----


class Screen:
    """What a terminal of 80 columns shows, for the few sequences that the console uses."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.bells = 0
        self._pending = ""

    def feed(self, text: str) -> None:
        text = self._pending + text
        self._pending = ""
        at = 0
        while at < len(text):
            if text[at] != "\x1b":
                self._put(text[at])
                at += 1
                continue
            found = re.compile(r"\x1b\[(\d*)([A-Za-z])").match(text, at)
            if found is None:
                assert len(text) - at < 8, f"unknown sequence {text[at : at + 8]!r}"
                self._pending = text[at:]
                return
            self._sequence(int(found[1] or 1), found[2], found[1])
            at = found.end()

    def _put(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row += 1
            if self.row == len(self.rows):
                self.rows.append([])
        elif char == "\b":
            assert self.column > 0, "moves left of the margin"
            self.column -= 1
        elif char == "\a":
            self.bells += 1
        else:
            assert " " <= char <= "~", f"prints {char!r}"
            assert self.column < COLUMNS, "prints past the margin"
            row = self.rows[self.row]
            row.extend(" " * (self.column + 1 - len(row)))
            row[self.column] = char
            self.column += 1

    def _sequence(self, count: int, final: str, given: str) -> None:
        if final == "D":
            assert self.column >= count
            self.column -= count
        elif final == "C":
            self.column += count
            assert self.column < COLUMNS
        elif final == "K":
            assert given == ""
            del self.rows[self.row][self.column :]
        elif final == "H":
            self.row = self.column = 0
        elif final == "J":
            assert given == "2"
            self.rows = [[]]
        else:
            raise AssertionError(f"unknown sequence ending in {final}")

    def line(self, row: int = -1) -> str:
        """The text of a row, the cursor's own when left out."""
        return "".join(self.rows[self.row if row < 0 else row]).rstrip()

    @property
    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.rows)


class Terminal:
    """`kos console` on a terminal."""

    def __init__(self, *options: str) -> None:
        self.screen = Screen()
        self.mark = 424242
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "kos", "console", "--memory=64M", *options],
            encoding="latin-1",
            env={**os.environ, "TERM": "xterm"},
            dimensions=(24, COLUMNS),
            timeout=WAIT,
        )
        self.child.delaybeforesend = None

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Read until the screen is as it should be."""
        while not condition():
            try:
                self.screen.feed(self.child.read_nonblocking(4096, timeout=WAIT))
            except (pexpect.TIMEOUT, pexpect.EOF) as error:
                shown = f"{self.screen.text}\ncursor at {self.screen.column}"
                raise AssertionError(f"not {what}; the screen shows\n{shown}") from error

    def type(self, keys: str, shows: str, cursor: int | None = None) -> None:
        """Type keys; the cursor's row then shows this text, and the cursor is there."""
        self.child.send(keys)
        column = len(shows) if cursor is None else cursor
        self.until(
            lambda: self.screen.line() == shows.rstrip() and self.screen.column == column,
            f"{shows!r} with the cursor at {column}",
        )

    def enter(self, keys: str = "") -> list[str]:
        """Finish the line; what it printed."""
        row = self.screen.row
        self.child.send(keys + "\r")
        self.until(
            lambda: self.screen.row > row and self.screen.line() == "kos>" and not self._more(),
            "back at the prompt",
        )
        return [self.screen.line(i) for i in range(row + 1, self.screen.row)]

    def ask(self, keys: str) -> None:
        """Type keys, then a line on its own that must be answered, whatever the keys did."""
        self.mark += 1
        self.child.send(f"{keys}call ping {self.mark}\r")
        end = f"\nvalue {self.mark}\nkos>"
        self.until(lambda: self.screen.text.endswith(end), f"value {self.mark}")

    def _more(self) -> bool:
        return self.screen.column != 5

    def leave(self) -> None:
        self.child.send("\x1d")
        self.child.expect(pexpect.EOF)
        self.child.close()


@pytest.fixture(scope="module")
def session() -> Iterator[Terminal]:
    """One session for the tests of the keys: each starts and ends at an empty prompt."""
    terminal = Terminal()
    terminal.until(lambda: terminal.screen.line() == "kos>", "a prompt")
    yield terminal
    terminal.leave()
    assert terminal.child.exitstatus == 0


@pytest.fixture
def terminal(session: Terminal) -> Terminal:
    """The session at an empty prompt of its own, with nothing under way and no text kept."""
    session.ask("\x03\x03")
    return session


LEFT, RIGHT, UP, DOWN = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B"


def test_typing(terminal: Terminal) -> None:
    terminal.type("call ping 7", "kos> call ping 7")
    assert terminal.enter() == ["value 7"]
    assert terminal.screen.column == 5


def test_cursor_keys(terminal: Terminal) -> None:
    terminal.type("cll pig 5", "kos> cll pig 5")
    terminal.type(LEFT * 3, "kos> cll pig 5", 11)
    terminal.type("n", "kos> cll ping 5", 12)
    terminal.type("\x01", "kos> cll ping 5", 5)
    terminal.type(LEFT, "kos> cll ping 5", 5)
    terminal.type(RIGHT + "a", "kos> call ping 5", 7)
    terminal.type("\x05", "kos> call ping 5")
    terminal.type(RIGHT + "6", "kos> call ping 56")
    terminal.type("\x1b[H", "kos> call ping 56", 5)
    terminal.type("\x1b[F", "kos> call ping 56")
    terminal.type("\x1b[1;5D", "kos> call ping 56", 15)
    terminal.type("\x1b[1;5C", "kos> call ping 56")
    assert terminal.enter() == ["value 56"]


def test_deleting(terminal: Terminal) -> None:
    terminal.type("call ping 789", "kos> call ping 789")
    terminal.type("\x7f", "kos> call ping 78")
    terminal.type("\x08", "kos> call ping 7")
    terminal.type(LEFT + "\x1b[3~", "kos> call ping ")
    terminal.type("1 2 3", "kos> call ping 1 2 3")
    terminal.type("\x17", "kos> call ping 1 2 ")
    terminal.type("\x17", "kos> call ping 1 ")
    terminal.type("\x17\x17\x17\x17", "kos> ")
    terminal.type("\x17\x7f", "kos> ")
    terminal.type("left right", "kos> left right")
    terminal.type(LEFT * 5 + "\x15", "kos> right", 5)
    terminal.type("\x0b", "kos> ")
    terminal.type("\x19", "kos> left right")  # kills one after another are one text
    terminal.type("\x15" + "ab\x14", "kos> ba")
    terminal.type("\x15", "kos> ")


def test_enter_in_the_middle_takes_the_whole_line(terminal: Terminal) -> None:
    terminal.type("call ping 31" + LEFT * 6, "kos> call ping 31", 11)
    assert terminal.enter() == ["value 31"]


def test_history(terminal: Terminal) -> None:
    for value in (1, 2, 3):
        assert terminal.enter(f"call ping {value}") == [f"value {value}"]
    terminal.type("draft", "kos> draft")
    for value in (3, 2, 1):
        terminal.type(UP, f"kos> call ping {value}")
    terminal.type(DOWN, "kos> call ping 2")
    terminal.type("0", "kos> call ping 20")
    assert terminal.enter() == ["value 20"]
    terminal.type(UP, "kos> call ping 20")
    terminal.type(UP + UP, "kos> call ping 2")
    terminal.type(DOWN * 5, "kos> ")


def test_tab(terminal: Terminal) -> None:
    terminal.type("zo\t", "kos> zones ")
    terminal.type("\x15" + "al\t3", "kos> alloc 3")
    terminal.type("\x15" + "help bu\t", "kos> help buddy ")
    bells = terminal.screen.bells
    terminal.type("\x15" + "c\t", "kos> c")
    terminal.until(lambda: terminal.screen.bells == bells + 1, "one bell")
    row = terminal.screen.row
    terminal.child.send("\t")
    terminal.until(lambda: terminal.screen.row == row + 2 and terminal.screen.column == 6, "a list")
    assert terminal.screen.line(row + 1).split() == ["call", "calls", "clients", "cpus", "crash"]
    assert terminal.screen.line() == "kos> c"
    terminal.type("\x15" + "xyz\t", "kos> xyz")
    terminal.until(lambda: terminal.screen.bells == bells + 2, "another bell")
    terminal.type("\x15", "kos> ")
    row = terminal.screen.row
    terminal.child.send("\t\t")
    terminal.until(
        lambda: terminal.screen.row > row + 1 and terminal.screen.column == 5, "all commands"
    )
    listed = " ".join(terminal.screen.line(i) for i in range(row + 1, terminal.screen.row))
    assert listed.split() == COMMANDS


def test_reverse_search(terminal: Terminal) -> None:
    assert terminal.enter("call ping 111") == ["value 111"]
    assert terminal.enter("call ping 222") == ["value 222"]
    terminal.child.send("\x12ping")
    terminal.until(
        lambda: terminal.screen.line() == "(reverse-i-search)`ping': call ping 222", "the newest"
    )
    terminal.child.send("\x12")
    terminal.until(
        lambda: terminal.screen.line() == "(reverse-i-search)`ping': call ping 111", "the older"
    )
    assert terminal.enter() == ["value 111"]
    terminal.child.send("\x12222")
    terminal.until(lambda: terminal.screen.line().endswith("call ping 222"), "another")
    terminal.type("\x05", "kos> call ping 222")
    terminal.type("3", "kos> call ping 2223")
    terminal.type("\x15", "kos> ")


def test_interrupt(terminal: Terminal) -> None:
    terminal.type("alloc 1", "kos> alloc 1")
    row = terminal.screen.row
    terminal.type("\x03", "kos> ")
    assert terminal.screen.line(row) == "kos> alloc 1^C"
    assert terminal.screen.row == row + 1
    assert terminal.enter("call ping 9") == ["value 9"]


def test_end_of_file_on_an_empty_line(terminal: Terminal) -> None:
    terminal.ask("\x04\x04\x04")
    terminal.type("ab" + LEFT + "\x04", "kos> a")
    terminal.type("\x15", "kos> ")


def test_clear_screen(terminal: Terminal) -> None:
    terminal.type("call ping 4", "kos> call ping 4")
    terminal.child.send("\x0c")
    terminal.until(lambda: terminal.screen.row == 0, "an empty screen")
    terminal.until(lambda: terminal.screen.line() == "kos> call ping 4", "the line again")
    terminal.type("2", "kos> call ping 42")
    assert terminal.enter() == ["value 42"]


def test_long_line_scrolls_in_its_row(terminal: Terminal) -> None:
    row = terminal.screen.row
    digits = "".join(str(i % 10) for i in range(245))
    terminal.child.send(f"call echo {digits}")
    terminal.until(lambda: terminal.screen.line().endswith(digits[-20:]), "its end")
    assert len(terminal.screen.line()) < COLUMNS
    bells = terminal.screen.bells
    terminal.child.send("xyz")
    terminal.until(lambda: terminal.screen.bells >= bells + 3, "a bell for each that is too many")
    assert terminal.screen.line().endswith(digits[-20:])
    terminal.child.send("\x01")
    terminal.until(
        lambda: (
            terminal.screen.line().startswith("kos> call echo 0123") and terminal.screen.column == 5
        ),
        "its beginning",
    )
    assert terminal.screen.row == row
    text = "".join(line.split("|")[1] for line in terminal.enter())
    assert text == digits


def test_paste(terminal: Terminal) -> None:
    """50 lines at once, each run in order."""
    row = terminal.screen.row
    terminal.child.send("".join(f"call ping {1000 + i}\r" for i in range(50)))
    terminal.until(
        lambda: (
            terminal.screen.line(terminal.screen.row - 1) == "value 1049"
            and terminal.screen.line() == "kos>"
        ),
        "the last value",
    )
    shown = [terminal.screen.line(i) for i in range(row, terminal.screen.row)]
    values = [line for line in shown if line.startswith("value")]
    assert values == [f"value {1000 + i}" for i in range(50)]


def test_keys_that_mean_nothing(terminal: Terminal) -> None:
    for keys in ("\x1b[15~", "\x1bOP", "\x1b[200~", "\x1b[<0;1;1M", "\x00", "\xc3\xa9\xe2\x82"):
        terminal.ask(keys)
    terminal.ask("\x1b[\x03")
    terminal.ask("\x1b]0;a title that never ends\x03")


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_leaving(machine: str) -> None:
    """Ctrl-] ends it with status 0, the terminal as it was and QEMU gone."""
    marker = f"spin={os.getpid()}{99 if machine == 'q35' else 98}"
    terminal = Terminal(f"--machine={machine}", f"--append={marker}")
    terminal.until(lambda: terminal.screen.line() == "kos>", "a prompt")
    assert "Ctrl-] leaves" in terminal.screen.text
    terminal.ask("")
    terminal.type("half a line", "kos> half a line")
    terminal.leave()
    assert (terminal.child.exitstatus, terminal.child.signalstatus) == (0, None)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert marker.encode() not in path.read_bytes()
        except OSError:
            continue


def test_reboot_on_a_terminal() -> None:
    terminal = Terminal()
    terminal.until(lambda: terminal.screen.line() == "kos>", "a prompt")
    terminal.ask("")
    assert len(terminal.enter("alloc 4")) == 1
    terminal.child.send("reboot\r")
    terminal.until(
        lambda: re.search(r"rebooting\nKOS: (.*\n)+kos>$", terminal.screen.text) is not None,
        "booted anew",
    )
    terminal.ask("")
    terminal.leave()
    assert terminal.child.exitstatus == 0
