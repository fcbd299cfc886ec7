"""Says what the tests of a run reached in kernel/mm and kernel/rpc; `make coverage` ends with it.

    coverage_report.py BUILD

BUILD holds a kernel built with COVERAGE=1 and, in `counts`, what its machines left there. gcovr
prints its tables and writes BUILD/html/index.html. The run fails when a line was not reached that
scripts/coverage-allowed.toml does not excuse, when an excuse has become stale, or when fewer of the
branches were taken than BRANCHES says.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from kos import coverage

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "scripts" / "coverage-allowed.toml"
PARTS = ("kernel/mm", "kernel/rpc")
BRANCHES = 95.0  # percent

Excuses = dict[tuple[str, str, str], str]


def gcovr(*options: str | Path) -> None:
    """Run gcovr on the tree."""
    argv: list[str | Path] = [sys.executable, "-m", "gcovr", "--root", ROOT]
    for part in PARTS:
        argv += ["--filter", f"{part}/", "--exclude", f"{part}/tests/"]
    argv += options
    done = subprocess.run([str(word) for word in argv], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"coverage_report.py: gcovr failed with status {done.returncode}")


def read_excuses(path: Path) -> Excuses:
    """The reasons in the file, by path, `text` or `function`, and what that is."""
    excuses: Excuses = {}
    for entry in tomllib.loads(path.read_text()).get("unreached", []):
        kinds = set(entry) - {"path", "reason"}
        if len(entry) != 3 or not kinds < {"text", "function"} or not all(entry.values()):
            sys.exit(f"{path}: {entry}: expected path, reason, and text or function")
        (kind,) = kinds
        excuses[entry["path"], kind, entry[kind]] = entry["reason"]
    return excuses


def faults(
    report: dict[str, Any], summary: dict[str, Any], excuses: Excuses, root: Path
) -> list[str]:
    """Why the run is not good enough; none when it is.

    Args:
        report: gcovr's JSON report.
        summary: gcovr's JSON summary.
        excuses: As `read_excuses` gives them.
        root: What the report's paths are relative to.
    """
    found, used = [], set()
    for file in report["files"]:
        path = file["file"]
        source = (root / path).read_text().splitlines()
        for line in file["lines"]:
            if line["count"]:
                continue
            text = source[line["line_number"] - 1].strip()
            function = line.get("function_name", "")
            matching = {(path, "text", text), (path, "function", function)} & set(excuses)
            used |= matching
            if not matching:
                found.append(f"{path}:{line['line_number']}: not reached: {text}")
    for path, kind, what in sorted(set(excuses) - used):
        found.append(f"{ALLOWED.name}: {path}: no line that was not reached has {kind} {what!r}")
    if summary["branch_percent"] < BRANCHES:
        share = f"{summary['branch_covered']} of {summary['branch_total']} branches"
        found.append(f"{share} were taken, less than {BRANCHES:g} %")
    return found


def main() -> None:
    build = Path(sys.argv[1]).resolve()
    try:
        units = coverage.merge(build / "counts")
        coverage.write(units)
    except ValueError as error:
        sys.exit(f"coverage_report.py: {error}")
    if not units:
        sys.exit(f"coverage_report.py: no machine has left counters in {build / 'counts'}")
    trace, totals, html = (build / name for name in ("lines.json", "totals.json", "html"))
    html.mkdir(exist_ok=True)
    # The side of an assertion that fails is no branch of the program's.
    branches = ("--exclude-branches-by-pattern", r"\s*KASSERT\(")
    gcovr("--object-directory", build / "obj", build / "obj", *branches, "--json", trace)
    gcovr("-a", trace, "--json-summary", totals, "--html-details", html / "index.html", "--txt")
    gcovr("-a", trace, "--txt", "--txt-metric", "branch")
    report, summary = (json.loads(path.read_text()) for path in (trace, totals))
    excuses = read_excuses(ALLOWED)
    print(f"{units[0].runs} machines; {html / 'index.html'}")
    print(f"lines    {summary['line_covered']} of {summary['line_total']}, {len(excuses)} excuses")
    print(f"branches {summary['branch_covered']} of {summary['branch_total']}")
    found = faults(report, summary, excuses, ROOT)
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
