"""Debian's packages: what this machine lacks is installed, kernels are only unpacked.

Everything comes through apt-get, by the names of packages. A kernel is not installed: its package
is downloaded and unpacked into a folder of its own, named after package and version, so that a new
version is unpacked beside the old one and an unpacked one is used again.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

#: What builds Linux and its modules, beside what `make setup` sees to.
TOOLS = (
    *("bc", "binutils", "bison", "flex", "gcc", "gcc-12", "libc6-dev", "libelf-dev"),
    *("lz4", "make", "perl", "xz-utils"),
)


class LinuxBenchError(Exception):
    """The figures could not be measured; the message says why and what to do."""


class Package(NamedTuple):
    """A package that apt-get would fetch.

    Args:
        name: The package.
        version: The version that apt-get would take.
    """

    name: str
    version: str


def say(text: str) -> None:
    print(f"bench-linux: {text}", flush=True)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command.

    Args:
        command: The command and its arguments.
        cwd: The folder to run it in.

    Returns:
        What it printed.

    Raises:
        LinuxBenchError: It failed; the message holds the end of what it printed.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        told = "\n".join(done.stdout.splitlines()[-30:])
        raise LinuxBenchError(f"{' '.join(map(str, command))}\nfailed:\n{told}")
    return done.stdout


def is_installed(package: str) -> bool:
    state = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return state.stdout == "installed"


def ensure_tools() -> None:
    """Install the packages of TOOLS that this machine lacks.

    Raises:
        LinuxBenchError: This is no Debian, or something is lacking and this is not root.
    """
    for command in ("apt-get", "apt-cache", "dpkg-query", "dpkg"):
        if shutil.which(command) is None:
            raise LinuxBenchError(f"this needs Debian 12, and there is no {command} here")
    lacking = [name for name in TOOLS if not is_installed(name)]
    root = os.geteuid() == 0
    install = f"apt-get install -y --no-install-recommends {' '.join(lacking)}"
    if lacking and not root:
        raise LinuxBenchError(
            f"this machine lacks {', '.join(lacking)}; install with: sudo {install}"
        )
    if root:
        say("apt-get update")
        # Without the network, the lists that are here may be enough.
        subprocess.run(["apt-get", "-q", "-q", "update"], stdin=subprocess.DEVNULL, check=False)
    if lacking:
        say(f"installing {', '.join(lacking)}")
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        run(*install.split(" "), "-o", "DPkg::Lock::Timeout=600")


def candidate(name: str) -> Package:
    """The version of a package that apt-get would take.

    Raises:
        LinuxBenchError: apt-get knows no such package.
    """
    policy = subprocess.run(
        ["apt-cache", "policy", name], capture_output=True, text=True, check=False
    )
    found = re.search(r"^  Candidate: (\S+)$", policy.stdout, re.MULTILINE)
    if found is None or found[1] == "(none)":
        raise LinuxBenchError(f"apt-get knows no package {name}; run: sudo apt-get update")
    return Package(name, found[1])


def depends(name: str, pattern: str) -> Package:
    """The first package that another one depends on and whose name matches a pattern.

    Raises:
        LinuxBenchError: It depends on none such.
    """
    text = run("apt-cache", "depends", name)
    found = re.search(rf"^  Depends: ({pattern})$", text, re.MULTILINE)
    if found is None:
        raise LinuxBenchError(f"{name} depends on no package like {pattern}")
    return candidate(found[1])


def unpack(packages: list[Package], under: Path) -> Path:
    """Download packages and unpack them into one folder, unless that was done before.

    Args:
        packages: The packages; the first names the folder.
        under: Where that folder is made.

    Returns:
        The folder.
    """
    folder = under / f"{packages[0].name}_{packages[0].version}"
    if folder.exists():
        return folder
    under.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=under) as name:
        downloads, content = Path(name, "download"), Path(name, "content")
        downloads.mkdir()
        for package in packages:
            say(f"fetching {package.name} {package.version}")
            asked = f"{package.name}={package.version}"
            run("apt-get", "-q", "download", asked, cwd=downloads)
        for archive in sorted(downloads.glob("*.deb")):
            run("dpkg", "-x", archive, content)
        content.rename(folder)  # at once: a folder of this name is whole
    return folder
