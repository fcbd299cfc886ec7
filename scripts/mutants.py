"""Tests the tests: mutates the sources of kernel/mm and runs the units (tests/unit) on each mutant.

A mutant is killed when a unit fails, crashes or does not end in time. One that does not compile, or
whose object code is that of the original, is none. Status 0: at least --minimum percent are killed;
1: fewer are, or an entry of the list of equivalents is stale; 2: it could not be done.

tests/unit/equivalents.txt lists mutants that no test can kill, because they behave as the original
does; each line says why::

    kernel/mm/FILE: a line of the source => the line mutated # reason

They are run all the same. An entry that fits no mutant any more is an error, and in a run without
--sample one that is killed, too.
"""

import argparse
import json
import os
import queue
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import units
from mutate import Mutation, mutations

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "kernel/mm"
EQUIVALENTS = "tests/unit/equivalents.txt"
CC = os.environ.get("CC", "gcc").split()
CFLAGS = [*units.CFLAGS, "-w", "-pipe"]
# First with what compiles fast, and traps for some of what sanitizers find; survivors once more as
# tests/test_units.py compiles.
QUICK = [
    "-O0",
    "-fsanitize=bounds,shift,integer-divide-by-zero,unreachable",
    "-fsanitize-undefined-trap-on-error",
]
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THOROUGH = "-O2"  # what is the same with that behaves as the original
OBJECT_SECONDS = 0.05  # about what compiling one takes
LIMIT_FACTOR = 5  # a unit may take so many times the CPU's time that it takes unmutated
WALL_SECONDS = 120  # and must end by then, in case it waits
KILLED, SURVIVED, EQUIVALENT, UNCOMPILED = "killed", "survived", "equivalent", "uncompiled"


@dataclass(frozen=True)
class Mutant:
    """A mutation of a file. Its line is the one where the change is, its texts are whole lines."""

    file: str
    mutation: Mutation
    line: int
    old: str
    new: str

    @property
    def key(self) -> str:
        return f"{self.file}: {self.old} => {self.new}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.old}\n    => {self.new}"


@dataclass
class Unit:
    """A test program: its objects, and the CPU's time that it takes on unmutated sources."""

    name: str
    objects: list[str]
    seconds: float = 0


@dataclass
class Score:
    """How many mutants of a file came to which end."""

    killed: int = 0
    survived: int = 0
    equivalent: int = 0
    uncompiled: int = 0
    listed: int = 0

    def percent(self) -> float:
        tried = self.killed + self.survived
        return 100 * self.killed / tried if tried else 100


@dataclass
class Report:
    """What a run found."""

    scores: dict[str, Score] = field(default_factory=dict)
    survivors: list[Mutant] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    seconds: float = 0

    def total(self) -> Score:
        total = Score()
        for score in self.scores.values():
            for name, value in vars(score).items():
                setattr(total, name, getattr(total, name) + value)
        return total


class Failure(Exception):
    """The mutants cannot be tested; the message says why."""


