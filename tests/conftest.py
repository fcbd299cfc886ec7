"""What all tests share: machines from the package's own pytest plugin, under shorter names."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kos
from kos.machine import Machine

Boot = Callable[..., Machine]


@pytest.fixture
def boot(kos_boot: Boot) -> Boot:
    """Boots machines that end with the test: `boot(memory="64M", cpus=1)`."""
    return kos_boot


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Machine:
    """A machine of 64 MiB with two CPUs, as it is just after boot."""
    machine: Machine = request.getfixturevalue("kos")
    return machine


@pytest.fixture
def default_vm(vm: Machine) -> Iterator[Machine]:
    """A machine that the documented API uses while the test runs."""
    with kos.use(vm):
        yield vm


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run that is quickly played."""
    path = tmp_path_factory.mktemp("short") / "run.kos"
    with kos.boot(memory="32M", cpus=1, record=path) as vm:
        vm.client.buddy_alloc(2)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a machine is here unless a test says otherwise."""
    for item in items:
        item.add_marker(pytest.mark.kos(memory="64M", cpus=2), append=True)
