"""The documentation runs: every fenced block of README.md and docs/*.md, every docstring example.

All blocks of a page run in order and share names, on one fresh machine that is the default one. The
fence says what a block is, and this is what is done with it:

`python`
    With `>>>` prompts it is checked as a doctest (`...` stands for any text); without, it is run.
`text output`
    Directly behind a plain `python` block: what that block prints; `...` as above.
`text`
    A picture; it is left alone.
`c`
    Compiled with the kernel's flags. When it starts with a comment that names files of the tree,
    it stands for them: `/* from PATH */` must be found in that file, and `/* add to PATH */` is
    added to it. A page that adds runs on a kernel that was built from a copy of the tree with all
    additions in it, and its Python runs in that copy. With `/* sources: ... */` on top it is a unit
    for this host, and is run as tests/test_units.py does.
`sh`
    Commands for the reader. make: the targets must exist; kos: the arguments must be valid; pytest:
    the tests must exist; qemu-system-x86_64: it is run until the console's prompt appears.
`console`
    A session with its output. If it starts with `$ `, each line `$ command` is run by a shell in
    the tree's root; else each line `kos> command` is run by the page's machine. The lines below
    are what it prints; `...` as above.

Any other block is an error.
"""

import contextlib
import doctest
import importlib
import io
import itertools
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pexpect
import pytest

import kos
import test_units
from kos import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = doctest.ELLIPSIS
COMMAND_SECONDS = 120
BUILD_SECONDS = 300
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
EDIT = re.compile(r"/\* (?P<what>from|add to) (?P<path>\S+) \*/\n")
# Commands that would change this machine, or need it to be a fresh one: they are only looked at.
FOR_THE_READER = ("pip install .", "git clone ")


@dataclass(frozen=True)
class Block:
    """A fenced block: what its fence says, its text, and the number of its first line."""

    page: str
    line: int
    info: str
    text: str
    follows: bool  # nothing but blank lines is between it and the block before

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page; ValueError when one does not end."""
    found: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    follows = False
    for number, line in lines:
        fence = FENCE.match(line)
        if fence is None:
            follows = follows and not line.strip()
            continue
        body = list(itertools.takewhile(lambda item: item[1].strip() != "```", lines))
        if number + len(body) >= len(text.splitlines()):
            raise ValueError(f"{page}:{number}: the block does not end")
        content = "".join(f"{row.removeprefix(fence['indent'])}\n" for _, row in body)
        found.append(Block(page, number + 1, fence["info"].strip(), content, follows))
        follows = True
    return found


def page_blocks(page: Path, root: Path = ROOT) -> list[Block]:
    return blocks(str(page.relative_to(root)), page.read_text())


def kind(block: Block) -> str:
    return block.info if block.info == "text output" else block.info.split(" ")[0]


def same(expected: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(expected, got, OPTIONS)


def shown(block: Block, expected: str, got: str) -> str:
    return f"{block.place}: printed\n{got}\nbut the page shows\n{expected}"


# ---- Python ----


def run_doctest(block: Block, names: dict[str, Any]) -> None:
    parser = doctest.DocTestParser()
    test = parser.get_doctest(block.text, {}, block.place, block.page, block.line - 1)
    test.globs = names
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    runner.run(test, out=report.write, clear_globs=False)
    assert not runner.failures, report.getvalue()


def run_plain(block: Block, names: dict[str, Any]) -> str:
    """Run the block; its lines keep their numbers, so that a traceback names the page's."""
    code = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    return out.getvalue()


def run_session(block: Block) -> None:
    """What a `console` block shows, command by command."""
    prompt = "$ " if block.text.startswith("$ ") else "kos> "
    for piece in re.split(rf"^(?={re.escape(prompt)})", block.text, flags=re.MULTILINE):
        if not piece.strip():
            continue
        line, _, expected = piece.partition("\n")
        assert line.startswith(prompt), f"{block.place}: no prompt before {line!r}"
        command = line.removeprefix(prompt)
        console = kos.default_machine().console
        got = plain(run_shell(command) if prompt == "$ " else console.run(command))
        expected = plain(expected)
        assert same(expected, got), shown(block, expected, f"{line}\n{got}")


