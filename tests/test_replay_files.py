"""Recordings as files, from anybody; `kos replay`; and the pytest plugin's `--kos-record`."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pexpect
import pytest

import kos
from kos import _replay, cli
from kos.exceptions import HostError, ReplayError

KOS = [sys.executable, "-m", "kos"]


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
    pytester.makeini("[pytest]")
    pytester.makepyfile(test_suite=SUITE)
    folder = pytester.path / "runs"
    done = pytester.runpytest_subprocess("-p", "no:xdist", f"--kos-record={folder}")
    done.assert_outcomes(passed=2, failed=3)  # a leak is found when the test has passed
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
