"""What all tests share: a fresh machine for each, and what it said when a test fails."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

import kos
from kos.machine import Machine

_machines = pytest.StashKey[list[Machine]]()

Boot = Callable[..., Machine]


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Boots machines that end with the test: `boot(memory="64M", cpus=1)`."""
    machines: list[Machine] = []
    request.node.stash[_machines] = machines

    def start(**options: Any) -> Machine:
        vm = kos.boot(**options)
        machines.append(vm)
        return vm

    yield start
    for vm in machines:
        vm.close()


@pytest.fixture
def vm(boot: Boot) -> Machine:
    """A fresh machine of 64 MiB with two CPUs."""
    return boot(memory="64M", cpus=2)


@pytest.fixture
def default_vm(vm: Machine) -> Iterator[Machine]:
    """A fresh machine that the documented API uses while the test runs."""
    with kos.use(vm):
        yield vm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the console's tail, and a panic's trace, to the report of a test that failed."""
    report = yield
    if report.failed:
        for vm in item.stash.get(_machines, []):
            report.sections.append((f"console of {vm!r}", vm.console.tail(40)))
            if vm.wire.failure is not None:
                report.sections.append((f"end of {vm!r}", str(vm.wire.failure)))
    return report
