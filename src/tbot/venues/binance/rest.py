"""Binance's REST calls that the adapter needs: pooled, governed, and honest about failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
import msgspec

from tbot.core import trace
from tbot.core.errors import VenueAmbiguous, VenueDown, VenueError, VenueNotSent
from tbot.venues.binance.outcome import failure
from tbot.venues.binance.wire import Signer, rest_query, used_counts
from tbot.venues.budgets import Priority
from tbot.venues.governor import Governor

_TIMEOUT_S: Final = httpx.Timeout(12.0, connect=5.0)
_decode = msgspec.json.Decoder().decode


async def traced(request: httpx.Request) -> None:
    """Have a call carry on the trace that caused it, if any."""
    request.headers.update(trace.outgoing())


class RestCalls:
    """REST on one venue account.

    Args:
        base_url: Scheme and authority, as `http://127.0.0.1:8100`.
        clock_ms: The venue's time as best known; read after the permit, right before signing.
        on_failure: Told of every failure that the venue itself stated, so that it can freeze
            budgets or look at the clock.
    """

    def __init__(
        self,
        base_url: str,
        signer: Signer,
        governor: Governor,
        clock_ms: Callable[[], int],
        window_ms: int,
        on_failure: Callable[[VenueError], None],
    ) -> None:
        self._signer = signer
        self._governor = governor
        self._clock_ms = clock_ms
        self._window_ms = window_ms
        self._on_failure = on_failure
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=_TIMEOUT_S,
            headers={"X-MBX-APIKEY": signer.api_key},
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=8),
            trust_env=False,
            event_hooks={"request": [traced]},
        )

    async def close(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def get(
        self,
        path: str,
        params: Mapping[str, str | int],
        *,
        weight: int,
        priority: Priority,
        signed: bool = False,
    ) -> Any:
        """Ask a question.

        Returns:
            The decoded JSON of a success.

        Raises:
            VenueRefused, VenueRateLimited: The venue said no.
            VenueDown: No readable answer; it proves nothing.
        """
        return await self._call("GET", path, params, weight, priority, signed, changes=False)

    async def post(
        self, path: str, params: Mapping[str, str | int], *, weight: int, priority: Priority
    ) -> Any:
        """Ask for a change, signed.

        Raises:
            VenueNotSent: No connection was made.
            VenueAmbiguous: Sent, and no readable answer came.
            VenueRefused, VenueRateLimited: The venue said no.
        """
        return await self._call("POST", path, params, weight, priority, True, changes=True)

    async def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str | int],
        weight: int,
        priority: Priority,
        signed: bool,
        *,
        changes: bool,
    ) -> Any:
        costs = {"weight:1m": weight, "raw:5m": 1}
        try:
            permit = await self._governor.take(costs, priority)
        except VenueNotSent as error:
            if changes:
                raise
            raise VenueDown(str(error), error.code) from error
        try:
            query = rest_query(
                params, self._signer if signed else None, self._clock_ms(), self._window_ms
            )
            try:
                response = await self._http.request(method, f"{path}?{query}" if query else path)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                kind = VenueNotSent if changes else VenueDown
                raise kind(f"no connection for {path}: {type(error).__name__}") from error
            except httpx.HTTPError as error:
                raise _unanswered(
                    f"no answer to {path}: {type(error).__name__}", changes
                ) from error
            permit.settle(used_counts(response.headers))
            return self._read(response, path, changes)
        finally:
            permit.settle()

    def _read(self, response: httpx.Response, path: str, changes: bool) -> Any:
        try:
            body = _decode(response.content)
        except msgspec.DecodeError:
            body = None
        if response.is_success:
            if body is None:
                raise _unanswered(f"unreadable answer to {path}", changes)
            return body
        code = body.get("code") if isinstance(body, dict) else None
        message = str(body.get("msg", "")) if isinstance(body, dict) else "no JSON"
        retry_after = response.headers.get("retry-after", "")
        error = failure(
            response.status_code,
            code if isinstance(code, int) else None,
            message,
            changes=changes,
            retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
            now_ms=self._clock_ms(),
        )
        self._on_failure(error)
        raise error


def _unanswered(text: str, changes: bool) -> VenueError:
    return VenueAmbiguous(text, "no_answer") if changes else VenueDown(text, "no_answer")
