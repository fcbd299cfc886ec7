"""`kos doctor`: what this host lacks for running KOS, in words, with the command that mends it.

Each check looks at the host itself: it starts QEMU, makes a memory file, reads the kernel image.
None depends on a part of the package that may fail for the same reason.
"""

import argparse
import dataclasses
import errno
import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kos import image
from kos.exceptions import HostError

__all__ = ["Check", "checks", "main"]

OK = "ok"
MISS = "MISS"
INFO = "info"

EXIT_GOOD = 0
EXIT_HOST = 3

QEMU = "qemu-system-x86_64"
QEMU_VERSION = (7, 2)
PYTHON_VERSION = (3, 11)
QEMU_TIMEOUT_SECONDS = 30

MIB = 1 << 20
GIB = 1 << 30
#: One machine's RAM with QEMU beside it.
MEMORY_NEEDED = 256 * MIB
#: QEMU reserves address space for its code buffer and its threads beyond the guest's RAM.
ADDRESS_SPACE_NEEDED = 4 * GIB
#: A machine takes about ten descriptors here and thirty in QEMU.
FILES_NEEDED = 256


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: What was looked at; stays the same between versions.
        status: `"ok"`, `"MISS"` (KOS cannot work without it) or `"info"` (good to know).
        text: What was found.
        mend: The command that mends it; None where nothing is to be mended.

    Example:
        >>> print(Check("python", "ok", "Python 3.11.2"))
        ok   Python 3.11.2
    """

    name: str
    status: str
    text: str
    mend: str | None = None

    def __str__(self) -> str:
        line = f"{self.status:<4} {self.text}"
        return line if self.mend is None else f"{line}\n     mend: {self.mend}"


def checks() -> list[Check]:
    """Look at everything that KOS needs from the host.

    Returns:
        One entry for each thing looked at, always in the same order. Where QEMU does not run, what
        could be asked only of QEMU is left out.

    Example:
        >>> [check.name for check in checks()][0]
        'python'
    """
    return [
        _check_python(),
        *_check_qemu(),
        _check_setpriv(),
        _check_memfd(),
        _check_address_space(),
        _check_open_files(),
        _check_kernel(),
        _check_memory(),
        _check_cores(),
        _check_kvm(),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found.

    Args:
        argv: The arguments after `kos doctor`; those of the process when left out.

    Returns:
        0 when nothing is missing, 3 otherwise.

    Example:
        >>> main(["--json"]) in (0, 3)  # doctest: +ELLIPSIS
        {...
        True
    """
    parser = argparse.ArgumentParser(
        prog="kos doctor",
        description="Say what this host lacks for running KOS, and how to mend it.",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    arguments = parser.parse_args(argv)
    found = checks()
    good = all(check.status != MISS for check in found)
    if arguments.json:
        report = {"good": good, "checks": [dataclasses.asdict(check) for check in found]}
        print(json.dumps(report, indent=2))
    else:
        print(*found, sep="\n")
    return EXIT_GOOD if good else EXIT_HOST


def _install(package: str) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install -y --no-install-recommends {package}"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)


def _check_python() -> Check:
    found = f"Python {_dotted(sys.version_info[:3])} ({sys.executable})"
    if sys.version_info[:2] >= PYTHON_VERSION:
        return Check("python", OK, found)
    needed = f"{found}: KOS needs {_dotted(PYTHON_VERSION)} or newer"
    return Check("python", MISS, needed, _install("python3"))


def _ask_qemu(path: str, *arguments: str) -> str:
    """What QEMU answers.

    Raises:
        OSError: It does not start.
        subprocess.SubprocessError: It fails or does not end.
    """
    return subprocess.run(
        [path, *arguments],
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=QEMU_TIMEOUT_SECONDS,
    ).stdout


def _check_qemu() -> list[Check]:
    mend = _install("qemu-system-x86")
    path = shutil.which(QEMU)
    if path is None:
        return [Check("qemu", MISS, f"{QEMU}: not found in PATH", mend)]
    try:
        banner = _ask_qemu(path, "--version")
        machines = _ask_qemu(path, "-M", "help")
    except (OSError, subprocess.SubprocessError) as error:
        text = f"{QEMU} does not run: {error}"
        if isinstance(error, subprocess.CalledProcessError):
            text += f" {error.stderr.strip()}"
        # As after an interrupted installation: only installing it again puts missing files back.
        return [Check("qemu", MISS, text, mend.replace("install", "install --reinstall", 1))]

    match = re.search(r"version (\d+(?:\.\d+)*)", banner)
    version = tuple(int(part) for part in match[1].split(".")) if match else ()
    found = f"{QEMU} {_dotted(version) or 'of unknown version'} ({path})"
    if version >= QEMU_VERSION:
        results = [Check("qemu", OK, found)]
    else:
        needed = f"{found}: KOS needs {_dotted(QEMU_VERSION)} or newer"
        results = [Check("qemu", MISS, needed, mend)]
    if re.search(r"^microvm\b", machines, re.MULTILINE):
        results.append(Check("microvm", OK, "machine type microvm"))
    else:
        text = f"machine type microvm: {path} does not offer it"
        results.append(Check("microvm", MISS, text, mend))
    return results


def _check_setpriv() -> Check:
    path = shutil.which("setpriv")
    if path is None:
        text = "setpriv: not found in PATH (it lets QEMU die with its Python parent)"
        return Check("setpriv", MISS, text, _install("util-linux"))
    return Check("setpriv", OK, f"setpriv ({path})")


def _check_memfd() -> Check:
    """Make the kind of file that guest RAM is, of a size that a guest may have."""
    size = MEMORY_NEEDED
    try:
        fd = os.memfd_create("kos-doctor")
        try:
            os.ftruncate(fd, size)
            with mmap.mmap(fd, size) as ram:
                ram[size - 1] = 1
        finally:
            os.close(fd)
    except OSError as error:
        text = f"memfd_create: no memory file of {size // MIB} MiB: {error.strerror}"
        if error.errno == errno.EFBIG:
            return Check("memfd", MISS, text, _raise_limit(resource.RLIMIT_FSIZE, "f", "fsize"))
        if error.errno == errno.ENOMEM:
            return Check("memfd", MISS, text, "ulimit -v unlimited; sysctl vm.overcommit_memory=0")
        return Check("memfd", MISS, text, "run KOS on a Linux that allows memfd_create")
    return Check("memfd", OK, f"memfd_create ({size // MIB} MiB mapped)")


def _raise_limit(limit: int, letter: str, name: str, value: str = "unlimited") -> str:
    """The command that raises a resource limit in the shell from which KOS is started."""
    if resource.getrlimit(limit)[1] == resource.RLIM_INFINITY:
        return f"ulimit -{letter} {value}"
    return f"sudo prlimit --pid $$ --{name}={value}:{value}"


def _check_address_space() -> Check:
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY:
        return Check("address-space", OK, "address space: no limit")
    text = f"address space: limited to {soft // MIB} MiB"
    if soft >= ADDRESS_SPACE_NEEDED:
        return Check("address-space", OK, text)
    text += f", QEMU needs {ADDRESS_SPACE_NEEDED // MIB}"
    return Check("address-space", MISS, text, _raise_limit(resource.RLIMIT_AS, "v", "as"))


def _check_open_files() -> Check:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= FILES_NEEDED:
        limit = "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft}"
        return Check("open-files", OK, f"open files: {limit}")
    text = f"open files: limited to {soft}, KOS needs {FILES_NEEDED}"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= FILES_NEEDED:
        return Check("open-files", MISS, text, f"ulimit -n {FILES_NEEDED}")
    mend = _raise_limit(resource.RLIMIT_NOFILE, "n", "nofile", str(FILES_NEEDED))
    return Check("open-files", MISS, text, mend)


def _check_kernel() -> Check:
    try:
        kernel, _ = image.find()
    except HostError as error:
        return Check("kernel", MISS, f"kernel: {error.message}", error.mend)
    try:
        build_id = image.build_id(kernel)
    except (OSError, ValueError) as error:
        return Check("kernel", MISS, f"kernel: {error}", "make build")
    return Check("kernel", OK, f"kernel {kernel}, build id {build_id}")


def _read(path: str) -> str:
    """A file of /proc or /sys; empty where this host has none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _memory_limit() -> int | None:
    """The memory that this process's control group leaves it, in bytes; None without a limit."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        most, used = _read(limit).strip(), _read(usage).strip()
        if most.isdecimal() and used.isdecimal():
            return max(int(most) - int(used), 0)
    return None


def _check_memory() -> Check:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if match is None:
        return Check("memory", INFO, "free memory: this host does not tell")
    free = int(match[1]) * 1024
    limit = _memory_limit()
    if limit is not None and limit < free:
        free = limit
    text = f"free memory: {free // MIB} MiB"
    if free >= MEMORY_NEEDED:
        return Check("memory", OK, text)
    text += f", a machine needs {MEMORY_NEEDED // MIB}"
    return Check("memory", MISS, text, "end what uses most: ps -eo pid,rss,comm --sort=-rss | head")


def _check_cores() -> Check:
    return Check("cores", OK, f"processor cores: {len(os.sched_getaffinity(0))}")


def _check_kvm() -> Check:
    """Whether QEMU could use the processor itself; it emulates one where it cannot."""
    if not Path("/dev/kvm").exists():
        why = "not there"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        why = "no permission to open it (group kvm)"
    elif not re.search(r"^flags\s*:.*\b(vmx|svm)\b", _read("/proc/cpuinfo"), re.MULTILINE):
        why = "there, but the processor shows neither vmx nor svm"
    else:
        return Check("kvm", INFO, "/dev/kvm: usable")
    return Check("kvm", INFO, f"/dev/kvm: {why}; QEMU emulates the processor")


if __name__ == "__main__":
    sys.exit(main())
