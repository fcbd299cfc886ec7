"""What is generated from the calls is up to date, and the package carries its kernel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kos import image
from kos.abi import Abi

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "host" / "kos" / "rpc" / "calls.py"
PAGE = ROOT / "docs" / "calls.md"
SECONDS = 120


def run(*argv: str | Path, cwd: Path = ROOT, **environ: str) -> str:
    """Run a command; what it says is the failure."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stubs and the page, made anew as the build makes them."""
    folder = tmp_path_factory.mktemp("generated")
    abi = image.find()[1]
    run(sys.executable, "scripts/stubs.py", abi, folder / "calls.py", folder / "calls.md")
    return folder


def test_stubs_are_up_to_date(generated: Path) -> None:
    assert MODULE.read_text() == (generated / "calls.py").read_text(), "make build, then commit"


def test_page_is_up_to_date(generated: Path) -> None:
    assert PAGE.read_text() == (generated / "calls.md").read_text(), "make build, then commit"


def test_stubs_are_formatted(generated: Path) -> None:
    python = [sys.executable, "-m"]
    config = ["--config", str(ROOT / "pyproject.toml")]
    run(*python, "ruff", "format", "--check", *config, generated / "calls.py")


def test_generating_twice_leaves_the_files_alone(generated: Path) -> None:
    """A build without changes must not touch what is in the repository."""
    outputs = [generated / "calls.py", generated / "calls.md"]
    before = [path.stat().st_mtime_ns for path in outputs]
    run(sys.executable, "scripts/stubs.py", image.find()[1], *outputs)
    assert [path.stat().st_mtime_ns for path in outputs] == before


def test_every_call_is_documented_and_has_a_stub() -> None:
    abi = Abi.load(image.find()[1])
    page, module = PAGE.read_text(), MODULE.read_text()
    assert len(abi.calls) == len(abi.by_number)
    for call in abi.calls.values():
        assert f"\n## {call.name}\n" in page
        assert f"Call {call.number}. {call.doc}" in page
        assert module.count(f"    def {call.name}(") == (2 if call.scope == "any" else 0)
        for value in (*call.args, *call.results):
            assert f"- `{value.name}` ({value.type}): {value.doc}" in page


def test_description_belongs_to_the_kernel() -> None:
    kernel, abi = image.find()
    assert json.loads(abi.read_text())["build_id"] == image.build_id(kernel)


BOOT = """
import kos, kos.image
print(kos.__file__)
print(kos.image.find()[0])
with kos.boot(memory="64M") as vm:
    print(vm.client.ping(7), vm.console.run("call ping 8"))
"""


def test_installed_package_boots(tmp_path: Path) -> None:
    """A wheel made from the tree, in a fresh environment, needs the tree no more."""
    here = str(Path(sys.executable).parent)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    # The build's tools come from this environment; what they stage goes into the tree's build/.
    run(
        *pip,
        "wheel",
        *offline,
        "-w",
        tmp_path,
        ROOT,
        PYTHONPATH="",
        PATH=f"{here}:{os.environ['PATH']}",
    )
    (wheel,) = tmp_path.glob("kos-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"kos/image/kos.elf", "kos/image/kos.abi.json", "kos/py.typed", "kos/bench/linux.json"}
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    run(*pip, "--python", python, "install", *offline, wheel, PYTHONPATH="")
    # Its dependencies are borrowed: nothing is downloaded.
    import numpy
    import qemu.qmp

    borrowed = {Path(numpy.__file__).parents[1], Path(qemu.qmp.__file__).parents[2]}
    (Path(site) / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, kernel, said = run(python, "-I", "-c", BOOT, cwd=elsewhere).splitlines()
    assert Path(code).is_relative_to(site)
    assert Path(kernel) == Path(site) / "kos" / "image" / "kos.elf"
    assert said == "7 value 8"
    command = tmp_path / "venv" / "bin" / "kos"
    assert "ok 1 " in run(command, "test", "--memory=64M", "pool", cwd=elsewhere, PYTHONPATH="")
