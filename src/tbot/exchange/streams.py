"""Market stream connections: `/ws/<stream>…`, `/stream?streams=…`, SUBSCRIBE and its kin.

One object per connection; it knows no sockets.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tbot.exchange.hub import Hub, Receiver, text_frame

STREAMS_MAX: Final = 1024
_NAME: Final = re.compile(r"[a-z0-9]{2,20}@[a-zA-Z0-9_@]{3,30}")


class Listener:
    """The subscriptions of one market stream connection.

    Args:
        hub: Where streams come from.
        receiver: The connection.
        streams: Named in the URL.
        combined: Whether frames name their stream (`/stream`).
        messages_per_s_max: Inbound messages allowed, as a bucket of one second's worth.
    """

    def __init__(
        self,
        hub: Hub,
        receiver: Receiver,
        streams: Sequence[str],
        combined: bool,
        messages_per_s_max: float,
    ) -> None:
        self._hub = hub
        self._receiver = receiver
        self._combined = combined
        self._rate = messages_per_s_max
        self._tokens = messages_per_s_max
        self._counted_s = time.monotonic()
        self._streams: dict[str, None] = {}
        for stream in streams:
            self._add(stream)

    def _add(self, stream: str) -> None:
        if stream not in self._streams:
            self._streams[stream] = None
            self._hub.subscribe(self._receiver, stream, self._combined)

    def _drop(self, stream: str) -> None:
        if stream in self._streams:
            del self._streams[stream]
            self._hub.unsubscribe(self._receiver, stream, self._combined)

    def allow(self) -> bool:
        """Count one inbound message; False when there were too many, and the peer is to go."""
        now_s = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now_s - self._counted_s) * self._rate)
        self._counted_s = now_s
        self._tokens -= 1
        return self._tokens >= 0

    def handle(self, text: bytes) -> bytes:
        """The framed answer to a request."""
        try:
            message = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _failure(None, 3, f"Invalid JSON: {error}")
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            return _failure(None, 2, "Invalid request: property name must be a string")
        number = message.get("id")
        if not isinstance(number, str | int | None):
            return _failure(None, 2, "Invalid request: request ID must be an unsigned integer")
        method, params = message["method"], message.get("params") or []
        if not isinstance(params, list):
            return _failure(number, 2, "Invalid request: params must be an array")
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return self._change(number, method, params)
        if method == "LIST_SUBSCRIPTIONS":
            return _result(number, list(self._streams))
        if method == "GET_PROPERTY" and params == ["combined"]:
            return _result(number, self._combined)
        if method == "SET_PROPERTY" and len(params) == 2 and params[0] == "combined":
            return self._set_combined(number, params[1])
        return _failure(number, 2, f"Invalid request: unknown method {method!r}")

    def _change(self, id: Any, method: str, params: list[Any]) -> bytes:
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in params):
            return _failure(id, 2, "Invalid request: Invalid stream")
        if method == "UNSUBSCRIBE":
            for name in params:
                self._drop(name)
            return _result(id, None)
        if len({*self._streams, *params}) > STREAMS_MAX:
            return _failure(id, 2, "Invalid request: Too many streams")
        for name in params:
            self._add(name)
        return _result(id, None)

    def _set_combined(self, id: Any, combined: Any) -> bytes:
        if not isinstance(combined, bool):
            return _failure(id, 2, "Invalid request: combined must be true or false")
        names = list(self._streams)
        for name in names:
            self._drop(name)
        self._combined = combined
        for name in names:
            self._add(name)
        return _result(id, None)

    def close(self) -> None:
        """The connection is gone."""
        for name in list(self._streams):
            self._drop(name)


def names_in(path: str, query: dict[str, str]) -> tuple[list[str], bool] | None:
    """The streams that a URL names and whether they are combined; None for a bad URL.

    A path segment that is no stream name is a connection without streams yet, as `/ws/0`,
    `/stream/0` or other connection ids that clients send.
    """
    if path == "/stream" or path.startswith("/stream/"):
        names = [name for name in query.get("streams", "").split("/") if name]
        return (names, True) if all(_NAME.fullmatch(name) for name in names) else None
    if path == "/ws" or path.startswith("/ws/"):
        names = [name for name in path.removeprefix("/ws").split("/") if "@" in name]
        return (names, False) if all(_NAME.fullmatch(name) for name in names) else None
    return None


def _result(id: Any, result: Any) -> bytes:
    return text_frame(msgspec.json.encode({"result": result, "id": id}))


def _failure(id: Any, code: int, message: str) -> bytes:
    return text_frame(msgspec.json.encode({"error": {"code": code, "msg": message}, "id": id}))
