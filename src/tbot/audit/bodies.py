"""What a verification needs of an entry's body: pure."""

from __future__ import annotations

import decimal
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

BODY_FORM: Final = 1
EXACT: Final = decimal.Context(prec=200, traps=[decimal.Inexact, decimal.InvalidOperation])
_AMOUNT: Final = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?", re.ASCII)
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII
)


class Unreadable(Exception):
    """A body that is no entry; the message says why."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is checked of a body besides its hash.

    Attributes:
        sums: Per asset, what its own postings come to; zero where they balance.
    """

    at: str
    command: str
    sums: dict[str, Decimal]


def decode(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body; None when there is none."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def facts(body: dict[str, Any]) -> Facts:
    """Check a body's parts.

    Raises:
        Unreadable: One of them is not as every version of T-Bot writes it.
    """
    if body.get("v") != BODY_FORM:
        raise Unreadable(f"its format {body.get('v')!r} is not known here")
    at, by, command = body.get("at"), body.get("by"), body.get("command")
    if not isinstance(at, str) or not _TIME.fullmatch(at):
        raise Unreadable(f"its time {at!r} is none")
    if not isinstance(by, dict) or not by.get("kind"):
        raise Unreadable("it does not say who did it")
    if by["kind"] == "user" and not (by.get("user") and by.get("session")):
        raise Unreadable("it does not say which user did it, in which session")
    if not isinstance(command, str) or not command:
        raise Unreadable("it names no command")
    return Facts(at, command, _sums(body.get("postings")))


def _sums(postings: Any) -> dict[str, Decimal]:
    if not isinstance(postings, list):
        raise Unreadable("it has no postings")
    sums: dict[str, Decimal] = {}
    for posting in postings:
        if not (
            isinstance(posting, list)
            and len(posting) == 3
            and all(isinstance(part, str) for part in posting)
        ):
            raise Unreadable("a posting is none")
        _, asset, amount = posting
        if not _AMOUNT.fullmatch(amount):
            raise Unreadable(f"the amount {amount[:50]!r} is no number")
        sums[asset] = EXACT.add(sums.get(asset, Decimal(0)), Decimal(amount))
    return sums
