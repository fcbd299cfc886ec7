"""Linux's figures for the workloads of `kos bench`: what `make bench-linux` measured and stored.

The figures are in `linux.json` beside this module: guest instructions per operation, but for the
rows whose name says another unit (`_kB`, `_permille`, `_pages`, `_order`) or is a count (`_n`,
`_failed`, `_at_end`). docs/measuring.md says what the columns are.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple


class Source(NamedTuple):
    """Where a column comes from.

    Args:
        package: The Debian package that the kernel is from.
        version: Its version.
        compiler: What it was compiled with.
        qemu: The version of the QEMU that it ran in.
        date: The day of the run, as 2026-01-31.
    """

    package: str
    version: str
    compiler: str
    qemu: str
    date: str


class Figures(NamedTuple):
    """All of Linux's figures.

    Args:
        columns: The names of the configurations, the leanest first.
        source: Where each column comes from.
        rows: The figures: name of the row, then of the column.
    """

    columns: tuple[str, ...]
    source: Mapping[str, Source]
    rows: Mapping[str, Mapping[str, float]]


@functools.cache
def figures() -> Figures:
    """Read all figures; the file is read once.

    Returns:
        The figures, to be read only.

    Example:
        >>> linux = figures()
        >>> linux.columns
        ('tiny', 'lean', 'stock')
        >>> linux.source["tiny"].package
        'linux-source-6.1'
        >>> sorted(linux.rows["pages_pair_o0"]) == sorted(linux.columns)
        True
    """
    data = json.loads(resources.files(__package__).joinpath("linux.json").read_text("utf-8"))
    source = {column: Source(**data["source"][column]) for column in data["columns"]}
    return Figures(tuple(data["columns"]), source, data["rows"])


def figure(row: str, column: str) -> float:
    """One figure.

    Args:
        row: The name of the workload, such as `pages_pair_o0` or `mixpages_alloc_lat_p99`.
        column: The configuration: `tiny`, `lean` or `stock`.

    Returns:
        Guest instructions per operation, or what the row's name says.

    Raises:
        ValueError: There is no such row or column; the message names those that are near.

    Example:
        >>> figure("pages_pair_o0", "tiny") < figure("pages_pair_o0", "stock")
        True
        >>> figure("pages_pair_o11", "tiny")
        Traceback (most recent call last):
        ...
        ValueError: no row 'pages_pair_o11' in Linux's figures; near: pages_pair_o1, ...
    """
    data = figures()
    if row not in data.rows:
        near = difflib.get_close_matches(row, data.rows, cutoff=0.5) or sorted(data.rows)[:3]
        raise ValueError(f"no row {row!r} in Linux's figures; near: {', '.join(near)}")
    if column not in data.columns:
        known = ", ".join(data.columns)
        raise ValueError(f"no column {column!r} in Linux's figures; known: {known}")
    return data.rows[row][column]
