"""Server-sent events as bytes, taken apart as the HTML standard has it: pure.

`EventParser.feed` takes chunks as they come, cut anywhere, and gives the events that are whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tbot.client.errors import ProtocolError

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        id: The last event id so far; empty where there was none.
    """

    name: str
    data: str
    id: str


class EventParser:
    r"""Takes a `text/event-stream` apart.

    Args:
        size_bytes_max: Of one event; a larger one is a `ProtocolError`.

    Attributes:
        retry_s: What the server asked for with `retry`; None before.

    Example:
        >>> parser = EventParser(1000)
        >>> parser.feed(b"id: 7\ndata: on") + parser.feed(b"e\n\n")
        [Event(name='message', data='one', id='7')]
    """

    def __init__(self, size_bytes_max: int) -> None:
        self._size_bytes_max = size_bytes_max
        self._rest = b""
        self._begun = False
        self._id = ""
        self._name = ""
        self._data: list[str] = []
        self._size_bytes = 0
        self.retry_s: float | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Take a chunk; the events that it completes.

        Raises:
            ProtocolError: An event is larger than it may be.
        """
        buffer = self._rest + chunk
        if not self._begun:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._rest = buffer
                return []
            self._begun = True
            buffer = buffer.removeprefix(_BOM)
        # A carriage return at the end may be half of a line's end.
        held = b"\r" if buffer.endswith(b"\r") else b""
        buffer = buffer.removesuffix(b"\r")
        *lines, rest = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        found = []
        for line in lines:
            event = self._line(line)
            if event is not None:
                found.append(event)
        if self._size_bytes + len(self._rest) > self._size_bytes_max:
            raise ProtocolError("an event is too large")
        return found

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        match name:
            case b"data":
                self._data.append(text)
                self._size_bytes += len(value) + 1
                if self._size_bytes > self._size_bytes_max:
                    raise ProtocolError("an event is too large")
            case b"event":
                self._name = text
            case b"id" if "\0" not in text:
                self._id = text
            case b"retry" if text.isascii() and text.isdecimal():
                self.retry_s = float(text[:9]) / 1000
        return None

    def _end(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name, self._size_bytes = [], "", 0
        return Event(name or "message", "\n".join(data), self._id) if data else None
