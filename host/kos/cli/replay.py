"""`kos replay`: play a recorded run again, and look into it where it stops.

On a terminal it ends in a Python prompt with the stopped machine as `vm`. Otherwise each line of
standard input is run as that prompt would, so that `echo 'vm.registers()' | kos replay run.kos`
works.
"""

import argparse
import code
import json
import sys
from typing import Any

import kos
from kos.cli import EXIT_FAILED

_BANNER = "vm is the machine: vm.view, vm.registers(), vm.console.text, vm.ram; Ctrl-D leaves"


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    with kos.replay(args.file, args.until) as vm:
        if args.json:
            print(json.dumps(_facts(vm), indent=1))
            return 0
        print(summary(vm), flush=True)
        prompt = _Prompt({"kos": kos, "vm": vm})
        if sys.stdin.isatty() and sys.stdout.isatty():
            prompt.interact(banner=_BANNER, exitmsg="")
            return 0
        return prompt.run_input()


class _Prompt(code.InteractiveConsole):
    """A Python prompt that notes whether what was typed failed."""

    failed = False

    def showtraceback(self) -> None:
        self.failed = True
        super().showtraceback()

    def showsyntaxerror(self, filename: str | None = None, **options: Any) -> None:
        self.failed = True
        super().showsyntaxerror(filename, **options)

    def run_input(self) -> int:
        """Run the lines of standard input; returns the command's exit status."""
        for line in [*sys.stdin, "\n"]:
            self.push(line.removesuffix("\n"))
        return EXIT_FAILED if self.failed else 0


def summary(vm: kos.Replay) -> str:
    """What was played, and where it stands, in a few lines."""
    run = vm.run
    lines = [
        f"recorded by kos {run.kos} with QEMU {run.qemu}: {run.machine}, {run.memory >> 20} MiB, "
        f"kernel {run.build_id[:12]}; ended: {run.end}",
    ]
    if vm.at_end:
        lines.append(f"at the end, instruction {vm.instructions}: RAM is the same, bit by bit")
    else:
        lines.append(f"at instruction {vm.instructions} of {run.instructions}")
    return "\n".join(lines)


def _facts(vm: kos.Replay) -> dict[str, Any]:
    run = vm.run
    return {
        "instructions": run.instructions,
        "at": vm.instructions,
        "at_end": vm.at_end,
        "ram_is_the_same": True if vm.at_end else None,
        "end": run.end,
        "panic": vm.failure.message if vm.failure else None,
        "build_id": run.build_id,
        "machine": run.machine,
        "memory": run.memory,
        "append": run.append,
        "kos": run.kos,
        "qemu": run.qemu,
        "registers": vm.registers()[0],
    }
