"""One figure."""

from collections.abc import Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """A measured figure.

    Args:
        name: What was measured.
        value: The figure.
        unit: Its unit; "x" is a ratio.
        bar: What it may be at most (or at least, with `at_least`); None when there is no bar.
        at_least: The bar is a lower one.
        linux: Linux's figure for the same, by configuration; None when there is none.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False
    linux: Mapping[str, float] | None = None

    @property
    def missed(self) -> bool:
        """Whether the figure is on the wrong side of its bar."""
        if self.bar is None:
            return False
        return self.value < self.bar if self.at_least else self.value > self.bar

    @property
    def ratio(self) -> float | None:
        """The figure as a multiple of the leanest Linux's; None when that is not there, or 0."""
        tiny = self.linux["tiny"] if self.linux else 0
        return self.value / tiny if tiny else None
