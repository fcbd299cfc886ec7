"""Saving a machine's state and going back to it, in the same QEMU.

RAM is a file that this process has mapped too, so it is copied here: only the parts that are in
use, which takes a few milliseconds. CPUs and devices are saved by QEMU itself, into a disk image
in memory that the guest does not see (`x-ignore-shared` leaves RAM out of it).

Loading makes QEMU reset first, which writes the kernel image into RAM; so RAM is put back after
that. What is under way in the serial lines belongs to the life that is given up: the lines get new
sockets.
"""

import itertools
import os
import struct
import weakref
from typing import TYPE_CHECKING, Any

from kos.exceptions import MonitorError
from kos.machine.qemu import Qemu

if TYPE_CHECKING:
    from kos.rpc.client import Client

_CLUSTER = 1 << 16


def _empty_qcow2() -> bytes:
    """A qcow2 image, version 3, of size 0: header, reference counts, one table."""
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 0, 0, 16, _CLUSTER, 0, 1, 3 * _CLUSTER, _CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    parts = [header, struct.pack(">Q", 2 * _CLUSTER), struct.pack(">4H", 1, 1, 1, 1), b""]
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in parts)


class States:
    """The saved states of one QEMU's CPUs and devices, by name.

    Args:
        qemu: The QEMU.
    """

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._names = itertools.count()
        self._fd = -1
        #: Names whose snapshots are gone; QEMU is told when the next state is saved.
        self.unused: list[str] = []

    def _attach(self) -> None:
        """Give QEMU the disk image, when the first state is saved."""
        self._fd = os.memfd_create("kos-states")
        self._close = weakref.finalize(self, os.close, self._fd)
        os.pwrite(self._fd, _empty_qcow2(), 0)
        ignore = {"capability": "x-ignore-shared", "state": True}
        self._qemu.execute("migrate-set-capabilities", capabilities=[ignore])
        file = {"driver": "file", "filename": f"/proc/{os.getpid()}/fd/{self._fd}"}
        disk: dict[str, Any] = {"driver": "qcow2", "file": file | {"locking": "off"}}
        disk["node-name"] = "kos-states"
        self._qemu.execute("blockdev-add", **disk)

    def save(self) -> str:
        """Save the state of the paused guest; the name under which it is kept."""
        if self._fd < 0:
            self._attach()
        while self.unused:
            self._human("delvm", self.unused.pop())
        name = f"kos-{next(self._names)}"
        self._human("savevm", name)
        return name

    def load(self, name: str) -> None:
        """Go back to a saved state. The guest is paused, and its RAM has to be put back next."""
        self._human("loadvm", name)

    def _human(self, command: str, name: str) -> None:
        """A command that only the monitor for people has; what it prints is an error."""
        said = self._qemu.human(f"{command} {name}").strip()
        if said:
            raise MonitorError(command, {"name": name}, said, "GenericError")


class Snapshot:
    """A machine's state at one instant: RAM, CPUs, devices, clients. Made by `Machine.snapshot()`.

    Attributes:
        ram_bytes: How much of the RAM it had to copy.
    """

    def __init__(
        self,
        states: States,
        name: str,
        ram: list[tuple[int, bytes]],
        running: bool,
        host: dict[str, Any],
        clients: "list[tuple[Client, list[int], float]]",
    ) -> None:
        self.states = states
        self.name = name
        self.ram = ram
        self.running = running
        #: What this process knew of the machine: the console's text, boot figures and the like.
        self.host = host
        #: Those that were connected, each with its rings and its timeout.
        self.clients = clients
        self.ram_bytes = sum(len(data) for _, data in ram)
        weakref.finalize(self, states.unused.append, name)

    def __repr__(self) -> str:
        return f"<Snapshot {self.name}, {self.ram_bytes >> 10} KiB of RAM>"
