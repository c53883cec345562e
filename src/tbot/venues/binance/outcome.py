"""What an error answer of Binance says about an order: the table that nothing may guess around.

Entry points: `failure`, `RefusalCode`, `NO_SUCH_ORDER`.

Invariants:

1. `VenueRefused` and `VenueRateLimited` come only from answers by which the venue *itself* says
   that this attempt did not happen. Whatever is not in the table is `VenueAmbiguous`.
2. A status of 500 and above, and the codes by which Binance says that it does not know, are
   ambiguous whatever else the answer holds.
3. `changes=False` (a question) never yields `VenueAmbiguous`: a failed question is `VenueDown`,
   and proves nothing.

Source: Binance Spot API, "Error codes" and "General API information".
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from tbot.core.errors import (
    VenueAmbiguous,
    VenueDown,
    VenueError,
    VenueRateLimited,
    VenueRefused,
)

NO_SUCH_ORDER: Final = -2013
TOO_MANY_REQUESTS: Final = -1003
TOO_MANY_ORDERS: Final = -1015
_ENGINE_SAID: Final = frozenset({-1010, -2010, -2011})  # one list of messages for all three

# -1000 unknown, -1001 disconnected, -1006 unexpected response ("execution status unknown"),
# -1007 timeout (likewise), -1008 overloaded (may be after the engine), -1016 shutting down.
_UNKNOWN: Final = frozenset({-1000, -1001, -1006, -1007, -1008, -1016})


class RefusalCode(StrEnum):
    """Our word for a venue's definite no; `VenueRefused.code` and the order's reason."""

    DUPLICATE = "duplicate_order"
    UNKNOWN_ORDER = "unknown_order"
    CANCEL_REFUSED = "cancel_refused"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    WOULD_TAKE = "would_take"
    MARKET_CLOSED = "market_closed"
    ACCOUNT_DISABLED = "account_disabled"
    FILTER = "filter_failure"
    TIMESTAMP = "timestamp_outside_window"
    SIGNATURE = "bad_signature"
    KEY = "bad_api_key"
    REQUEST = "bad_request"
    REJECTED = "rejected_by_venue"
    ARCHIVED = "order_archived"
    RATE = "rate_limited"
    BANNED = "ip_banned"
    ORDER_RATE = "order_rate_limited"


_CODES: Final = {
    -1002: RefusalCode.KEY,
    -1013: RefusalCode.FILTER,
    -1014: RefusalCode.REQUEST,
    -1020: RefusalCode.REQUEST,
    -1021: RefusalCode.TIMESTAMP,
    -1022: RefusalCode.SIGNATURE,
    NO_SUCH_ORDER: RefusalCode.UNKNOWN_ORDER,
    -2014: RefusalCode.KEY,
    -2015: RefusalCode.KEY,
    -2016: RefusalCode.MARKET_CLOSED,
    -2026: RefusalCode.ARCHIVED,
}

# First match wins. The engine reports through text; the codes -1010, -2010 and -2011 share it.
_MESSAGES: Final = (
    ("unknown order", RefusalCode.UNKNOWN_ORDER),
    ("insufficient balance", RefusalCode.INSUFFICIENT_FUNDS),
    ("immediately match and take", RefusalCode.WOULD_TAKE),
    ("market is closed", RefusalCode.MARKET_CLOSED),
    ("disabled on this account", RefusalCode.ACCOUNT_DISABLED),
    ("may not place or cancel", RefusalCode.ACCOUNT_DISABLED),
    ("cancel restrictions", RefusalCode.CANCEL_REFUSED),
    ("filter failure", RefusalCode.FILTER),
)
_BANNED_UNTIL: Final = re.compile(r"banned until (\d{13})", re.IGNORECASE)
_MESSAGE_LENGTH_MAX: Final = 200
RETRY_AFTER_DEFAULT_S: Final = 10.0
BAN_DEFAULT_S: Final = 120.0


def failure(
    status: int,
    code: int | None,
    message: str,
    *,
    changes: bool,
    retry_after_s: float | None = None,
    now_ms: float = 0.0,
) -> VenueError:
    """The exception for an answer that is not a success.

    Args:
        status: The HTTP status, or the `status` of a WebSocket API answer.
        code: Binance's negative error code; None where the body was no JSON error.
        message: Binance's `msg`, for the log and the order's reason; cut at 200 characters.
        changes: The request could have changed something (placement, cancel, deposit).
        retry_after_s: From `Retry-After`, or from `data.retryAfter`; None takes a default.
        now_ms: Venue time, to read "banned until" by.

    Returns:
        `VenueRefused`, `VenueRateLimited`, or `VenueAmbiguous` (`VenueDown` for questions), to
        be raised by the caller.
    """
    text = f"{message[:_MESSAGE_LENGTH_MAX]} (status {status}, code {code})"
    if status in (418, 429) or code in (TOO_MANY_REQUESTS, TOO_MANY_ORDERS):
        return _rate_limited(status, code, message, text, retry_after_s, now_ms)
    if status >= 500 or status == 403 or code is None or code in _UNKNOWN:
        return _no_answer(text, changes, "" if code is None else str(code))
    if code in _ENGINE_SAID:
        return _engine_refusal(code, message, text, changes)
    known = _CODES.get(code)
    if known is None and -1199 <= code <= -1100:
        known = RefusalCode.REQUEST
    if known is None:
        return _no_answer(text, changes, str(code))
    return VenueRefused(text, known)


def _no_answer(text: str, changes: bool, code: str) -> VenueError:
    return VenueAmbiguous(text, code) if changes else VenueDown(text, code)


def _engine_refusal(code: int, message: str, text: str, changes: bool) -> VenueError:
    lowered = message.lower()
    if "duplicate order" in lowered:
        # An open order has this id, and ids are ours alone: *our* order lives. Never "rejected".
        return _no_answer(text, changes, RefusalCode.DUPLICATE)
    for words, known in _MESSAGES:
        if words in lowered:
            return VenueRefused(text, known)
    fallback = RefusalCode.CANCEL_REFUSED if code == -2011 else RefusalCode.REJECTED
    return VenueRefused(text, fallback)


def _rate_limited(
    status: int,
    code: int | None,
    message: str,
    text: str,
    retry_after_s: float | None,
    now_ms: float,
) -> VenueRateLimited:
    if code == TOO_MANY_ORDERS:
        wait_s = RETRY_AFTER_DEFAULT_S if retry_after_s is None else retry_after_s
        return VenueRateLimited(text, RefusalCode.ORDER_RATE, wait_s)
    until = _BANNED_UNTIL.search(message)
    if status == 418 or until is not None:
        wait_s = BAN_DEFAULT_S if retry_after_s is None else retry_after_s
        if until is not None and now_ms:
            wait_s = max(
                wait_s if retry_after_s is not None else 0.0, (int(until[1]) - now_ms) / 1e3
            )
        return VenueRateLimited(text, RefusalCode.BANNED, wait_s)
    wait_s = RETRY_AFTER_DEFAULT_S if retry_after_s is None else retry_after_s
    return VenueRateLimited(text, RefusalCode.RATE, wait_s)
