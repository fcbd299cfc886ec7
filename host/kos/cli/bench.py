"""`kos bench`: measure, print a table, and the figures as JSON."""

import argparse
import json
import sys

from kos.bench import MEASUREMENTS, Row, exact


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.only == ["list"]:
        for name, measure in MEASUREMENTS.items():
            print(f"{name:13} {(measure.__doc__ or '').splitlines()[0]}")
        return 0
    _check(args)
    rows: list[Row] = []
    for name in args.only or (exact.EXACT if args.accept is not None else MEASUREMENTS):
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += MEASUREMENTS[name](args.runs)
    if args.accept is not None:
        return _accept(rows, args.accept)
    if args.json != "-":
        _print_table(rows)
    if args.json:
        _write_json(rows, args.json)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is measured."""
    unknown = [name for name in args.only if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"no measurement {unknown[0]!r}; known: {', '.join(MEASUREMENTS)}")
    if args.runs < 1:
        raise ValueError(f"--runs must be at least 1, not {args.runs}")
    if args.accept is not None:
        if args.only:
            raise ValueError(f"--accept measures {' and '.join(exact.EXACT)} and nothing else")
        exact.check_reason(args.accept)
    if args.json and args.json != "-":
        open(args.json, "a").close()


def _accept(rows: list[Row], reason: str) -> int:
    from kos import image
    from kos.abi import Abi

    compiler = Abi.load(image.find()[1]).compiler
    for move in exact.accept(compiler, {row.name: row.value for row in rows}, reason):
        print(move)
    return 0


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _print_table(rows: list[Row]) -> None:
    """Rows with Linux's figures have three more columns, and the ratio to the first of them."""
    width = max(len(row.name) for row in rows)
    columns = next((list(row.linux) for row in rows if row.linux), [])
    if columns:
        titles = "".join(f"{name:>10}" for name in [*columns, "KOS/" + columns[0]])
        print(f"{'':{width}}  {'KOS':>14} {'':14}{titles}")
    for row in rows:
        linux = "".join(f"{_figure(row.linux[c]):>10}" if row.linux else " " * 10 for c in columns)
        if columns:
            linux += f"{'' if row.ratio is None else f'{row.ratio:.3f}':>10}"
        bar = "" if row.bar is None else f"  bar {row.bar:,g}{'  MISSED' if row.missed else ''}"
        print(f"{row.name:{width}}  {_figure(row.value):>14} {row.unit:14}{linux}{bar}".rstrip())


def _write_json(rows: list[Row], path: str) -> None:
    found = [row._asdict() | {"missed": row.missed, "ratio": row.ratio} for row in rows]
    text = json.dumps(found, indent=1)
    if path == "-":
        print(text)
    else:
        with open(path, "w") as f:
            f.write(text + "\n")
