"""Every exception of the server, in one tree.

    TBotError
    ├── InvalidAmount            a number is not a plain decimal within bounds
    ├── ConfigurationError       settings or the machine do not allow a start; says what to do
    │   └── DataDirectoryError   data directory in use, lost, or of another version
    ├── AuthError                who is asking is not known or not allowed
    │   ├── InvalidCredentials
    │   ├── InvalidToken         malformed, expired, revoked or of the wrong kind
    │   ├── InvalidCode          a second factor that is wrong or was used before
    │   ├── SecondFactorRequired the password was right; `mfa_token` finishes the login
    │   ├── StepUpRequired       a password or second factor has to be shown again (`method`)
    │   ├── KeyNotAllowed        an API key may not do this: log in
    │   ├── CrossSite            a cookie came with a request of another site's page
    │   ├── InsufficientAccess   the asker's role on a shared account is too low (`role`)
    │   └── InsufficientScope
    ├── TooManyAttempts          too many failures lately (`retry_after_s`)
    ├── QuotaExceeded            a rate limit is used up (`standings`, `retry_after_s`)
    ├── InvalidUser              a user name or password that breaks a rule (`field`)
    ├── UserExists               the user name is taken
    ├── Conflict                 the thing is there already, or is not as it has to be (`code`)
    ├── NotFound                 no such thing, or not the asker's: the two look the same
    ├── InvalidCursor            a page or resume cursor that this server did not issue
    ├── Unavailable              certainly not executed; try again later (`retry_after_s`)
    │   ├── Overloaded           a bounded queue is full or its head too old
    │   ├── JournalUnavailable   no database at the moment
    │   ├── CircuitOpen          what this needs has failed too often lately
    │   ├── ValkeyUnavailable    no answer of Valkey: its catcher does without
    │   └── MarketDataUnavailable
    ├── OutcomeUnknown           may or may not have been executed; repeat under the same key
    ├── InvalidSignature         a callback that its sender did not sign, or too long ago
    ├── IntegrityError           a chain, a sum or a replay that does not hold: stop and look
    ├── ExchangeRefusal          the paper exchange's answer to a bad request, in Binance's words
    ├── ProviderError            between T-Bot and a payment provider
    │   ├── ProviderRefused      a definite no to this attempt
    │   ├── ProviderNotSent      certainly never reached it: may be sent again
    │   └── ProviderAmbiguous    it may or may not have acted: only it can tell
    └── VenueError               see below
        ├── VenueRefused         a definite no to this attempt (`code`, `reason`)
        ├── VenueNotSent         certainly never left this process
        ├── VenueRateLimited     a definite no, and the budget is frozen (`retry_after_s`)
        ├── VenueAmbiguous       the venue may or may not have acted: never guess
        └── VenueDown            no connection, for calls that change nothing

Business refusals are *values*, not exceptions: see `tbot.core.refusals`. HTTP statuses are mapped
once, in `tbot.web.problems`; nothing here knows them. A message names no secret: it may reach a
log or a caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tbot.core.ratelimit import Standing


class TBotError(Exception):
    """Base of all errors that T-Bot raises on purpose."""


class InvalidAmount(TBotError):
    """A number is not a plain decimal within bounds."""


class ConfigurationError(TBotError):
    """Settings or the machine do not allow a start; the message says what to do."""


class DataDirectoryError(ConfigurationError):
    """The data directory is in use, lost or of another version."""


class AuthError(TBotError):
    """Who is asking is not known or not allowed."""


class InvalidCredentials(AuthError):
    """User or password is wrong; the same for an unknown user."""


class InvalidToken(AuthError):
    """A token is malformed, expired, revoked or of the wrong kind."""


class InvalidCode(AuthError):
    """A second factor is wrong, or was used before."""


class SecondFactorRequired(AuthError):
    """The password was right: `mfa_token` and a code finish the login."""

    def __init__(self, mfa_token: str, expires_in_s: int) -> None:
        super().__init__("the login needs a second factor")
        self.mfa_token = mfa_token
        self.expires_in_s = expires_in_s


class StepUpRequired(AuthError):
    """A password or second factor has to be shown again first.

    Attributes:
        method: `password` or `totp`.
        max_age_s: How old it may be.
    """

    def __init__(self, method: str, max_age_s: int) -> None:
        what = "a code of the second factor" if method == "totp" else "the password"
        super().__init__(f"this needs {what}, shown within the last {max_age_s} s")
        self.method = method
        self.max_age_s = max_age_s


class KeyNotAllowed(AuthError):
    """An API key may not do this, whatever its scopes."""


class CrossSite(AuthError):
    """A cookie came with a request that was not made by a page of ours."""


class InsufficientAccess(AuthError):
    """The asker's role on an account that is shared with them is too low."""

    def __init__(self, role: str) -> None:
        super().__init__(f"your role on this account has to be {role}")
        self.role = role


