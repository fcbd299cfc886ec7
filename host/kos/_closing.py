"""What can be closed, as a context manager."""

from types import TracebackType
from typing import Self


class Closing:
    """Leaving the `with` of an object closes it."""

    def close(self) -> None:
        """End it. Each class says what that means."""
        raise TypeError(f"{type(self).__name__} says nothing about closing")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
