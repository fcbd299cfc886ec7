"""The `kos` command as a user runs it: exit statuses, output for programs, settings, signals."""

import itertools
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Protocol

import pexpect
import pytest

from kos import image
from kos.bench import MEASUREMENTS
from kos.cli import main

ROOT = Path(__file__).resolve().parent.parent
KOS = [sys.executable, "-m", "kos"]
SECONDS = 120
NO_QEMU = "/nonexistent"
SETTINGS = ("KOS_MEMORY", "KOS_CPUS", "KOS_MACHINE", "KOS_ACCEL", "KOS_TIMEOUT")


def environment(**changes: str) -> dict[str, str]:
    """This process's, without settings of KOS but for those given."""
    return {k: v for k, v in os.environ.items() if k not in SETTINGS} | changes


def kos(
    *words: str, typed: str | None = None, cwd: Path = ROOT, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; `typed` comes through a pipe, else standard input is empty."""
    done = subprocess.run(
        [*KOS, *words],
        input=typed if typed is not None else "",
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Inside(Protocol):
    """Runs the command in this process, where a start costs nothing; no machine may be booted."""

    def __call__(
        self, *words: str, cwd: Path = ROOT, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    def run(
        *words: str, cwd: Path = ROOT, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        for name in SETTINGS:
            monkeypatch.delenv(name, raising=False)
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("kos._default.Machine", None)  # booting one is an error
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return run


def qemus_with(marker: str) -> list[int]:
    """The QEMU processes whose command line has this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in argv[0] and any(marker.encode() in word for word in argv):
            found.append(int(path.parent.name))
    return found


# ---- what it is asked ----


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frob"],
        ["run", "--machine=pc"],
        ["run", "--accel=xen"],
        ["run", "--cpus=two"],
        ["run", "extra"],
        ["run", "--memory"],
        ["test", "--jso"] + ["x"] * 2,
        ["bench", "--runs=x"],
        ["--frob"],
    ],
)
def test_usage(inside: Inside, words: list[str]) -> None:
    done = inside(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: kos")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["bench", "-h"]])
def test_help(words: list[str]) -> None:
    done = kos(*words, PATH=NO_QEMU)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: kos")
    if words == ["--help"]:
        for command in ("run", "console", "test", "bench", "doctor"):
            assert re.search(rf"^    {command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--memory=abc"], "'abc'"),
        (["--memory=15M"], str(15 << 20)),
        (["--memory=65G"], str(65 << 30)),
        (["--memory="], "''"),
        (["--cpus=0"], "cpus 0"),
        (["--cpus=9"], "cpus 9"),
    ],
)
@pytest.mark.parametrize("command", ["run", "console", "test"])
def test_bad_values(inside: Inside, command: str, words: list[str], named: str) -> None:
    for dry in (["--dry-run"], ["--deterministic", "--dry-run"]):
        done = inside(command, *words, *dry)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("kos: ")
        assert named in done.stderr
        assert "allowed" in done.stderr


def test_statuses_outside() -> None:
    """The same by the real command: usage, and values that only booting looks at."""
    for words in (["frob"], ["run", "--memory=abc"], ["console", "--cpus=9"]):
        done = kos(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert words[-1].split("=")[-1] in done.stderr


# ---- run ----


def test_run_shows_the_api_at_work() -> None:
    done = kos("run", "--memory=64M")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"booted in \d+ ms: <Machine 64M, 2 CPUs, pid \d+>", lines[0])
    text = done.stdout
    assert re.search(r"^>>> hex\(addr\)\n'0x[0-9a-f]+000'$", text, re.MULTILINE)
    assert re.search(r"^>>> buddy_free\(addr, 1\) .*\n-22$", text, re.MULTILINE)
    assert re.search(r"^>>> hex\(frame.virtual_addr\)\n'0x400000'$", text, re.MULTILINE)
    assert "what the kernel says:\n\nkos> buddy\nzone DMA: " in text
    assert re.search(r"^\['cpu_irq_enable_halt', 'loop_halt', .*\]$", text, re.MULTILINE)
    assert re.search(r"^audit of 64 MiB, \d+ frames accounted for: sound$", text, re.MULTILINE)
    assert lines[-1].split(maxsplit=1) == ["1", "the kernel: mark of this boot"]


