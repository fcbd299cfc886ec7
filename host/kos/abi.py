"""The description of a kernel image that its build leaves beside it: `kos.abi.json`.

Struct layouts come from the kernel's DWARF, calls from its section `.kos.calls`. The file belongs
to one image, named by its build id; `Machine` refuses a running kernel with another one.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

_FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s8": "b", "s16": "h", "s32": "i"}
_FORMATS |= {"s64": "q", "ptr": "Q", "char": "s"}

Value = int | str | tuple[int, ...]


@dataclass(frozen=True)
class Field:
    """One member of a struct.

    Args:
        name: As in C.
        offset: In bytes.
        type: u8 to s64, char, ptr, or struct:NAME.
        count: Elements of an array; None for a single value.
        bits: First bit and width of a bit field; None otherwise.
    """

    name: str
    offset: int
    type: str
    count: int | None = None
    bits: tuple[int, int] | None = None


class Layout:
    """How a struct of the kernel's lies in memory.

    Example:
        >>> from kos import image
        >>> from kos.abi import Abi
        >>> completion = Abi.load(image.find()[1]).layout("rpc_completion")
        >>> completion.size, completion.offset("status")
        (32, 4)
    """

    def __init__(self, name: str, description: dict[str, Any], layouts: "dict[str, Layout]"):
        self.name = name
        self.size: int = description["size"]
        self.fields = [
            Field(**{**f, "bits": tuple(f["bits"]) if "bits" in f else None})
            for f in description["fields"]
        ]
        self._layouts = layouts

    def field(self, name: str) -> Field:
        """The field of that name; KeyError names the struct's fields."""
        for field in self.fields:
            if field.name == name:
                return field
        names = ", ".join(f.name for f in self.fields)
        raise KeyError(f"struct {self.name} has no field {name!r}; it has {names}")

    def offset(self, name: str) -> int:
        """Offset of a field, in bytes."""
        return self.field(name).offset

    @cached_property
    def _readers(self) -> "list[tuple[Field, struct.Struct]]":
        readers = []
        for field in self.fields:
            code = _FORMATS.get(field.type)
            if code is not None:
                readers.append((field, struct.Struct(f"<{field.count or 1}{code}")))
        return readers

    def decode(self, data: bytes) -> dict[str, Value]:
        """The scalar fields of a struct in memory, by name; arrays are tuples, char arrays text."""
        result: dict[str, Value] = {}
        for field, reader in self._readers:
            values = reader.unpack_from(data, field.offset)
            if field.type == "char":
                result[field.name] = values[0].split(b"\0", 1)[0].decode("ascii", "replace")
            elif field.bits is not None:
                first, width = field.bits
                result[field.name] = values[0] >> first & ((1 << width) - 1)
            else:
                result[field.name] = values if field.count is not None else values[0]
        return result


@dataclass(frozen=True)
class Parameter:
    """An argument or result of a call: `type` is u32, u64, paddr or vaddr."""

    name: str
    type: str
    doc: str


@dataclass(frozen=True)
class CallDescription:
    """A call of the kernel's, as `calls.def` describes it."""

    number: int
    name: str
    doc: str
    scope: str
    args: tuple[Parameter, ...]
    results: tuple[Parameter, ...]
    data_in: str
    data_out: str
    struct: str
    errors: tuple[str, ...]


def _parameters(entries: Iterable[dict[str, str]]) -> tuple[Parameter, ...]:
    return tuple(Parameter(**e) for e in entries)


def _call(d: dict[str, Any]) -> CallDescription:
    return CallDescription(
        number=d["number"],
        name=d["name"],
        doc=d["doc"],
        scope=d["scope"],
        args=_parameters(d["args"]),
        results=_parameters(d["results"]),
        data_in=d["in"],
        data_out=d["out"],
        struct=d["struct"],
        errors=tuple(d["errors"]),
    )


class Abi:
    """Everything that Python knows of one kernel image.

    Example:
        >>> from kos import image
        >>> abi = Abi.load(image.find()[1])
        >>> abi.calls["buddy_alloc"].args[0].name
        'order'
        >>> abi.enums["zone_type"]["ZONE_NORMAL"]
        1
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self.build_id: str = description["build_id"]
        self.compiler: str = description["compiler"]
        self.symbols: dict[str, int] = description["symbols"]
        self.enums: dict[str, dict[str, int]] = description["enums"]
        self.calls = {d["name"]: _call(d) for d in description["calls"]}
        self.by_number = {c.number: c for c in self.calls.values()}
        self._layouts: dict[str, Layout] = {}
        for name, layout in description["structs"].items():
            self._layouts[name] = Layout(name, layout, self._layouts)

    @classmethod
    def load(cls, path: Path) -> "Abi":
        """Read a file that `scripts/abi.py` wrote; once, while it does not change."""
        return _load(path, path.stat().st_mtime_ns)

    def layout(self, name: str) -> Layout:
        """The layout of a struct, by its C name; KeyError when the file does not have it."""
        return self._layouts[name]


@lru_cache(maxsize=8)
def _load(path: Path, mtime_ns: int) -> Abi:
    return Abi(json.loads(path.read_text()))
