"""Recording a run and playing it again: the same RAM, at the end and at any instruction."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest

import kos
from conftest import Boot
from helpers import Threads
from kos import _replay, cli
from kos.exceptions import HostError, KernelPanic, KOSError, ReplayError
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


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that is quickly played."""
    path = tmp_path_factory.mktemp("short") / "run.kos"
    with kos.boot(memory="32M", cpus=1, record=path) as vm:
        vm.client.buddy_alloc(2)
    return path


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


# Bad files


def change(source: Path, target: Path, members: dict[str, bytes | None]) -> Path:
    """A copy with members replaced, added, or left out (None)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as out:
        for name in dict.fromkeys([*old.namelist(), *members]):
            data = members[name] if name in members else old.read(name)
            if data is not None:
                out.writestr(name, data)
    return target


def about(source: Path, **fields: Any) -> bytes:
    with zipfile.ZipFile(source) as archive:
        facts = json.loads(archive.read("recording.json")) | fields
    return json.dumps({name: value for name, value in facts.items() if value != "none"}).encode()


def test_a_file_that_is_cut_short(short: Path, tmp_path: Path) -> None:
    whole = short.read_bytes()
    cut = tmp_path / "cut.kos"
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.kos is no recording, or a damaged one"):
            kos.replay(cut)


def test_a_file_with_a_wrong_byte(short: Path, tmp_path: Path) -> None:
    data = bytearray(short.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.kos").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        kos.replay(tmp_path / "bad.kos")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.kos", tmp_path):
        with pytest.raises(HostError, match=str(path)):
            kos.replay(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"log": None}, "has to hold"),
        ({"other": b"x"}, "has to hold"),
        ({"../evil": b"x"}, "has to hold"),
        ({"recording.json": b"[]"}, "format"),
        ({"recording.json": b"{"}, "damaged"),
        ({"recording.json": b"[" * 100_000}, "damaged"),
        ({"recording.json": b" " * ((1 << 20) + 1)}, "bytes; 1048576 are allowed"),
        ({"kos.elf": b"no kernel"}, "no 64-bit"),
        ({"kos.elf": b"\x7fELF\x02\x01" + b"\xff" * 200}, "kos.elf is cut short"),
        ({"kos.abi.json": b"{}"}, "damaged"),
    ],
)
def test_bad_members(
    short: Path, tmp_path: Path, members: dict[str, bytes | None], message: str
) -> None:
    path = change(short, tmp_path / "bad.kos", members)
    with pytest.raises(ValueError, match=message):
        kos.replay(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"machine": "pc,accel=kvm"}, "machine is 'pc,accel=kvm'"),
        ({"memory": 1 << 50}, "memory_bytes"),
        ({"memory": "64M"}, "memory is '64M', not of type int"),
        ({"memory": True}, "memory is True"),
        ({"append": "a\0b"}, "append is"),
        ({"append": "x" * 5000}, "append is"),
        ({"instructions": -1}, "instructions is -1"),
        ({"instructions": 1.5}, "instructions is 1.5"),
        ({"build_id": "/etc/passwd"}, "build_id is"),
        ({"build_id": "00" * 20}, "build id 0000"),
        ({"ram": "zz"}, "ram is"),
        ({"qemu": "7"}, "qemu is"),
        ({"end": None}, "end is None"),
        ({"kos": "none"}, "has to have"),
        ({"extra": 1}, "has to have"),
    ],
)
def test_bad_fields(short: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = change(short, tmp_path / "bad.kos", {"recording.json": about(short, **fields)})
    with pytest.raises(ValueError, match=message):
        kos.replay(path)


@pytest.mark.parametrize("until", [-1, 1 << 62])
def test_an_instruction_outside_of_the_run(short: Path, until: int) -> None:
    with pytest.raises(ValueError, match=rf"until {until}: the run has \d+ instructions"):
        kos.replay(short, until)


@pytest.mark.parametrize("until", [1.5, "7", True])
def test_an_instruction_that_is_no_number(short: Path, until: Any) -> None:
    with pytest.raises(TypeError, match="until"):
        kos.replay(short, until)


def test_another_qemu(short: Path, tmp_path: Path) -> None:
    path = change(short, tmp_path / "other.kos", {"recording.json": about(short, qemu="99.0.1")})
    with pytest.raises(HostError, match=r"recorded by QEMU 99\.0\.1; this is QEMU \d"):
        kos.replay(path)


def test_a_run_that_goes_another_way(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_replay, "_STALL", 5.0)
    with zipfile.ZipFile(short) as archive:
        log = archive.read("log")
        run = json.loads(archive.read("recording.json"))
    bad = tmp_path / "bad.kos"
    change(short, bad, {"recording.json": about(short, ram="0" * 64)})
    with pytest.raises(ReplayError, match="RAM at the end"):
        kos.replay(bad)
    change(short, bad, {"log": log[: len(log) // 3]})
    with pytest.raises(ReplayError, match=r"stopped at|ended before"):
        kos.replay(bad)
    change(short, bad, {"log": b"no log" * 100})
    with pytest.raises(ReplayError, match="ended before"):
        kos.replay(bad)
    change(short, bad, {"recording.json": about(short, append=run["append"] + " quiet")})
    with pytest.raises(ReplayError):
        kos.replay(bad)


# The command


def kos_command(*words: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*KOS, *words], input=typed, capture_output=True, text=True, timeout=120, check=False
    )


def test_command(short: Path) -> None:
    done = kos_command("replay", str(short))
    assert (done.returncode, done.stderr) == (0, "")
    assert "RAM is the same, bit by bit" in done.stdout
    done = kos_command(
        "replay", str(short), "--until", "50000", typed="for i in 1, 2:\n  i\n\nvm\n"
    )
    assert done.returncode == 0, done.stderr
    assert "at instruction 50000 of" in done.stdout
    assert done.stdout.splitlines()[-3:-1] == ["1", "2"]
    assert done.stdout.splitlines()[-1].startswith("<Replay at 50000 of")


def test_command_says_what_failed(short: Path) -> None:
    done = kos_command("replay", str(short), typed="1 / 0\n)\nprint('on')\n")
    assert done.returncode == cli.EXIT_FAILED
    assert "ZeroDivisionError" in done.stderr
    assert "SyntaxError" in done.stderr
    assert done.stdout.endswith("on\n")


def test_command_json(short: Path) -> None:
    done = kos_command("replay", str(short), "--until", "50000", "--json")
    facts = json.loads(done.stdout)
    assert (facts["at"], facts["at_end"], facts["ram_is_the_same"]) == (50000, False, None)
    facts = json.loads(kos_command("replay", str(short), "--json").stdout)
    assert (facts["at"], facts["ram_is_the_same"]) == (facts["instructions"], True)
    assert facts["registers"]["rip"] > 1 << 63


def test_command_statuses(short: Path, tmp_path: Path) -> None:
    changed = change(short, tmp_path / "bad.kos", {"recording.json": about(short, ram="0" * 64)})
    (tmp_path / "text").write_text("no recording")
    for words, status in (
        ([str(changed)], cli.EXIT_FAILED),
        ([str(tmp_path / "text")], cli.EXIT_USAGE),
        ([str(short), "--until", "-1"], cli.EXIT_USAGE),
        ([str(short), "--until", "x"], cli.EXIT_USAGE),
        ([str(tmp_path / "none")], cli.EXIT_HOST),
    ):
        done = kos_command("replay", *words)
        assert done.returncode == status, (words, done)
        assert done.stdout == ""
        assert "kos" in done.stderr


def test_command_on_a_terminal(short: Path) -> None:
    child = pexpect.spawn(KOS[0], [*KOS[1:], "replay", str(short)], timeout=120, encoding="utf-8")
    child.expect("bit by bit")
    child.expect_exact(">>> ")
    child.sendline("vm.at_end, len(vm.ram)")
    child.expect_exact("(True, 33554432)")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_console_command_records(tmp_path: Path) -> None:
    path = str(tmp_path / "run.kos")
    done = kos_command("console", "--cpus", "1", "--record", path, typed="alloc 3\npanic here\n")
    assert done.returncode == cli.EXIT_PANIC
    done = kos_command("replay", path, typed="vm.failure.reason\n")
    assert "'here'" in done.stdout
    done = kos_command("console", "--cpus", "2", "--record", path)
    assert (done.returncode, "1 CPU" in done.stderr) == (cli.EXIT_USAGE, True)
    done = kos_command("console", "--record", path, "--dry-run")
    assert done.returncode == cli.EXIT_USAGE


# The pytest plugin

SUITE = """
import pytest

