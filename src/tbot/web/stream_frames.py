"""What clients send: WebSocket frames (RFC 6455, section 5), without compression. Pure.

`Inbound` takes bytes as they come, cut anywhere, and answers with whole messages and control
frames. What violates the protocol raises `Violation` with the close code that says so; whatever
was complete before it is in `Violation.events`.

Invariants:

1. Text is checked as it comes: a message that cannot become UTF-8 any more is refused before its
   end is there.
2. Never more than `bytes_max` of one message is kept.
3. Between messages nothing is kept at all: then `idle` is true, and the object may be dropped.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

CONTINUATION: Final = 0
CONTROL_BYTES_MAX: Final = 125
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_NOT_UTF_8: Final = 1007
CLOSE_TOO_LARGE: Final = 1009
NO_CODE: Final = 1005
"""What a close frame without a code stands for; never sent."""

_decoder = codecs.getincrementaldecoder("utf-8")


class Kind(IntEnum):
    """What was received: the frames' opcodes."""

    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@dataclass(frozen=True, slots=True)
class Event:
    """A whole message or a control frame.

    Attributes:
        text: Of a text message, or the reason in a close frame.
        data: Of a binary message, a ping or a pong.
        code: Of a close frame.
    """

    kind: Kind
    text: str = ""
    data: bytes = b""
    code: int = 0


class Violation(Exception):
    """The peer broke the protocol.

    Attributes:
        code: With which to close.
        events: What came before it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.events: list[Event] = []


class Inbound:
    """The receiving side of one connection.

    Args:
        bytes_max: Largest message.
    """

    __slots__ = (
        "_buffer", "_bytes_max", "_decoder", "_final", "_left", "_mask", "_message", "_parts",
        "_size", "_text",
    )  # fmt: skip

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = b""
        """Bytes that begin a frame, too few to know what to do with them."""
        self._message: Kind | None = None
        """Kind of the message that is being received."""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._text: list[str] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._left = 0
        """Payload bytes that the frame still lacks."""
        self._final = True
        self._mask = b""

    @property
    def idle(self) -> bool:
        """Whether nothing is kept: the next byte begins a message."""
        return self._message is None and not self._buffer

    def take(self, data: bytes) -> list[Event]:
        """Take bytes; what they complete.

        Raises:
            Violation: See the module's text. Nothing may be taken after it.
        """
        events: list[Event] = []
        try:
            self._take(self._buffer + data if self._buffer else data, events)
        except Violation as violation:
            violation.events = events
            raise
        return events

    def _take(self, data: bytes, events: list[Event]) -> None:
        at, end = 0, len(data)
        self._buffer = b""
        while at < end:
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._payload(part, events)
                continue
            begun = at
            first = data[at]
            if end - at < 2:
                self._check_first(first)
                break
            opcode = self._check_first(first)
            size, at = self._size_of(data, at + 1, opcode)
            if at + 4 > end:
                at = begun
                break
            mask = data[at : at + 4]
            at += 4
            if opcode >= Kind.CLOSE:
                if at + size > end:
                    at = begun
                    break
                events.append(_control(Kind(opcode), unmasked(data[at : at + size], mask)))
                at += size
                continue
            self._begin(first, opcode, size, mask)
            if not size:
                self._payload(b"", events)
        if at < end:
            self._buffer = data[at:]

    def _check_first(self, first: int) -> int:
        """The opcode of a frame's first byte, if it may come now."""
        if first & 0x70:
            raise Violation(CLOSE_PROTOCOL_ERROR, "reserved bits are set")
        opcode = first & 0x0F
        if opcode >= Kind.CLOSE:
            if opcode > Kind.PONG:
                raise Violation(CLOSE_PROTOCOL_ERROR, f"unknown opcode {opcode}")
            if not first & 0x80:
                raise Violation(CLOSE_PROTOCOL_ERROR, "a control frame in fragments")
        elif opcode > Kind.BINARY:
            raise Violation(CLOSE_PROTOCOL_ERROR, f"unknown opcode {opcode}")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise Violation(CLOSE_PROTOCOL_ERROR, "a continuation of nothing")
        elif self._message is not None:
            raise Violation(CLOSE_PROTOCOL_ERROR, "a message inside another one")
        return opcode

    def _size_of(self, data: bytes, at: int, opcode: int) -> tuple[int, int]:
        """Size of the payload, and where the mask begins: beyond the data if it is not there."""
        second = data[at]
        if not second & 0x80:
            raise Violation(CLOSE_PROTOCOL_ERROR, "a client's frame without a mask")
        size = second & 0x7F
        at += 1
        if size > CONTROL_BYTES_MAX:
            if opcode >= Kind.CLOSE:
                raise Violation(CLOSE_PROTOCOL_ERROR, "a control frame that is too long")
            bytes_ = 2 if size == 126 else 8
            if len(data) < at + bytes_:
                return 0, len(data) + 1
            size = int.from_bytes(data[at : at + bytes_], "big")
            at += bytes_
            if size >> 63 or size <= (CONTROL_BYTES_MAX if bytes_ == 2 else 0xFFFF):
                raise Violation(CLOSE_PROTOCOL_ERROR, "a length that is not written as it must be")
        if opcode < Kind.CLOSE and self._size + size > self._bytes_max:
            raise Violation(CLOSE_TOO_LARGE, f"more than {self._bytes_max} bytes")
        return size, at

    def _begin(self, first: int, opcode: int, size: int, mask: bytes) -> None:
        if opcode != CONTINUATION:
            self._message = Kind(opcode)
        self._final = bool(first & 0x80)
        self._left = size
        self._mask = mask
        self._size += size

    def _payload(self, masked: bytes, events: list[Event]) -> None:
        """Take payload of the current frame; at a message's end, tell it."""
        self._left -= len(masked)
        done = self._final and not self._left
        data = unmasked(masked, self._mask)
        if self._left:
            turn = len(masked) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        if self._message is Kind.TEXT:
            if self._decoder is None:
                if done:  # the usual case: a message in one piece
                    events.append(Event(Kind.TEXT, text=_utf_8(data)))
                    self._reset()
                    return
                self._decoder = _decoder()
            try:
                self._text.append(self._decoder.decode(data, done))
            except UnicodeDecodeError:
                raise Violation(CLOSE_NOT_UTF_8, "text is not UTF-8") from None
        else:
            self._parts.append(data)
        if done:
            if self._message is Kind.TEXT:
                events.append(Event(Kind.TEXT, text="".join(self._text)))
            else:
                events.append(Event(Kind.BINARY, data=b"".join(self._parts)))
            self._reset()

    def _reset(self) -> None:
        self._message = self._decoder = None
        self._text, self._parts = [], []
        self._size = 0


