"""Server-sent events, cut anywhere, with every line ending."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tbot.client import ProtocolError
from tbot.client.reconnecting import AT_ONCE_MAX, Ending, Patience, ending_of, retry_after_of
from tbot.client.sse import Event, EventParser

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\nretry: 1500\ndata: one\nid: 7\n\n"
    b"event: close\rdata:two\rdata: \xc3\xa4\r\rdata\n\nretry: soon\nid: x\0y\nnonsense\n"
    b'data: {"a":1}\n\nid\nevent: lost\n\ndata: last\n\ndata: never ended\n'
)
EVENTS = [
    Event("message", "one", "7"),
    Event("close", "two\nä", "7"),
    Event("message", "", "7"),
    Event("message", '{"a":1}', "7"),
    Event("message", "last", ""),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_found_wherever_they_are_cut(size: int) -> None:
    parser = EventParser(1000)
    found = []
    for start in range(0, len(STREAM), size):
        found += parser.feed(STREAM[start : start + size])
    assert found == EVENTS and parser.retry_s == 1.5


@pytest.mark.parametrize("lines", [b"data: 0123456789\n", b"data: x\ndata: y\ndata: z\n", b"x"])
def test_an_event_is_bounded(lines: bytes) -> None:
    parser = EventParser(20)
    with pytest.raises(ProtocolError):
        for _ in range(30):
            parser.feed(lines)


def test_patience_ends_and_grows() -> None:
    patience = Patience(1.0, 8.0)
    at_once = [patience.after(Ending.AT_ONCE, 0.0, 0.0) for _ in range(AT_ONCE_MAX)]
    assert at_once == [0.0] * AT_ONCE_MAX
    bounds = [1.0, 2.0, 4.0, 8.0, 8.0]
    assert all(0 <= patience.after(Ending.AT_ONCE, 0.0, 0.0) <= bound for bound in bounds)
    patience.drain_s = 0.25
    assert patience.after(Ending.LATER, 11.0, 0.0) == 0.25  # it lasted: all is new
    assert 3.0 <= patience.after(Ending.LATER, 0.0, 3.0) <= 4.0
    many = {Patience(1.0, 8.0).after(Ending.LATER, 0.0, 0.0) for _ in range(20)}
    assert len(many) == 20 and max(b - a for a, b in pairwise(sorted(many))) < 1.0


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (4000, Ending.FOR_GOOD), (4099, Ending.FOR_GOOD), (1007, Ending.FOR_GOOD),
        (1009, Ending.FOR_GOOD), (4100, Ending.LATER), (4103, Ending.RENEW), (1000, Ending.LATER),
        (1006, Ending.LATER), (4200, Ending.AT_ONCE), (4299, Ending.AT_ONCE), (4300, Ending.LATER),
    ],
)  # fmt: skip
def test_codes_say_what_to_do(code: int, ending: Ending) -> None:
    assert ending_of(code) is ending


def test_retry_after_is_bounded_and_may_be_a_date() -> None:
    assert retry_after_of("999999999999", 0.0) == 300.0
    assert retry_after_of("Thu, 01 Jan 1970 00:00:10 GMT", 20.0) == 0.0
    assert retry_after_of(None, 0.0) == retry_after_of("-5", 0.0) == 0.0
