"""The pytest plugin: machines for tests, checked from outside after each.

It is there as soon as `kos` is installed. A test asks for the fixture `kos` and gets a machine as
it is just after boot: one machine serves all tests that want the same kind, and goes back to that
state before each, which takes some ten milliseconds. `kos_fresh` is a machine that was booted for
this test alone, `kos_boot` boots as many as a test wants. `@pytest.mark.kos(memory="32M", cpus=4)`
says what kind.

When a test has run, and the fixtures that stand on its machines have ended, these are audited; and
whatever frames a client still has then fail the test (`leaks="allow"` in the mark allows it). A
test that fails shows the console's end, what each CPU was doing, and the audit. Under pytest-xdist
each worker has machines of its own.

With `--kos-record DIR` each test has machines of its own, which are recorded, and a test that fails
leaves the recording. QEMU records one CPU: a machine has one then, unless the test says how many.
"""

import hashlib
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kos.machine import Machine
    from kos.machine._snapshot import Snapshot

Boot = Callable[..., "Machine"]

_MARK = (
    "kos(memory, cpus, machine, ..., leaks='allow', audit=False): the kind of machine that the "
    "fixtures kos and kos_fresh are, and what is checked after the test"
)
_CHECKS: dict[str, tuple[Any, ...]] = {"leaks": ("forbid", "allow"), "audit": (True, False)}
_OPTIONS = (
    *("memory", "cpus", "machine", "accel", "deterministic", "kernel", "append", "carrier"),
    *("timeout", "boot_timeout"),
)
_MOST_MACHINES = 4
_TAIL = 40
_LONGEST_NAME = 120
_PLAIN_ID = re.compile(r"[\w./:\[\]-]*")

_AFTER = "kos: found after the test"

_failed = pytest.StashKey[bool]()
_machines = pytest.StashKey[list["Machine"]]()
_pool = pytest.StashKey["Pool"]()


