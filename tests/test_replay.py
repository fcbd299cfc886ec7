"""Recording a run and playing it again: the same RAM, at the end and at any instruction."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import kos
from conftest import Boot
from helpers import Threads
from kos.exceptions import HostError, KernelPanic, KOSError
from kos.inspect import Dump, audit
from kos.machine import Machine

MACHINES = ["microvm", "q35"]
KOS = [sys.executable, "-m", "kos"]


@dataclass
class Recorded:
    """A recorded run, and what its machine was like at the end."""

    path: Path
    ram: bytes
    console: str
    registers: list[dict[str, int]]
    instructions: int


def work(vm: Machine) -> None:
    """Some of everything that reaches a machine from outside."""
    blocks = [vm.client.buddy_alloc(order) for order in (0, 3, 1, 9, 0)]
    vm.client.buddy_free(blocks[1], 3)
    frame = vm.client.page_alloc(0)
    vm.client.page_map(frame, 0x400000)
    vm.client.mem_write(0x400000, bytes(range(256)) * 15)
    assert vm.client.mem_read(0x400100, 256) == bytes(range(256))
    with vm.connect("other") as other, other.batch() as batch:
        answers = [batch.buddy_alloc(0) for _ in range(10)]
    assert len({answer.value for answer in answers}) == 10
    vm.pause()
    vm.resume()
    assert "order" in vm.console.run("alloc 99")
    assert "not ok" not in vm.console.run("test buddy.takes_the_lowest")


def record(path: Path, **options: Any) -> Recorded:
    with kos.boot(memory="64M", cpus=1, record=path, **options) as vm:
        work(vm)
        vm.pause()
        ram, registers = vm.ram, vm.registers()
        instructions = vm.qmp.execute("query-replay")["icount"]
        vm.wire.after_output(lambda: None)
        text = vm.console.text
    return Recorded(path, bytes(ram), text, registers, instructions)


@pytest.fixture(scope="module", params=MACHINES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("run") / "run.kos", machine=request.param)


# The same run


def test_the_end_is_the_same_bit_by_bit(recorded: Recorded) -> None:
    with kos.replay(recorded.path) as vm:
        assert vm.at_end
        assert vm.instructions == vm.run.instructions == recorded.instructions
        assert vm.run.end == "closed"
        assert vm.ram == recorded.ram
        assert vm.console.text == recorded.console
        assert vm.registers() == recorded.registers
        assert vm.failure is None
        assert audit(vm).violations == []
        assert "loop_run" in [frame.name for frame in vm.view.stack(0)]


@pytest.mark.parametrize("part", [0.2, 0.9])
def test_an_instruction_is_the_same_each_time(recorded: Recorded, part: float) -> None:
    until = int(recorded.instructions * part)
    seen = []
    for _ in range(2):
        with kos.replay(recorded.path, until) as vm:
            assert vm.instructions == until
            assert not vm.at_end
            assert vm.qmp.execute("query-replay")["icount"] == until
            assert recorded.console.startswith(vm.console.text)
            seen.append((bytes(vm.ram), vm.registers(), vm.console.text))
    assert seen[0] == seen[1]
    assert seen[0][0] != recorded.ram


def test_one_instruction_more_moves_on(short: Path) -> None:
    with kos.replay(short, 0) as vm:
        assert (vm.registers()[0]["rip"], vm.console.text) == (0xFFF0, "")
        start = bytes(vm.ram)
    with kos.replay(short, 1) as vm:
        assert vm.registers()[0]["rip"] != 0xFFF0
        assert vm.ram == start
    addresses = []
    for until in (50_000, 50_001):
        with kos.replay(short, until) as vm:
            addresses.append(vm.registers()[0]["rip"])
    assert addresses[0] != addresses[1]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("command", "reason"), [("panic at last", "at last"), ("crash triple", "triple fault")]
)
def test_a_panic_is_played_again(tmp_path: Path, machine: str, command: str, reason: str) -> None:
    path = tmp_path / "run.kos"
    with kos.boot(memory="32M", cpus=1, machine=machine, record=path) as vm:
        addr = vm.client.buddy_alloc(4)
        vm.console.send(command + "\r")
        with pytest.raises(KernelPanic, match=reason):
            vm.wait(60)
        ram = vm.ram
        text = vm.console.text
    with kos.replay(path) as again:
        assert again.ram == ram
        assert again.console.text == text
        assert reason in again.run.end
        assert [block.paddr for block in again.view.blocks(3)].count(addr) == 1
        if command.startswith("panic"):
            assert isinstance(again.failure, KernelPanic)
            assert again.failure.reason == reason


def test_a_boot_that_fails_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.kos"
    with pytest.raises(KOSError, match=r"0\.001 s"):
        kos.boot(memory="32M", cpus=1, record=path, boot_timeout=0.001)
    with kos.replay(path) as vm:
        assert vm.at_end


def test_threads_and_large_machines(tmp_path: Path) -> None:
    path = tmp_path / "run.kos"
    with kos.boot(memory="4G", cpus=1, record=path) as vm:
        threads = Threads()
        for _ in range(4):
            threads.start(lambda: [vm.client.buddy_alloc(0) for _ in range(20)])
        threads.start(lambda: [vm.console.run("zones") for _ in range(5)])
        threads.join()
        assert vm.client.client_info(0).pages >= 80
    with kos.replay(path) as again:
        assert again.at_end
        assert again.memory == 4 << 30


def test_a_file_needs_nothing_else(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOS_KERNEL", "/nowhere/kos.elf")
    with kos.replay(short) as vm:
        assert vm.view["zones"][1].name.string_() == b"NORMAL"
        assert vm.kernel.read_bytes()[:4] == b"\x7fELF"


def test_a_replay_can_be_dumped(short: Path, tmp_path: Path) -> None:
    with kos.replay(short, 60_000) as vm:
        vm.dump(tmp_path / "dump")
        with vm.paused():
            assert "zones" in vm.abi.symbols
        assert repr(vm).startswith("<Replay at 60000 of ")
    vm.close()
    assert "closed" in repr(vm)
    assert Dump(tmp_path / "dump").view["zones"][1].name.string_() == b"NORMAL"


# What is refused while recording, and afterwards


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        (lambda vm: vm.connect("x", carrier="rings"), ValueError, "carrier 'rings'"),
        (lambda vm: vm.ram.__setitem__(0, 1), TypeError, "read-only"),
        (lambda vm: vm.qmp.execute("system_reset"), HostError, "system_reset.*'query-'"),
        (lambda vm: vm.qmp.human("system_reset"), HostError, "system_reset.*'info '"),
        (lambda vm: vm.reset(), HostError, "reset: a recorded machine"),
        (lambda vm: vm.snapshot(), HostError, "snapshot: a recorded machine"),
        (lambda vm: vm.restore(), HostError, "restore: a recorded machine"),
    ],
)
def test_what_a_recording_cannot_hold_is_refused(
    boot: Boot, tmp_path: Path, what: Callable[[Machine], Any], kind: type[Exception], message: str
) -> None:
    vm = boot(memory="32M", cpus=1, record=tmp_path / "run.kos")
    with pytest.raises(kind, match=message):
        what(vm)
    assert vm.client.ping(3) == 3
    vm.close()
    with kos.replay(tmp_path / "run.kos") as again:
        assert again.at_end


def test_reboot_ends_a_recorded_machine(boot: Boot, tmp_path: Path) -> None:
    vm = boot(memory="32M", cpus=1, record=tmp_path / "run.kos")
    vm.console.send("reboot\r")
    with pytest.raises(HostError, match="reset: a recorded machine"):
        vm.wait(60)
    vm.close()
    with kos.replay(tmp_path / "run.kos") as again:
        assert again.at_end


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"cpus": 2}, ValueError, "cpus 2: .* 1 CPU"),
        ({"cpus": 1, "carrier": "rings"}, ValueError, "carrier 'rings'"),
        (
            {"cpus": 1, "record": "/nowhere/run.kos"},
            HostError,
            "/nowhere/run.kos cannot be written",
        ),
        ({"cpus": 1, "record": "/tmp"}, HostError, "/tmp cannot be written"),
    ],
)
def test_bad_options(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        kos.boot(memory="32M", **({"record": tmp_path / "run.kos"} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_replay_takes_no_input(short: Path) -> None:
    with kos.replay(short) as vm:
        with pytest.raises(HostError, match="takes no input"):
            vm.console.run("zones")
        with pytest.raises(TypeError, match="read-only"):
            vm.ram[0] = 1
        with pytest.raises(HostError, match="'query-'"):
            vm.qmp.execute("cont")


# How a recorded process ends


def run_python(tmp_path: Path, body: str) -> "subprocess.Popen[str]":
    code = (
        f"import kos, os, signal\nvm = kos.boot(memory='32M', cpus=1, record='run.kos')\n{body}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("body", ["", "raise SystemExit(3)", "1 / 0", "del vm", "vm.wire = None"])
def test_a_run_that_nobody_closed_is_kept(tmp_path: Path, body: str) -> None:
    with run_python(tmp_path, body) as process:
        process.communicate(timeout=120)
    assert [path.name for path in tmp_path.iterdir()] == ["run.kos"]
    with kos.replay(tmp_path / "run.kos") as vm:
        assert vm.at_end


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    with run_python(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_qemu_that_was_killed_leaves_an_older_file(tmp_path: Path) -> None:
    (tmp_path / "run.kos").write_text("older")
    vm = kos.boot(memory="32M", cpus=1, record=tmp_path / "run.kos")
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=r"run\.kos was not written"):
        vm.close()
    assert (tmp_path / "run.kos").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["run.kos"]
