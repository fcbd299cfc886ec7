"""`kos.bench`: its own logic, and those of its bars that load on this machine cannot break."""

import argparse
import json
import math
import os
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import Boot
from kos.bench import MEASUREMENTS, Row, calls, exact, floor
from kos.bench.boot import _cpu_seconds, _machine_args
from kos.cli import bench
from kos.machine import Machine


def arguments(*only: str, **options: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"only": list(only), "json": None, "runs": 1, "accept": None} | options
    )


# ---- rows ----


@pytest.mark.parametrize(
    ("value", "bar", "at_least", "missed"),
    [
        (1.0, None, False, False),
        (math.inf, None, True, False),
        (1.0, 2.0, False, False),
        (2.0, 2.0, False, False),
        (2.0000001, 2.0, False, True),
        (1.0, 2.0, True, True),
        (2.0, 2.0, True, False),
        (3.0, 2.0, True, False),
        (0.0, 0.0, False, False),
        (-1.0, 0.0, True, True),
    ],
)
def test_missed(value: float, bar: float | None, at_least: bool, missed: bool) -> None:
    assert Row("a", value, "x", bar, at_least).missed is missed


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two measurements that cost nothing; the list gets the runs that each was asked for."""
    asked: list[int] = []

    def good(runs: int) -> list[Row]:
        """Always good."""
        asked.append(runs)
        return [Row("plain", 1234.5, "us"), Row("within", 1.0, "x", 2.0)]

    def bad(runs: int) -> list[Row]:
        """Always missed."""
        asked.append(runs)
        return [Row("over its bar", 3.0, "x", 2.0), Row("under", 5, "1/s", 1e6, True)]

    monkeypatch.setattr(bench, "MEASUREMENTS", {"good": good, "bad": bad})
    return asked


def test_table(fake: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments(runs=3)) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["plain", "1,234", "us"],
        ["within", "1", "x", "bar", "2"],
        ["over", "its", "bar", "3", "x", "bar", "2", "MISSED"],
        ["under", "5", "1/s", "bar", "1e+06", "MISSED"],
    ]
    assert err == "measuring good ...\nmeasuring bad ...\n"
    assert fake == [3, 3]


def test_json(fake: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bench.main(arguments("bad", json="-")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["over its bar", "under"]
    assert [row["missed"] for row in rows] == [True, True]
    assert set(rows[0]) == {"name", "value", "unit", "bar", "at_least", "linux", "missed", "ratio"}

    path = tmp_path / "figures.json"
    assert bench.main(arguments("good", "bad", json=str(path))) == 0
    assert len(json.loads(path.read_text())) == 4
    assert "MISSED" in capsys.readouterr().out
    assert fake == [1, 1, 1]


def test_table_with_linux(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"tiny": 20000.0, "lean": 30, "stock": 40.5}
    rows = [
        Row("beside Linux", 4000, "instructions", 10000, linux=columns),
        Row("nothing there", 1, "blocks", linux=dict.fromkeys(columns, 0)),
        Row("KOS's own", 12345.6, "instructions"),
    ]
    monkeypatch.setattr(bench, "MEASUREMENTS", {"all": lambda runs: rows})
    assert bench.main(arguments("all")) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["KOS", "tiny", "lean", "stock", "KOS/tiny"],
        [
            "beside",
            "Linux",
            "4,000",
            "instructions",
            "20,000",
            "30",
            "40.5",
            "0.200",
            "bar",
            "10,000",
        ],
        ["nothing", "there", "1", "blocks", "0", "0", "0"],
        ["KOS's", "own", "12,346", "instructions"],
    ]


def test_accept(
    fake: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    written: list[tuple[str, dict[str, float], str]] = []

    def accept(compiler: str, values: dict[str, float], reason: str) -> list[exact.Move]:
        written.append((compiler, values, reason))
        return [exact.Move("plain", 1000, 1234)]

    monkeypatch.setattr(exact, "accept", accept)
    monkeypatch.setattr(exact, "EXACT", ("good",))
    assert bench.main(arguments(accept="measured better")) == 0
    [(compiler, values, reason)] = written
    assert compiler.split()[0] in ("GNU", "Debian", "clang")
    assert values == {"plain": 1234.5, "within": 1.0}
    assert reason == "measured better"
    assert capsys.readouterr().out == "plain: 1,234, 1,000 on record (+23.4 %)\n"
    for options in ({"accept": ""}, {"accept": "a\nb"}):
        with pytest.raises(ValueError, match="one line"):
            bench.main(arguments(**options))
    with pytest.raises(ValueError, match="--accept measures good and nothing else"):
        bench.main(arguments("bad", accept="why"))
    assert (len(written), fake) == (1, [1])


@pytest.mark.parametrize("runs", [0, -1])
def test_bad_runs(fake: list[int], runs: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {runs}"):
        bench.main(arguments("good", runs=runs))
    assert fake == []


def test_unknown_measurement_measures_nothing(fake: list[int]) -> None:
    with pytest.raises(ValueError, match="'nope'; known: good, bad"):
        bench.main(arguments("good", "nope"))
    assert fake == []


def test_every_measurement_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments("list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(MEASUREMENTS)
    assert all(len(line) <= 100 and line.endswith(".") for line in lines)


# ---- the floor ----


def test_floor_image_is_pvh() -> None:
    data = floor.image()
    assert data[:7] == b"\x7fELF\1\1\1"
    entry, phoff = struct.unpack_from("<II", data, 24)
    load, note = (struct.unpack_from("<8I", data, phoff + i * 32) for i in range(2))
    assert (load[0], note[0]) == (1, 4)
    assert load[1] + load[4] <= len(data)
    assert entry == load[2]
    namesz, descsz, kind = struct.unpack_from("<3I", data, note[1])
    assert (namesz, descsz, kind) == (4, 4, 18)
    assert struct.unpack_from("<4sI", data, note[1] + 12) == (b"Xen\0", entry)


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_floor_boots(machine: str) -> None:
    assert floor.measure(_machine_args(machine), 64, 1) > 0


def test_floor_that_cannot_boot_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="did not print"):
        floor.measure(["-M", "none"], 64, 1)


# ---- figures that hold under load ----


@pytest.mark.bench
def test_an_idle_machine_costs_almost_nothing(boot: Boot) -> None:
    vm = boot(memory="256M")
    vm.client.ping(1)
    time.sleep(0.5)  # what booting left to do is not idling
    before, start = _cpu_seconds(vm.pid), time.perf_counter()
    time.sleep(2.0)  # the measurement itself
    share = (_cpu_seconds(vm.pid) - before) / (time.perf_counter() - start)
    assert share < 0.03


@contextmanager
def apart(vm: Machine) -> Iterator[None]:
    """Keep this thread and QEMU on different cores, as they are on a machine with nothing to do.

    Both spin while a call is short. On one core each would wait for the other's time slice to end.
    """
    cores = os.sched_getaffinity(0)
    mine = min(cores)
    for thread in Path(f"/proc/{vm.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores - {mine})
    os.sched_setaffinity(0, {mine})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.bench
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bars are for two cores")
def test_calls_beside_qmp(boot: Boot) -> None:
    """Medians of many, all in turn in the same run, so that load meets all three alike."""
    rings, lines, monitors = [], [], []
    vm = boot(memory="64M")
    with apart(vm):
        for _ in range(5):
            rings.append(calls._hot(vm, "rings", 400))
            lines.append(calls._hot(vm, "frames", 60))
            monitors.append(calls._p50(lambda: vm.qmp.execute("query-status"), 60))
    ring, line, monitor = (statistics.median(times) for times in (rings, lines, monitors))
    assert ring * 20 <= monitor, f"ring {1e6 * ring:.1f} us, QMP {1e6 * monitor:.1f} us"
    assert line <= 20 * monitor, f"frames {1e6 * line:.1f} us, QMP {1e6 * monitor:.1f} us"


def test_measurements_leave_nothing_behind(boot: Boot) -> None:
    vm = boot(memory="64M")
    vm.client.buddy_drain()
    before = vm.client.machine_info()
    calls._hot(vm, "rings", 10)
    calls._hot(vm, "frames", 10)
    vm.client.buddy_drain()
    after = vm.client.machine_info()
    assert (after.free_bytes, after.clients, after.rings) == (
        before.free_bytes,
        before.clients,
        before.rings,
    )
