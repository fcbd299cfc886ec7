"""Units, kernel C compiled for this host: what tests/test_units.py and scripts/mutants.py know.

A unit says in its first lines what it is made of, each line as often as it likes::

    /* sources: kernel/lib/crc32.c tests/unit/host_stubs.c */
    /* flags: -DNAME=value */
"""

import re
from pathlib import Path

FOLDER = "tests/unit"
# Stand-ins for the headers of the machine come before the real ones.
CFLAGS = [
    "-std=gnu17",
    "-DKOS_HOSTED",
    "-fms-extensions",  # as scripts/kernel.mk; clang would warn of what it allows
    "-Wno-microsoft-anon-tag",
    "-Itests/unit/hosted/include",
    "-Itests/unit",
    "-Ikernel",
    "-Iarch",
]


def directive(unit: Path, name: str) -> list[str]:
    """The words of all lines `/* name: words */` of a unit."""
    lines = re.findall(rf"^/\* {name}: (.*?) \*/$", unit.read_text(), re.MULTILINE)
    return [word for line in lines for word in line.split()]
