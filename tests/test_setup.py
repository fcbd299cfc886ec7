"""`scripts/setup` and the Makefile around it: nothing is done twice, and what is missing is named.

Each test works on a copy of the few files that set-up reads, with a `.venv` and a PATH of its own:
no network, no package manager, and no change to the tree that is under test.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("Makefile", "pyproject.toml", "scripts/setup")
NOBODY = 65534

#: Stands for Python in a fake `.venv`: notes how it was called and does what the real one would.
FAKE_PYTHON = """\
#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in
*"-m pip"*) [ ! -e "$CALLS.fail" ] || { echo "ERROR: no such project" >&2; exit 1; } ;;
*build-system*) echo setuptools ;;
esac
"""


class Tree:
    """A copy of the tree's set-up with a PATH under the test's control.

    Args:
        root: Where the copy is; the folders beside it hold the commands and the record of calls.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "tree"
        self.bin = root / "bin"
        self.calls = root / "calls"
        self.bin.mkdir()
        for name in COPIED:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        (self.root / "scripts/kernel.mk").touch()
        self.link("bash", "basename", "cat", "dirname", "flock", "grep", "head", "ls", "make")
        self.link("mkdir", "mktemp", "nproc", "rm", "setpriv", "sh", "touch", "awk", "find")
        self.python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        (self.bin / "python3").symlink_to(self.python)
        for name in ("qemu-system-x86_64", "gcc", "ld", "clang"):
            self.command(name, "exit 0")
        self.command("apt-get", 'echo "apt-get $*" >>"$CALLS"; exit 1')

    def link(self, *names: str) -> None:
        """Put commands of this host into PATH."""
        for name in names:
            found = shutil.which(name)
            assert found is not None, f"this host has no {name}"
            (self.bin / name).symlink_to(found)

    def command(self, name: str, script: str) -> None:
        """Put a command of the test's own into PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def make_venv(self) -> None:
        """Put a `.venv` into the tree that looks sound and records what is asked of it."""
        folder = self.root / ".venv/bin"
        folder.mkdir(parents=True)
        (folder / "python").write_text(FAKE_PYTHON)
        (folder / "python").chmod(0o755)
        (folder / "pip").write_text(f"#!{folder}/python\n")

    def give_ensurepip(self) -> None:
        """Make Python look as if it could make environments, whatever this host's has."""
        (self.bin / "python3").unlink()
        self.command(
            "python3",
            f'case "$*" in *-m\\ venv*) echo "venv" >>"$CALLS"; exit 1 ;; '
            f'*_base_executable*) echo "3.11.2 True {self.bin}/python3"; exit 0 ;; '
            f'*ensurepip*) exit 0 ;; esac; exec {self.python} "$@"',
        )

    def run(self, *command: str, nobody: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree."""
        drop = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "--"]
        return subprocess.run(
            [*(drop if nobody and os.geteuid() == 0 else []), *command],
            cwd=self.root,
            env={"PATH": str(self.bin), "CALLS": str(self.calls), "HOME": str(self.root)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def recorded(self) -> list[str]:
        """What was called since the last time this was asked."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tree() -> Iterator[Tree]:
    """A copy of the tree where every user may read it."""
    with tempfile.TemporaryDirectory(prefix="kos-setup-") as folder:
        Path(folder).chmod(0o755)
        yield Tree(Path(folder).resolve())


@pytest.fixture
def ready(tree: Tree) -> Tree:
    """A tree that set-up has been run in."""
    tree.give_ensurepip()
    tree.make_venv()
    result = tree.run("make", "setup")
    assert result.returncode == 0, result.stderr
    assert [call for call in tree.recorded() if "-m pip" in call]
    return tree


def installs(calls: list[str]) -> list[str]:
    """The calls that install something."""
    return [call for call in calls if "-m pip" in call or call.startswith(("apt-get", "venv"))]


@pytest.mark.parametrize("command", [("make", "setup"), ("scripts/setup",)])
def test_second_run_does_nothing(ready: Tree, command: tuple[str, ...]) -> None:
    stamp = ready.root / ".venv/.stamp"
    before = stamp.stat().st_mtime_ns
    result = ready.run(*command)
    assert result.returncode == 0, result.stderr
    assert installs(ready.recorded()) == []
    assert stamp.stat().st_mtime_ns == before


def test_make_starts_no_setup_when_ready(ready: Tree) -> None:
    (ready.root / "scripts/setup").write_text("#!/bin/sh\nexit 1\n")
    old = (ready.root / ".venv/.stamp").stat().st_mtime - 60
    os.utime(ready.root / "scripts/setup", (old, old))
    assert ready.run("make", "setup").returncode == 0


@pytest.mark.parametrize("name", ["pyproject.toml", "scripts/setup"])
def test_changed_input_installs_again(ready: Tree, name: str) -> None:
    later = (ready.root / ".venv/.stamp").stat().st_mtime + 1
    os.utime(ready.root / name, (later, later))
    assert ready.run("make", "setup").returncode == 0
    calls = installs(ready.recorded())
    assert any("--editable .[dev]" in call for call in calls)
    assert "venv" not in calls


def test_moved_tree_is_set_up_anew(ready: Tree) -> None:
    moved = ready.root.with_name("moved")
    ready.root.rename(moved)
    ready.root = moved
    result = ready.run("make", "setup")
    assert "setup: making .venv" in result.stdout
    assert installs(ready.recorded()) == ["venv"]


def test_interrupted_installation_is_not_trusted(ready: Tree) -> None:
    (ready.root / ".venv/.unfinished").touch()
    (ready.root / ".venv/.stamp").unlink()
    result = ready.run("make", "setup")
    assert "setup: making .venv" in result.stdout
    assert not (ready.root / ".venv/.stamp").exists()


def test_failed_installation_is_shown_and_keeps_the_environment(ready: Tree) -> None:
    (ready.root / ".venv/.stamp").unlink()
    fail = Path(f"{ready.calls}.fail")
    fail.touch()
    result = ready.run("scripts/setup")
    assert result.returncode == 1
    assert "ERROR: no such project" in result.stderr
    assert not (ready.root / ".venv/.stamp").exists()
    fail.unlink()
    assert ready.run("scripts/setup").returncode == 0
    assert "venv" not in ready.recorded()


def test_two_at_once_install_once(ready: Tree) -> None:
    (ready.root / ".venv/.stamp").unlink()
    script = "scripts/setup & first=$!; scripts/setup & wait $first && wait $!"
    result = ready.run("bash", "-c", script)
    assert result.returncode == 0, result.stderr
    assert len([call for call in installs(ready.recorded()) if "--editable" in call]) == 1


def test_missing_tool_names_the_command(tree: Tree) -> None:
    tree.give_ensurepip()
    (tree.bin / "qemu-system-x86_64").unlink()
    result = tree.run("scripts/setup", nobody=True)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr == (
        "setup: this machine lacks qemu-system-x86; install with: "
        "sudo apt-get install -y --no-install-recommends qemu-system-x86\n"
    )
    assert tree.recorded() == []


def test_everything_missing_is_named_at_once(tree: Tree) -> None:
    tree.give_ensurepip()
    for name in ("qemu-system-x86_64", "gcc", "ld", "clang"):
        (tree.bin / name).unlink()
    result = tree.run("scripts/setup", nobody=True)
    assert result.returncode == 3
    command = result.stderr.rpartition("--no-install-recommends ")[2]
    assert command.split() == ["qemu-system-x86", "gcc", "libc6-dev", "binutils", "clang"]


#: A clang of which Debian has more in another package; it looks whether that is there.
CLANG = """\
case "$*" in
-dumpversion) echo 15.0.7 ;;
*-fsanitize=fuzzer*) [ -e "$CALLS.runtime" ] ;;
esac
"""


def test_clang_without_its_fuzzer_names_the_package(tree: Tree) -> None:
    tree.give_ensurepip()
    tree.command("clang", CLANG)
    result = tree.run("scripts/setup", nobody=True)
    assert result.returncode == 3
    assert result.stderr == (
        "setup: this machine lacks libclang-rt-15-dev; install with: "
        "sudo apt-get install -y --no-install-recommends libclang-rt-15-dev\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
def test_clang_and_then_its_fuzzer_are_installed(tree: Tree) -> None:
    tree.give_ensurepip()
    tree.make_venv()
    tree.link("mv")
    (tree.bin / "clang").rename(tree.root / "clang")
    (tree.root / "clang").write_text(f"#!/bin/sh\n{CLANG}")
    tree.command(
        "apt-get",
        'echo "apt-get $*" >>"$CALLS"; case "$*" in '
        f'*" install clang") mv clang {tree.bin}/clang ;; '
        '*" install libclang-rt-15-dev") : >"$CALLS.runtime" ;; esac',
    )
    result = tree.run("scripts/setup")
    assert result.returncode == 0, result.stderr
    installed = [call.split()[-1] for call in tree.recorded() if " install " in call]
    assert [name for name in installed if "clang" in name] == ["clang", "libclang-rt-15-dev"]


def test_old_python_is_named(tree: Tree) -> None:
    tree.command("python3", 'echo "3.9.2 False /usr/bin/python3.9"')
    probe = tree.run("bash", "-c", "/usr/bin/python3 -c 'import sys; print(sys.version_info[1])'")
    if probe.returncode == 0 and int(probe.stdout) >= 11:
        # This host has a newer one where set-up looks next, and that is taken.
        script = (tree.root / "scripts/setup").read_text()
        (tree.root / "scripts/setup").write_text(script.replace(" /usr/bin/python3 ", " "))
    result = tree.run("scripts/setup", nobody=True)
    assert result.returncode == 3
    assert result.stderr == (
        "setup: KOS needs Python 3.11 or newer; python3 here is 3.9.2 (/usr/bin/python3.9)\n"
    )


def test_help_lists_every_documented_target(tree: Tree) -> None:
    shown = tree.run("make").stdout
    assert shown == tree.run("make", "help").stdout
    text = (ROOT / "Makefile").read_text()
    documented = re.findall(r"^([a-z][a-z-]*):.*?## (.+)$", text, re.MULTILINE)
    assert {"run", "test", "setup", "build", "lint", "clean"} <= {name for name, _ in documented}
    for name, what in documented:
        assert re.search(rf"^  make {name} +{re.escape(what)}$", shown, re.MULTILINE), name
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", text, re.MULTILINE))
    assert phony - {name for name, _ in documented} == {"force", "image", "coverage-kernel"}
