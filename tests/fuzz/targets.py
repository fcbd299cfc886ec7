"""Builds and runs the fuzz targets here: the kernel's decoders on this host, with libFuzzer.

The sources are the kernel's own, compiled with the address and undefined-behaviour sanitizers. What
arch has and a process cannot use is replaced by headers in `hosted/`, which come first on the
include path.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "tests/fuzz"
NAMES = ("frames", "rings")
MAX_BYTES = {"frames": 384, "rings": 512}  # of an input

KERNEL = [
    "kernel/lib/cobs.c",
    "kernel/lib/crc32.c",
    "kernel/lib/string.c",
    "kernel/rpc/calls.c",
    "kernel/rpc/calls_sys.c",
    "kernel/rpc/client.c",
    "kernel/rpc/frame.c",
    "kernel/rpc/ring.c",
]
SHARED = [f"{FOLDER}/handlers.c", f"{FOLDER}/machine.c"]
CFLAGS = [
    "-std=gnu17",
    "-g",
    "-O2",
    "-fms-extensions",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-microsoft-anon-tag",
    "-fsanitize=fuzzer-no-link,address,undefined",
    "-fno-sanitize-coverage=trace-cmp",  # it costs half of the speed; inputs can name edges
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    f"-I{FOLDER}/hosted",
    f"-I{FOLDER}",
    "-Ikernel",
    "-Iarch",
]
#: The kernel's functions of these names are compiled, but all call the host's, which ASan watches.
_STRING = ["memcpy", "memmove", "memset", "memcmp", "strlen", "strcmp", "strncmp", "strchr"]
SPECIAL = {
    "kernel/lib/string.c": ["-fno-builtin", *(f"-D{name}=kos_{name}" for name in _STRING)],
    # The table is one of a section's parts: nothing may be added behind it.
    "kernel/rpc/calls.c": ["-mllvm", "-asan-globals=0"],
    # The models are not what is looked into, and take half of the time.
    **{f"{FOLDER}/{name}.c": ["-fno-sanitize=address,undefined"] for name in NAMES},
}
BUILD_SECONDS = 300


class BuildError(Exception):
    """A compiler or linker failed; the message is what it said."""


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if done.returncode:
        raise BuildError(f"{shlex.join(argv)}\n{done.stdout}{done.stderr}")


def compile_source(source: str, output: Path, text: str | None = None) -> None:
    """Compile one source of the tree.

    Args:
        source: Its path from the tree's root.
        output: The object file.
        text: What to compile in its place, as if it stood there.
    """
    path, flags = source, [*CFLAGS, *SPECIAL.get(source, [])]
    if text is not None:
        path = str(output.with_suffix(".c"))
        Path(path).write_text(text)
        flags.append("-Wno-error")
    _run(["clang", *flags, "-c", "-o", str(output), path])


def _object(folder: Path, source: str) -> Path:
    return folder / (source.replace("/", "-") + ".o")


def compile_all(folder: Path) -> None:
    """Compile everything that the targets are linked from, on all CPUs."""
    sources = [*KERNEL, *SHARED, *(f"{FOLDER}/{name}.c" for name in NAMES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compile_source(source, _object(folder, source)), sources))


def link(
    name: str, objects: Path, program: Path, planted: Mapping[str, Path] | None = None
) -> None:
    """Link a target.

    Args:
        name: One of `NAMES`.
        objects: The folder that `compile_all` filled.
        program: What to make; it appears there when it is complete.
        planted: Object files that take the place of those of some sources.
    """
    calls = re.findall(r"CALL\(\d+, (\w+),", (ROOT / "kernel/rpc/calls.def").read_text())
    sources = [*KERNEL, *SHARED, f"{FOLDER}/{name}.c"]
    parts = [str((planted or {}).get(source, _object(objects, source))) for source in sources]
    wrap = [f"-Wl,--wrap=call_{call}" for call in calls]
    made = program.with_suffix(".new")
    _run([
        "clang", "-fsanitize=fuzzer,address,undefined", f"-Wl,-T,{FOLDER}/hosted/calls.ld",
        *wrap, "-o", str(made), *parts,
    ])  # fmt: skip
    made.replace(program)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        executed: Inputs that were tried.
        seconds: How long that took.
        features: What libFuzzer's coverage came to, in its last line about it.
        crash: The input that broke the target; None: none did.
        log: All that the target printed.
    """

    executed: int
    seconds: float
    features: str
    crash: Path | None
    log: str


