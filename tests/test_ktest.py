"""The kernel's own tests: each as a test here, and the whole set on machines of several shapes."""

import re
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from elftools.elf.elffile import ELFFile

import kos
from kos import image
from kos.exceptions import HostError, KOSError
from kos.machine import Machine

DEADLINE = 120.0  # seconds after which a test counts as hung


def read_names() -> list[str]:
    """The names of the tests in the kernel image, in its order: pointer pairs in .kos.tests."""
    with image.find()[0].open("rb") as f:
        elf = ELFFile(f)
        segments = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]

        def text_at(vaddr: int) -> str:
            for s in segments:
                at = vaddr - s["p_vaddr"]
                if 0 <= at < s["p_filesz"]:
                    return bytes(s.data()[at : at + 200]).split(b"\0")[0].decode()
            raise ValueError(f"no text at {vaddr:#x}")

        section = elf.get_section_by_name(".kos.tests")
        data = section.data() if section else b""
        return [text_at(name) for name, _ in struct.iter_unpack("<QQ", data)]


try:
    NAMES = read_names()
    UNREADABLE = "" if NAMES else "the image has no tests in .kos.tests"
except (HostError, OSError) as error:
    NAMES, UNREADABLE = [], str(error)


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """One machine for all tests here: 64 MiB, four CPUs."""
    assert not UNREADABLE, UNREADABLE
    with kos.boot(memory="64M", cpus=4) as vm:
        yield vm


@pytest.fixture
def tester(shared: Machine) -> Iterator[Machine]:
    """The shared machine as it booted: what a failed test left behind is gone."""
    shared.client.timeout = DEADLINE
    before = shared.client.machine_info()
    yield shared
    try:
        shared.client.buddy_drain()
        after = shared.client.machine_info()
        clean = (after.free_bytes, after.clients, after.rings) == (
            before.free_bytes,
            before.clients,
            before.rings,
        )
    except KOSError:
        clean = False
    if not clean:
        shared.reset()


def test_the_image_has_tests() -> None:
    assert not UNREADABLE, UNREADABLE
    assert len(set(NAMES)) == len(NAMES), "each name once"
    assert [name for name in NAMES if not re.fullmatch(r"[a-z]\w*\.[a-z]\w*", name)] == []


@pytest.mark.parametrize("name", NAMES or ["image"])
def test_in_kernel(tester: Machine, name: str) -> None:
    index = NAMES.index(name)
    assert tester.client.test_name(index) == name
    tester.client.buddy_drain()
    free = tester.client.machine_info().free_bytes
    report, failures = tester.client.test_run(index)
    assert (failures, report) == (0, ""), f"{failures} checks failed:\n{report}"
    tester.client.buddy_drain()
    assert tester.client.machine_info().free_bytes == free, "it keeps memory"


def test_the_kernel_counts_the_same(tester: Machine) -> None:
    assert tester.client.test_count() == len(NAMES)
    for index in (len(NAMES), len(NAMES) + 1, 2**32 - 1):
        for call in (tester.client.test_name, tester.client.test_run):
            with pytest.raises(KOSError) as refused:
                call(index)
            assert refused.value.errno == -22


def ktap_faults(text: str, expected: list[str]) -> list[str]:
    """What is wrong with a KTAP stream that must run exactly these tests, all good.

    Args:
        text: The whole output.
        expected: Names in order.

    Returns:
        Lines to show; none when all is good.
    """
    lines = text.splitlines()
    faults = [] if lines[:1] == ["KTAP version 1"] else ["no KTAP header"]
    if lines[1:2] != [f"1..{len(expected)}"]:
        faults.append(f"plan {lines[1:2]} for {len(expected)} tests")
    results: list[tuple[str, int, str]] = []
    comments: list[str] = []
    for line in lines[2:]:
        found = re.fullmatch(r"(ok|not ok) (\d+) (\S+)", line)
        if found:
            results.append((found[1], int(found[2]), found[3]))
            faults += [*comments, line] if found[1] != "ok" else []
            comments = []
        elif line.startswith("# "):
            comments.append(line)
        else:
            faults.append(f"neither result nor comment: {line!r}")
    if results != [("ok", number, name) for number, name in enumerate(expected, 1)]:
        faults.append(f"{len(results)} results, not one for each test in order")
    if comments != [f"# pass:{len(expected)} fail:0"]:
        faults.append(f"it ends with {comments}")
    return faults


@pytest.mark.parametrize(
    "options",
    [
        ["--cpus=1", "--memory=16M"],
        ["--cpus=8", "--memory=256M"],
        ["--machine=q35", "--cpus=2", "--memory=64M"],
        ["--deterministic", "--cpus=2", "--memory=64M"],
    ],
    ids=["small", "large", "q35", "deterministic"],
)
def test_whole_set(options: list[str]) -> None:
    assert not UNREADABLE, UNREADABLE
    argv = [sys.executable, "-m", "kos", "test", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * DEADLINE)
    faults = ktap_faults(done.stdout, NAMES)
    assert not faults, "\n".join(faults)
    assert (done.returncode, done.stderr) == (0, "")


def test_from_the_console(tester: Machine) -> None:
    assert ktap_faults(tester.console.run("test", timeout=DEADLINE), NAMES) == []
    part = NAMES[0].split(".")[0] + "."
    few = [name for name in NAMES if name.startswith(part)]
    assert ktap_faults(tester.console.run(f"test {part}", timeout=DEADLINE), few) == []
    assert ktap_faults(tester.console.run(f"test {NAMES[-1]}"), [NAMES[-1]]) == []


GOOD = "KTAP version 1\n1..2\nok 1 a.b\nok 2 a.c\n# pass:2 fail:0\n"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (GOOD, True),
        (GOOD.replace("ok 2", "not ok 2"), False),
        (GOOD.replace("ok 2 a.c\n", ""), False),
        (GOOD.replace("1..2", "1..3"), False),
        (GOOD.replace("pass:2", "pass:1"), False),
        (GOOD.replace("ok 1", "ok 2"), False),
        (GOOD.replace("KTAP version 1\n", ""), False),
        (GOOD + "ok 3 a.d\n", False),
        (GOOD.replace("a.b", "a.x"), False),
        ("", False),
    ],
)
def test_parser(text: str, good: bool) -> None:
    assert (ktap_faults(text, ["a.b", "a.c"]) == []) == good
