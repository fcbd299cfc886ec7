"""The build backend: setuptools' own, with the kernel image in every wheel.

A wheel carries `kos.elf` and `kos.abi.json` in `kos/image/`; `make` builds them here, with the
interpreter of the build (which has pyelftools). An editable install carries neither: there
`kos.image` finds what `make build` left in the tree. A source archive carries the kernel's sources,
so that a wheel can be made from it.

Nothing is copied into the source tree: setuptools stages under `build/wheel`.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build import build
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
STAGING = BUILD / "wheel"
IMAGE = ("build/kos.elf", "build/kos.abi.json")

#: What a source archive holds beside the package: all that `make` needs, and the tests.
SOURCE_FOLDERS = (".ci", "arch", "docs", "kernel", "scripts", "tests")
SOURCE_FILES = (".clang-format", ".editorconfig", "Makefile", "linker.ld")


class BuildError(Exception):
    """The kernel image could not be built; the message says what to do."""


def make_image() -> list[Path]:
    """Bring the kernel image up to date with `make`.

    Returns:
        The paths of `kos.elf` and `kos.abi.json`.

    Raises:
        BuildError: A tool is missing, or the kernel does not compile.
    """
    missing = [tool for tool in ("make", "gcc", "ld") if shutil.which(tool) is None]
    if missing:
        raise BuildError(
            f"building the kernel needs {', '.join(missing)}: "
            "apt-get install --no-install-recommends make gcc binutils"
        )
    # A make that called this one keeps its job slots and its options to itself.
    makes = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environ = {name: value for name, value in os.environ.items() if name not in makes}
    jobs = len(os.sched_getaffinity(0))
    command = ["make", "-s", f"-j{jobs}", f"PYTHON={sys.executable}", *IMAGE]
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode != 0:
            raise BuildError(f"the kernel did not build: {' '.join(command)}")
    return [ROOT / name for name in IMAGE]


class Build(build):
    """Stage in a folder of its own, emptied first: `build/` holds the kernel's objects."""

    def initialize_options(self) -> None:
        """Name the folder."""
        super().initialize_options()
        self.build_base = str(STAGING)

    def run(self) -> None:
        """Empty the folder, then build as always."""
        shutil.rmtree(STAGING, ignore_errors=True)
        super().run()


class BuildPy(build_py):
    """Add the kernel image to the modules, except in an editable install."""

    def run(self) -> None:
        """Stage the modules, then the image."""
        super().run()
        if self.editable_mode:
            return
        for path in make_image():
            self.copy_file(str(path), str(Path(self.build_lib, "kos", "image", path.name)))


class Sdist(sdist):
    """Add everything the kernel is built from."""

    def make_distribution(self) -> None:
        """Collect the sources, then write the archive."""
        for folder in SOURCE_FOLDERS:
            self.filelist.graft(folder)
        self.filelist.extend([name for name in SOURCE_FILES if Path(name).is_file()])
        for pattern in ("*.py[cod]", "*~", ".*.swp"):
            self.filelist.global_exclude(pattern)
        super().make_distribution()