def test_run_ends_its_machine() -> None:
    done = kos("run", "--memory=64M", "--append=spin=4711")
    pid = int(re.findall(r"pid (\d+)>", done.stdout)[0])
    assert not Path(f"/proc/{pid}").exists()
    assert qemus_with("spin=4711") == []


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_dry_run(machine: str) -> None:
    words = ["--cpus=3", "--memory=80M", f"--machine={machine}", "--append=spin=1 it's 'quoted'"]
    done = kos("run", "--dry-run", *words, PATH=NO_QEMU)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    argv = shlex.split(done.stdout)
    assert argv[0] == "qemu-system-x86_64"
    options = dict(itertools.pairwise(argv))
    assert options["-smp"] == "3"
    assert options["-M"].split(",")[0] == machine
    assert f"size={80 << 20}," in options["-object"]
    assert options["-append"] == "spin=1 it's 'quoted'"
    assert Path(options["-kernel"]) == image.find()[0]
    parsed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {done.stdout}"], capture_output=True, text=True
    )
    assert parsed.stdout.splitlines() == argv


def test_dry_run_deterministic() -> None:
    argv = shlex.split(kos("test", "--dry-run", "--deterministic").stdout)
    assert argv[argv.index("-icount") + 1].startswith("shift=")
    assert argv[argv.index("-cpu") + 1] == "qemu64"


def test_dry_run_is_what_runs() -> None:
    """QEMU takes the printed command line; only its descriptors are replaced."""
    argv = shlex.split(kos("run", "--dry-run", "--memory=32M").stdout)
    with tempfile.TemporaryFile() as ram:
        ram.truncate(32 << 20)
        for old, new in (
            ("/proc/self/fd/3", f"/proc/self/fd/{ram.fileno()}"),
            ("socket,id=console,fd=4", "null,id=console"),
            ("socket,id=wire,fd=5", "null,id=wire"),
            ("socket,id=qmp,fd=6", "stdio,id=qmp"),
        ):
            assert sum(old in word for word in argv) == 1
            argv = [word.replace(old, new) for word in argv]
        done = subprocess.run(
            argv,
            input='{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n',
            pass_fds=[ram.fileno()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[0])["QMP"]


# ---- console ----


def test_console_with_piped_lines() -> None:
    done = kos("console", "--memory=64M", typed="call ping 7\n\n   call ping 8   \nbogus\nzones")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "kos> call ping 7\nvalue 7\nkos> call ping 8\nvalue 8\n"
        "kos> bogus\n'bogus' is no command; 'help' lists them\nkos> zones\nzone "
    )


def test_console_first_line_is_answered_as_such() -> None:
    """What boot prints is not taken for the answer, however early the first line comes."""
    for _ in range(3):
        done = kos("console", "--memory=16M", "--cpus=1", typed="call ping 1\ncall ping 2\n")
        assert done.stdout == "kos> call ping 1\nvalue 1\nkos> call ping 2\nvalue 2\n"


def test_console_without_lines() -> None:
    done = kos("console", "--memory=64M")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("line", ["x" * 256, "zones \x01", "zönes"])
