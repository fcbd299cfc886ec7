"""C arrays as numpy structures.

A struct becomes a numpy structure whose fields lie where the members do, so that decoding is a
look at the same bytes. numpy has no bit fields: where a struct has some, the result is built field
by field, and each bit field gets a column of its own.
"""

from typing import Any

import drgn
import numpy as np
from numpy.typing import NDArray

_KINDS = drgn.TypeKind
_FLAT = {_KINDS.INT: "", _KINDS.BOOL: "", _KINDS.ENUM: "", _KINDS.POINTER: ""}


def element_of(array: drgn.Object, count: int | None) -> tuple[drgn.Type, int, int]:
    """Type, address and number of the elements of an array, or of what a pointer points to."""
    kind = _plain(array.type_)
    if kind.kind == _KINDS.ARRAY:
        length = kind.length if count is None else count
        if length is None or array.address_ is None:
            raise ValueError(f"{array.type_.type_name()} has no length or no address")
        return kind.type, array.address_, length
    if kind.kind == _KINDS.POINTER:
        if count is None:
            raise ValueError(f"{array.type_.type_name()}: say how many elements it points to")
        return kind.type, array.value_(), count
    raise ValueError(f"{array.type_.type_name()} is neither an array nor a pointer")


def decode(element: drgn.Type, data: bytes) -> NDArray[Any]:
    """Bytes as elements of a type."""
    raw = np.frombuffer(data, dtype_of(element))
    bits = _bit_fields(element)
    if not bits:
        return raw
    assert raw.dtype.names is not None
    wanted = [(name, raw.dtype[name]) for name in raw.dtype.names if name not in bits]
    result = np.empty(len(raw), [*wanted, *((name, raw.dtype[name]) for name in bits)])
    for name, _ in wanted:
        result[name] = raw[name]
    for name, (first, width) in bits.items():
        column = raw[name]
        result[name] = column >> column.dtype.type(first) & column.dtype.type((1 << width) - 1)
    return result


def dtype_of(kind: drgn.Type) -> np.dtype[Any]:
    """The numpy type with the layout of a C type.

    Raises:
        ValueError: There is none, as for a function.
    """
    kind = _plain(kind)
    if kind.kind in _FLAT:
        return np.dtype(f"<{'i' if _is_signed(kind) else 'u'}{drgn.sizeof(kind)}")
    if kind.kind == _KINDS.ARRAY:
        element = dtype_of(kind.type)
        if _plain(kind.type).primitive == drgn.PrimitiveType.C_CHAR:
            return np.dtype(f"S{kind.length}")
        return np.dtype((element, (kind.length or 0,)))
    if kind.kind in (_KINDS.STRUCT, _KINDS.UNION):
        fields = _fields(kind, 0)
        return np.dtype(
            {
                "names": [name for name, _, _ in fields],
                "formats": [format_ for _, format_, _ in fields],
                "offsets": [offset for _, _, offset in fields],
                "itemsize": drgn.sizeof(kind),
            }
        )
    raise ValueError(f"{kind.type_name()} has no form in numpy")


def _plain(kind: drgn.Type) -> drgn.Type:
    while kind.kind == _KINDS.TYPEDEF:
        kind = kind.type
    return kind


def _is_signed(kind: drgn.Type) -> bool:
    if kind.kind == _KINDS.ENUM:
        return bool(kind.type is not None and kind.type.is_signed)
    return bool(kind.kind == _KINDS.INT and kind.is_signed)


def _fields(kind: drgn.Type, base: int) -> list[tuple[str, np.dtype[Any], int]]:
    """Name, type and offset of each member; a member without a name has its own."""
    found: list[tuple[str, np.dtype[Any], int]] = []
    for member in kind.members or ():
        if member.bit_field_size is not None:
            unit = drgn.sizeof(member.type)  # the word around it; its bits are taken out later
            offset = base + member.bit_offset // (8 * unit) * unit
            found.append((member.name or "", np.dtype(f"<u{unit}"), offset))
        elif member.name is None:
            found += _fields(_plain(member.type), base + member.offset)
        else:
            found.append((member.name, dtype_of(member.type), base + member.offset))
    return found


def _bit_fields(kind: drgn.Type) -> dict[str, tuple[int, int]]:
    """First bit (in the word that `_fields` gives) and width of each bit field."""
    kind = _plain(kind)
    found: dict[str, tuple[int, int]] = {}
    if kind.kind not in (_KINDS.STRUCT, _KINDS.UNION):
        return found
    for member in kind.members or ():
        if member.bit_field_size is not None and member.name:
            word = 8 * drgn.sizeof(member.type)
            found[member.name] = (member.bit_offset % word, member.bit_field_size)
        elif member.name is None:
            found |= _bit_fields(member.type)
    return found
