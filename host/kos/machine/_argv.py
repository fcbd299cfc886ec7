"""The QEMU command line of a machine, and the choices that go into it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kos.exceptions import HostError
from kos.machine._ram import MachineType

Accel = Literal["tcg", "kvm"]
RunMode = Literal["record", "replay"]

QEMU = "qemu-system-x86_64"
MIN_MEMORY = 16 << 20
MAX_MEMORY = 64 << 30
MAX_CPUS = 8
PAGE_SIZE = 4096

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# SeaBIOS, q35's default, takes half a second where qboot takes a few milliseconds.
_QBOOT = Path("/usr/share/qemu/qboot.rom")


def parse_size(size: int | str) -> int:
    """Turn a memory size into bytes.

    Args:
        size: Bytes as an int, or text: digits with an optional suffix K, M or G (powers of 1024).

    Returns:
        The size in bytes.

    Raises:
        ValueError: The text is no size.
        TypeError: It is neither text nor an int.

    Example:
        >>> parse_size("256M")
        268435456
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f"memory size {size!r}: an int or a text such as '256M' is allowed")
    if isinstance(size, str):
        match = re.fullmatch(r"([0-9]+)([KMG]?)", size.strip().upper())
        if match is None:
            raise ValueError(
                f"memory size {size!r}: digits with suffix K, M, G or none are allowed"
            )
        size = int(match[1]) * _UNITS[match[2]]
    if size < 0:
        raise ValueError(f"memory size {size}: it cannot be negative")
    return size


