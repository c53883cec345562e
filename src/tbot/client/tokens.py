"""Staying logged in: one refresh at a time, and never the same refresh token twice.

The server rotates refresh tokens and takes a second use for theft: it ends the session. So
concurrent callers share one refresh, and after a refresh whose answer was lost the old token is not
sent again where a password can open a new session instead.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx

from tbot.client.backoff import FullJitter
from tbot.client.errors import AuthError, ProtocolError, Unavailable
from tbot.client.reconnecting import retry_after_of

NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_MARGIN_S: Final = 30.0


@dataclass(slots=True)
class _Pair:
    access: str
    refresh: str | None
    renew_at_s: float


type SecondFactor = Callable[[], str | Awaitable[str]]
"""Gives a code of the second factor: from a prompt, or from an authenticator of one's own."""


class TokenKeeper:
    """Gives a good access token, whenever asked.

    Args:
        http: Sends requests to the server.
        username, password: To log in with, or None.
        token: An access token to begin with (or to use as it is, without a password).
        refresh_token: To renew `token` with.
        retry_s: How long to try while the server is away.
        second_factor: Gives a code that was not used before, whenever one is needed.
    """

    kind = "token"

    def __init__(
        self,
        http: httpx.AsyncClient,
        username: str | None,
        password: str | None,
        token: str | None,
        refresh_token: str | None,
        retry_s: float,
        second_factor: SecondFactor | None = None,
    ) -> None:
        self._http = http
        self._second_factor = second_factor
        self._username = username
        self._password = password
        self._retry_s = retry_s
        self._waiting: str | None = None
        self._lock = asyncio.Lock()
        self._pair = None if token is None else _Pair(token, refresh_token, float("inf"))

    @property
    def renew_in_s(self) -> float:
        """Seconds until the access token should be renewed; infinite where that is not known."""
        return float("inf") if self._pair is None else self._pair.renew_at_s - time.monotonic()

    async def get(self, stale: str | None = None) -> str:
        """An access token.

        Args:
            stale: One that the server has just refused: the answer is another.

        Raises:
            AuthError: The credentials are wrong or used up.
            Unavailable: The server could not be reached in time.
        """
        pair = self._pair
        if pair is not None and pair.access != stale and time.monotonic() < pair.renew_at_s:
            return pair.access
        async with self._lock:
            pair = self._pair
            if pair is None or pair.access == stale or time.monotonic() >= pair.renew_at_s:
                pair = self._pair = await self._renewed(pair)
            return pair.access

    async def renew(self) -> str:
        """A fresh access token, even if the one at hand is still good."""
        return await self.get(stale=None if self._pair is None else self._pair.access)

    async def log_out(self) -> None:
        """End the session at the server, if there is one and the server can be reached."""
        pair, self._pair = self._pair, None
        if pair is not None and pair.refresh is not None and self._password is not None:
            try:
                await self._http.post(
                    "/v1/token/revoke", json={"refresh_token": pair.refresh}, timeout=2.0
                )
            except httpx.HTTPError:
                return

    async def _renewed(self, pair: _Pair | None) -> _Pair:
        can_log_in = self._username is not None and self._password is not None
        if pair is not None and pair.refresh is not None:
            refresh_token = pair.refresh
            if can_log_in:
                pair.refresh = None  # whatever comes of it, it is not sent again
            renewed = await self._exchange(refresh_token, once=can_log_in)
            if renewed is not None:
                return renewed
        if not can_log_in:
            raise AuthError("the access token is not good and there is nothing to renew it with")
        form = {"username": self._username, "password": self._password, "grant_type": "password"}
        pair = await self._ask("/v1/token", once=False, data=form)
        if pair is None and self._waiting is not None:
            step = {"mfa_token": self._waiting, "code": await self._code()}
            pair = await self._ask("/v1/token/mfa", once=False, json=step)
            if pair is None:
                raise AuthError("the code is wrong, or was used before", "invalid_code")
        if pair is None:
            raise AuthError("user or password is wrong", "invalid_credentials")
        return pair

    async def _code(self) -> str:
        if self._second_factor is None:
            raise AuthError("the login needs a second factor: give `second_factor`", "mfa_required")
        code = self._second_factor()
        return await code if inspect.isawaitable(code) else code

    async def step_up(self, refusal: httpx.Response, token: str) -> bool:
        """Show the server what `step_up_required` asks for; False when there is nothing to show.

        Raises:
            AuthError: What was shown is not good.
        """
        document = _document(refusal)
        if document.get("code") != "step_up_required":
            return False
        if document.get("method") == "totp":
            if self._second_factor is None:
                return False
            proof = {"code": await self._code()}
        elif self._password is not None:
            proof = {"password": self._password}
        else:
            return False
        headers = {"Authorization": f"Bearer {token}"}
        try:
            answer = await self._http.post("/v1/token/step-up", json=proof, headers=headers)
        except httpx.TransportError:
            return False
        if answer.status_code == 401:
            code = str(_document(answer).get("code"))
            raise AuthError("what was shown is not good", code)
        return answer.status_code == 200

    async def _exchange(self, refresh_token: str, once: bool) -> _Pair | None:
        return await self._ask(
            "/v1/token/refresh", once=once, json={"refresh_token": refresh_token}
        )

    async def _ask(self, path: str, once: bool, **content: Any) -> _Pair | None:
        """Ask for a pair; None when it is refused, or (`once`) when the answer was lost."""
        self._waiting = None
        backoff = FullJitter(0.2, 5.0)
        deadline_s = time.monotonic() + self._retry_s
        while True:
            wait_s = 0.0
            try:
                asked_at_s = time.monotonic()
                response = await self._http.post(path, **content)
            except NEVER_SENT as error:
                why = f"cannot reach {self._http.base_url}: {error}"
            except httpx.TransportError as error:
                if once:
                    return None
                why = f"no answer from {self._http.base_url}: {error!r}"
            else:
                if response.status_code == 200:
                    return _pair_of(response, asked_at_s)
                if response.status_code not in (429, 503):
                    if response.status_code >= 500 and not once:
                        why = f"the server answered {response.status_code}"
                    else:
                        document = _document(response)
                        if document.get("code") == "mfa_required":
                            self._waiting = str(document.get("mfa_token"))
                        return None
                else:
                    why = "the server is busy"
                    wait_s = retry_after_s(response)
            delay_s = backoff.next_s(wait_s)
            if time.monotonic() + delay_s > deadline_s:
                raise Unavailable(why)
            await asyncio.sleep(delay_s)


def _pair_of(response: httpx.Response, asked_at_s: float) -> _Pair:
    try:
        answer = response.json()
        access, lasts_s = str(answer["access_token"]), float(answer["expires_in"])
        refresh = answer.get("refresh_token")
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError("the answer to a login has no tokens") from error
    margin_s = min(_MARGIN_S, lasts_s / 5)
    return _Pair(access, refresh, asked_at_s + lasts_s - margin_s)


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def retry_after_s(response: httpx.Response) -> float:
    """How long the server asks us to stay away, in seconds."""
    return retry_after_of(response.headers.get("retry-after"), time.time())


class TicketKeeper:
    """Gives single-use tickets for a stream: for a program that has no token of its own.

    Args:
        fetch: Gets a fresh ticket from whoever has a token (`TBotClient.ticket` makes them). It
            may raise `Unavailable`: then it is asked again later.
    """

    kind = "ticket"
    renew_in_s = float("inf")

    def __init__(self, fetch: Callable[[], Awaitable[str]]) -> None:
        self._fetch = fetch

    async def get(self, stale: str | None = None) -> str:
        """A fresh ticket, each time; `stale` makes no difference."""
        return await self._fetch()

    async def renew(self) -> None:
        """Each ticket is another anyway."""
