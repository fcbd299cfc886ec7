"""The default machine: when it boots, how it is chosen, and where its settings come from."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import kos
from conftest import Boot
from kos import settings
from kos.kernel.mm.mm_wrapper import buddy_alloc
from kos.machine import Machine


def python(code: str, cwd: Path, **env: str) -> str:
    """What a fresh Python prints, in a folder of its own."""
    host = str(Path(kos.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": host, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_buddy_init(tmp_path: Path) -> None:
    code = """
        import kos
        from kos._default import current_default
        from kos.kernel.mm.mm_wrapper import buddy_init, buddy_alloc, last_error
        M = 1 << 20
        for bad in (0, -1, 4096, 16 * M - 4096, 16 * M + 1, (64 << 30) + 4096, 2**64):
            assert buddy_init(bad) == -22, bad
            assert last_error().errno == -22
        assert current_default() is None, "it booted for a size that is refused"
        for bad in (None, "64M", 1.5, True):
            try:
                buddy_init(bad)
            except TypeError as error:
                assert "total_memory" in str(error)
            else:
                raise AssertionError(bad)
        assert buddy_init(20 * M) == 0
        assert last_error() is None
        vm = kos.default_machine()
        assert vm.memory == 20 * M
        assert buddy_init(20 * M) == 0
        assert kos.default_machine() is vm
        assert buddy_init(32 * M) == -16
        assert last_error().errno == -16
        assert str(20 * M) in str(last_error())
        assert buddy_alloc(0) < 20 * M
        vm.close()
        assert buddy_init(32 * M) == 0
        assert kos.default_machine().memory == 32 * M
        print("ok")
    """
    assert python(code, tmp_path) == "ok"


def test_the_default_machine_boots_once_on_first_use(tmp_path: Path) -> None:
    code = """
        import threading, kos
        from kos._default import current_default
        from kos.memory.manager import MemoryManager
        from kos.memory.page import PageFrameAllocator
        manager, allocator = MemoryManager(), PageFrameAllocator()
        assert current_default() is None
        seen = []
        boot = lambda: seen.append(kos.default_machine())
        threads = [threading.Thread(target=boot) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(set(map(id, seen))) == 1
        assert manager.machine is seen[0]
        print(seen[0].memory >> 20, seen[0].cpus)
    """
    assert python(code, tmp_path) == "256 2"


def test_settings_from_the_environment_and_pyproject(tmp_path: Path) -> None:
    show = "import kos; vm = kos.default_machine(); print(vm.memory >> 20, vm.cpus)"
    (tmp_path / "pyproject.toml").write_text('[tool.kos]\nmemory = "24M"\ncpus = 3\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert python(show, below) == "24 3"
    assert python(show, below, KOS_CPUS="1") == "24 1"
    assert python(show, tmp_path, KOS_MEMORY="20M", KOS_CPUS="2") == "20 2"


def test_settings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in settings.DEFAULTS:
        monkeypatch.delenv(f"KOS_{name.upper()}", raising=False)
    assert settings.resolve() == settings.DEFAULTS
    assert settings.resolve(cpus=4, memory=None)["cpus"] == 4
    (tmp_path / "pyproject.toml").write_text("[tool.kos]\ncpus = 3\ntimeout = 5\n")
    assert settings.resolve()["timeout"] == 5.0
    monkeypatch.setenv("KOS_CPUS", "many")
    with pytest.raises(ValueError, match=r"KOS_CPUS.*'many'"):
        settings.resolve()
    monkeypatch.delenv("KOS_CPUS")
    for text, words in (
        ('[tool.kos]\ncpus = "x"\n', "cpus must be int"),
        ("[tool.kos]\nspeed = 1\n", "no setting 'speed'"),
    ):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(ValueError, match=words):
            settings.resolve()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"memory": "15M"}, ValueError),
        ({"memory": "65G"}, ValueError),
        ({"memory": (16 << 20) + 1}, ValueError),
        ({"memory": "a lot"}, ValueError),
        ({"memory": -1}, ValueError),
        ({"memory": 1.5}, TypeError),
        ({"memory": None}, TypeError),
        ({"memory": "32M", "cpus": 0}, ValueError),
        ({"memory": "32M", "cpus": 9}, ValueError),
        ({"memory": "32M", "cpus": "2"}, TypeError),
        ({"memory": "32M", "machine": "pdp11"}, ValueError),
        ({"memory": "32M", "accel": "steam"}, ValueError),
        ({"memory": "32M", "append": "a\0b"}, ValueError),
        ({"memory": "32M", "carrier": "pigeons"}, ValueError),
        ({"memory": "32M", "speed": 1}, TypeError),
    ],
    ids=repr,
)
def test_boot_refuses_nonsense(
    boot: Boot, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        boot(**options)


@pytest.mark.kos(leaks="allow")
def test_use_nests_and_belongs_to_its_thread(boot: Boot) -> None:
    one, two = boot(memory="16M", cpus=1), boot(memory="16M", cpus=1)
    seen: list[Machine] = []
    with kos.use(one) as given:
        assert given is one
        assert kos.default_machine() is one
        with kos.use(two):
            assert kos.default_machine() is two
            assert buddy_alloc(0)
            assert (one.client.client_info(0).blocks, two.client.client_info(0).blocks) == (0, 1)
            with kos.use(one):
                assert kos.default_machine() is one
            assert kos.default_machine() is two
        assert kos.default_machine() is one
        with pytest.raises(ZeroDivisionError), kos.use(two):
            1 / 0  # noqa: B018 - what it raises is what it is for
        assert kos.default_machine() is one

        def elsewhere() -> None:
            with kos.use(two):
                seen.append(kos.default_machine())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen == [two]
        assert kos.default_machine() is one
    assert not one.closed
