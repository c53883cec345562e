"""The words of the stream: close codes, errors, and what a client's messages may be."""

from __future__ import annotations

import math
from typing import Any, Final
from uuid import UUID

import msgspec

from tbot.core.settings import StreamSettings
from tbot.journal.chain import HASH_PREFIX_DIGITS
from tbot.market.channels import Denied
from tbot.market.topics import Codec
from tbot.web.limits import parse_json
from tbot.web.problems import Problem

CLOSE_PROTOCOL: Final = 4000
CLOSE_AUTH_FAILED: Final = 4001
CLOSE_AUTH_TIMEOUT: Final = 4002
CLOSE_SESSION_OVER: Final = 4003
CLOSE_RATE: Final = 4102
CLOSE_AUTH_EXPIRED: Final = 4103
CLOSE_UNAVAILABLE: Final = 4104
CLOSE_CLIENTS: Final = 4105

BURST_S: Final = 2.0
"""Inbound messages may come this many seconds' worth ahead of their sustained rate."""
OFFENCES_MAX: Final = 20
"""Messages over the rate that are answered with an error; then the connection is closed."""
CHANNELS_PER_MESSAGE: Final = 20
"""Subscriptions that a message may carry before it counts as another one."""
WAITING_MAX: Final = 64
"""Messages that may wait for the worker."""
DEPTH_MAX: Final = 32
"""Deepest nesting of an inbound message."""
ORDER_OPS: Final = ("place", "cancel", "cancel_all", "amend")
OPS: Final = ("auth", "sub", "unsub", "ping", *ORDER_OPS)


class Malformed(Exception):
    """A message is not what its protocol has."""


_json = msgspec.json.Decoder(dict[str, Any]).decode
_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode


def read(codec: Codec, raw: str | bytes) -> dict[str, Any]:
    """One inbound message, strictly: an object of JSON types, each member once, bounded depth.

    Raises:
        Malformed: It is not.
    """
    try:
        data = raw.encode() if isinstance(raw, str) else raw
        if codec.binary:
            message = _msgpack(data)
            _check_plain(message, DEPTH_MAX)
        else:
            message = parse_json(data, DEPTH_MAX)
            if b"\\u" in data:
                _json(data)  # half of a surrogate pair is no text
            if not isinstance(message, dict):
                raise Malformed("not an object")
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, Problem) as error:
        raise Malformed(str(error)) from None
    return message


def _check_plain(value: Any, depth: int) -> None:
    """Refuse what JSON could not have said: msgpack has bytes, dates, and any keys."""
    kind = type(value)
    if kind is dict or kind is list:
        if depth <= 0:
            raise Malformed("nested too deeply")
        if kind is dict:
            if not all(type(name) is str for name in value):
                raise Malformed("a name that is no text")
            value = value.values()
        for item in value:
            _check_plain(item, depth - 1)
    elif kind is float:
        if not math.isfinite(value):
            raise Malformed("a number that is none")
    elif value is not None and kind not in (str, int, bool):
        raise Malformed(f"{kind.__name__} is not a type of JSON")


class Meter:
    """How fast a client may talk: the generic cell rate algorithm.

    Args:
        per_s: Sustained messages per second; `BURST_S` seconds' worth may come at once, at least
            one.
    """

    __slots__ = ("_burst_s", "_due_s", "_interval_s")

    def __init__(self, per_s: float) -> None:
        self._interval_s = 1 / per_s
        self._burst_s = max(BURST_S, self._interval_s)
        self._due_s = 0.0

    def take(self, now_s: float, cost: int = 1) -> float:
        """Count `cost` messages; 0.0 when they fit, else the seconds until they would."""
        due_s = max(self._due_s, now_s) + cost * self._interval_s
        wait_s = due_s - now_s - self._burst_s
        if wait_s > 1e-9:  # what sums of intervals may be off by
            return wait_s
        self._due_s = due_s
        return 0.0


def orders_per_message(settings: StreamSettings) -> int:
    """How many orders a message may have: never more than could be taken at once."""
    at_once = max(1, int(settings.orders_per_s_max * BURST_S))
    return min(settings.orders_per_message_max, settings.orders_in_flight_max, at_once)


FULL: Final = Denied("too_many_subscriptions", "the connection has as many subscriptions as it may")


def problem(
    code: str,
    why: str,
    message: dict[str, Any] | None = None,
    *,
    temporary: bool = False,
    retry_after_s: float | None = None,
) -> dict[str, Any]:
    """An `error` message; `message` is the one that it answers."""
    return {
        "op": "error",
        **(id_of(message) if message is not None else {}),
        "code": code,
        "msg": why,
        "temporary": temporary,
        "retry_after_ms": None if retry_after_s is None else max(1, round(retry_after_s * 1000)),
    }


def id_of(message: dict[str, Any]) -> dict[str, int]:
    """The message's own id, to be repeated in the answer; only small whole numbers are."""
    value = message.get("id")
    is_id = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    return {"id": value} if is_id and value is not None else {}


def denial_of(denied: Denied) -> dict[str, Any]:
    """A refused wish, as `subbed` tells it."""
    return {"error": {"code": denied.code, "msg": denied.message, "temporary": denied.temporary}}


def is_wish(request: Any) -> bool:
    """Whether this names a channel at all."""
    return isinstance(request, dict) and isinstance(request.get("channel"), str)


def uuid_of(value: Any) -> UUID | None:
    """A UUID in its canonical form only."""
    try:
        parsed = UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return parsed if parsed is not None and str(parsed) == value else None


def resume_of(resume: Any) -> tuple[int, str | None]:
    """Sequence and hash digits of a private resume place; no digits when it is none."""
    seq = resume.get("seq") if isinstance(resume, dict) else None
    prefix = resume.get("hash") if isinstance(resume, dict) else None
    well_formed = (
        isinstance(seq, int)
        and not isinstance(seq, bool)
        and 0 <= seq < 1 << 53
        and isinstance(prefix, str)
        and len(prefix) == HASH_PREFIX_DIGITS
    )
    return (seq, prefix) if well_formed and isinstance(seq, int) else (0, None)
