"""What an audit finds, and how it is told."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Violation(NamedTuple):
    """A broken invariant.

    Args:
        invariant: Its name, such as `buddy.summary`.
        message: Where it is broken: addresses, and the values found and expected.
    """

    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


class Unsound(Exception):
    """Nothing further can be checked in this part: what it stands on is broken."""


@dataclass
class Audit:
    """The result of `kos.inspect.audit`.

    Args:
        memory: Bytes of RAM.
        frames: How many frames each owner has; the sum is all frames of RAM.
        violations: What is broken, the first found first; empty when all is sound.
    """

    memory: int
    frames: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every invariant holds."""
        return not self.violations

    def held_by_clients(self) -> dict[str, int]:
        """Frames that clients hold, by owner: blocks, rings and page tables."""
        return {owner: n for owner, n in self.frames.items() if owner.startswith("client ")}

    def check(self) -> None:
        """Raise what is broken.

        Raises:
            AssertionError: With the whole report.
        """
        if not self.sound:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        verdict = "sound" if self.sound else f"{len(self.violations)} broken"
        total = sum(self.frames.values())
        yield f"audit of {self.memory >> 20} MiB, {total} frames accounted for: {verdict}"
        for violation in self.violations[:20]:
            yield f"  {violation}"
        if len(self.violations) > 20:
            yield f"  and {len(self.violations) - 20} more"
        for owner, frames in self.frames.items():
            yield f"{frames:>10}  {owner}"


class Findings:
    """Collects violations and owners while the parts are checked."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def broken(self, invariant: str, message: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(invariant, message))

    def same(self, invariant: str, what: str, found: object, expected: object) -> bool:
        """Note a violation unless both are equal."""
        if found == expected:
            return True
        self.broken(invariant, f"{what} is {_shown(found)}, expected {_shown(expected)}")
        return False

    def need(self, invariant: str, what: str, found: object, expected: object) -> None:
        """The same, and nothing else can be checked when it does not hold."""
        if not self.same(invariant, what, found, expected):
            raise Unsound


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 9:
        return f"{value:#x}"
    return str(value)
