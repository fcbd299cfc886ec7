"""The kernels that are measured, and what they boot into.

`tiny` is built from Debian's source with tinyconfig and tiny.config; `lean` and `stock` are
Debian's own kernel for virtual machines, with and without what its command line can switch off. All
run the same init, and the same module, compiled against each kernel.

What was built is used again while all that it was made from is the same: a file `.key` beside it
says what that was.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import debian
from debian import LinuxBenchError, Package, run, say

HERE = Path(__file__).resolve().parent
GUEST = HERE / "guest"

INIT_FLAGS = (
    *("-O2", "-g0", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-static"),
    *("-nostdlib", "-fno-stack-protector", "-fno-pie", "-no-pie", "-fcf-protection=none"),
    *("-fno-tree-loop-distribute-patterns", "-Wl,--build-id=none"),
)

_CONSOLE = "tsc_early_khz=1000000 console=ttyS0 quiet panic=-1"
# The self-tests only make the boot longer.
_STOCK = f"{_CONSOLE} cryptomgr.notests=1"
_LEAN = (
    f"{_STOCK} nokaslr norandmaps mitigations=off init_on_alloc=0 lsm=none audit=0 "
    "cgroup_disable=memory numa_balancing=disable randomize_kstack_offset=off "
    "page_alloc.shuffle=0 hardened_usercopy=off transparent_hugepage=never nowatchdog"
)
_TINY = f"{_CONSOLE} norandmaps transparent_hugepage=never"

#: The command line of each column; init gets what is behind the dashes.
COMMAND_LINES = {
    "tiny": f"{_TINY} -- u k",
    "lean": f"{_LEAN} -- u k",
    "stock": f"{_STOCK} -- u k",
}

# How a compressed kernel begins, and what takes it apart.
_PAYLOADS = {b"\x02\x21": "lz4", b"\xfd7": "xz"}


class Kernel(NamedTuple):
    """A kernel that can be booted.

    Args:
        package: The package that it is from.
        compiler: The compiler that made it.
        image: The kernel, as an ELF file.
        initrd: The archive with init and the module.
    """

    package: Package
    compiler: str
    image: Path
    initrd: Path


@contextmanager
def kept(target: Path, *made_from: str | Path) -> Iterator[bool]:
    """Tell whether a file has to be made; when it has been made, note what from.

    Args:
        target: The file.
        made_from: Files, by their content, and words.

    Yields:
        Whether it has to be made.
    """
    digest = hashlib.sha256()
    for item in made_from:
        digest.update(item.read_bytes() if isinstance(item, Path) else item.encode())
        digest.update(b"\0")
    note = target.with_name(target.name + ".key")
    same = target.exists() and note.exists() and note.read_text() == digest.hexdigest()
    if not same:
        note.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
    yield not same
    if not same:
        note.write_text(digest.hexdigest())


def compiler(command: str) -> str:
    return run(command, "--version").splitlines()[0]


# ---- the guest's files ----


def archive(files: list[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """A cpio archive as Linux takes it for its first file system.

    Args:
        files: Each one's path, mode, content, and the device it stands for.
    """
    data = b""
    for number, (name, mode, content, device) in enumerate(
        [*files, ("TRAILER!!!", 0, b"", (0, 0))]
    ):
        path = name.encode() + b"\0"
        fields = (number + 1, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
        data += head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
    return data + b"\0" * (-len(data) % 512)


def initrd(init: Path, module: Path) -> bytes:
    """The archive that a kernel boots into."""
    none = (0, 0)
    return archive(
        [
            *((name, 0o40755, b"", none) for name in ("dev", "proc", "sys", "t")),
            ("dev/console", 0o20600, b"", (5, 1)),
            ("dev/null", 0o20666, b"", (1, 3)),
            ("dev/random", 0o20666, b"", (1, 8)),
            ("init", 0o100755, init.read_bytes(), none),
            ("kbench.ko", 0o100644, module.read_bytes(), none),
        ]
    )


def build_init(build: Path) -> Path:
    target = build / "init"
    sources = sorted(GUEST.glob("*.[ch]"))
    with kept(target, compiler("gcc"), *INIT_FLAGS, *sources) as stale:
        if stale:
            say("compiling init")
            run("gcc", *INIT_FLAGS, *sorted(GUEST.glob("*.c")), "-o", target)
    return target


def build_initrd(kernel_build: Path, folder: Path, init: Path, kernel: str) -> Path:
    """Compile the module against a kernel and put it into an archive with init.

    Args:
        kernel_build: The folder that the kernel was built in, or its headers.
        folder: Where to work.
        init: The compiled init.
        kernel: What the kernel is, in words that change with it.

    Returns:
        The archive.
    """
    target = folder / "initrd.cpio"
    sources = sorted((HERE / "kbench").iterdir())
    with kept(target, kernel, init, *sources) as stale:
        if stale:
            say(f"compiling the module for {kernel}")
            work = folder / "kbench"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(HERE / "kbench", work)
            run("make", "-s", "-C", kernel_build, f"M={work}", "modules")
            run("strip", "-g", work / "kbench.ko")
            target.write_bytes(initrd(init, work / "kbench.ko"))
    return target


# ---- the kernels ----


def extract(image: Path, target: Path) -> None:
    """Take the ELF file out of a bzImage.

    Its setup header (at 0x1f1) says how many sectors of setup there are, and where in the rest the
    compressed kernel is.
    """
    data = image.read_bytes()
    start = ((data[0x1F1] or 4) + 1) * 512 + int.from_bytes(data[0x248:0x24C], "little")
    length = int.from_bytes(data[0x24C:0x250], "little")
    payload = data[start : start + length - 4]  # the last four bytes are its length unpacked
    tool = _PAYLOADS.get(payload[:2])
    if tool is None:
        raise LinuxBenchError(f"{image} is compressed in a way that begins with {payload[:4]!r}")
    with target.open("wb") as file:
        done = subprocess.run([tool, "-dc"], input=payload, stdout=file, check=False)
    if done.returncode != 0:
        target.unlink()
        raise LinuxBenchError(f"{tool} cannot take {image} apart")


def made_by(vmlinux: Path) -> str:
    """The compiler that a kernel says it was made by."""
    banner = re.search(
        rb"Linux version \S+ \(\S+\) \((gcc\S* \([^)]*\) [\d.]+)", vmlinux.read_bytes()
    )
    if banner is None:
        raise LinuxBenchError(f"{vmlinux} does not say which gcc made it")
    return banner[1].decode()


def debian_kernel(build: Path, init: Path) -> Kernel:
    """Debian's own kernel for virtual machines, and the module for it."""
    image = debian.depends("linux-image-cloud-amd64", r"linux-image-\S+-cloud-amd64")
    headers = debian.depends("linux-headers-cloud-amd64", r"linux-headers-\S+-cloud-amd64")
    common = debian.depends(headers.name, r"linux-headers-\S+-common")
    kbuild = debian.depends(headers.name, r"linux-kbuild-\S+")
    release = image.name.removeprefix("linux-image-")
    folder = build / "cloud"
    root = debian.unpack([image, headers, common, kbuild], folder)
    kernel_build = root / "usr/src" / headers.name
    # It would be found by where it is installed.
    makefile = kernel_build / "Makefile"
    makefile.write_text(f"include {root}/usr/src/{common.name}/Makefile\n")
    vmlinux = folder / "vmlinux"
    with kept(vmlinux, *image) as stale:
        if stale:
            extract(root / f"boot/vmlinuz-{release}", vmlinux)
    archive = build_initrd(kernel_build, folder, init, f"{image.name} {image.version}")
    return Kernel(image, made_by(vmlinux), vmlinux, archive)


