"""What to ask about an order whose placement is in doubt, and when to believe it absent: pure.

Entry points: `Doubt`, `deadline_s`, `begin`, `denied`, `failed`; `merged` for what the venue said.

Invariants:

1. Absence is concluded only from two answers of the venue itself, to the question by id and then to
   the search of all its lists, *both asked after the deadline* and without a failed question in
   between. An answer to an earlier question says "not yet".
2. The deadline is the last instant at which the request may have been signed, plus the receive
   window (the venue refuses it later), plus the time the venue itself may act on a request that it
   accepted, plus a margin for the clocks.
3. A failed question is never an answer: it starts the two questions anew.

Times are seconds of the boot clock, which runs on while the process is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import Enum, auto
from typing import Final

from tbot.venues.base import OrderReport, VenueStatus

INTERVAL_S_MAX: Final = 10.0


class Question(Enum):
    """What the venue is asked."""

    BY_ID = auto()
    """The order by its client id."""
    EVERYWHERE = auto()
    """Open orders, all orders and trades: only after the id was denied past the deadline."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """An order that may or may not have reached the venue.

    Attributes:
        deadline_s: Before it, "no such order" means "not yet".
        next_s: When to ask.
        question: What to ask then.
        asked: How many questions were answered or failed.
    """

    deadline_s: float
    next_s: float
    question: Question = Question.BY_ID
    asked: int = 0


def deadline_s(
    send_by_s: float, receive_window_s: float, engine_timeout_s: float, margin_s: float
) -> float:
    """After this instant a request that was signed by `send_by_s` is executed or never will be."""
    return send_by_s + receive_window_s + engine_timeout_s + margin_s


def begin(now_s: float, deadline: float, interval_s: float) -> Doubt:
    """A doubt that starts now; the first question comes after one interval."""
    return Doubt(deadline, now_s + interval_s)


def denied(doubt: Doubt, asked_at_s: float, now_s: float, interval_s: float) -> Doubt | None:
    """The venue answered that there is no such order.

    Args:
        doubt: The doubt as it was when the question was asked.
        asked_at_s: When the question was *sent*.
        now_s: When the answer came.
        interval_s: First delay between questions.

    Returns:
        The doubt that is left, or None: the order is absent.
    """
    if asked_at_s <= doubt.deadline_s:
        # Ask once more as soon as an answer can count.
        next_s = min(_later(doubt, now_s, interval_s), max(now_s, doubt.deadline_s) + 0.001)
        return replace(doubt, next_s=next_s, question=Question.BY_ID, asked=doubt.asked + 1)
    if doubt.question is Question.BY_ID:
        return replace(doubt, next_s=now_s, question=Question.EVERYWHERE, asked=doubt.asked + 1)
    return None


def failed(doubt: Doubt, now_s: float, interval_s: float) -> Doubt:
    """The question was not answered."""
    return replace(
        doubt,
        next_s=_later(doubt, now_s, interval_s),
        question=Question.BY_ID,
        asked=doubt.asked + 1,
    )


def _later(doubt: Doubt, now_s: float, interval_s: float) -> float:
    return now_s + min(INTERVAL_S_MAX, interval_s * 2.0 ** min(doubt.asked, 10))


_LIVE: Final = frozenset({VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED})


def merged(reports: Sequence[OrderReport]) -> OrderReport:
    """One report that says what all of them say of one order.

    The furthest one wins: an end before a living state, then more executed, then later; with the
    fills of all of them.

    Args:
        reports: Of one order, at least one, in any order, perhaps repeated.
    """
    furthest = max(reports, key=_progress)
    if len(reports) == 1:
        return furthest
    fills = {fill.trade_id: fill for report in reports for fill in report.fills}
    return replace(furthest, fills=tuple(fills.values()))


def _progress(report: OrderReport) -> tuple[bool, Decimal, datetime]:
    return report.status not in _LIVE, report.executed_quantity, report.updated_at