def plain(text: str) -> str:
    """Without blanks at the ends of lines, which a page does not show."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"


def run_shell(command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    return done.stdout + done.stderr


def run_blocks(page: Path, root: Path = ROOT) -> None:
    """Run a page's Python and console blocks, in order, on the default machine."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for block in page_blocks(page, root):
        if kind(block) == "text output":
            assert block.follows, f"{block.place}: output of nothing"
            assert printed is not None, f"{block.place}: output of nothing"
            assert same(block.text, printed), shown(block, block.text, printed)
        printed = None
        if kind(block) == "python" and ">>> " in block.text:
            run_doctest(block, names)
        elif kind(block) == "python":
            printed = run_plain(block, names)
        elif kind(block) == "console":
            run_session(block)


# ---- Pages that add to the kernel ----


def edits(page: Path) -> list[tuple[Block, str, Path, str]]:
    """The `from` and `add to` blocks of a page: the block, which it is, the file, the text."""
    found = []
    for block in page_blocks(page):
        edit = EDIT.match(block.text) if kind(block) == "c" else None
        if edit:
            found.append((block, edit["what"], Path(edit["path"]), block.text[edit.end() :]))
    return found


def build_copy(page: Path, root: Path) -> None:
    """A copy of the tree with the page's additions, built."""
    for name in ("kernel", "arch", "scripts", "host", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "linker.ld", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    for _, what, path, text in edits(page):
        if what == "add to":
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((target.read_text() if target.exists() else "") + "\n" + text)
    python = f"PYTHON={sys.executable}"
    argv = ["make", "-j2", python, "build/kos.elf", "build/kos.abi.json"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        argv, cwd=root, env=env, capture_output=True, text=True, timeout=BUILD_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stubs = ["scripts/stubs.py", "build/kos.abi.json", "host/kos/rpc/calls.py", "docs/calls.md"]
    subprocess.run([sys.executable, *stubs], cwd=root, check=True, timeout=COMMAND_SECONDS)


def run_in_copy(page: Path, root: Path) -> None:
    build_copy(page, root)
    code = (
        "import kos, pathlib, test_docs\n"
        f"root = pathlib.Path({str(root)!r})\n"
        "with kos.boot(memory='64M') as vm, kos.use(vm):\n"
        f"    test_docs.run_blocks(root / {str(page.relative_to(ROOT))!r}, root)\n"
    )
    env = os.environ | {"PYTHONPATH": f"{root / 'host'}:{ROOT / 'tests'}:{ROOT / 'scripts'}"}
    env.pop("KOS_KERNEL", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- C and commands ----


@pytest.fixture(scope="module")
def kernel_cc() -> list[str]:
    """The kernel's compiler and flags."""
    rule = "docs-cc: ; @echo $(CC) $(KCFLAGS)"
    argv = ["make", "-s", "--no-print-directory", f"--eval={rule}", "docs-cc"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def check_c(block: Block, cc: list[str], folder: Path) -> None:
    source = folder / f"line{block.line}.c"
    source.write_text(f'#line {block.line} "{block.page}"\n{block.text}')
    done = subprocess.run(
        [*cc, "-fsyntax-only", str(source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, done.stderr


def check_unit(block: Block, folder: Path) -> None:
    unit = folder / f"test_line{block.line}.c"
    unit.write_text(block.text)
    faults = test_units.run_unit(unit, folder)
    assert not faults, block.place + "\n" + "\n".join(faults)


def check_command(line: str) -> None:
    """Check one line of an `sh` block; AssertionError says what is wrong with it."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if not words or line.startswith(FOR_THE_READER):
        return
    if words[0] == "make":
        said = run_words(["make", "-n", *words[1:]])
    elif words[0] in ("kos", ".venv/bin/kos"):
        parse_kos(words[1:])
        return
    elif words[:3] == [".venv/bin/python", "-m", "pytest"]:
        said = missing(word for word in words[3:] if word.endswith(".py"))
    elif words[0] == ".venv/bin/python":
        said = missing(words[1:2])
    elif words[0] == "qemu-system-x86_64":
        said = run_qemu(line)
    else:
        said = "the documentation's test does not know this command"
    assert not said, f"{line}\n{said}"


def missing(paths: Iterable[str]) -> str:
    return ", ".join(f"there is no {path}" for path in paths if not (ROOT / path).exists())


def run_words(argv: list[str]) -> str:
    """Empty when the command succeeds, else what it said."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def parse_kos(words: list[str]) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = 0
        try:
            cli._parser().parse_args(words)
        except SystemExit as end:
            status = int(end.code or 0)
    assert not status, f"kos {shlex.join(words)}: {said.getvalue()}"


def run_qemu(line: str) -> str:
    """Start the line on a terminal, wait for the prompt, leave with QEMU's own key."""
    child = pexpect.spawn("bash", ["-c", line], cwd=str(ROOT), timeout=COMMAND_SECONDS)
    try:
        child.expect_exact("kos> ")
        child.send("\x01x")
        child.expect(pexpect.EOF)
        return ""
    except pexpect.ExceptionPexpect:
        return f"no prompt: {child.before!r}"
    finally:
        child.close(force=True)


# ---- The tests of pages ----


def page_name(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_page_is_made_of_known_blocks(page: Path) -> None:
    known = {"python", "text", "text output", "c", "sh", "console"}
    wrong = [b.place for b in page_blocks(page) if kind(b) not in known]
    assert not wrong, f"blocks of no known language: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_page_links_to_what_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.kos(leaks="allow")
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_page_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if any(what == "add to" for _, what, _, _ in edits(page)):
        run_in_copy(page, tmp_path)
    elif any(kind(b) in ("python", "console") for b in page_blocks(page)):
        request.getfixturevalue("default_vm")
        run_blocks(page)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_c_of_page_compiles(page: Path, kernel_cc: list[str], tmp_path: Path) -> None:
    for block, what, path, text in edits(page):
        if what == "from":
            assert text in (ROOT / path).read_text(), f"{block.place} is not in {path}"
    for block in page_blocks(page):
        if kind(block) != "c" or EDIT.match(block.text):
            continue
        if block.text.startswith("/* sources:"):
            check_unit(block, tmp_path)
        else:
            check_c(block, kernel_cc, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_of_page_are_valid(page: Path) -> None:
    for block in page_blocks(page):
        if kind(block) == "sh":
            for line in block.text.replace("\\\n", "").splitlines():
                check_command(line)


# ---- The tests of docstrings ----


def modules() -> list[str]:
    found = pkgutil.walk_packages(kos.__path__, "kos.")
    return ["kos", *(m.name for m in found if not m.name.endswith("__main__"))]


def examples(module: ModuleType) -> Iterator[doctest.DocTest]:
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__):
        if test.examples:
            yield test


@pytest.mark.parametrize("name", modules())
def test_docstrings_of(name: str, request: pytest.FixtureRequest) -> None:
    tests = list(examples(importlib.import_module(name)))
    if not tests:
        return
    request.getfixturevalue("default_vm")
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    for test in tests:
        runner.run(test, out=report.write)
    assert not runner.failures, report.getvalue()


# ---- The tests of this test ----


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\n```\n\n```text output\n```\nb\n\n  ```sh\n  make\n  ```\n"
    found = [(b.line, b.info, b.text, b.follows) for b in blocks("p", text)]
    assert found == [
        (3, "python", "x = 1\n", False),
        (7, "text output", "", True),
        (11, "sh", "make\n", False),
    ]
    with pytest.raises(ValueError, match="p:2: the block does not end"):
        blocks("p", "a\n```python\nx\n")


BAD_PAGES = {
    "a wrong result": ("```python\n>>> 1 + 1\n3\n```\n", "Expected:\n      3"),
    "a wrong output": ("```python\nprint(1)\n```\n```text output\n2\n```\n", "the page shows"),
    "output of nothing": ("```text output\n2\n```\n", "output of nothing"),
    "output far away": ("```python\nprint(2)\n```\na\n```text output\n2\n```\n", "of nothing"),
    "an error": ("```python\n1 / 0\n```\n", "division by zero"),
    "a wrong session": ("```console\n$ echo a\nb\n```\n", "the page shows"),
    "no prompt": ("```console\necho a\n```\n", "no prompt"),
}


@pytest.mark.parametrize("what", BAD_PAGES)
def test_bad_page_is_refused(what: str, tmp_path: Path) -> None:
    text, message = BAD_PAGES[what]
    page = tmp_path / "bad.md"
    page.write_text(text)
    with pytest.raises((AssertionError, ZeroDivisionError), match=re.escape(message)):
        run_blocks(page, tmp_path)


@pytest.mark.parametrize(
    "line", ["make nothing", "kos nothing", "rm x", ".venv/bin/python -m pytest tests/none.py"]
)
def test_bad_command_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(line.rsplit(maxsplit=1)[-1])):
        check_command(line)


@pytest.mark.parametrize(
    "line", ["make help", "KOS_MEMORY=64M .venv/bin/kos run --cpus 1", "# make nothing", ""]
)
def test_good_command_is_taken(line: str) -> None:
    check_command(line)