class Pool:
    """Machines that are kept from test to test, each with its state just after boot."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Machine, Snapshot]] = {}

    def take(self, options: dict[str, Any]) -> "Machine":
        """A machine of that kind, as it is after boot."""
        import kos
        from kos.exceptions import KOSError

        key = repr(sorted(options.items()))
        kept = self._kept.pop(key, None)
        if kept is not None:
            vm, snapshot = kept
            try:
                vm.restore(snapshot)
            except KOSError:
                vm.close()  # the last test has ended it for good
                kept = None
        if kept is None:
            vm = kos.boot(**options)
            snapshot = vm.snapshot()
        self._kept[key] = vm, snapshot
        while len(self._kept) > _MOST_MACHINES:
            oldest = next(iter(self._kept))
            self._kept.pop(oldest)[0].close()
        return vm

    def close(self) -> None:
        """End all machines."""
        while self._kept:
            self._kept.popitem()[1][0].close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--kos-dump` and `--kos-record`."""
    group = parser.getgroup("kos")
    group.addoption(
        "--kos-dump",
        metavar="DIR",
        help="save the machines of failing tests there; `kos inspect FILE` opens one",
    )
    group.addoption(
        "--kos-record",
        metavar="DIR",
        help="record all tests on machines with 1 CPU, and keep there the runs of those that fail; "
        "`kos replay FILE` plays one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark, and the pool of this process."""
    config.addinivalue_line("markers", _MARK)
    config.stash[_pool] = Pool()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The machines end with the process's tests."""
    pool = config.stash.get(_pool, None)
    if pool is not None:
        pool.close()


# What a test asks for


def _marked(item: pytest.Item) -> dict[str, Any]:
    """The arguments of all marks that apply; what stands closest to the test goes first."""
    found: dict[str, Any] = {}
    for mark in item.iter_markers("kos"):
        if mark.args:
            raise pytest.UsageError(f"{item.nodeid}: the mark kos takes keywords, not {mark.args}")
        for name, value in mark.kwargs.items():
            if name not in _OPTIONS and name not in _CHECKS:
                known = ", ".join((*_OPTIONS, *_CHECKS))
                raise pytest.UsageError(f"{item.nodeid}: the mark kos has {name!r}; known: {known}")
            if name in _CHECKS and value not in _CHECKS[name]:
                raise pytest.UsageError(
                    f"{item.nodeid}: {name} is one of {_CHECKS[name]}, not {value!r}"
                )
            found.setdefault(name, value)
    return found


def _check(item: pytest.Item, name: str) -> Any:
    return _marked(item).get(name, _CHECKS[name][0])


def _options(item: pytest.Item) -> dict[str, Any]:
    """What to boot: the mark's options over the settings."""
    from kos.settings import resolve

    given = {name: value for name, value in _marked(item).items() if name in _OPTIONS}
    return resolve() | given


def _recording(item: pytest.Item, options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a machine recorded, if that is wanted and can be."""
    folder = item.config.getoption("kos_record")
    given = _marked(item) | options
    if not folder or not _can_record(given) or "record" in options:
        return {}
    path = _file(item, folder, len(item.stash.get(_machines, [])), "kos")
    return {"cpus": 1, "record": path}


def _can_record(given: dict[str, Any]) -> bool:
    """Whether a recorded machine can be as the test asks."""
    alone = bool(given.get("cpus", 1) == 1)
    return alone and given.get("carrier") != "rings" and given.get("accel") != "kvm"


def _file(item: pytest.Item, folder: str, number: int, suffix: str) -> Path:
    """A file for one of the test's machines; its folder is made."""
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in item.nodeid)
    if len(name) > _LONGEST_NAME or not _PLAIN_ID.fullmatch(item.nodeid):  # it may be another's too
        digest = hashlib.sha256(item.nodeid.encode()).hexdigest()[:8]
        name = f"{name[-_LONGEST_NAME:]}-{digest}"
    path = Path(folder) / f"{name}-{number}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _use(item: pytest.Item, vm: "Machine") -> "Machine":
    """The machine is looked at after the test."""
    item.stash.setdefault(_machines, []).append(vm)
    return vm


@pytest.fixture
def kos(request: pytest.FixtureRequest) -> Iterator["Machine"]:
    """A machine as it is just after boot."""
    if request.config.getoption("kos_record"):
        yield request.getfixturevalue("kos_fresh")  # a recorded machine cannot go back
        return
    vm = request.config.stash[_pool].take(_options(request.node))
    yield _use(request.node, vm)
    _check_after(request.node, [vm])


@pytest.fixture
def kos_boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Boots machines that end with the test: `kos_boot(memory="64M", cpus=1)`, over the mark's."""
    import kos

    booted: list[Machine] = []
    recordings: list[Path] = []

    def boot(**options: Any) -> "Machine":
        record = _recording(request.node, options)
        if record:
            recordings.append(record["record"])
        vm = kos.boot(**(_options(request.node) | options | record))
        booted.append(vm)
        return _use(request.node, vm)

    yield boot
    try:
        _check_after(request.node, booted)
    finally:
        for vm in booted:
            vm.close()
        if not request.node.stash.get(_failed, False):
            for path in recordings:
                path.unlink(missing_ok=True)


@pytest.fixture
def kos_fresh(kos_boot: Boot) -> "Machine":
    """A machine that is booted for this test and ends with it."""
    return kos_boot()


# What is checked


def _check_after(item: pytest.Item, machines: list["Machine"]) -> None:
    """Fail a test, unless it has failed already, whose machines are unsound or have leaks."""
    if item.stash.get(_failed, False):
        return
    faults: list[str] = []
    for vm in machines:
        if not vm.closed and vm.wire.failure is None:
            faults += _faults(item, vm)
    if faults:
        item.stash[_failed] = True
        pytest.fail("\n".join(faults), pytrace=False)


def _faults(item: pytest.Item, vm: "Machine") -> list[str]:
    from kos.inspect import audit

    faults = []
    result = audit(vm)
    if _check(item, "audit") and not result.sound:
        faults.append(f"after the test, {vm!r} is not sound:\n{result}")
    if _check(item, "leaks") == "forbid":
        for owner, frames in result.held_by_clients().items():
            if owner.endswith(")"):  # blocks; rings and page tables go with the client
                blocks = _blocks(vm, owner)
                faults.append(f"after the test, {owner} still has {frames} frames: {blocks}")
    return faults


def _blocks(vm: "Machine", owner: str) -> str:
    """The addresses of a client's newest blocks."""
    found: list[str] = []
    for block in vm.view.blocks(int(owner.split()[1])):
        if len(found) == 8:
            return ", ".join(found) + " ..."
        found.append(f"{block.paddr:#x} (order {int(block.page.order)})")
    return ", ".join(found)


# What is told


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the machines were at to the report of a test that failed."""
    report = yield
    if report.failed:
        report.user_properties.append((_AFTER, item.stash.get(_failed, False)))
        item.stash[_failed] = True
        machines: list[Machine] = item.stash.get(_machines, [])
        for number, vm in enumerate(machines):
            for title, tell in _sections(item, vm, number):
                report.sections.append((f"{title} of {vm!r}", _told(tell)))
    return report


def _told(tell: Callable[[], str]) -> str:
    """What it tells, or why it cannot: a report that is short of a part is still a report."""
    try:
        return tell()
    except Exception as error:  # noqa: BLE001 - whatever state the test has left the machine in
        return f"{type(error).__name__}: {error}"


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """What is found after a test is its failure, not an error of the tear-down."""
    found = report.when == "teardown" and (_AFTER, True) in getattr(report, "user_properties", [])
    return ("failed", "F", "FAILED") if found else None


def _sections(
    item: pytest.Item, vm: "Machine", number: int
) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is told of a machine: title, and what makes the text."""
    yield "console", lambda: vm.console.tail(_TAIL)
    if vm.wire.failure is not None:
        yield "end", lambda: str(vm.wire.failure)
    if not vm.closed:
        yield "CPUs", lambda: _stacks(vm)
        yield "audit", lambda: _audited(vm)
    if item.config.getoption("kos_dump") and not vm.closed:
        yield "dump", lambda: _dumped(item, vm, number)
    if item.config.getoption("kos_record"):
        yield "recording", lambda: _recorded(vm)


def _stacks(vm: "Machine") -> str:
    return "\n".join(f"CPU {cpu}\n{stack}" for cpu, stack in enumerate(vm.view.stacks()))


def _audited(vm: "Machine") -> str:
    from kos.inspect import audit

    return str(audit(vm))


def _recorded(vm: "Machine") -> str:
    if vm.recording is None:
        return "none: recorded machines have 1 CPU, and no rings or KVM"
    return f"kos replay {vm.recording}"


def _dumped(item: pytest.Item, vm: "Machine", number: int) -> str:
    path = _file(item, item.config.getoption("kos_dump"), number, "dump")
    vm.dump(path)
    return f"kos inspect {path}"