def run(argv: list[str], cwd: Path, seconds: float | None = None) -> int:
    """Run a command without output, each of its processes for so long; its status."""
    quiet = subprocess.DEVNULL
    env = {**os.environ, "TAP_STOP": "1"}
    if seconds is not None:  # of the CPU's time: what else runs on this machine does not count
        argv = ["sh", "-c", f'ulimit -t {int(seconds) + 1}; exec "$@"', "sh", *argv]
    with subprocess.Popen(
        argv, cwd=cwd, stdin=quiet, stdout=quiet, stderr=quiet, env=env, start_new_session=True
    ) as process:
        try:
            return process.wait(None if seconds is None else WALL_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return -1


class Tree:
    """The sources and units of a tree, with all objects compiled once as they are."""

    def __init__(self, root: Path, work: Path, variant: list[str]) -> None:
        self.root = root
        self.work = work
        self.base = work / "base"
        self.base.mkdir(parents=True)
        self.variant = variant
        self.flags: dict[str, list[str]] = {}  # of an object, besides CFLAGS
        self.sources: dict[str, str] = {}
        self.uses: dict[str, set[str]] = {}  # the files that an object is made of
        self.units: list[Unit] = []

    def build(self, files: list[str], jobs: int, say: Callable[[str], None]) -> None:
        """Compile and run, as they are, the units that the files are part of."""
        found = [self._unit(path) for path in sorted((self.root / units.FOLDER).glob("test_*.c"))]
        with ThreadPoolExecutor(jobs) as pool:
            self.uses = dict(
                zip(self.sources, pool.map(self._find_uses, self.sources), strict=True)
            )
            self.units = [unit for unit in found if any(self._is_in(file, unit) for file in files)]
            needed = {name for unit in self.units for name in unit.objects}
            list(pool.map(self._compile_base, needed))
        for unit in self.units:
            self._time(unit)
            say(f"{unit.name}: {unit.seconds:.2f} s")

    def units_for(self, file: str) -> list[Unit]:
        """The units that have a file in them, those that answer soonest first."""

        def cost(unit: Unit) -> float:
            return unit.seconds + OBJECT_SECONDS * sum(file in self.uses[o] for o in unit.objects)

        return sorted((unit for unit in self.units if self._is_in(file, unit)), key=cost)

    def _is_in(self, file: str, unit: Unit) -> bool:
        return any(file in self.uses[name] for name in unit.objects)

    def _unit(self, path: Path) -> Unit:
        every, objects = units.directive(path, "flags"), []
        flags = [flag for flag in every if not flag.startswith("-O")]
        level = [flag for flag in every if flag.startswith("-O")]
        own = str(path.relative_to(self.root))
        for source in (own, *units.directive(path, "sources")):
            optimize = level if source == own else []
            name = re.sub(r"\W", "_", " ".join([source, *flags])) + ".o"
            self.sources[name] = source
            self.flags[name] = [*flags, *optimize]
            objects.append(name)
        return Unit(path.stem, objects)

    def compile(self, name: str, shadow: Path, into: Path, *level: str) -> bool:
        """Compile an object; files in `shadow` stand for those of kernel/."""
        source = self.sources[name]
        if source.startswith("kernel/") and (shadow / source.removeprefix("kernel/")).is_file():
            source = str(shadow / source.removeprefix("kernel/"))
        flags = [f"-I{shadow}", *CFLAGS, *self.variant, *self.flags[name], *level]
        return run([*CC, *flags, "-c", "-o", str(into), source], self.root) == 0

    def _find_uses(self, name: str) -> set[str]:
        argv = [*CC, *CFLAGS, *self.flags[name], "-MM", self.sources[name]]
        done = subprocess.run(argv, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(f"{self.sources[name]} does not compile: {done.stderr.strip()}")
        return {os.path.normpath(one) for one in done.stdout.replace("\\\n", " ").split()[1:]}

    def _compile_base(self, name: str) -> None:
        if not self.compile(name, self.base / "none", self.base / name):
            raise Failure(f"{self.sources[name]} does not compile")

    def _time(self, unit: Unit) -> None:
        program = self.base / unit.name
        if not self.link([self.base / name for name in unit.objects], program):
            raise Failure(f"{unit.name} does not link")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = run([str(program)], self.root)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        unit.seconds = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
        if status:
            raise Failure(f"{unit.name} fails on the unmutated sources: status {status}")

    def link(self, objects: list[Path], program: Path) -> bool:
        argv = [*CC, *self.variant, "-o", str(program), *(str(path) for path in objects)]
        return run(argv, program.parent) == 0


class Bench:
    """A folder in which one mutant after another is built and run."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.tree = tree
        self.folder = folder
        self.shadow = folder / "shadow"

    def judge(self, mutant: Mutant) -> str:
        """Build and run a mutant until a unit kills it; the end that it comes to."""
        path = self.shadow / mutant.file.removeprefix("kernel/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mutant.mutation.apply((self.tree.root / mutant.file).read_text()))
        try:
            return self._judge(mutant.file)
        finally:
            path.unlink()

    def _judge(self, file: str) -> str:
        changed: dict[str, bool] = {}  # the objects that were made anew; whether they differ
        for unit in self.tree.units_for(file):
            for name in unit.objects:
                if name not in changed and file in self.tree.uses[name]:
                    if not self.tree.compile(name, self.shadow, self.folder / name):
                        return UNCOMPILED
                    changed[name] = not self._same(name)
            if any(changed.get(name) for name in unit.objects) and self._kills(unit, changed):
                return KILLED
        differ = any(self._differs(name) for name in changed if changed[name])
        return SURVIVED if differ else EQUIVALENT

    def _differs(self, name: str) -> bool:
        """Whether it still does when the compiler does its best."""
        paths: list[Path] = []
        for shadow in (self.shadow, self.tree.base / "none"):
            paths.append(self.folder / f"thorough{len(paths)}.o")
            self.tree.compile(name, shadow, paths[-1], THOROUGH)
        return paths[0].read_bytes() != paths[1].read_bytes()

    def _same(self, name: str) -> bool:
        return (self.folder / name).read_bytes() == (self.tree.base / name).read_bytes()

    def _kills(self, unit: Unit, changed: dict[str, bool]) -> bool:
        program = self.folder / "program"
        folders = [self.folder if changed.get(name) else self.tree.base for name in unit.objects]
        objects = [folder / name for folder, name in zip(folders, unit.objects, strict=True)]
        if not self.tree.link(objects, program):
            return True
        return run([str(program)], self.folder, LIMIT_FACTOR * unit.seconds) != 0


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """All mutants of a file."""
    source = (root / file).read_text()
    before = source.splitlines()
    found = []
    for mutation in mutations(source):
        after = mutation.apply(source).splitlines()
        line = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
        found.append(Mutant(file, mutation, line + 1, before[line].strip(), after[line].strip()))
    return found


def files_of(root: Path) -> list[str]:
    """The files that are mutated: all of kernel/mm, but not what talks to people."""
    paths = sorted((root / FOLDER).glob("*.[ch]"))
    return [f"{FOLDER}/{path.name}" for path in paths if not path.stem.endswith("_console")]


def equivalents(root: Path) -> list[str]:
    """The keys of the mutants that are listed as equivalent."""
    path = root / EQUIVALENTS
    keys = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, mark, reason = line.rpartition(" # ")
        if not mark or not reason.strip() or " => " not in key:
            raise Failure(
                f"{EQUIVALENTS}:{number}: expected 'FILE: OLD => NEW # reason', not {line!r}"
            )
        keys.append(key.strip())
    return keys


class Progress:
    """On a terminal one line that is rewritten, else a line for each twentieth of the work."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.killed = self.shown = 0
        self.lock = threading.Lock()
        self.live = sys.stderr.isatty()

    def step(self, end: str) -> None:
        with self.lock:
            self.done += 1
            self.killed += end == KILLED
            part = self.done * 20 // max(self.total, 1)
            text = f"{self.done} of {self.total} mutants, {self.killed} killed"
            if self.live:
                print(f"\r{text}", end="\n" if self.done == self.total else "", file=sys.stderr)
            elif part != self.shown:
                print(text, file=sys.stderr, flush=True)
            self.shown = part


def test_mutants(
    root: Path, files: list[str], sample: int | None, seed: int, jobs: int, work: Path
) -> Report:
    """Judge the mutants of some files.

    Args:
        root: The tree.
        files: Which of its files are mutated, relative to root.
        sample: How many mutants, chosen at random; None for all.
        seed: Of the choice.
        jobs: How many at a time.
        work: An empty folder.

    Returns:
        The scores and survivors.

    Raises:
        Failure: The tree has no such file, or its units fail as they are.
    """
    known = files_of(root)
    for file in files:
        if file not in known:
            raise Failure(f"{file!r} is none of the mutated files: {', '.join(known)}")
    start = time.monotonic()
    every = [mutant for file in files for mutant in mutants_of(root, file)]
    if not every:
        raise Failure(f"nothing to mutate in {', '.join(files)}")
    listed = [key for key in equivalents(root) if key.split(":")[0] in files]
    report = Report({file: Score() for file in files})
    report.stale += [
        f"fits no mutant: {key}" for key in sorted(set(listed) - {m.key for m in every})
    ]
    chosen = every
    if sample is not None and sample < len(every):
        picked = sorted(random.Random(seed).sample(range(len(every)), sample))
        chosen = [every[index] for index in picked]
    ends = judge_all(Tree(root, work / "quick", QUICK), chosen, jobs)
    left = [index for index, end in enumerate(ends) if end == SURVIVED]
    if left:
        again = [chosen[index] for index in left]
        strict = judge_all(Tree(root, work / "sanitized", SANITIZED), again, jobs)
        for index, end in zip(left, strict, strict=True):
            ends[index] = end
    for mutant, end in zip(chosen, ends, strict=True):
        enter(report, mutant, end, mutant.key in listed)
    if len(chosen) == len(every):
        report.stale += [f"is killed: {key}" for key in killed_only(chosen, ends, listed)]
    report.seconds = time.monotonic() - start
    return report


def judge_all(tree: Tree, mutants: list[Mutant], jobs: int) -> list[str]:
    """What becomes of each mutant, in their order."""
    files = sorted({mutant.file for mutant in mutants})
    tree.build(files, jobs, lambda text: print(text, file=sys.stderr, flush=True))
    benches: queue.SimpleQueue[Bench] = queue.SimpleQueue()
    for index in range(jobs):
        folder = tree.work / f"bench{index}"
        folder.mkdir()
        benches.put(Bench(tree, folder))
    progress = Progress(len(mutants))

    def judge(mutant: Mutant) -> str:
        bench = benches.get()
        try:
            end = bench.judge(mutant)
        finally:
            benches.put(bench)
        progress.step(end)
        return end

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(judge, mutants))


def enter(report: Report, mutant: Mutant, end: str, listed: bool) -> None:
    score = report.scores[mutant.file]
    name = "listed" if listed and end == SURVIVED else end
    setattr(score, name, getattr(score, name) + 1)
    if name == SURVIVED:
        report.survivors.append(mutant)


def killed_only(mutants: list[Mutant], ends: list[str], listed: list[str]) -> list[str]:
    """The listed keys all of whose mutants are killed; a line can be there more than once."""
    found: dict[str, set[str]] = {key: set() for key in listed}
    for mutant, end in zip(mutants, ends, strict=True):
        if mutant.key in found:
            found[mutant.key].add(end)
    return [key for key, those in found.items() if those == {KILLED}]


def table(report: Report) -> Iterable[str]:
    yield f"{'file':20} {'mutants':>8} {'killed':>8} {'survived':>8} {'score':>8} {'equal':>8}"
    for name, score in [*report.scores.items(), ("total", report.total())]:
        counts = f"{score.killed + score.survived:8} {score.killed:8} {score.survived:8}"
        same = score.equivalent + score.listed
        yield f"{name:20} {counts} {score.percent():7.1f}% {same:8}"


def as_json(report: Report) -> str:
    scores = {
        name: {**vars(score), "percent": round(score.percent(), 2)}
        for name, score in [*report.scores.items(), ("total", report.total())]
    }
    survivors = [
        {
            "file": one.file,
            "line": one.line,
            "what": one.mutation.what,
            "old": one.old,
            "new": one.new,
        }
        for one in report.survivors
    ]
    return json.dumps(
        {
            "scores": scores,
            "survivors": survivors,
            "stale": report.stale,
            "seconds": round(report.seconds, 1),
        },
        indent=2,
    )


def show(report: Report) -> None:
    for mutant in report.survivors:
        print(mutant)
    for text in report.stale:
        print(f"{EQUIVALENTS}: {text}")
    print("\n".join(table(report)), f"{report.seconds:.0f} s", sep="\n")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants.py", description="Mutation tests of kernel/mm.")
    add = parser.add_argument
    add("--file", action="append", metavar="PATH", help="mutate only this file (repeatable)")
    add("--sample", type=int, metavar="N", help="only N mutants, chosen at random")
    add("--seed", type=int, default=1, help="of the choice (default 1)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="at a time (default: all CPUs)")
    add("--minimum", type=float, default=90, metavar="PERCENT", help="to be killed (default 90)")
    add("--json", type=Path, metavar="PATH", help="write the result there, too")
    add("--root", type=Path, default=ROOT, help="the tree (default: this one)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    root = options.root.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix="mutants") as work:
            files = options.file or files_of(root)
            report = test_mutants(
                root, files, options.sample, options.seed, options.jobs, Path(work)
            )
    except (Failure, OSError, subprocess.CalledProcessError) as failure:
        print(f"mutants: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmutants: interrupted", file=sys.stderr)
        return 2
    show(report)
    if options.json:
        options.json.write_text(as_json(report) + "\n")
    return 0 if report.total().percent() >= options.minimum and not report.stale else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