def choose_accel(
    requested: Literal["auto", "tcg", "kvm"],
    *,
    kvm: Path = Path("/dev/kvm"),
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> Accel:
    """Choose the accelerator.

    Where /dev/kvm opens but the CPU shows neither vmx nor svm, KVM interprets the guest a thousand
    times slower than TCG translates it, so both must be there.

    Args:
        requested: `auto` takes KVM if it is usable, else TCG.
        kvm: The KVM device.
        cpuinfo: Where the kernel lists the CPU's flags.

    Raises:
        HostError: KVM was requested by name and is not usable.

    Example:
        >>> choose_accel("tcg")
        'tcg'
    """
    if requested not in ("auto", "tcg", "kvm"):
        raise ValueError(f"accel {requested!r}: 'auto', 'tcg' and 'kvm' are allowed")
    if requested == "tcg":
        return "tcg"
    lack = _kvm_lack(kvm, cpuinfo)
    if lack is None:
        return "kvm"
    if requested == "auto":
        return "tcg"
    raise lack


def _kvm_lack(kvm: Path, cpuinfo: Path) -> HostError | None:
    """What keeps KVM from being used; None if nothing does."""
    try:
        os.close(os.open(kvm, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return HostError(f"KVM is not usable: there is no {kvm}", mend="modprobe kvm_intel kvm_amd")
    except OSError as error:
        return HostError(f"KVM is not usable: {error}", mend="usermod --append --groups kvm $USER")
    if not {"vmx", "svm"} & set(cpuinfo.read_text().split()):
        return HostError("KVM is not usable: the CPU shows neither vmx nor svm, so it would crawl")
    return None


@dataclass(frozen=True)
class Log:
    """QEMU's log of what comes from outside: a run is recorded in it or played from it.

    Attributes:
        mode: What is done with it.
        path: Where it is.
    """

    mode: RunMode
    path: str


@dataclass(frozen=True)
class Config:
    """What a machine is made of, checked on construction."""

    kernel: Path
    memory_bytes: int
    cpus: int
    machine: MachineType
    accel: Accel
    deterministic: bool
    append: str
    extra_args: Sequence[str]
    log: Log | None = None

    def __post_init__(self) -> None:
        check_memory(self.memory_bytes)
        check_cpus(self.cpus)
        if self.machine not in get_args(MachineType):
            raise ValueError(f"machine {self.machine!r}: {get_args(MachineType)} are allowed")
        if self.accel not in get_args(Accel):
            raise ValueError(f"accel {self.accel!r}: {get_args(Accel)} are allowed")
        if self.deterministic and self.accel != "tcg":
            raise ValueError("deterministic: only TCG counts instructions, so accel must be 'tcg'")
        if "\0" in self.append or "\0" in str(self.kernel):
            raise ValueError("kernel and append cannot hold a NUL character")
        if self.log and self.cpus != 1:
            raise ValueError(f"cpus {self.cpus}: QEMU records machines with 1 CPU only, cpus=1")
        if self.log and not self.deterministic:
            raise ValueError("a run is recorded on a machine that counts instructions")


def check_cpus(cpus: int) -> None:
    """ValueError or TypeError when no machine has that many CPUs."""
    if isinstance(cpus, bool) or not isinstance(cpus, int):
        raise TypeError(f"cpus {cpus!r}: an int is allowed")
    if not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"cpus {cpus}: 1 to {MAX_CPUS} are allowed")


def check_memory(memory_bytes: int) -> None:
    """ValueError or TypeError when no machine has that much RAM."""
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int):
        raise TypeError(f"memory_bytes {memory_bytes!r}: an int is allowed (see parse_size)")
    if not MIN_MEMORY <= memory_bytes <= MAX_MEMORY or memory_bytes % PAGE_SIZE:
        raise ValueError(
            f"memory_bytes {memory_bytes}: a multiple of {PAGE_SIZE} "
            f"from {MIN_MEMORY} (16M) to {MAX_MEMORY} (64G) is allowed"
        )


def build_argv(
    config: Config, qemu: str, *, ram_fd: int, console: str, wire: str, monitor_fd: int
) -> list[str]:
    """The command line; the descriptors are those that QEMU inherits.

    `console` and `wire` say what is at the ends of the serial lines, as `-chardev` takes it.
    """
    ram = f"memory-backend-file,id=ram,size={config.memory_bytes},share=on"
    return [
        qemu,
        *_machine_args(config.machine),
        *["-object", f"{ram},mem-path=/proc/self/fd/{ram_fd}"],
        *["-nodefaults", "-no-user-config", "-display", "none"],
        *_cpu_args(config),
        *["-smp", str(config.cpus)],
        *_serial_args(config, 0, "console", console),
        *_serial_args(config, 1, "wire", wire),
        *["-chardev", f"socket,id=qmp,fd={monitor_fd}", "-mon", "chardev=qmp,mode=control"],
        # -S: nothing runs, and no event is lost, before the monitor is there to hear it.
        # A triple fault is a reboot; it leaves the machine paused, with its RAM as it was.
        *["-S", "-action", "reboot=shutdown,shutdown=pause"],
        *["-kernel", str(config.kernel), "-append", config.append],
        *config.extra_args,
    ]


def _machine_args(machine: MachineType) -> list[str]:
    if machine == "microvm":
        # Its own serial port would take COM1 before ours.
        return ["-M", "microvm,memory-backend=ram,isa-serial=off"]
    firmware = ["-bios", str(_QBOOT)] if _QBOOT.exists() else []
    return ["-M", "q35,memory-backend=ram", *firmware]


def _cpu_args(config: Config) -> list[str]:
    if config.deterministic:
        return [
            *["-cpu", "qemu64", "-accel", "tcg,thread=single"],
            *["-icount", _icount(config.log)],
            *["-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1"],
        ]
    return ["-cpu", "max", "-accel", "kvm" if config.accel == "kvm" else "tcg,thread=multi"]


def _icount(log: Log | None) -> str:
    if log is None:
        return "shift=0,sleep=off"
    # With sleep=off QEMU 7.2 never takes recorded input out of its queue.
    return f"shift=0,sleep=on,rr={log.mode},rrfile={log.path}"


def _serial_args(config: Config, index: int, name: str, backend: str) -> list[str]:
    kind, _, options = backend.partition(",")
    chardev = ["-chardev", f"{kind},id={name},{options}"]
    # Index 0 is COM1 (0x3f8, IRQ 4), index 1 is COM2 (0x2f8, IRQ 3).
    device = ["-device", f"isa-serial,index={index},chardev={name}"]
    if config.log is None:
        return chardev + device
    # Only what `-serial` names is recorded. q35 then makes the device itself.
    recorded = [*chardev, "-serial", f"chardev:{name}"]
    return recorded + device if config.machine == "microvm" else recorded