def tiny_kernel(build: Path, init: Path, jobs: int) -> Kernel:
    """Linux without all that is not needed here: the strongest figures to compare with."""
    package = debian.candidate("linux-source-6.1")
    folder = build / "tiny"
    root = debian.unpack([package], folder)
    source, output = folder / "source", folder / "output"
    vmlinux = output / "vmlinux"
    made_from = (*package, compiler("gcc"), str(output), HERE / "tiny.config")
    with kept(vmlinux, *made_from) as stale:
        if stale:
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            say("unpacking the source")
            tar = root / f"usr/src/{package.name}.tar.xz"
            run("tar", "-xf", tar, "-C", source, "--strip-components=1")
            build_tiny(source, output, jobs)
    archive = build_initrd(output, folder, init, f"{package.name} {package.version}")
    return Kernel(package, made_by(vmlinux), vmlinux, archive)


def build_tiny(source: Path, output: Path, jobs: int) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    make = ("make", "-s", "-C", str(source), f"O={output}", f"-j{jobs}")
    say(f"building the tiny kernel with {jobs} jobs; this takes minutes")
    run(*make, "tinyconfig")
    merge = source / "scripts/kconfig/merge_config.sh"
    run(merge, "-m", "-O", output, output / ".config", HERE / "tiny.config", cwd=output)
    run(*make, "olddefconfig")
    run(*make, "vmlinux")
    run(*make, "modules_prepare")
    # Without a kernel's modules built, make knows what it exports by this file alone.
    shutil.copy(output / "vmlinux.symvers", output / "Module.symvers")
