"""What a machine shows of itself, whether it runs or is a recorded run that is played again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos._closing import Closing
from kos.abi import Abi
from kos.exceptions import HostError
from kos.inspect import registers
from kos.machine._ram import MachineType, RamLayout
from kos.machine.console import Console
from kos.machine.qemu import Qemu
from kos.rpc.wire import Wire

if TYPE_CHECKING:
    from kos.inspect.view import View


class Monitor:
    """QEMU's own control channel, as `Machine.qmp`.

    Args:
        qemu: The QEMU.
        questions_only: Refuse what changes something: commands are not part of a recording.
    """

    def __init__(self, qemu: Qemu, *, questions_only: bool = False) -> None:
        self._qemu = qemu
        self._questions_only = questions_only

    def _check(self, command: str, allowed: str) -> None:
        if self._questions_only and not command.startswith(allowed):
            raise HostError(
                f"{command}: QEMU's commands are no part of a recording, so only those that begin "
                f"with {allowed!r} are allowed here"
            )

    def execute(self, command: str, *, timeout: float = 10.0, **arguments: Any) -> Any:
        """Run a QMP command.

        Args:
            command: Its name, such as `query-status`.
            timeout: Seconds to wait for its result.
            arguments: Its arguments.

        Returns:
            The result, as QMP has it.

        Raises:
            MonitorError: QEMU refused it.
            MachineExited: QEMU ended.
            HostError: The run is recorded, or a recording, and the command could change it.

        Example:
            >>> import kos
            >>> kos.default_machine().qmp.execute("query-status")["status"]
            'running'
        """
        self._check(command, "query-")
        return self._qemu.execute(command, timeout=timeout, **arguments)

    def human(self, command: str) -> str:
        """Run a command of QEMU's monitor for people.

        Args:
            command: A line such as `info registers`.

        Returns:
            What it printed.

        Example:
            >>> import kos
            >>> kos.default_machine().qmp.human("info status").strip()
            'VM status: running'
        """
        self._check(command, "info ")
        return self._qemu.human(command)


class Inside(Closing):
    """The part of a machine that only looks.

    Attributes:
        kernel: The kernel's ELF file.
        abi: What is known of that kernel.
        memory: Bytes of RAM.
        cpus: Number of CPUs.
        machine_type: `microvm` or `q35`.
        console: What the kernel has printed.
        wire: The serial lines.
        qmp: QEMU's control channel.
    """

    kernel: Path
    abi: Abi
    memory: int
    cpus: int
    machine_type: MachineType
    console: Console
    wire: Wire
    qmp: Monitor
    _qemu: Qemu
    _closed: bool
    #: Whether the run is recorded, or a recording: nothing may reach it but through QEMU.
    _sealed = False

    @property
    def ram(self) -> memoryview:
        """All guest RAM, one byte an element; `ram_offset` says where an address is.

        It can be written to, unless the run is recorded, or is a recording.
        """
        ram = self._qemu.ram
        return ram.toreadonly() if self._sealed else ram

    def ram_offset(self, paddr: int) -> int:
        """Where in `ram` a physical address lies.

        Raises:
            ValueError: There is no RAM at that address.

        Example:
            >>> import kos
            >>> kos.default_machine().ram_offset(0x300000) == 0x300000
            True
        """
        offset = self._qemu.phys_to_ram_offset(paddr)
        if offset is None:
            raise ValueError(f"no RAM at physical address {paddr:#x}")
        return offset

    @property
    def ram_layout(self) -> RamLayout:
        """Where in `ram` each physical address lies."""
        return self._qemu.layout

    def ram_in_use(self) -> list[tuple[int, int]]:
        """Start and end in `ram` of each part that was ever written to; all else is zero."""
        return self._qemu.memory.extents()

    # Looking inside

    @cached_property
    def view(self) -> "View":
        """The kernel's memory by the names of its source, while it runs; see `View`.

        Example:
            >>> import kos
            >>> vm = kos.default_machine()
            >>> vm.view["zones"][1].name.string_(), int(vm.view["cpu_count"])
            (b'NORMAL', 2)
        """
        from kos.inspect.view import View

        self._check_not_closed()
        # Not `self`: a machine that is dropped must be able to go.
        read = partial(registers.read, self.qmp)
        return View(self.kernel, self.abi, self.ram, self.ram_layout, read)

    def registers(self) -> list[dict[str, int]]:
        """The registers of each CPU, by name; of a CPU that is busy, the last that QEMU knows.

        Example:
            >>> import kos
            >>> [cpu["cs"] for cpu in kos.default_machine().registers()]
            [8, 8]
        """
        return registers.read(self.qmp)

    def _check_not_closed(self) -> None:
        if self._closed:
            raise HostError("the machine is closed")

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Save RAM, registers, console and build id in one file, which `kos inspect` opens.

        It works on a machine that runs, that has panicked, and, without registers, when QEMU has
        ended. See `kos.inspect.Dump`; gdb reads the file too.

        Args:
            path: The file; it is replaced if it exists.

        Example:
            >>> import tempfile
            >>> import kos
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     kos.default_machine().dump(f"{folder}/dump")
        """
        from kos.inspect.dump import write

        self._check_not_closed()
        write(self, path)

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._qemu.pid

    @property
    def argv(self) -> list[str]:
        """The command line of QEMU."""
        return self._qemu.argv

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the machine still inside a `with`: what is read there belongs to one instant.

        A machine that is paused already stays so afterwards. Where several threads do this, it
        goes on when the last of them is done.

        Example:
            >>> import kos
            >>> vm = kos.default_machine()
            >>> with vm.paused():
            ...     int(vm.view["zones"][1].managed) > 0
            True
        """
        with self._qemu.still():
            yield
