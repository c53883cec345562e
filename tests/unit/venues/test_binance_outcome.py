"""The table of outcomes: what may be called a no, and what must stay unknown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbot.core.errors import (
    VenueAmbiguous,
    VenueDown,
    VenueError,
    VenueRateLimited,
    VenueRefused,
)
from tbot.venues.binance.outcome import RefusalCode, failure


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (500, None, "<html>", VenueAmbiguous),
        (502, None, "<html>", VenueAmbiguous),
        (503, -1008, "Server is currently overloaded", VenueAmbiguous),
        (400, -1000, "An unknown error occurred", VenueAmbiguous),
        (400, -1001, "Internal error", VenueAmbiguous),
        (400, -1006, "execution status unknown", VenueAmbiguous),
        (408, -1007, "Timeout waiting for response from backend server.", VenueAmbiguous),
        (403, None, "WAF", VenueAmbiguous),
        (403, -2010, "Account has insufficient balance", VenueAmbiguous),
        (400, -2010, "Duplicate order sent.", VenueAmbiguous),
        (400, -9999, "new code", VenueAmbiguous),
        (200, None, "", VenueAmbiguous),
        (400, -1013, "Filter failure: LOT_SIZE", VenueRefused),
        (400, -1021, "Timestamp for this request is outside of the recvWindow.", VenueRefused),
        (400, -1022, "Signature for this request is not valid.", VenueRefused),
        (401, -2015, "Invalid API-key, IP, or permissions for action.", VenueRefused),
        (400, -1111, "Precision is over the maximum", VenueRefused),
        (400, -2010, "Account has insufficient balance for requested action.", VenueRefused),
        (400, -2010, "Order would immediately match and take.", VenueRefused),
        (400, -2011, "Unknown order sent.", VenueRefused),
        (400, -2013, "Order does not exist.", VenueRefused),
        (429, -1003, "Too many requests", VenueRateLimited),
        (418, -1003, "Way too many requests; IP banned until 1659146400000.", VenueRateLimited),
        (400, -1015, "Too many new orders", VenueRateLimited),
        (429, -1015, "Too many new orders", VenueRateLimited),
    ],
)
def test_the_table(status: int, code: int | None, message: str, expected: type[VenueError]) -> None:
    assert type(failure(status, code, message, changes=True)) is expected


@given(st.integers(100, 599), st.none() | st.integers(-3000, 0), st.text(max_size=300))
def test_a_question_is_never_ambiguous_and_a_change_never_down(
    status: int, code: int | None, message: str
) -> None:
    assert not isinstance(failure(status, code, message, changes=False), VenueAmbiguous)
    changed = failure(status, code, message, changes=True)
    assert not isinstance(changed, VenueDown)
    if status >= 500:
        assert isinstance(changed, VenueAmbiguous | VenueRateLimited)
        assert isinstance(changed, VenueAmbiguous) or code in (-1003, -1015)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (-2010, "Account has insufficient balance for requested action.", "insufficient_funds"),
        (-2010, "Order would immediately match and take.", "would_take"),
        (-2010, "Market is closed.", "market_closed"),
        (-2010, "Something new.", "rejected_by_venue"),
        (-2011, "Unknown order sent.", "unknown_order"),
        (-2011, "Order was not canceled due to cancel restrictions.", "cancel_refused"),
        (-2011, "Something new.", "cancel_refused"),
        (-2013, "Order does not exist.", "unknown_order"),
    ],
)
def test_refusals_have_our_words(code: int, message: str, expected: str) -> None:
    assert failure(400, code, message, changes=True).code == expected


def test_waits() -> None:
    limited = failure(429, -1003, "", changes=True, retry_after_s=7.0)
    assert isinstance(limited, VenueRateLimited)
    assert (limited.code, limited.retry_after_s) == (RefusalCode.RATE, 7.0)
    banned = failure(
        418, -1003, "IP banned until 1659146400000.", changes=True, now_ms=1659146340000
    )
    assert isinstance(banned, VenueRateLimited)
    assert (banned.code, banned.retry_after_s) == (RefusalCode.BANNED, 60.0)
    orders = failure(429, -1015, "Too many new orders", changes=True)
    assert isinstance(orders, VenueRateLimited)
    assert orders.code == RefusalCode.ORDER_RATE