def test_console_line_that_cannot_be_typed(line: str) -> None:
    done = kos("console", "--memory=64M", typed=f"{line}\n")
    assert done.returncode == 2
    assert "one line of at most 255 plain characters" in done.stderr


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("panic the words of the test", "the words of the test"),
        ("crash divide", "divide"),
        ("crash triple", "triple fault"),
        ("call crash null", "page fault"),
    ],
)
def test_panic_on_the_console(line: str, reason: str) -> None:
    done = kos("console", "--memory=64M", typed=f"call ping 7\n{line}\ncall ping 8\n")
    assert done.returncode == 255
    assert "value 7" in done.stdout
    assert "value 8" not in done.stdout
    first = done.stderr.splitlines()[0]
    assert first.startswith("kos: kernel panic: ")
    assert reason in first


def test_reboot_on_the_console() -> None:
    done = kos("console", "--memory=64M", typed="alloc 3\nreboot\ncall ping 7\nclients\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rebooting\nKOS: " in done.stdout
    assert "value 7" in done.stdout


def test_interrupt_leaves_no_machine() -> None:
    """Ctrl-C while it waits for a line: status 130, no traceback, no QEMU."""
    marker = f"spin={os.getpid()}{1234567}"
    process = subprocess.Popen(
        [*KOS, "console", "--memory=64M", f"--append={marker}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONUNBUFFERED="1"),
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("call ping 7\n")
    process.stdin.flush()
    assert process.stdout.readline() == "kos> call ping 7\n"
    assert process.stdout.readline() == "value 7\n"
    assert len(qemus_with(marker)) == 1
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (130, "", "")
    assert qemus_with(marker) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_killed_command_leaves_no_machine(number: signal.Signals) -> None:
    marker = f"spin={os.getpid()}{int(number)}654321"
    process = subprocess.Popen(
        [*KOS, "console", "--memory=64M", f"--append={marker}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(PYTHONUNBUFFERED="1"),
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("call ping 7\n")
    process.stdin.flush()
    assert process.stdout.readline() == "kos> call ping 7\n"
    (qemu,) = qemus_with(marker)
    gone = os.pidfd_open(qemu)
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == -number
    assert select.select([gone], [], [], SECONDS)[0], "QEMU outlives its parent"
    os.close(gone)


def test_interrupt_on_a_terminal_reaches_the_kernel() -> None:
    """There Ctrl-C is a key: the line is dropped and the console goes on."""
    child = pexpect.spawn(
        KOS[0],
        [*KOS[1:], "console", "--memory=64M"],
        encoding="latin-1",
        env=environment(),
        timeout=SECONDS,
        dimensions=(24, 80),
    )
    child.expect_exact("kos> ")
    child.send("half a line\x03")
    child.expect_exact("^C")
    child.expect_exact("kos> ")
    child.send("call ping 7\r")
    child.expect(r"value 7\r*\n")
    child.send("panic on a terminal\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 255


# ---- test ----


def test_test_by_prefix() -> None:
    done = kos("test", "--memory=64M", "pool.")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    count = len(lines) - 3
    assert lines[:2] == ["KTAP version 1", f"1..{count}"]
    assert all(re.fullmatch(rf"ok {n} pool\.\w+", line) for n, line in enumerate(lines[2:-1], 1))
    assert lines[-1] == f"# pass:{count} fail:0"


def test_test_json() -> None:
    done = kos("test", "--memory=64M", "--json", "pool.")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["failed"]) == (0, "", 0)
    assert report["tests"]
    for test in report["tests"]:
        assert test["name"].startswith("pool.")
        assert (test["failures"], test["report"]) == (0, "")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_test_unknown_prefix(form: list[str]) -> None:
    done = kos("test", "--memory=64M", "nope", *form)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no test's name starts with 'nope'" in done.stderr
    assert "pool." in done.stderr


def test_failed_test_is_status_1() -> None:
    """The kernel's tests all pass, so one that fails is put in front of the real command."""
    code = (
        "import sys; from kos.rpc.calls import Calls; from kos.cli import main\n"
        "real = Calls.test_run\n"
        "def one_fails(self, index):\n"
        "    name = self.test_name(index)\n"
        "    bad = ('a.c:1: no\\nb.c:2: no\\n', 2)\n"
        "    return bad if name == 'pool.sizes' else real(self, index)\n"
        "Calls.test_run = one_fails\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = [sys.executable, "-c", code, "test", "--memory=64M", "pool."]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=SECONDS)
    assert done.returncode == 1
    assert re.search(r"# a.c:1: no\n# b.c:2: no\nnot ok \d pool.sizes\n", done.stdout)
    assert re.search(r"# pass:\d+ fail:1\n\Z", done.stdout)


# ---- bench ----


def test_bench_list() -> None:
    done = kos("bench", "list", PATH=NO_QEMU)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(MEASUREMENTS)


@pytest.mark.plain
def test_bench_allocator_is_within_its_bars() -> None:
    """Guest instructions: exact, so the bars hold on any machine, and twice the same."""
    runs = [kos("bench", "allocator", "--json", "-", "--runs=1") for _ in range(2)]
    assert [done.returncode for done in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    rows = json.loads(runs[0].stdout)
    assert sum(row["bar"] is not None for row in rows) >= 40
    for row in rows:
        assert row["value"] > 0 or row["unit"] != "instructions"
        assert row["missed"] is False, row


def test_bench_unknown_and_bad() -> None:
    done = kos("bench", "nope", PATH=NO_QEMU)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"kos: no measurement 'nope'; known: {', '.join(MEASUREMENTS)}\n")
    assert kos("bench", "allocator", "--runs=0", PATH=NO_QEMU).returncode == 2


def test_bench_writes_where_it_cannot(tmp_path: Path) -> None:
    done = kos("bench", "allocator", f"--json={tmp_path}/absent/figures.json", PATH=NO_QEMU)
    assert (done.returncode, done.stdout) == (3, "")
    assert "measuring" not in done.stderr
    assert f"{tmp_path}/absent/figures.json" in done.stderr


# ---- doctor ----


def test_doctor() -> None:
    done = kos("doctor")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert all(line.startswith(("ok ", "info ")) for line in done.stdout.splitlines())
    report = json.loads(kos("doctor", "--json").stdout)
    assert report["good"] is True


# ---- what the host lacks ----


@pytest.mark.parametrize("words", [["run"], ["console"], ["test"], ["bench", "allocator"]])
def test_no_qemu(words: list[str]) -> None:
    done = kos(*words, PATH=NO_QEMU)
    assert (done.returncode, done.stdout) == (3, "")
    assert "qemu-system-x86_64 was not found" in done.stderr
    assert re.search(r"mend it with: apt-get install \S.*qemu-system-x86", done.stderr)


def test_doctor_without_qemu() -> None:
    done = kos("doctor", PATH=NO_QEMU)
    assert done.returncode == 3
    assert re.search(r"^MISS qemu-system-x86_64.*\n +mend: .*qemu-system-x86", done.stdout, re.M)


def test_no_kernel(tmp_path: Path) -> None:
    for done in (
        kos("run", f"--kernel={tmp_path}/absent.elf"),
        kos("run", KOS_KERNEL=f"{tmp_path}/absent.elf"),
    ):
        assert (done.returncode, done.stdout) == (3, "")
        assert f"{tmp_path}/absent.elf" in done.stderr
        assert "mend it with: make build" in done.stderr


def test_kernel_that_does_not_boot(tmp_path: Path) -> None:
    kernel = tmp_path / "true.elf"
    kernel.write_bytes(Path("/bin/true").read_bytes())
    kernel.with_suffix(".abi.json").write_bytes(image.find()[1].read_bytes())
    done = kos("run", f"--kernel={kernel}")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"-kernel {kernel}" in done.stderr
    assert "exit status: 1" in done.stderr


# ---- settings ----


def test_settings_go_flag_then_environment_then_project(inside: Inside, tmp_path: Path) -> None:
    project = '[tool.kos]\nmemory = "48M"\ncpus = 3\nmachine = "q35"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    def machine(*words: str, **changes: str) -> tuple[str, str, str]:
        argv = shlex.split(inside("run", "--dry-run", *words, cwd=below, environ=changes).stdout)
        size = re.search(r"size=(\d+)", " ".join(argv))
        assert size
        mebibytes = int(size[1]) >> 20
        kind = argv[argv.index("-M") + 1].split(",")[0]
        return f"{mebibytes}M", argv[argv.index("-smp") + 1], kind

    assert machine() == ("48M", "3", "q35")
    assert machine(KOS_MEMORY="96M", KOS_MACHINE="microvm") == ("96M", "3", "microvm")
    assert machine("--memory=32M", "--cpus=1", KOS_MEMORY="96M") == ("32M", "1", "q35")
    (below / "pyproject.toml").write_text("[project]\n")
    assert machine() == ("256M", "2", "microvm"), "the nearest file counts, whatever is in it"


def test_settings_reach_the_machine() -> None:
    done = kos("console", typed="zones\ncpus\n", KOS_MEMORY="48M", KOS_CPUS="3")
    assert "0x0001000000-0x0002ffffff" in done.stdout
    assert re.findall(r"(?m)^  ([0-9]) +\d+ +(?:running|asleep)", done.stdout) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEMORY", "5"),
        ("MEMORY", "abc"),
        ("MEMORY", ""),
        ("MEMORY", "65G"),
        ("CPUS", "x"),
        ("CPUS", "0"),
        ("CPUS", "9"),
        ("CPUS", "2.5"),
        ("CPUS", ""),
        ("MACHINE", "pc"),
        ("ACCEL", "xen"),
        ("TIMEOUT", "soon"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "-1"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "inf"),
    ],
)
def test_bad_variable_is_named(inside: Inside, name: str, value: str) -> None:
    done = inside("run", "--dry-run", environ={f"KOS_{name}": value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kos: KOS_{name}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('memory = "abc"', "'abc'"),
        ("memory = 5", "memory_bytes 5"),
        ("memory = true", "True"),
        ("memory = []", "[]"),
        ("cpus = 9", "cpus 9"),
        ("cpus = 2.5", "2.5"),
        ("cpus = true", "True"),
        ('machine = "pc"', "'pc'"),
        ('timeout = "x"', "'x'"),
        ("memroy = 1", "'memroy'"),
        ("cpus = ", "pyproject.toml"),
    ],
)
def test_bad_project_setting_is_named(
    inside: Inside, tmp_path: Path, line: str, named: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.kos]\n{line}\n")
    done = inside("run", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pyproject.toml: " in done.stderr
    assert named in done.stderr


@pytest.mark.parametrize("text", ["tool = 3\n", "[tool]\nkos = 3\n"])
def test_project_that_has_no_table(inside: Inside, tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert inside("run", "--dry-run", cwd=tmp_path).returncode in (0, 2)


# ---- output that nobody reads ----


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "list"],
        ["doctor"],
        ["run", "--memory=64M"],
        ["run", "--dry-run"],
        ["test", "--memory=64M", "pool."],
        ["test", "--memory=64M", "--json", "pool."],
        ["--help"],
    ],
)
def test_closed_output(words: list[str]) -> None:
    """As in `kos ... | head -1`: quiet, whether the reader goes early or late."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*KOS, *words],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            timeout=SECONDS,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


def test_closed_output_of_the_console() -> None:
    process = subprocess.Popen(
        [*KOS, "console", "--memory=64M"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write("call ping 7\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write("call ping 8\n" * 100)
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(SECONDS) == 0
    process.stderr.close()


def test_module_and_script_are_the_same() -> None:
    script = Path(sys.executable).parent / "kos"
    assert script.is_file()
    done = subprocess.run(
        [script, "bench", "list"], capture_output=True, text=True, env=environment()
    )
    assert done.stdout == kos("bench", "list").stdout
