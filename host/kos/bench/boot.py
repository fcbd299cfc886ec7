"""How long booting takes, beside QEMU's own floor, and what a machine costs."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kos
from kos.bench import floor
from kos.bench.row import Row

_QBOOT = Path("/usr/share/qemu/qboot.rom")


def _machine_args(machine: str) -> list[str]:
    """The same machine, firmware and serial devices as `kos.boot` uses."""
    if machine == "microvm":
        return ["-M", "microvm,isa-serial=off"]
    return ["-M", "q35", *(["-bios", str(_QBOOT)] if _QBOOT.is_file() else [])]


def _boot_once(memory: str = "256M", machine: str = "microvm") -> float:
    """Seconds from `kos.boot()` to the first answered call."""
    start = time.perf_counter()
    with kos.boot(memory=memory, machine=machine) as vm:
        vm.client.ping(1)
        return time.perf_counter() - start


def measure_boot(runs: int) -> list[Row]:
    """kos.boot() to the first answered call, as a multiple of QEMU's own floor."""
    rows = []
    _boot_once()  # imports, and files into the page cache
    for machine in ("microvm", "q35"):
        floors, boots = [], []
        for _ in range(runs):
            floors.append(floor.measure(_machine_args(machine), 256, 2))
            boots.append(_boot_once(machine=machine))
        base, ours = statistics.median(floors), statistics.median(boots)
        rows += [
            Row(f"{machine}: QEMU's floor", 1000 * base, "ms"),
            Row(f"{machine}: boot to first call", 1000 * ours, "ms"),
            Row(f"{machine}: boot / floor", ours / base, "x", 2.0),
        ]
    with kos.boot(memory="1G", cpus=1, deterministic=True) as vm:
        rows.append(Row("entry to ready, 1 CPU, 1 GiB", vm.boot_ticks, "instructions", 100_000))
    return rows


def measure_growth(runs: int) -> list[Row]:
    """Boot time with 16 GiB as a multiple of that with 64 MiB."""
    _boot_once()
    small, large = [], []
    for _ in range(runs):
        small.append(_boot_once("64M"))
        large.append(_boot_once("16G"))
    ratio = statistics.median(large) / statistics.median(small)
    return [Row("boot with 16 GiB / with 64 MiB", ratio, "x", 1.1)]


def measure_many(runs: int) -> list[Row]:
    """Starting 20 machines at once."""
    times = []
    for _ in range(max(1, runs // 3)):
        start = time.perf_counter()
        with ThreadPoolExecutor(20) as pool:
            machines = list(pool.map(lambda _: kos.boot(memory="64M", cpus=1), range(20)))
        times.append(time.perf_counter() - start)
        for vm in machines:
            vm.close()
    return [Row("20 machines at once, all booted", 1000 * statistics.median(times), "ms")]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure_idle(runs: int) -> list[Row]:
    """What an idle machine of 256 MiB costs: resident memory, and share of a core."""
    with kos.boot(memory="256M") as vm:
        vm.client.ping(1)
        status = Path(f"/proc/{vm.pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)
        time.sleep(0.5)  # what booting left to do is not idling
        before, start = _cpu_seconds(vm.pid), time.perf_counter()
        time.sleep(max(2.0, runs / 2))
        share = (_cpu_seconds(vm.pid) - before) / (time.perf_counter() - start)
    return [
        Row("resident memory of QEMU, idle, 256 MiB", rss / 1024, "MiB"),
        Row("idle machine's share of a core", 100 * share, "%", 3.0),
    ]
