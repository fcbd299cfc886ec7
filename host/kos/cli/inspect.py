"""`kos inspect`: look into a kernel, that of a fresh machine or of a dump.

With an expression it prints the value. Otherwise it opens a Python prompt in which the kernel's
names stand for their values; without a terminal it reads the lines from standard input.
"""

import argparse
import code
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drgn

import kos
from kos.cli import EXIT_FAILED, boot_options
from kos.inspect import Dump, View, audit
from kos.inspect.view import Names
from kos.machine._inside import Inside

_BANNER = """Looking into {target!r}.
The kernel's variables have their own names: zones[1].buddy.free_pages, cpus, clients ...
view  the typed view: view.pages(), view.stack(0), view.symbol(address)
vm    what is looked into: vm.registers(), vm.console, vm.ram
audit(vm)  checks it;  Ctrl-D leaves"""


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    path, expression = _what(args.what)
    with _open(args, path) as target:
        if expression is not None:
            print(_value(target, expression))
            return 0
        return converse(target)


def _what(words: list[str]) -> tuple[str | None, str | None]:
    """Which of the words is a dump, which an expression."""
    if len(words) > 2:
        raise ValueError(f"a dump and an expression are allowed, not {len(words)} words: {words}")
    is_path = bool(words) and (len(words) == 2 or "/" in words[0] or Path(words[0]).exists())
    path = words[0] if is_path else None
    rest = words[1:] if is_path else words
    return path, rest[0] if rest else None


@contextlib.contextmanager
def _open(args: argparse.Namespace, path: str | None) -> Iterator[Inside | Dump]:
    if path is None:
        with kos.boot(**boot_options(args)) as vm:
            yield vm
    else:
        with Dump(path, kernel=args.kernel) as dump:
            yield dump


def _names(target: Inside | Dump) -> dict[str, Any]:
    return {"vm": target, "view": target.view, "audit": audit, "kos": kos}


def _value(target: Inside | Dump, expression: str) -> str:
    """The value of an expression, as C would write it; a number without its type."""
    try:
        value = target.view.evaluate(expression, _names(target))
        if isinstance(value, drgn.Object) and _is_number(value.type_):
            value = value.value_()
        return str(value)
    except Exception as error:  # noqa: BLE001 - whatever the user's expression raises
        raise ValueError(f"{expression!r}: {type(error).__name__}: {error}") from None


def _is_number(kind: drgn.Type) -> bool:
    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    return bool(kind.kind == drgn.TypeKind.INT)


def _display(value: Any) -> None:
    """Show a value at the prompt: what is the kernel's as C would write it."""
    if value is not None:
        is_kernels = type(value).__module__.partition(".")[0] in ("drgn", "_drgn")
        print(str(value) if is_kernels else repr(value))


class _Prompt(code.InteractiveConsole):
    """Python's own prompt, in which the kernel's names are known too."""

    def __init__(self, view: View, names: dict[str, Any]) -> None:
        super().__init__()
        self.known = Names(view, names)
        self.failed = False

    def runcode(self, code: Any) -> None:
        before, sys.displayhook = sys.displayhook, _display
        try:
            exec(code, self.known)
        except SystemExit:
            raise
        except BaseException:  # noqa: BLE001 - shown, as Python's own prompt does
            self.failed = True
            self.showtraceback()
        finally:
            sys.displayhook = before

    def refuse(self, statement: str) -> None:
        """Say what is wrong with a statement that does not end where the input does."""
        try:
            compile(statement, "<stdin>", "exec")
        except SyntaxError:
            self.showsyntaxerror("<stdin>")

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        self.failed = True
        super().showsyntaxerror(*args, **kwargs)


def converse(target: Inside | Dump) -> int:
    """A prompt on a terminal; elsewhere the lines of standard input, without one."""
    prompt = _Prompt(target.view, _names(target))
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - editing and history come with the import
        with contextlib.suppress(SystemExit):
            prompt.interact(banner=_BANNER.format(target=target), exitmsg="")
        return 0
    source = sys.stdin.read()
    for statement in _statements(source):
        if prompt.runsource(statement, "<stdin>", "single"):
            prompt.refuse(statement)
    return EXIT_FAILED if prompt.failed else 0


def _statements(source: str) -> Iterator[str]:
    """The top-level statements of a program, each of which prints its value."""
    lines = source.splitlines(keepends=True)
    start = 0
    for end in range(1, len(lines) + 1):
        following = lines[end] if end < len(lines) else ""
        if following[:1].isspace():
            continue
        text = "".join(lines[start:end])
        try:
            complete = code.compile_command(text + "\n", "<stdin>", "single") is not None
        except (SyntaxError, ValueError, OverflowError):
            complete = True
        if complete or end == len(lines):
            yield text + "\n"
            start = end
