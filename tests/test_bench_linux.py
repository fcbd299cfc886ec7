"""Linux's figures: what is read from a guest's console, the file they are in, and its loader.

No Linux is built or booted here: `make bench-linux` does that.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import debian
import guest
import kernels
import linux_bench
from debian import LinuxBenchError
from kos.bench import linux

ROOT = Path(__file__).resolve().parent.parent

#: Lines of a real run of the column `lean`.
CONSOLE = """\
V MemTotal_kB 481428
R u cal_tsc_pair 1 50 7 7 7 7
R u cal_loop_2000001_insns 1 10 2000008 2002362 2008486 2002625
R u getpid 1000 50 297009 297009 299363 297193
R u mmap_munmap_4K 100 50 956797 965672 1377029 1020498
R k cal_tsc_pair 1 50 7 7 7 7
R k cal_loop_2000001_insns 1 10 2000008 2003257 2004616 2001984
R k pages_pair_o0 1000 100 693007 693007 698106 693653
R k cache_batch1024_256_alloc_lifo 1024 50 222228 222372 236591 223625
V frag_start_largest_order 10
V mixpages_failed 0
V mixpages_alloc_lat_p50 442
V mixpages_big_failed 0
END
"""


# ---- the console ----


def test_figures_of_a_console() -> None:
    assert guest.figures(CONSOLE) == {
        "MemTotal_kB": 481428,
        "getpid": 297.002,
        "mmap_munmap_4K": 9656.65,  # the median, others have the minimum
        "pages_pair_o0": 693,
        "cache_batch1024_256_alloc_lifo": 217.013,
        "frag_start_largest_order": 10,
        "mixpages_failed": 0,
        "mixpages_alloc_lat_p50": 442,
        "mixpages_big_failed": 0,
    }


def test_the_kernels_own_lines_are_left_alone() -> None:
    noise = "[    0.029178] random: crng init done\nR\u00e9sum\u00e9 of\n\n"
    assert guest.figures(noise + CONSOLE) == guest.figures(CONSOLE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("R u getpid 1000 50 297009", "R u getpid 1000 50", "cut or mixed up: 'R u getpid 1000"),
        ("V mixpages_failed 0", "V mixpages_failed", "cut or mixed up: 'V mixpages_failed'"),
        ("V mixpages_failed 0", "V MemTotal_kB 1", "printed MemTotal_kB twice"),
        ("R u getpid", "R u mmap_munmap_4K", "printed mmap_munmap_4K twice"),
        ("R u getpid", "R x getpid", "cut or mixed up: 'R x getpid"),
        ("R u getpid 1000", "FAIL fork 12\nR u getpid 1000", "failed in the guest: FAIL fork 12"),
        ("R k cal_tsc_pair 1", "R k other 1", "calibration of suite 'k' is missing"),
        ("2000008 2003257", "2000009 2003257", "took 2000002 ticks"),
    ],
)
def test_a_bad_console_is_an_error(old: str, new: str, message: str) -> None:
    assert CONSOLE.count(old) == 1
    with pytest.raises(LinuxBenchError, match=re.escape(message)):
        guest.figures(CONSOLE.replace(old, new))


def test_missing_figures_are_named() -> None:
    rows = {"a": 1.0, "mixpages_failed": 0, "mixpages_big_failed": 0}
    guest.check({"tiny": rows, "lean": rows}, ["a"])
    with pytest.raises(LinuxBenchError, match="column tiny has no figure for: c, d"):
        guest.check({"tiny": rows}, ["a", "d", "c"])
    with pytest.raises(LinuxBenchError, match="column tiny has no figure for: b"):
        guest.check({"tiny": rows, "lean": rows | {"b": 1.0}}, ["a"])
    with pytest.raises(LinuxBenchError, match="lean: allocations failed, mixpages_failed is 3"):
        guest.check({"lean": rows | {"mixpages_failed": 3}}, ["a"])


def test_a_kernel_that_does_not_boot_is_an_error(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(b"no kernel")
    initrd.write_bytes(b"")
    with pytest.raises(LinuxBenchError, match=r"status 1\); the console:\nqemu"):
        guest.boot(kernel, initrd, "")


def test_the_consoles_end_is_shown() -> None:
    lines = [str(number) for number in range(100)]
    assert guest.tail("\n".join(lines)).splitlines() == lines[-guest.TAIL_LINES :]
    assert guest.tail("") == "(nothing was printed)"


def test_qemu_is_the_one_that_kos_is_measured_in() -> None:
    text = " ".join(guest.QEMU)
    for part in ("-icount shift=0,sleep=off", "-cpu qemu64", "-seed 1", "-m 512", "-smp 1"):
        assert part in text


# ---- the arguments ----


def test_arguments() -> None:
    arguments = linux_bench.parse_arguments([])
    assert arguments.columns == ["tiny", "lean", "stock"]
    assert arguments.out == ROOT / "host/kos/bench/linux.json"
    assert arguments.jobs >= 1
    arguments = linux_bench.parse_arguments(["--only=stock", "--only=tiny", "--jobs=3", "--out=x"])
    assert arguments.columns == ["tiny", "stock"]
    assert (arguments.jobs, arguments.out) == (3, Path("x"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "big"], "invalid choice: 'big' (choose from 'tiny', 'lean', 'stock')"),
        (["--jobs", "0"], "'0' is not a number of at least 1"),
        (["--jobs", "-1"], "'-1' is not a number of at least 1"),
        (["--jobs", "many"], "'many' is not a number of at least 1"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_bad_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        linux_bench.parse_arguments(words)
    assert message in capsys.readouterr().err


def run_script(*words: str, path: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts/linux-bench/linux_bench.py"
    return subprocess.run(
        [sys.executable, script, *words],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )


def test_no_debian_is_an_error(tmp_path: Path) -> None:
    done = run_script("--out", str(tmp_path / "out"), path=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bench-linux: this needs Debian 12, and there is no apt-get here\n"
    assert not (tmp_path / "out").exists()


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"rows": {}}')
    done = run_script("--out", str(other), path=str(tmp_path))
    assert done.returncode == 1
    assert f"{other} holds no figures of Linux" in done.stderr
    assert other.read_text() == '{"rows": {}}'


# ---- Debian's packages ----


def test_what_is_lacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who is not root, on a machine whose dpkg knows of one package alone."""
    for name, body in {
        "apt-get": "exit 9",
        "apt-cache": "exit 9",
        "dpkg": "exit 9",
        "dpkg-query": '[ "$3" = make ] && printf installed',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lacking = [name for name in debian.TOOLS if name != "make"]
    install = f"sudo apt-get install -y --no-install-recommends {' '.join(lacking)}"
    with pytest.raises(LinuxBenchError, match=re.escape(f"install with: {install}")):
        debian.ensure_tools()


def test_a_failed_command_shows_its_end() -> None:
    with pytest.raises(LinuxBenchError) as caught:
        debian.run("sh", "-c", "seq 100; echo why >&2; exit 3")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("sh -c seq 100")
    assert (lines[-1], len(lines)) == ("why", 2 + 30)


# ---- what is built ----


def test_built_again_only_when_something_changed(tmp_path: Path) -> None:
    target, source = tmp_path / "deep/target", tmp_path / "source"
    source.write_text("one")

    def build(*more: str) -> bool:
        with kernels.kept(target, source, *more) as stale:
            if stale:
                target.write_text("made")
        return stale

    assert [build("a"), build("a"), build("b"), build("b")] == [True, False, True, False]
    source.write_text("two")
    assert [build("b"), build("b")] == [True, False]
    target.unlink()
    assert [build("b"), build("b")] == [True, False]


def test_a_failed_build_is_done_again(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with kernels.kept(target, "a"):
        target.write_text("made")

    def fail() -> None:
        with kernels.kept(target, "b"):
            target.write_text("half")
            raise LinuxBenchError("no")

    with pytest.raises(LinuxBenchError, match="no"):
        fail()
    with kernels.kept(target, "b") as stale:
        assert stale


def test_archive_is_a_cpio(tmp_path: Path) -> None:
    """Against the format's description: a head of hexadecimal numbers, name and content padded."""
    none = (0, 0)
    data = kernels.archive(
        [("dev/console", 0o20600, b"", (5, 1)), ("init", 0o100755, b"abc", none)]
    )
    assert len(data) % 512 == 0
    at, seen = 0, []
    while True:
        assert data[at : at + 6] == b"070701"
        head = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + head[11] - 1].decode()
        start = at + -(-(110 + head[11]) // 4) * 4
        seen.append((name, head[1], data[start : start + head[6]], (head[9], head[10])))
        at = start + -(-head[6] // 4) * 4
        if name == "TRAILER!!!":
            break
    assert seen == [
        ("dev/console", 0o20600, b"", (5, 1)),
        ("init", 0o100755, b"abc", none),
        ("TRAILER!!!", 0, b"", none),
    ]
    assert not data[at:].strip(b"\0")


@pytest.mark.parametrize(("magic", "tool"), kernels._PAYLOADS.items())
def test_the_kernel_is_taken_out_of_its_image(magic: bytes, tool: str, tmp_path: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here; make bench-linux installs it")
    options = {"lz4": ["-l"], "xz": ["--check=crc32"]}[tool]
    inner = b"\x7fELF" + bytes(range(256)) * 10
    packed = subprocess.run([tool, "-c", *options], input=inner, capture_output=True, check=True)
    assert packed.stdout.startswith(magic)
    head = bytearray(3 * 512)
    head[0x1F1] = 1  # sectors of setup beside the first
    head[0x248:0x24C] = (512).to_bytes(4, "little")
    head[0x24C:0x250] = (len(packed.stdout) + 4).to_bytes(4, "little")
    image, target = tmp_path / "vmlinuz", tmp_path / "vmlinux"
    image.write_bytes(head + packed.stdout + len(inner).to_bytes(4, "little") + b"more")
    kernels.extract(image, target)
    assert target.read_bytes() == inner
    image.write_bytes(head + b"\1\2\3\4" + packed.stdout)
    with pytest.raises(LinuxBenchError, match=r"begins with b'\\x01\\x02\\x03\\x04'"):
        kernels.extract(image, target)


# ---- the file ----


def test_the_file_is_as_it_is_written() -> None:
    """What is in the tree was written by the script, and is complete."""
    columns = linux_bench.read(linux_bench.FIGURES)
    assert tuple(columns) == linux_bench.COLUMNS
    assert linux_bench.text_of(columns) == linux_bench.FIGURES.read_text()
    rows = {name: column["rows"] for name, column in columns.items()}
    guest.check(rows, linux_bench.NEEDED)


def test_moved_figures() -> None:
    before = {"same": 10.0, "little": 1000.0, "more": 100.0, "zero": 0.0, "none": 0.0, "old": 1.0}
    after = {"same": 10.0, "little": 1010.0, "more": 98.5, "zero": 2.0, "none": 0.0, "fresh": 1.0}
    assert linux_bench.moved(before, after) == [
        "old: gone",
        "fresh: new",
        "more: 100 -> 98.5 (-1.5 %)",
        "zero: 0 -> 2 (from nothing)",
    ]


# ---- the loader ----


def test_loader_has_what_the_file_has() -> None:
    data = json.loads(linux_bench.FIGURES.read_text())
    found = linux.figures()
    assert list(found.columns) == data["columns"]
    assert found.rows == data["rows"]
    assert {name: of._asdict() for name, of in found.source.items()} == data["source"]
    assert linux.figure("mixpages_100k", "lean") == data["rows"]["mixpages_100k"]["lean"]


def test_unknown_row() -> None:
    with pytest.raises(ValueError, match=r"no row 'pages_pair_00' in .*; near: .*pages_pair_o0"):
        linux.figure("pages_pair_00", "tiny")
    with pytest.raises(ValueError, match=r"no row '' in Linux's figures; near: \S+, \S+, \S+$"):
        linux.figure("", "tiny")


def test_unknown_column() -> None:
    with pytest.raises(ValueError, match=r"no column 'big' in .*; known: tiny, lean, stock"):
        linux.figure("pages_pair_o0", "big")


def test_the_figures_are_package_data() -> None:
    """tests/test_generated.py looks into a wheel that was made from this."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert linux_bench.FIGURES.name in options["tool"]["setuptools"]["package-data"]["kos.bench"]


def test_the_order_of_figures() -> None:
    """A Linux without a part of its checks is not slower: a sign that columns are mixed up."""
    for row in ("pages_pair_o0", "pages_pair_o3", "mixpages_100k", "cache_pair_256", "getpid"):
        tiny, lean, stock = (linux.figure(row, column) for column in linux.figures().columns)
        assert tiny < lean < stock, row
