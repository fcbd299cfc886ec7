"""One figure."""

from typing import NamedTuple


class Row(NamedTuple):
    """A measured figure.

    Args:
        name: What was measured.
        value: The figure.
        unit: Its unit; "x" is a ratio.
        bar: What it may be at most (or at least, with `at_least`); None when there is no bar.
        at_least: The bar is a lower one.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def missed(self) -> bool:
        """Whether the figure is on the wrong side of its bar."""
        if self.bar is None:
            return False
        return self.value < self.bar if self.at_least else self.value > self.bar
