"""`kos bench`: measure, print a table, and the figures as JSON."""

import argparse
import json
import sys

from kos.bench import MEASUREMENTS, Row


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.only == ["list"]:
        for name, measure in MEASUREMENTS.items():
            print(f"{name:10} {(measure.__doc__ or '').splitlines()[0]}")
        return 0
    unknown = [name for name in args.only if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"no measurement {unknown[0]!r}; known: {', '.join(MEASUREMENTS)}")
    if args.runs < 1:
        raise ValueError(f"--runs must be at least 1, not {args.runs}")
    if args.json and args.json != "-":
        open(args.json, "a").close()  # a file that cannot be written is refused before measuring
    rows: list[Row] = []
    for name in args.only or MEASUREMENTS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += MEASUREMENTS[name](args.runs)
    if args.json != "-":
        _print_table(rows)
    if args.json:
        _write_json(rows, args.json)
    return 0


def _print_table(rows: list[Row]) -> None:
    width = max(len(row.name) for row in rows)
    for row in rows:
        bar = "" if row.bar is None else f"  bar {row.bar:,g}{'  MISSED' if row.missed else ''}"
        print(f"{row.name:{width}}  {row.value:>14,.4g} {row.unit:14}{bar}")


def _write_json(rows: list[Row], path: str) -> None:
    text = json.dumps([row._asdict() | {"missed": row.missed} for row in rows], indent=1)
    if path == "-":
        print(text)
    else:
        with open(path, "w") as f:
            f.write(text + "\n")
