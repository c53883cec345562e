"""What can go wrong when talking to a T-Bot server, in one tree.

TBotError
├── AuthError            not logged in, or not allowed: look at the credentials or scopes
├── NotFound             no such thing, or not yours: the two look the same
├── Refused              a definite no (`code`, `detail`): nothing was changed
├── Unavailable          certainly not done, after the retries: try again later
├── OutcomeUnknown       may or may not have been done; repeat it under the same key to learn
├── StreamClosed         the server ended the stream for good (`code`)
└── ProtocolError        the server said something that this version does not understand
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TBotError(Exception):
    """Base of everything that this package raises on purpose."""


class AuthError(TBotError):
    """The credentials are wrong, the session is over, or the token lacks a scope."""

    def __init__(self, detail: str, code: str = "") -> None:
        super().__init__(detail)
        self.code = code


class NotFound(TBotError):
    """There is no such thing, or it is not yours."""


class Refused(TBotError):
    """The server said no, and nothing was changed.

    Attributes:
        code: For programs, such as `insufficient_funds`; the server's documentation lists them.
        detail: For people.
        status: The HTTP status; 0 on a stream.
        problem: The whole problem document, with `errors` or `facts` where there are any.
    """

    def __init__(
        self, code: str, detail: str, status: int = 0, problem: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.status = status
        self.problem = problem or {}


class Unavailable(TBotError):
    """The server could not be reached or is busy; certainly nothing was done."""


class OutcomeUnknown(TBotError):
    """The request may or may not have been carried out.

    Attributes:
        key: Call again with this `key` (an order: this `client_order_id`) to learn which; it is
            never done twice.
    """

    def __init__(self, detail: str, key: str | None = None) -> None:
        super().__init__(detail)
        self.key = key


class StreamClosed(TBotError):
    """The server ended the stream and coming back would not help.

    Attributes:
        code: The WebSocket close code.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class ProtocolError(TBotError):
    """The server's answer is not understood."""
