"""`kos replay`: play a recorded run again, and look into it where it stops.

It ends in the prompt of `kos inspect`, which reads standard input where that is no terminal:
`echo 'zones[1]' | kos replay run.kos` works.
"""

import argparse
import json
from typing import Any

import kos
from kos.cli.inspect import converse


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    with kos.replay(args.file, args.until) as vm:
        if args.json:
            print(json.dumps(_facts(vm), indent=1))
            return 0
        print(summary(vm), flush=True)
        return converse(vm)


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
