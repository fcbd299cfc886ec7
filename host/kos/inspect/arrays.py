"""C arrays as numpy structures.

A struct becomes a numpy structure whose fields lie where the members do, so that decoding is a
look at the same bytes. numpy has no bit fields: where a struct has some, the result is built field
by field, and each bit field gets a column of its own.
"""

import operator
from collections.abc import Iterator
from typing import Any

import drgn
import numpy as np
from numpy.typing import NDArray

_KINDS = drgn.TypeKind
_FLAT = {_KINDS.INT: "", _KINDS.BOOL: "", _KINDS.ENUM: "", _KINDS.POINTER: ""}


def element_of(array: drgn.Object, count: int | None) -> tuple[drgn.Type, int, int]:
    """Type, address and number of the elements of an array, or of what a pointer points to."""
    kind = _plain(array.type_)
    if count is not None and operator.index(count) < 0:
        raise ValueError(f"{count} elements: 0 or more can be read")
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
    return _split(element, raw) if _has_bit_fields(element) else raw


def _split(kind: drgn.Type, raw: NDArray[Any]) -> NDArray[Any]:
    """The same values with a column for each bit field, in nested structs too."""
    kind = _plain(kind)
    if kind.kind == _KINDS.ARRAY:
        return _split(kind.type, raw)
    columns = {}
    for name, member in _members(kind):
        column = raw[name]
        if member.bit_field_size is not None:
            column = _bits(member, column)
        elif _has_bit_fields(member.type):
            column = _split(member.type, column)
        columns[name] = column
    form = [(name, column.dtype, column.shape[raw.ndim :]) for name, column in columns.items()]
    result = np.empty(raw.shape, form)
    for name, column in columns.items():
        result[name] = column
    return result


def _bits(member: drgn.TypeMember, word: NDArray[Any]) -> NDArray[Any]:
    """A bit field, out of the word that `_fields` gives."""
    size = 8 * word.dtype.itemsize
    first, width = member.bit_offset % size, member.bit_field_size
    if first + width > size:
        raise ValueError(f"bit field {member.name!r} lies in two words; numpy has no form for it")
    # Shifted up against the top first, so that a signed one brings its sign down.
    up = word << word.dtype.type(size - first - width)
    if _is_signed(_plain(member.type)):
        up = up.view(f"<i{word.dtype.itemsize}")
    value: NDArray[Any] = up >> up.dtype.type(size - width)
    return value


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


def _members(kind: drgn.Type) -> Iterator[tuple[str, drgn.TypeMember]]:
    """Those that have names, of members without a name too."""
    for member in kind.members or ():
        if member.name:
            yield member.name, member
        elif member.bit_field_size is None:
            yield from _members(_plain(member.type))


def _fields(kind: drgn.Type, base: int) -> list[tuple[str, np.dtype[Any], int]]:
    """Name, type and offset of each member; a member without a name has its own."""
    found: list[tuple[str, np.dtype[Any], int]] = []
    for member in kind.members or ():
        if member.bit_field_size is not None:
            unit = drgn.sizeof(member.type)  # the word around it; its bits are taken out later
            offset = base + member.bit_offset // (8 * unit) * unit
            if member.name:
                found.append((member.name, np.dtype(f"<u{unit}"), offset))
        elif member.name is None:
            found += _fields(_plain(member.type), base + member.offset)
        else:
            found.append((member.name, dtype_of(member.type), base + member.offset))
    return found


def _has_bit_fields(kind: drgn.Type) -> bool:
    kind = _plain(kind)
    if kind.kind == _KINDS.ARRAY:
        return _has_bit_fields(kind.type)
    return kind.kind in (_KINDS.STRUCT, _KINDS.UNION) and any(
        member.bit_field_size is not None or _has_bit_fields(member.type)
        for member in kind.members or ()
    )
