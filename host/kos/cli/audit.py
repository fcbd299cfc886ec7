"""`kos audit`: check a kernel's memory management from outside, of a fresh machine or a dump."""

import argparse
import json

import kos
from kos.cli import EXIT_FAILED, boot_options
from kos.inspect import Audit, Dump, audit


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.dump:
        with Dump(args.dump, kernel=args.kernel) as dump:
            result = audit(dump)
    else:
        with kos.boot(**boot_options(args)) as vm:
            result = audit(vm)
    print(_json(result) if args.json else result)
    return 0 if result.sound else EXIT_FAILED


def _json(result: Audit) -> str:
    told = {
        "sound": result.sound,
        "violations": [violation._asdict() for violation in result.violations],
        "frames": result.frames,
    }
    return json.dumps(told, indent=1)