class Run:
    """A target at work, in a process of its own.

    Args:
        name: One of `NAMES`.
        program: The target.
        folder: Where the inputs go that are found on the way; made anew for each run.
        runs: Inputs to try.
        seed: Of libFuzzer's random numbers.
        artifacts: The folder that a crash's input is left in.
    """

    def __init__(
        self, name: str, program: Path, folder: Path, *, runs: int, seed: int, artifacts: Path
    ) -> None:
        folder.mkdir(parents=True)
        for i, content in enumerate(seeds(name)):
            (folder / f"seed-{i}").write_bytes(content)
        self._artifacts = artifacts / f"{name}-"
        self._log = folder.with_suffix(".log")  # no pipe: nobody reads while the other target runs
        argv: list[str | Path] = [
            program, folder,
            f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES[name]}",
            f"-artifact_prefix={self._artifacts}", "-print_final_stats=1",
            "-timeout=20", "-detect_leaks=0", "-reload=0", "-len_control=0",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )

    def stop(self) -> None:
        """End it early."""
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> Result:
        """Wait for the end; subprocess.TimeoutExpired when it takes longer."""
        self._process.wait(seconds)
        log = self._log.read_text(errors="replace")
        left = re.search(r"Test unit written to (\S+)", log)
        executed = re.search(r"^stat::number_of_executed_units: (\d+)", log, re.MULTILINE)
        tried = re.findall(r"^#(\d+)\s", log, re.MULTILINE)
        features = re.findall(r"cov: \d+ ft: \d+", log)
        done = re.search(r"^Done \d+ runs in (\d+) second", log, re.MULTILINE)
        return Result(
            executed=int(executed[1]) if executed else max(map(int, tried), default=0),
            seconds=float(done[1]) if done else 0.0,
            features=features[-1] if features else "",
            crash=ROOT / left[1] if left else None,
            log=log,
        )


def reproduce(program: Path, crash: Path) -> "subprocess.CompletedProcess[str]":
    """Run a target on one input that it left."""
    return subprocess.run(
        [program, crash], cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=60
    )


def seeds(name: str) -> Iterator[bytes]:
    """Inputs to begin with: each kind of step or item, all calls, and what is as large as can be.

    A call's bytes are: a tag of two bytes, which fields follow, the call's place in calls.def,
    then the fields.
    """
    ping, argument = b"\x01\x00\x00\x00", bytes([8] * 5)
    every = [bytes([tag, 0]) for tag in range(40)]
    if name == "frames":
        for kind in range(8):
            yield bytes([kind | 4 << 3]) + ping * 3
        yield b"".join(b"\x02" + tag + b"\x04" + tag[:1] + argument for tag in every)
        yield b"".join(b"\x02" + tag + b"\x18" + tag[:1] + b"\x40\xf8" for tag in every)
        # A call, and once more without its end, which is still in the buffer.
        yield b"\x02" + ping + b"\x02" + ping + b"\x06\x03\x00\x00"
        # Data of 4096 bytes that are not zero; its end is cut off, and more follows.
        largest = b"\x02\x01\x00\x08\x01\x82\x01" + bytes(range(1, 17))
        yield largest
        yield largest + b"\x06\x01\x00\x00" + b"\x15\x01"
        return
    for step in range(16):
        yield bytes([step]) + ping + b"\x04" + ping
    yield b"".join(b"\x00" + tag + b"\x02" + tag[:1] + argument for tag in every) + b"\x04"
    yield b"".join(b"\x00" + tag + b"\x28" + tag[:1] + b"\x40\xf8" for tag in every) + b"\x04"
    yield b"".join(b"\x00" + tag + b"\x28" + tag[:1] + b"\x40\xf8\x01\x01" for tag in every)
    full = b"\x00" + ping + b"\x03\x3f"
    yield full + b"\x04" + full + b"\x06"
    # The completion queue is full, and then more than full.
    yield b"".join(b"\x00" + ping + b"\x08" + used + b"\x06" for used in (b"\x82", b"\x8a"))
