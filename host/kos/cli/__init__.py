"""The `kos` command.

Exit status: 0 good, 1 a test failed, 2 usage, 3 the host lacks something, 255 the kernel panicked.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kos.exceptions import BootError, HostError, KernelPanic, KOSError, MachineExited

Command = Callable[[argparse.Namespace], int]

EXIT_FAILED, EXIT_USAGE, EXIT_HOST, EXIT_PANIC = 1, 2, 3, 255


def _machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the machine")
    group.add_argument("--memory", metavar="SIZE", help="RAM, 16M to 64G (256M)")
    group.add_argument("--cpus", type=int, metavar="N", help="CPUs, 1 to 8 (2)")
    group.add_argument("--machine", choices=("microvm", "q35"), help="kind of machine (microvm)")
    group.add_argument("--accel", choices=("auto", "tcg", "kvm"), help="emulation or KVM (auto)")
    group.add_argument("--kernel", metavar="ELF", help="another kernel image")
    group.add_argument("--append", default="", metavar="WORDS", help="kernel command line")
    group.add_argument("--deterministic", action="store_true", help="count instructions, not time")
    group.add_argument("--record", metavar="FILE", help="keep the run, for kos replay (1 CPU)")
    group.add_argument("--dry-run", action="store_true", help="print the QEMU command and stop")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kos", description="Boot KOS, call it, look inside it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_: str, run: str, *, boots: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(module=run)
        if boots:
            _machine_options(sub)
        return sub

    add("run", "show the documented API at work, then open the console", "run")
    add("console", "boot and open the serial console", "console")
    test = add("test", "run the in-kernel tests; KTAP output", "ktest")
    test.add_argument("prefix", nargs="?", default="", help="only tests whose name starts so")
    test.add_argument("--json", action="store_true", help="one JSON object instead of KTAP")
    inspect = add("inspect", "look into a kernel: a prompt, or one value", "inspect")
    inspect.add_argument(
        "what",
        nargs="*",
        metavar="DUMP | EXPRESSION",
        help="a dump to open instead of booting; a value to print, such as zones[1].managed",
    )
    audit = add("audit", "check a kernel's memory management from outside", "audit")
    audit.add_argument("dump", nargs="?", help="a dump to check instead of booting a machine")
    audit.add_argument("--json", action="store_true", help="machine-readable output")
    bench = add("bench", "measure, and print a table", "bench", boots=False)
    bench.add_argument("only", nargs="*", help="only these measurements; 'list' names them")
    bench.add_argument(
        "--json", metavar="FILE", help="also write the figures; '-' prints only them"
    )
    bench.add_argument("--runs", type=int, default=7, help="runs to take the median of (7)")
    bench.add_argument(
        "--accept", metavar="REASON", help="put the exact counts on record as they are now, and why"
    )
    replay = add("replay", "play a recorded run again and look into it", "replay", boots=False)
    replay.add_argument("file", help="what kos.boot(record=...) wrote")
    replay.add_argument("--until", type=int, metavar="N", help="stop after N instructions (all)")
    replay.add_argument("--json", action="store_true", help="print what is known, and stop")
    doctor = add("doctor", "say what this machine lacks, and what mends it", "doctor", boots=False)
    doctor.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def boot_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `kos.boot` takes, from the flags, the environment and pyproject.toml."""
    from kos.settings import resolve

    cpus = 1 if args.record and args.cpus is None else args.cpus
    options = resolve(memory=args.memory, cpus=cpus, machine=args.machine, accel=args.accel)
    options["append"] = args.append
    options["deterministic"] = args.deterministic
    if args.kernel:
        options["kernel"] = args.kernel
    if args.record:
        options["record"] = args.record
    return options


def _dry_run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from kos import image
    from kos.machine._argv import Config, build_argv, choose_accel, parse_size

    if args.record:
        raise ValueError("--record and --dry-run: only one of them is allowed")
    options = boot_options(args)
    config = Config(
        Path(image.find(options.get("kernel"))[0]),
        parse_size(options["memory"]),
        options["cpus"],
        options["machine"],
        "tcg" if args.deterministic else choose_accel(options["accel"]),
        args.deterministic,
        args.append,
        (),
    )
    ends = {"console": "socket,fd=4", "wire": "socket,fd=5"}
    argv = build_argv(config, "qemu-system-x86_64", ram_fd=3, monitor_fd=6, **ends)
    print(shlex.join(argv))
    return 0


def _run(args: argparse.Namespace) -> int:
    if getattr(args, "dry_run", False):
        return _dry_run(args)
    if args.module == "doctor":
        from kos import doctor

        return doctor.main(["--json"] if args.json else [])
    import importlib

    command: Command = importlib.import_module(f"kos.cli.{args.module}").main
    return command(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `kos` command; returns its exit status."""
    try:
        status = _status(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has enough. What is still buffered goes nowhere, and quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _status(argv: Sequence[str] | None) -> int:
    """Run the command and turn what stops it into a line and an exit status."""
    try:
        return _run(_parser().parse_args(argv))
    except SystemExit as stop:  # argparse has printed its help, or what was wrong
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    except KernelPanic as error:
        print(f"kos: {error}", file=sys.stderr)
        return EXIT_PANIC
    except (HostError, BootError, MachineExited) as error:
        print(f"kos: {error}", file=sys.stderr)
        return EXIT_HOST
    except (ValueError, KOSError) as error:
        print(f"kos: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError) else EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"kos: {error}", file=sys.stderr)
        return EXIT_HOST
