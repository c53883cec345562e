"""Who listens to which stream, and the one way out of the process.

Everything that is sent goes through `Outbox.send`, in order. While the log holds unflushed records
nothing leaves; one flush at the end of the event loop's turn covers every command of that turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Receiver(Protocol):
    """A connection as the hub sees it.

    Writing never blocks: a connection whose buffer is beyond its bound is dropped instead.
    """

    def write(self, data: bytes) -> None:
        """Put bytes on the wire now."""

    def say(self, data: bytes) -> None:
        """Send bytes through the outbox, in order with everything else."""


def text_frame(payload: bytes) -> bytes:
    """An unmasked WebSocket text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


class Outbox:
    """Holds back what may not be said before the log is flushed.

    Args:
        flush: Makes everything logged so far durable.
        soon: Schedules a call at the end of the event loop's turn.
    """

    __slots__ = ("_flush", "_held", "_scheduled", "_soon")

    def __init__(
        self, flush: Callable[[], None], soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._flush = flush
        self._soon = soon
        self._held: dict[Receiver, list[bytes]] = {}
        self._scheduled = False

    def hold(self) -> None:
        """A record was appended: nothing leaves before it is flushed."""
        if not self._scheduled:
            self._scheduled = True
            self._soon(self.release)

    def release(self) -> None:
        """Flush, then send everything held back, joined per connection."""
        if not self._scheduled:
            return
        self._flush()
        self._scheduled = False
        held, self._held = self._held, {}
        for receiver, frames in held.items():
            receiver.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def send(self, receiver: Receiver, data: bytes) -> None:
        """Send now, or with the next flush while one is due."""
        if self._scheduled:
            self._held.setdefault(receiver, []).append(data)
        else:
            receiver.write(data)


class Hub:
    """Subscriptions of market streams and of accounts' private events."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._raw: dict[str, dict[Receiver, None]] = {}
        self._combined: dict[str, dict[Receiver, None]] = {}
        self._private: dict[str, dict[tuple[Receiver, int], None]] = {}
        self.on_subscribe: Callable[[], None] = lambda: None

    def subscribe(self, receiver: Receiver, stream: str, combined: bool) -> None:
        """Send a stream to a connection, raw or in combined frames."""
        table = self._combined if combined else self._raw
        table.setdefault(stream, {})[receiver] = None
        self.on_subscribe()

    def unsubscribe(self, receiver: Receiver, stream: str, combined: bool) -> None:
        """Stop sending a stream; not being subscribed is fine."""
        table = self._combined if combined else self._raw
        listeners = table.get(stream, {})
        listeners.pop(receiver, None)
        if not listeners:
            table.pop(stream, None)

    def wanted(self, stream: str) -> bool:
        """Whether anyone listens to a stream."""
        return stream in self._raw or stream in self._combined

    @property
    def is_silent(self) -> bool:
        """Whether nobody listens to any market stream."""
        return not self._raw and not self._combined

    def wanted_streams(self) -> set[str]:
        """Every stream that someone listens to."""
        return self._raw.keys() | self._combined.keys()

    def publish(self, stream: str, data: bytes, combined: bytes) -> None:
        """Send a message to a stream's listeners; each form is framed once."""
        listeners = self._raw.get(stream)
        if listeners:
            frame = text_frame(data)
            for receiver in tuple(listeners):
                self._outbox.send(receiver, frame)
        listeners = self._combined.get(stream)
        if listeners:
            frame = text_frame(combined)
            for receiver in tuple(listeners):
                self._outbox.send(receiver, frame)

    def listen(self, receiver: Receiver, account: str, subscription: int) -> None:
        """Send an account's private events to a connection under a subscription id."""
        self._private.setdefault(account, {})[receiver, subscription] = None

    def unlisten(self, receiver: Receiver, account: str, subscription: int) -> None:
        """Stop sending private events; not listening is fine."""
        listeners = self._private.get(account, {})
        listeners.pop((receiver, subscription), None)
        if not listeners:
            self._private.pop(account, None)

    def is_listened(self, account: str) -> bool:
        """Whether anyone listens to an account's events."""
        return account in self._private

    def listeners(self, account: str) -> list[tuple[Receiver, int]]:
        """Connections and subscription ids of an account."""
        return list(self._private.get(account, {}))

    def tell(self, account: str, event: bytes) -> None:
        """Send a private event to everyone who listens to the account."""
        for receiver, subscription in tuple(self._private.get(account, {})):
            payload = b'{"subscriptionId":%d,"event":%s}' % (subscription, event)
            self._outbox.send(receiver, text_frame(payload))
