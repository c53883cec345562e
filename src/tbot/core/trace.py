"""W3C trace context: which trace the request at hand belongs to, and what calls it causes are told.

Entry points: `read`, `begun`, `outgoing`; `naming`, `names` and `merged` for the logs. We record no
spans: a trace's ids are in our logs, in the journal as the request's id, and in what we send on, so
that those who do record find us in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tbot.core.ids import random_hex

_PARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_STATE_CHARS_MAX: Final = 512
_STATE_MEMBERS_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Trace:
    """Our part of a trace.

    Args:
        trace_id: 32 hexadecimal digits, the caller's.
        span_id: 16, ours: the parent of what we call.
        parent_id: 16, the caller's.
        flags: Two, the caller's; the lowest bit says that the caller records.
        state: `tracestate`, passed on as it came.
    """

    trace_id: str
    span_id: str
    parent_id: str
    flags: str
    state: str = ""

    @property
    def request_id(self) -> str:
        """A name for the request that names the trace, too."""
        return f"{self.trace_id}-{self.span_id}"

    @property
    def parent(self) -> str:
        """The `traceparent` of calls that this request causes."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_names: ContextVar[Mapping[str, str]] = ContextVar("names", default=MappingProxyType({}))


def read(parent: str, states: list[str]) -> Trace | None:
    """Our part of the trace that a caller's headers name; None where they name none.

    Args:
        parent: `traceparent`. A malformed one, or one of all zeros, begins no trace.
        states: Every `tracestate`, in order. Malformed or overlong ones are dropped, as W3C says.

    Example:
        >>> read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", ["a=1"]).state
        'a=1'
        >>> read("00-00000000000000000000000000000000-00f067aa0ba902b7-01", []) is None
        True
    """
    found = _PARENT.fullmatch(parent)
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    # Of a version that we do not know, the flags may mean more: only the bit we know goes on.
    flags = f"{int(found[4], 16) & 3:02x}"
    return Trace(found[2], random_hex(8), found[3], flags, _state(states))


def _state(states: list[str]) -> str:
    text = ",".join(states)
    if not text or len(text) > _STATE_CHARS_MAX:
        return ""
    members = [member.strip(" \t") for member in text.split(",")]
    members = [member for member in members if member]
    keys = {member.partition("=")[0] for member in members}
    good = len(keys) == len(members) <= _STATE_MEMBERS_MAX
    return ",".join(members) if good and all(map(_MEMBER.fullmatch, members)) else ""


def begun(trace: Trace | None) -> None:
    """Say which trace the task at hand, and those it starts, work for."""
    _current.set(trace)


def outgoing() -> dict[str, str]:
    """The headers for a call to somebody else: none outside a trace."""
    trace = _current.get()
    if trace is None:
        return {}
    state = {"tracestate": trace.state} if trace.state else {}
    return {"traceparent": trace.parent, **state}


def naming(names: Mapping[str, str]) -> None:
    """Say what every log event of the task at hand, and of those it starts, is to carry.

    Args:
        names: Fields and their values, instead of those before; empty for none.
    """
    _names.set(names)


def names() -> Mapping[str, str]:
    """What `naming` was told."""
    return _names.get()


def merged(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog that adds what `naming` was told; an event's own fields stay."""
    for name, value in names().items():
        event.setdefault(name, value)
    return event
