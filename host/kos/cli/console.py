"""`kos console`: the serial console of a fresh machine.

On a terminal it is interactive until Ctrl-]. Otherwise each line of standard input is typed, and
what it prints is shown, so that `echo zones | kos console` works.
"""

import argparse
import sys

import kos
from kos.cli import boot_options
from kos.machine import Machine


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    with kos.boot(**boot_options(args)) as vm:
        converse(vm)
    return 0


def converse(vm: Machine) -> None:
    """Give the console to whoever is at standard input."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        print("the console of KOS; Ctrl-] leaves, 'help' lists the commands")
        vm.console.send("\r")
        vm.console.interact()
        _say_end(vm)
        return
    for line in sys.stdin:
        command = line.strip()
        if command:
            print(f"kos> {command}")
            print(vm.console.run(command, timeout=120.0), flush=True)


def _say_end(vm: Machine) -> None:
    if vm.wire.failure is not None:
        vm.wire.check()
