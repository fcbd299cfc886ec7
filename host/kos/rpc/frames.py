"""Frames on the wire: COBS, CRC-32, and what the kernel says in them.

A frame is COBS(kind, body, CRC-32 of both) and a zero byte; a zero byte alone is the doorbell. See
docs/wire.md.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

CALL = ord("C")
REPLY = ord("R")
HELLO = ord("H")
ERROR = ord("E")
PANIC = ord("P")
BYE = ord("B")

ENTRY = struct.Struct("<HHI5QIIII")
COMPLETION = struct.Struct("<IiQQII")
DATA_MAX = 4096
DOORBELL = b"\0"


def cobs_encode(data: bytes) -> bytes:
    """Stuff bytes so that none is zero.

    Example:
        >>> cobs_encode(bytes([1, 0, 2])).hex()
        '02010202'
    """
    out = bytearray()
    for block in data.split(b"\0"):
        rest = block
        while len(rest) >= 254:
            out += b"\xff" + rest[:254]
            rest = rest[254:]
        out.append(len(rest) + 1)
        out += rest
    return bytes(out)


def cobs_decode(data: bytes) -> bytes | None:
    r"""Undo `cobs_encode`; None when the bytes are no encoding.

    Example:
        >>> cobs_decode(bytes.fromhex("02010202"))
        b'\x01\x00\x02'
    """
    out = bytearray()
    at = 0
    while at < len(data):
        run = data[at]
        block = data[at + 1 : at + run]
        if not run or len(block) != run - 1 or 0 in block:
            return None
        out += block
        at += run
        if run < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def frame(kind: int, body: bytes = b"") -> bytes:
    """A whole frame, with the zero byte that ends it."""
    plain = bytes([kind]) + body
    return cobs_encode(plain + struct.pack("<I", zlib.crc32(plain))) + b"\0"


def call_frame(entry: bytes, data: bytes = b"") -> bytes:
    """The frame of a call; the entry goes without its trailing zero bytes."""
    short = entry.rstrip(b"\0")
    return frame(CALL, bytes([len(short)]) + short + data)


class Received(NamedTuple):
    """A frame as it came, or a doorbell (kind 0)."""

    kind: int
    body: bytes


class Decoder:
    """Takes the wire's bytes as they come and gives whole frames; counts what made no sense.

    Example:
        >>> decoder = Decoder()
        >>> list(decoder.feed(frame(HELLO, b"hi")[:3])), list(decoder.feed(frame(HELLO, b"hi")[3:]))
        ([], [Received(kind=72, body=b'hi')])
    """

    def __init__(self) -> None:
        self._partial = bytearray()
        self.errors = 0

    def feed(self, data: bytes) -> Iterator[Received]:
        """The frames that these bytes complete."""
        *ended, rest = data.split(b"\0")
        for piece in ended:
            whole = bytes(self._partial) + piece
            self._partial.clear()
            received = self._decode(whole) if whole else Received(0, b"")
            if received is not None:
                yield received
        self._partial += rest

    def _decode(self, coded: bytes) -> Received | None:
        plain = cobs_decode(coded)
        if plain is None or len(plain) < 5:
            self.errors += 1
            return None
        body, crc = plain[:-4], int.from_bytes(plain[-4:], "little")
        if zlib.crc32(body) != crc:
            self.errors += 1
            return None
        return Received(body[0], body[1:])