def unmasked(data: bytes, mask: bytes) -> bytes:
    """Payload without its mask.

    Example:
        >>> unmasked(bytes([0x7f, 0x9f, 0x4d, 0x51, 0x58]), bytes([0x37, 0xfa, 0x21, 0x3d]))
        b'Hello'
    """
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    number = int.from_bytes(data, "little") ^ int.from_bytes(key, "little")
    return number.to_bytes(size, "little")


def close_frame(code: int, reason: str) -> bytes:
    """A server's close frame; without a payload for `NO_CODE`."""
    if code == NO_CODE:
        return b"\x88\x00"
    payload = code.to_bytes(2, "big") + reason.encode()[: CONTROL_BYTES_MAX - 2]
    return bytes((0x88, len(payload))) + payload


def _control(kind: Kind, data: bytes) -> Event:
    if kind is not Kind.CLOSE:
        return Event(kind, data=data)
    if not data:
        return Event(kind, code=NO_CODE)
    if len(data) == 1:
        raise Violation(CLOSE_PROTOCOL_ERROR, "half a close code")
    code = int.from_bytes(data[:2], "big")
    # 7.4: 1004 to 1006 and 1015 are never sent, others below 3000 are not assigned.
    if not (3000 <= code < 5000 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))):
        raise Violation(CLOSE_PROTOCOL_ERROR, f"{code} is no close code")
    return Event(kind, code=code, text=_utf_8(data[2:]))


def _utf_8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Violation(CLOSE_NOT_UTF_8, "text is not UTF-8") from None
