"""The typed view: what lies in a kernel's memory, under the names and types that it has in C.

It is drgn over the mapping of guest RAM. The kernel's own debug information says what is where;
reading is a copy out of RAM. The guest is not asked and does not notice, so what is read may be in
the middle of a change: pause the machine where several values have to fit together.
"""

import builtins
import difflib
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import drgn
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from kos.abi import Abi
from kos.inspect import arrays
from kos.inspect.memory import PAGE_SIZE, Memory
from kos.inspect.registers import Registers
from kos.machine._ram import RamLayout
from kos.memory.constants import PG_MAPPED

_UPPER_HALF = 0xFFFF800000000000
_PT_REGS = struct.Struct("<21Q")
_PT_REGS_ORDER = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss"),
)


class Block(NamedTuple):
    """A block of frames in an owner's list.

    Args:
        paddr: Physical address of its first frame.
        page: The `struct page` of that frame.
    """

    paddr: int
    page: drgn.Object


class View:
    """A kernel's memory by the names of its source. `Machine.view` and `Dump.view` give it.

    Args:
        kernel: The kernel's ELF file with its debug information.
        abi: Its description.
        ram: All RAM.
        layout: Where in it a physical address lies.
        registers: Gives the registers of all CPUs.

    Example:
        >>> import kos
        >>> view = kos.default_machine().view
        >>> view["zones"][1].name.string_()
        b'NORMAL'
        >>> int(view["cpu_count"])
        2
    """

    def __init__(
        self,
        kernel: Path,
        abi: Abi,
        ram: memoryview,
        layout: RamLayout,
        registers: Callable[[], list[Registers]],
    ) -> None:
        self.memory = Memory(ram, layout, abi)
        self._abi = abi
        self._read_registers = registers
        #: The drgn program, for everything that drgn can do and this class does not repeat.
        self.program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        self._add_segments(ram, layout)
        self._load(kernel)

    def _add_segments(self, ram: memoryview, layout: RamLayout) -> None:
        """Where drgn reads. Later segments go before earlier ones: the last are the fast ones."""
        symbols, add = self._abi.symbols, self.program.add_memory_segment
        add(0, 1 << 52, self._physical, True)
        add(_UPPER_HALF, (1 << 64) - _UPPER_HALF, self._virtual)
        low = layout.low_size
        start = 1 << 20  # below it firmware may hide RAM
        add(
            symbols["layout_direct_map"] + start,
            low - start,
            lambda _address, count, offset, _physical: ram[start + offset : start + offset + count],
        )
        image = symbols["kernel_start"] - symbols["KERNEL_BASE"]
        add(
            symbols["kernel_start"],
            symbols["kernel_end"] - symbols["kernel_start"],
            lambda _address, count, offset, _physical: ram[image + offset : image + offset + count],
        )

    def _physical(self, address: int, count: int, _offset: int, _is_physical: bool) -> memoryview:
        try:
            return self.memory.physical(address, count)
        except ValueError as error:
            raise drgn.FaultError(str(error), address) from None

    def _virtual(self, address: int, count: int, _offset: int, _is_physical: bool) -> bytes:
        try:
            return self.memory.virtual(address, count)
        except ValueError as error:
            raise drgn.FaultError(str(error), address) from None

    def _load(self, kernel: Path) -> None:
        module = self.program.extra_module("kos", create=True)
        module.try_file(str(kernel))
        with kernel.open("rb") as file:
            module.address_ranges = [
                (s["p_vaddr"], s["p_vaddr"] + s["p_memsz"])
                for s in ELFFile(file).iter_segments("PT_LOAD")
            ]

    # Values

    def __getitem__(self, name: str) -> drgn.Object:
        """A variable, function or constant of the kernel's, by its name in C.

        Raises:
            KeyError: There is none of that name; the message has names that are near.
        """
        try:
            return self.program[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._abi.symbols, 3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise KeyError(f"the kernel has no {name!r}{hint}") from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.program

    def evaluate(self, expression: str, names: Mapping[str, Any] | None = None) -> Any:
        """Evaluate a Python expression in which the kernel's names stand for their values.

        Args:
            expression: Such as `zones[1].buddy.free_pages`.
            names: More names, which go before the kernel's.

        Raises:
            NameError: A name is not known.
            SyntaxError: It is no expression.

        Example:
            >>> import kos
            >>> kos.default_machine().view.evaluate("zones[0].start_pfn + 1").value_()
            1
        """
        code = compile(expression.strip(), "<expression>", "eval")
        return eval(code, Names(self, names or {}))

    def read(self, address: int, count: int) -> bytes:
        """Memory at one of the kernel's virtual addresses.

        Args:
            address: Virtual address.
            count: Bytes.

        Raises:
            drgn.FaultError: It is not mapped.
        """
        # Not by drgn, which would first make room for all of it.
        return self._virtual(address, count, 0, False)

    # Arrays

    def numpy(self, array: drgn.Object, count: int | None = None) -> NDArray[Any]:
        """An array as a numpy structure, one field for each member in C.

        Args:
            array: An array, or a pointer to its first element.
            count: Elements; needed for a pointer.

        Returns:
            A copy. Structs become numpy structures with the members' names, nested as in C; the
            members of unions overlap.

        Raises:
            ValueError: The type has no such form, or the count is missing.

        Example:
            >>> import kos
            >>> view = kos.default_machine().view
            >>> view.numpy(view["zones"])["managed"].tolist() == [
            ...     int(zone.managed) for zone in view["zones"]
            ... ]
            True
        """
        element, address, length = arrays.element_of(array, count)
        size = arrays.dtype_of(element).itemsize
        return arrays.decode(element, self.read(address, size * length))

    def pages(self, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """The array of `struct page` as a numpy structure.

        Args:
            first: Number of the first frame (its physical address divided by 4096).
            count: Frames; all up to the end of RAM when left out.

        Returns:
            A copy with the fields of `struct page`: `kind`, `order`, `flags`, `owner`, `refs` ...

        Raises:
            ValueError: The frames are not within the array.

        Example:
            >>> import kos
            >>> pages = kos.default_machine().view.pages()
            >>> int((pages["kind"] == 2).sum())  # blocks that clients hold
            0
        """
        end = int(self["page_end_pfn"])
        count = end - first if count is None else count
        if first < 0 or count < 0 or first + count > end:
            raise ValueError(f"frames {first} to {first + count - 1}: 0 to {end - 1} are there")
        element = self.program.type("struct page")
        size = drgn.sizeof(element)
        base = self._abi.symbols["layout_page_array"]
        return arrays.decode(element, self.memory.virtual(base + first * size, count * size))

    # CPUs

    @property
    def cpus(self) -> list[drgn.Object]:
        """The `struct cpu` of each CPU that is online, by number."""
        cpus = self["cpus"]
        return [cpus[i] for i in range(int(self["cpu_count"]))]

    def per_cpu(self, member: str) -> list[drgn.Object]:
        """A per-CPU variable: that member of each CPU's `struct cpu`.

        Example:
            >>> import kos
            >>> [int(id) for id in kos.default_machine().view.per_cpu("id")]
            [0, 1]
        """
        return [cpu.member_(member) for cpu in self.cpus]

    @property
    def registers(self) -> list[Registers]:
        """The registers of each CPU, by name; see `kos.inspect.registers` on busy CPUs."""
        return self._read_registers()

    def stack(self, cpu: int) -> drgn.StackTrace:
        """What a CPU is doing: its calls, innermost first, with file, line and local variables.

        Args:
            cpu: Number of the CPU.

        Returns:
            A trace; each frame has `name`, `source()`, `locals()`, and `frame["name"]` for the
            value of a variable.

        Raises:
            ValueError: There is no such CPU.

        Example:
            >>> import kos
            >>> vm = kos.default_machine()
            >>> with vm.paused():
            ...     "loop_run" in [frame.name for frame in vm.view.stack(1)]
            True
        """
        registers = self.registers
        if not 0 <= cpu < len(registers):
            raise ValueError(f"CPU {cpu}: 0 to {len(registers) - 1} are there")
        return self._unwind(registers[cpu])

    def stacks(self) -> list[drgn.StackTrace]:
        """The stack of each CPU, all from one reading of the registers."""
        return [self._unwind(registers) for registers in self.registers]

    def _unwind(self, registers: Registers) -> drgn.StackTrace:
        words = [registers.get(name, 0) for name in _PT_REGS_ORDER]
        return self.trace(_PT_REGS.pack(*words))

    def trace(self, pt_regs: bytes) -> drgn.StackTrace:
        """The stack that belongs to saved registers.

        Args:
            pt_regs: A `struct pt_regs` as it lies in memory, such as that of a panic's report.
        """
        kind = self.program.type("struct pt_regs")
        return self.program.stack_trace(drgn.Object.from_bytes_(self.program, kind, pt_regs))

    def symbol(self, address: int) -> str:
        """What is at an address: `buddy_give+0x10 (kernel/mm/buddy.h:167)`, or only a number.

        Args:
            address: Virtual address of code or data of the kernel's image.
        """
        try:
            found = self.program.symbol(address)
        except LookupError:
            return f"{address:#x}"
        text = f"{found.name}+{address - found.address:#x}"
        try:
            file, line, _ = self.program.source_location(address)[0]
        except LookupError:
            return text
        return f"{text} ({file}:{line})"

    # Lists

    def chain(self, first: drgn.Object, member: str) -> Iterator[drgn.Object]:
        """Walk a list whose elements point to the next.

        Args:
            first: Pointer to the first element; NULL is an empty list.
            member: The member that points on.

        Raises:
            ValueError: The list runs in a circle.
        """
        seen: set[int] = set()
        while first:
            if first.value_() in seen:
                raise ValueError(f"the list runs in a circle at {first.value_():#x}")
            seen.add(first.value_())
            yield first
            first = first.member_(member)

    def blocks(self, client: int) -> Iterator[Block]:
        """Walk the list of blocks that a client owns.

        Args:
            client: Id of the client.

        Raises:
            ValueError: No client can have that id, or its list runs in a circle.

        Example:
            >>> import kos
            >>> vm = kos.default_machine()
            >>> addr = vm.client.buddy_alloc(3)
            >>> [(block.paddr == addr, int(block.page.order)) for block in vm.view.blocks(3)]
            [(True, 3)]
            >>> vm.client.buddy_free(addr, 3)
        """
        clients = self["clients"]
        if not 0 <= client < len(clients):
            raise ValueError(f"client {client}: 0 to {len(clients) - 1} can be")
        pfn, seen = int(clients[client].owner.first), set()
        while pfn:
            if pfn in seen:
                raise ValueError(f"client {client}'s list runs in a circle at frame {pfn:#x}")
            seen.add(pfn)
            page = self.page(pfn)
            yield Block(pfn * PAGE_SIZE, page)
            if int(page.flags) & PG_MAPPED:
                page = drgn.cast("struct frame_map *", page.descriptor)
            pfn = int(page.links.next)

    def page(self, pfn: int) -> drgn.Object:
        """The `struct page` of a frame, by its number."""
        address = self._abi.symbols["layout_page_array"] + pfn * 16
        return drgn.Object(self.program, "struct page", address=address)


class Names(dict[str, Any]):
    """The names of a program that looks into a kernel: its own, Python's, then the kernel's.

    Args:
        view: Where the kernel's are looked up.
        names: The program's own.
    """

    def __init__(self, view: View, names: Mapping[str, Any]) -> None:
        super().__init__(names)
        self._view = view

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        try:
            return self._view[name]
        except KeyError as error:
            # Not a KeyError: that would make Python go on looking, and say less.
            raise NameError(error.args[0]) from None
