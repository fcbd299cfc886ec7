"""`kos test`: the kernel's own tests, with KTAP output."""

import argparse
import json

import kos
from kos.cli import EXIT_FAILED, boot_options


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    results = []
    with kos.boot(**boot_options(args)) as vm:
        client = vm.client
        names = [client.test_name(i) for i in range(client.test_count())]
        chosen = [i for i, name in enumerate(names) if name.startswith(args.prefix)]
        if not chosen:
            raise ValueError(
                f"no test's name starts with {args.prefix!r}; known: {', '.join(names)}"
            )
        if not args.json:
            print(f"KTAP version 1\n1..{len(chosen)}")
        client.timeout = 120.0
        for number, index in enumerate(chosen, 1):
            report, failures = client.test_run(index)
            results.append({"name": names[index], "failures": failures, "report": report})
            if not args.json:
                for line in report.splitlines():
                    print(f"# {line}")
                print(f"{'not ok' if failures else 'ok'} {number} {names[index]}", flush=True)
    failed = sum(1 for r in results if r["failures"])
    if args.json:
        print(json.dumps({"tests": results, "failed": failed}, indent=1))
    else:
        print(f"# pass:{len(results) - failed} fail:{failed}")
    return EXIT_FAILED if failed else 0
