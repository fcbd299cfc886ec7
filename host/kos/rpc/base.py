"""What the generated stubs build on, whatever carries the calls."""

from array import array
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kos.abi import Abi

DataLike = bytes | bytearray | memoryview
U64sLike = Iterable[int] | NDArray[np.unsignedinteger[Any]]
T = TypeVar("T")
Answer = tuple[int, int, bytes]


def flat(data: DataLike) -> bytes:
    """Data as it travels.

    Raises:
        TypeError: It is nothing that holds bytes.
    """
    if isinstance(data, bytes):
        return data
    try:
        return memoryview(data).tobytes()
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"data is bytes or like bytes, not {data!r} ({kind})") from None


def u64s(values: U64sLike) -> bytes:
    """Addresses as the kernel takes them: 64-bit words.

    Raises:
        TypeError: One is no whole number.
        ValueError: One is negative or does not fit 64 bits.
    """
    if isinstance(values, np.ndarray):
        if values.size and values.dtype.kind not in "iu":
            raise TypeError(f"addresses are whole numbers, not of type {values.dtype}")
        if values.dtype.kind != "u" and values.size and int(values.min()) < 0:
            raise ValueError(f"an address cannot be negative: {int(values.min())}")
        return np.ascontiguousarray(values, dtype=np.uint64).tobytes()
    words = array("Q")
    try:
        words.extend(iter(values))
    except OverflowError:
        raise ValueError(f"element {len(words)}: an address is a number from 0 to 2^64-1") from None
    except TypeError as error:
        raise TypeError(f"element {len(words)}: an address is a whole number: {error}") from None
    return words.tobytes()


class AnswerBase:
    """Decodes the structs that calls answer with."""

    abi: Abi

    def struct_size(self, name: str) -> int:
        """Size of a struct that the kernel answers with, in bytes."""
        return self.abi.layout(name).size

    def struct_fields(self, name: str, data: bytes) -> dict[str, Any]:
        """The fields of a struct that came as an answer."""
        fields: dict[str, Any] = self.abi.layout(name).decode(data)
        fields.pop("pad", None)
        return fields


class CallsBase(AnswerBase):
    """Where the stubs of `Calls` send their arguments."""

    def _fast(
        self, number: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0
    ) -> int:
        """A call without data: its first result."""
        raise TypeError(f"{type(self).__name__} carries no calls")

    def _full(self, number: int, args: tuple[int, ...], data: DataLike, capacity: int) -> Answer:
        """Any call: both results and the answer's data."""
        raise TypeError(f"{type(self).__name__} carries no calls")


class Pending(Generic[T]):
    """The answer of a queued call; there once its batch has ended.

    Example:
        >>> import kos
        >>> with kos.default_machine().batch() as batch:
        ...     answers = [batch.ping(n) for n in range(3)]
        >>> [a.value for a in answers]
        [0, 1, 2]
    """

    def __init__(self, decode: Callable[[int, int, bytes], T]) -> None:
        self._decode = decode
        self._answer: Answer | None = None
        self._error: Exception | None = None

    @property
    def value(self) -> T:
        """The call's result; raises what the call raised, RuntimeError before the batch ran."""
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise RuntimeError("the batch has not run yet: the value is there after its `with`")
        return self._decode(*self._answer)

    @property
    def error(self) -> Exception | None:
        """Why the call was refused, or None."""
        return self._error

    def settle(self, answer: Answer | None, error: Exception | None) -> None:
        """Called by the batch when the completion is there."""
        self._answer, self._error = answer, error


class BatchBase(AnswerBase):
    """Where the stubs of `BatchCalls` leave their calls."""

    def _queue(
        self,
        number: int,
        args: tuple[int, ...],
        data: DataLike,
        capacity: int,
        decode: Callable[[int, int, bytes], T],
    ) -> Pending[T]:
        raise TypeError(f"{type(self).__name__} queues no calls")
