"""Writes the kernel's symbol tables as assembler: functions, source lines, file names.

    ksyms.py [kos-first.elf] > ksyms.S

Without an image the tables are empty: that is what the first link uses.
"""

import bisect
import os
import sys
from collections.abc import Iterator
from typing import Any

from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.elf.elffile import ELFFile

Line = tuple[int, str, int]


def section(elf: ELFFile, name: str) -> Any:
    """A section that must be there."""
    found = elf.get_section_by_name(name)
    if found is None:
        sys.exit(f"{sys.argv[0]}: the image has no section {name}")
    return found


def functions(elf: ELFFile, start: int, end: int) -> list[tuple[int, str]]:
    """The named code addresses in [start, end), one name each, sorted."""
    found: dict[int, str] = {}
    for symbol in section(elf, ".symtab").iter_symbols():
        kind = symbol["st_info"]["type"]
        address = symbol["st_value"]
        named = kind == "STT_FUNC" or (kind == "STT_NOTYPE" and address not in found)
        if start <= address < end and named:
            found[address] = symbol.name
    return sorted(found.items())


def unit_lines(dwarf: DWARFInfo) -> Iterator[Line]:
    """Every row of every line table; line 0 ends a run."""
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        header = program.header
        base = 0 if header["version"] >= 5 else 1
        directories = [os.fsdecode(d) for d in header["include_directory"]]
        names = []
        for entry in header["file_entry"]:
            directory = directories[entry.dir_index - base] if entry.dir_index >= base else ""
            names.append(os.path.normpath(os.path.join(directory, os.fsdecode(entry.name))))
        here = os.getcwd() + "/"
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            name = names[state.file - base].removeprefix(here)
            yield state.address, name, 0 if state.end_sequence else state.line


def lines(dwarf: DWARFInfo, start: int, end: int) -> list[Line]:
    """One entry where the source line changes, sorted by address."""
    rows: dict[int, tuple[str, int]] = {}
    for address, name, line in unit_lines(dwarf):
        if start <= address < end and (line or address not in rows):
            rows[address] = (name, min(line, 0xFFFF))
    result: list[Line] = []
    for address in sorted(rows):
        name, line = rows[address]
        if not result or result[-1][1:] != (name, line):
            result.append((address, name, line))
    return result


class Strings:
    """NUL-terminated strings one after another, each once."""

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self.size = 0

    def offset(self, text: str) -> int:
        if text not in self.offsets:
            self.offsets[text] = self.size
            self.size += len(text) + 1
        return self.offsets[text]


def emit(found: list[tuple[int, str]], rows: list[Line], start: int) -> None:
    strings = Strings()
    files = sorted({name for _, name, _ in rows})
    out = ['.section .ksyms, "a"', ".balign 8"]

    def table(label: str, body: list[str]) -> None:
        out.extend([f".globl {label}", f"{label}:", *body])

    table("ksym_functions", [f".long {a - start}, {strings.offset(n)}" for a, n in found])
    table(
        "ksym_lines",
        [
            f".long {a - start}\n.short {bisect.bisect_left(files, n)}, {line}"
            for a, n, line in rows
        ],
    )
    table("ksym_files", [f".long {strings.offset(n)}" for n in files])
    table("ksym_function_count", [f".long {len(found)}"])
    table("ksym_line_count", [f".long {len(rows)}"])
    table("ksym_strings", [f'.asciz "{text}"' for text in strings.offsets])
    print("\n".join(out))


def main() -> None:
    if len(sys.argv) == 1:
        emit([], [], 0)
        return
    with open(sys.argv[1], "rb") as f:
        elf = ELFFile(f)
        text = section(elf, ".text")
        start, end = text["sh_addr"], text["sh_addr"] + text["sh_size"]
        emit(functions(elf, start, end), lines(elf.get_dwarf_info(), start, end), start)


if __name__ == "__main__":
    main()