def test_good(kos):
    kos.client.buddy_free(kos.client.buddy_alloc(2), 2)

def test_bad(kos):
    print("block", kos.client.buddy_alloc(3))
    assert kos.client.ping(1) == 2

def test_leak(kos_boot):
    kos_boot(memory="32M")
    kos_boot(memory="32M").client.buddy_alloc(0)

@pytest.mark.kos(cpus=2)
def test_two_cpus(kos):
    assert kos.client.machine_info().cpus == 1
"""


def test_plugin_keeps_the_runs_of_tests_that_fail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE)
    folder = pytester.path / "runs"
    done = pytester.runpytest_subprocess("-p", "no:xdist", f"--kos-record={folder}")
    done.assert_outcomes(passed=1, failed=3)
    assert {path.name for path in folder.iterdir()} == {
        "test_suite.py__test_bad-0.kos",
        "test_suite.py__test_leak-0.kos",
        "test_suite.py__test_leak-1.kos",
    }
    done.stdout.fnmatch_lines([f"kos replay {folder}/test_suite.py__test_bad-0.kos"])
    done.stdout.fnmatch_lines([f"kos replay {folder}/test_suite.py__test_leak-1.kos"])
    done.stdout.fnmatch_lines(["none: recorded machines have 1 CPU, and no rings or KVM"])
    with kos.replay(folder / "test_suite.py__test_bad-0.kos") as vm:
        assert vm.at_end
        assert vm.memory == 256 << 20
        assert any(int(block.page.order) == 3 for block in vm.view.blocks(3))


def test_plugin_records_nothing_unasked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE.split("def test_leak", maxsplit=1)[0])
    done = pytester.runpytest_subprocess("-p", "no:xdist")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.no_fnmatch_line("*kos replay*")
    assert not list(pytester.path.glob("**/*.kos"))
