"""`kos console`: the serial console of a fresh machine.

On a terminal it is interactive until Ctrl-]. Otherwise each line of standard input is typed, and
what it prints is shown, so that `echo zones | kos console` works.
"""

import argparse
import sys

import kos
from kos.cli import EXIT_PANIC, boot_options
from kos.exceptions import KernelPanic
from kos.machine import Machine


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    with kos.boot(**boot_options(args)) as vm:
        return converse(vm)


def converse(vm: Machine) -> int:
    """Give the console to whoever is at standard input; returns the command's exit status."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        print("the console of KOS; Ctrl-] leaves, 'help' lists the commands")
        vm.console.interact()
        return _say_end(vm)
    for line in sys.stdin:
        command = line.strip()
        if command:
            print(f"kos> {command}")
            print(vm.console.run(command, timeout=120.0), flush=True)
    return 0


def _say_end(vm: Machine) -> int:
    """After a panic the whole report is on the screen already: one line says why this ends."""
    if isinstance(vm.wire.failure, KernelPanic):
        print(f"kos: {vm.wire.failure.message}", file=sys.stderr)
        return EXIT_PANIC
    vm.wire.check()
    return 0
