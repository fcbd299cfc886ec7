"""Structs of the kernel's as numpy structures, from its ABI file: drgn would take longer."""

from functools import lru_cache
from typing import Any

import numpy as np

from kos.abi import Abi, Field

_FORMATS = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "ptr": "<u8"}
_FORMATS |= {"s8": "i1", "s16": "<i2", "s32": "<i4", "s64": "<i8"}


@lru_cache(maxsize=256)
def dtype_of(abi: Abi, name: str) -> np.dtype[Any]:
    """The numpy type with a struct's layout. Bit fields are not in it, only the words around them.

    Raises:
        KeyError: The kernel has no struct of that name.

    Example:
        >>> from kos import image
        >>> from kos.abi import Abi
        >>> dtype_of(Abi.load(image.find()[1]), "page_links").fields["prev"]
        (dtype('uint32'), 4)
    """
    layout = abi.layout(name)
    fields = [field for field in layout.fields if field.bits is None]
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [_format(abi, field) for field in fields],
            "offsets": [field.offset for field in fields],
            "itemsize": layout.size,
        }
    )


def _format(abi: Abi, field: Field) -> Any:
    if field.type == "char":
        return f"S{field.count or 1}"
    if field.type.startswith("struct:"):
        one: Any = dtype_of(abi, field.type.removeprefix("struct:"))
    else:
        one = _FORMATS[field.type]
    return one if field.count is None else (one, (field.count,))
