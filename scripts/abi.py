"""Describes a kernel image for the Python package: build/kos.abi.json.

    abi.py kos.elf kos.abi.json

What is in it: the image's build id and compiler, the calls (from the section .kos.calls), struct
layouts and enums (from DWARF), and the addresses of variables.
"""

import json
import struct
import sys
from collections import Counter
from typing import Any

from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from ksyms import section

TYPES = {"DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"}


def name_of(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode() if attribute else ""


def value_of(die: DIE, attribute: str, default: int = 0) -> int:
    found = die.attributes.get(attribute)
    return found.value if found else default


def resolve(die: DIE) -> DIE:
    """The type of a member or element, without typedefs and qualifiers."""
    die = die.get_DIE_from_attribute("DW_AT_type")
    while die.tag in TYPES:
        die = die.get_DIE_from_attribute("DW_AT_type")
    return die


def array_length(die: DIE) -> int:
    count = 1
    for child in die.iter_children():
        if child.tag == "DW_TAG_subrange_type":
            count *= value_of(child, "DW_AT_count", value_of(child, "DW_AT_upper_bound", -1) + 1)
    return count


def scalar(die: DIE) -> str:
    """The name that the ABI file has for a type: u32, char, ptr, struct:page."""
    if die.tag == "DW_TAG_pointer_type":
        return "ptr"
    if die.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
        return f"struct:{name_of(die)}"
    if name_of(die) == "char":
        return "char"
    if name_of(die) in ("_Bool", "bool"):
        return "u8"
    size = value_of(die, "DW_AT_byte_size")
    signed = value_of(die, "DW_AT_encoding") in (5, 6)  # DW_ATE_signed, DW_ATE_signed_char
    return f"{'s' if signed and die.tag == 'DW_TAG_base_type' else 'u'}{size * 8}"


def member_fields(member: DIE, base: int) -> list[dict[str, Any]]:
    die = resolve(member)
    offset = base + value_of(member, "DW_AT_data_member_location")
    if not name_of(member):  # an anonymous struct or union: its members are ours
        return fields_of(die, offset)
    count = None
    if die.tag == "DW_TAG_array_type":
        count = array_length(die)
        die = resolve(die)
    field: dict[str, Any] = {"name": name_of(member), "offset": offset, "type": scalar(die)}
    if count is not None:
        field["count"] = count
    bits = value_of(member, "DW_AT_bit_size")
    if bits:
        first = value_of(member, "DW_AT_data_bit_offset")
        size = value_of(die, "DW_AT_byte_size") * 8
        field["offset"] = base + first // size * (size // 8)
        field["bits"] = [first % size, bits]
    return [field]


def fields_of(die: DIE, base: int = 0) -> list[dict[str, Any]]:
    found = []
    for member in die.iter_children():
        if member.tag == "DW_TAG_member":
            found += member_fields(member, base)
    return found


def read_types(elf: ELFFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """All structs and enums that have a name; of those that share one, the first."""
    structs: dict[str, Any] = {}
    enums: dict[str, Any] = {}
    for unit in elf.get_dwarf_info().iter_CUs():
        for die in unit.get_top_DIE().iter_children():
            name = name_of(die)
            if not name or "DW_AT_declaration" in die.attributes:
                continue
            if die.tag == "DW_TAG_structure_type" and name not in structs:
                size = value_of(die, "DW_AT_byte_size")
                structs[name] = {"size": size, "fields": fields_of(die)}
            elif die.tag == "DW_TAG_enumeration_type" and name not in enums:
                enums[name] = {
                    name_of(e): value_of(e, "DW_AT_const_value") for e in die.iter_children()
                }
    return structs, enums


class Image:
    """Reads values out of an image by virtual address."""

    def __init__(self, elf: ELFFile, structs: dict[str, Any]) -> None:
        self.segments = [
            (s["p_vaddr"], s["p_filesz"], s.data())
            for s in elf.iter_segments()
            if s["p_type"] == "PT_LOAD"
        ]
        self.structs = structs

    def bytes_at(self, address: int, size: int) -> bytes:
        for start, length, data in self.segments:
            if start <= address < start + length:
                return bytes(data[address - start : address - start + size])
        sys.exit(f"abi.py: 0x{address:x} is not in the image")

    def text(self, address: int) -> str:
        if not address:
            return ""
        data = self.bytes_at(address, 512)
        return data[: data.index(0)].decode()

    def read(self, name: str, address: int) -> dict[str, Any]:
        """A struct with its pointers resolved to the strings they point to."""
        result: dict[str, Any] = {}
        for field in self.structs[name]["fields"]:
            at = address + field["offset"]
            if field["type"].startswith("struct:"):
                inner = field["type"][7:]
                size = self.structs[inner]["size"]
                result[field["name"]] = [
                    self.read(inner, at + i * size) for i in range(field["count"])
                ]
            elif field["type"] == "ptr":
                (pointer,) = struct.unpack("<Q", self.bytes_at(at, 8))
                result[field["name"]] = (
                    pointer if field["name"] == "handler" else self.text(pointer)
                )
            else:
                size = int(field["type"][1:]) // 8
                result[field["name"]] = int.from_bytes(self.bytes_at(at, size), "little")
        return result


def read_calls(image: Image, elf: ELFFile, enums: dict[str, Any]) -> list[dict[str, Any]]:
    entries = section(elf, ".kos.calls")
    size = image.structs["call_desc"]["size"]
    types = {number: name.removeprefix("CALL_TYPE_") for name, number in enums["call_type"].items()}
    data = {
        number: name.removeprefix("CALL_").lower() for name, number in enums["call_data"].items()
    }

    def values(entries: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [
            {"name": e["name"], "type": types[e["type"]], "doc": e["doc"]}
            for e in entries
            if e["type"]
        ]

    calls = []
    for address in range(entries["sh_addr"], entries["sh_addr"] + entries["sh_size"], size):
        d = image.read("call_desc", address)
        calls.append(
            {
                "number": d["number"],
                "name": d["name"],
                "doc": d["doc"],
                "scope": "wire" if d["scope"] == enums["call_scope"]["CALL_WIRE"] else "any",
                "args": values(d["args"]),
                "results": values(d["results"]),
                "in": data[d["in"]],
                "out": data[d["out"]],
                "struct": d["out_struct"],
                "errors": d["errors"].split(),
            }
        )
    return calls


def read_symbols(elf: ELFFile) -> dict[str, int]:
    """Variables and the labels of linker.ld; of the static ones, those with a name of their own."""
    table = section(elf, ".symtab")
    found = [
        s for s in table.iter_symbols() if s["st_info"]["type"] in ("STT_OBJECT", "STT_NOTYPE")
    ]
    count = Counter(s.name for s in found)
    return {
        s.name: s["st_value"]
        for s in found
        if s.name and (count[s.name] == 1 or s["st_info"]["bind"] == "STB_GLOBAL")
    }


def read_compiler(elf: ELFFile) -> str:
    """Name and version, as "GNU C17 12.2.0": what most of the image was compiled with."""
    found: Counter[str] = Counter()
    for unit in elf.get_dwarf_info().iter_CUs():
        producer = unit.get_top_DIE().attributes["DW_AT_producer"].value.decode()
        found[producer.split(" -")[0]] += 1
    return found.most_common(1)[0][0]


def main() -> None:
    source, target = sys.argv[1:]
    with open(source, "rb") as f:
        elf = ELFFile(f)
        structs, enums = read_types(elf)
        image = Image(elf, structs)
        notes = section(elf, ".notes").iter_notes()
        abi = {
            "build_id": next(n["n_desc"] for n in notes if n["n_type"] == "NT_GNU_BUILD_ID"),
            "compiler": read_compiler(elf),
            "calls": read_calls(image, elf, enums),
            "structs": dict(sorted(structs.items())),
            "enums": dict(sorted(enums.items())),
            "symbols": dict(sorted(read_symbols(elf).items())),
        }
    with open(target, "w") as f:
        json.dump(abi, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