class InsufficientScope(AuthError):
    """The token is good but does not cover this call."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this call needs the scope {str(scope)!r}")
        self.scope = scope


class TooManyAttempts(TBotError):
    """Too many failures lately: nothing was checked; try again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("too many failed attempts")
        self.retry_after_s = retry_after_s


class QuotaExceeded(TBotError):
    """A rate limit is used up: nothing was done, and nothing was taken from the other limits.

    Attributes:
        policies: The names of those that refused.
        standings: How all that the request counts under stand.
    """

    def __init__(self, standings: Sequence[Standing]) -> None:
        refused = [one for one in standings if one.refused]
        self.policies = [one.policy for one in refused]
        super().__init__("used up: " + ", ".join(f"{one.policy} ({one.quota})" for one in refused))
        self.standings = standings
        self.retry_after_s = max((one.reset_s for one in refused), default=1)


class InvalidUser(TBotError):
    """A user name or password breaks a rule; the message is the rule."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UserExists(TBotError):
    """The user name is taken."""


class Conflict(TBotError):
    """The thing is there already, or is not as it has to be; `code` names the problem."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotFound(TBotError):
    """No such thing, or not the asker's: the two look the same on purpose."""


class InvalidCursor(TBotError):
    """A page or resume cursor that this server did not issue for this list."""


class Unavailable(TBotError):
    """Certainly not executed; the caller may try again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """A bounded queue is full, or what waits in it is too old."""


class JournalUnavailable(Unavailable):
    """The database cannot be reached at the moment."""


class CircuitOpen(Unavailable):
    """A circuit breaker is open: what lies behind it has failed too often lately."""


class ValkeyUnavailable(Unavailable):
    """No answer of Valkey: who asked goes on without it, and no caller of ours hears of it."""


class MarketDataUnavailable(Unavailable):
    """No fresh market data for a call that cannot do without."""


class OutcomeUnknown(TBotError):
    """May or may not have been executed: repeat it under the same key to learn which."""


class InvalidSignature(TBotError):
    """A callback is not signed by whom it claims to come from, or was signed too long ago."""


class IntegrityError(TBotError):
    """A chain, a sum or a replay does not hold. Nothing repairs this by itself."""


class ExchangeRefusal(TBotError):
    """The paper exchange's answer to a bad request: code, text and HTTP status of its protocol."""

    def __init__(
        self, code: int, message: str, status: int = 400, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s


class ProviderError(TBotError):
    """Something went wrong between T-Bot and a payment provider."""


class ProviderRefused(ProviderError):
    """A definite no to this attempt; an earlier attempt under the same id may still live."""


class ProviderNotSent(ProviderError):
    """The request certainly never reached the provider: it may be sent again."""


class ProviderAmbiguous(ProviderError):
    """The provider may or may not have acted: it is asked, and funds stay held until it tells."""


class VenueError(TBotError):
    """Something went wrong between T-Bot and a venue."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class VenueRefused(VenueError):
    """A definite no to this attempt; an earlier attempt may still live."""


class VenueNotSent(VenueError):
    """The request certainly never left this process: it may be sent again."""


class VenueRateLimited(VenueError):
    """A definite no because of a budget; nothing may be sent before `retry_after_s`."""

    def __init__(self, message: str, code: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, code)
        self.retry_after_s = retry_after_s


class VenueAmbiguous(VenueError):
    """The venue may or may not have acted. The order becomes `unknown`; only the venue can tell."""


class VenueDown(VenueError):
    """No connection to the venue, for calls that change nothing there."""
