"""Kernel C on this host: each `tests/unit/test_*.c` is compiled with sanitizers and run.

A unit says in its first lines what it is made of (scripts/units.py). It prints TAP and ends with
status 0 if all its tests are good. One pytest test stands for one unit and shows every line of its
output that is no "ok". Beside them: the whole kernel compiles from scratch, without a warning, with
each compiler.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import units
from units import directive

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted((ROOT / units.FOLDER).glob("test_*.c"))
CC = os.environ.get("CC", "gcc").split()
CFLAGS = [
    *units.CFLAGS,
    "-g",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]
RUN_SECONDS = 300
BUILD_SECONDS = 600


def compile_unit(unit: Path, program: Path) -> None:
    """Compile a unit with the kernel sources it names; what the compiler says is the failure."""
    argv = [
        *CC,
        *CFLAGS,
        *directive(unit, "flags"),
        "-o",
        str(program),
        os.path.relpath(unit, ROOT),
    ]
    argv += directive(unit, "sources")
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def tap_faults(text: str, status: int) -> list[str]:
    """What is wrong with a TAP stream: failed tests with their diagnostics, a plan not kept.

    Args:
        text: What the program printed.
        status: Its exit status.

    Returns:
        Lines to show; none when all is good.
    """
    faults: list[str] = []
    diagnostics: list[str] = []
    numbers: list[int] = []
    plans = re.findall(r"^1\.\.(\d+)$", text, re.MULTILINE)
    if not text.startswith("TAP version 13\n"):
        faults.append("no TAP header")
    for line in text.splitlines():
        test = re.match(r"(not )?ok (\d+)\b", line)
        if test:
            numbers.append(int(test[2]))
            if test[1]:
                faults += [*diagnostics, line]
            diagnostics = []
        elif line.startswith("#"):
            diagnostics.append(line)
        elif line.startswith("Bail out!"):
            faults.append(line)
    if len(plans) != 1 or numbers != list(range(1, int(plans[0]) + 1)) or not numbers:
        faults.append(f"plan {plans}, but tests {numbers}")
    if status or faults:
        faults += [*diagnostics, f"exit status {status}"]
    return faults


def run_unit(unit: Path, folder: Path) -> list[str]:
    """Compile and run a unit; returns its faults, with what the sanitizers had to say."""
    program = folder / unit.stem
    compile_unit(unit, program)
    done = subprocess.run(
        [program], capture_output=True, text=True, errors="replace", timeout=RUN_SECONDS
    )
    faults = tap_faults(done.stdout, done.returncode)
    return faults + done.stderr.splitlines() if faults or done.stderr else []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem.removeprefix("test_"))
def test_unit(unit: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    faults = run_unit(unit, tmp_path_factory.mktemp(unit.stem))
    assert not faults, "\n" + "\n".join(faults)


def test_units_name_sources_that_exist() -> None:
    assert UNITS
    for unit in UNITS:
        sources = directive(unit, "sources")
        assert sources, f"{unit.name} has no line '/* sources: ... */'"
        assert all((ROOT / source).is_file() for source in sources), f"{unit.name}: {sources}"


BROKEN_UNITS = {
    "a failed check": ('CHECK(1 + 1 == 3, "%d", 2); tap_test("sums");', "not ok 1 - sums"),
    "a read past the end": (
        'char *volatile p = malloc(4); printf("%d", p[argc + 3]); tap_test("read");',
        "heap-buffer-overflow",
    ),
    "an overflow": (
        'int i = 2147483647; i += argc; printf("%d", i); tap_test("sum");',
        "signed integer overflow",
    ),
    "a leak": (
        'void *volatile p = malloc(4); p = NULL; (void)p; tap_test("leak");',
        "LeakSanitizer",
    ),
    "an end too soon": ('tap_test("first"); exit(0);', "plan []"),
    "no test": ("(void)0;", "plan ['0']"),
}


@pytest.mark.parametrize("what", BROKEN_UNITS)
def test_broken_unit_is_reported(what: str, tmp_path: Path) -> None:
    body, expected = BROKEN_UNITS[what]
    unit = tmp_path / "test_broken.c"
    unit.write_text(
        '#include <stdlib.h>\n#include "tap.h"\n'
        "int main(int argc, char **argv)\n{\n    (void)argc;\n    (void)argv;\n    tap_begin();\n"
        f"    {body}\n    return tap_end();\n}}\n"
    )
    faults = "\n".join(run_unit(unit, tmp_path))
    assert expected in faults


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("TAP version 13\nok 1 - a\n1..1\n", 0, []),
        ("TAP version 13\n# why\nnot ok 1 - a\n1..1\n", 1, ["# why", "not ok 1 - a"]),
        ("TAP version 13\nok 1 - a\n1..1\n", 1, ["exit status 1"]),
        ("TAP version 13\nok 1 - a\n1..2\n", 0, ["plan ['2'], but tests [1]"]),
        ("TAP version 13\nok 2 - a\n1..1\n", 0, ["plan ['1'], but tests [2]"]),
        ("ok 1 - a\n1..1\n", 0, ["no TAP header"]),
        ("", 0, ["no TAP header"]),
    ],
)
def test_tap(text: str, status: int, expected: list[str]) -> None:
    assert tap_faults(text, status)[: len(expected)] == expected
    assert bool(tap_faults(text, status)) == bool(expected)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_kernel_builds_without_warnings(compiler: str, tmp_path: Path) -> None:
    assert shutil.which(compiler), f"{compiler} is missing: `make setup` installs it"
    image = tmp_path / "kos.elf"
    argv = ["make", "-j2", f"CC={compiler}", f"BUILD={tmp_path}", f"PYTHON={sys.executable}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [*argv, str(image)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning:" not in said, said
    assert image.read_bytes()[:5] == b"\x7fELF\x02"
    sources = [
        path
        for part in ("kernel", "arch")
        for path in (ROOT / part).rglob("*.c")
        if "user" not in path.relative_to(ROOT).parts and path.name != "gcov.c"
    ]
    missing = [
        s
        for s in sources
        if not (tmp_path / "obj" / s.relative_to(ROOT)).with_suffix(".o").exists()
    ]
    assert not missing, f"not compiled: {missing}"
