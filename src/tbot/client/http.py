"""Requests that survive a server's bad moments, without ever doing a thing twice."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from tbot.client.backoff import FullJitter
from tbot.client.errors import (
    AuthError,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    TBotError,
    Unavailable,
)
from tbot.client.tokens import NEVER_SENT, TokenKeeper, retry_after_s

_BUSY: Final = (429, 503)
_LOST: Final = (500, 502, 504)

ANY: Final = "*"
"""The `If-Match` of a change of whatever version there is."""


@dataclass(slots=True)
class _Tried:
    """Whether a request was sent whose answer did not come."""

    maybe_done: bool = False


class Api:
    """Sends requests with a good token, and tries again where that is safe.

    Safe is: whatever certainly was not done (no connection, 503, 429), and whatever may be
    repeated: reading, canceling, and every write, because it carries a key under which the server
    does it once (an order its client_order_id, the others an `Idempotency-Key`).

    Args:
        http: With the server's address.
        tokens: Gives access tokens.
        retry_s: How long to try again, all in all.
    """

    def __init__(self, http: httpx.AsyncClient, tokens: TokenKeeper, retry_s: float) -> None:
        self._http = http
        self._tokens = tokens
        self._retry_s = retry_s

    async def request[T](
        self,
        result: type[T],
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        wait_s: float | None = None,
        key: str | None = None,
        if_match: str | None = None,
    ) -> T:
        """Send a request and read its answer.

        Args:
            params: None values are left out.
            wait_s: Sent as `Prefer: wait`; the answer may take that much longer.
            key: The `Idempotency-Key` of a POST or PATCH; made here when none is given.
            if_match: The `etag` of what is to be changed; None for whatever it is now.

        Returns:
            The answer; with its `ETag`, where the type has an attribute `etag`.

        Raises:
            AuthError, NotFound, Refused: A definite no.
            Unavailable: Certainly not done, although tried for `retry_s`.
            OutcomeUnknown: May have been done: call again with the same `key` to learn.
        """
        response = await self._send(method, path, json, params, wait_s, key, if_match)
        try:
            found: Any = msgspec.json.decode(response.content, type=result)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"{method} {path}: {error}") from error
        if hasattr(found, "etag"):
            found = replace(found, etag=response.headers.get("etag"))
        told: T = found
        return told

    async def pages[T](
        self, item: type[T], path: str, params: Mapping[str, Any]
    ) -> AsyncIterator[T]:
        """Every item of a list, page by page."""
        cursor: str | None = None
        while True:
            page = await self.request(
                dict[str, msgspec.Raw], "GET", path, params={**params, "cursor": cursor}
            )
            try:
                for one in msgspec.json.decode(page["items"], type=list[item]):  # type: ignore[valid-type]
                    yield one
                cursor = msgspec.json.decode(page["next"], type=str | None)
            except (KeyError, msgspec.MsgspecError) as error:
                raise ProtocolError(f"{path} is not a page: {error}") from error
            if cursor is None:
                return

    async def stream(
        self, path: str, params: Mapping[str, Any], accept: str
    ) -> AsyncIterator[bytes]:
        """The body of a GET in chunks, as they come.

        Raises:
            AuthError, NotFound, Refused: A definite no.
            Unavailable: It could not begin within `retry_s`, or it broke off.
        """
        backoff = FullJitter(0.1, 5.0)
        deadline_s = time.monotonic() + self._retry_s
        query = {name: value for name, value in params.items() if value is not None}
        refused_token: str | None = None
        while True:
            token = await self._tokens.get(stale=refused_token)
            headers = {"Authorization": f"Bearer {token}", "Accept": accept}
            at_least_s, begun = 0.0, False
            try:
                async with self._http.stream("GET", path, params=query, headers=headers) as answer:
                    if answer.status_code < 400:
                        begun = True
                        async for chunk in answer.aiter_bytes():
                            yield chunk
                        return
                    await answer.aread()
            except httpx.TransportError as error:
                if begun:
                    raise Unavailable(f"{path} broke off: {error!r}") from error
                why = f"no answer to GET {path}: {error!r}"
            else:
                status = answer.status_code
                why = f"GET {path} was answered {status}"
                if status == 401 and refused_token is None:
                    refused_token = token
                    continue
                if status in _BUSY:
                    at_least_s = retry_after_s(answer)
                elif status not in _LOST:
                    raise error_of(answer)
            delay_s = backoff.next_s(at_least_s)
            if time.monotonic() + delay_s > deadline_s:
                raise Unavailable(why)
            await asyncio.sleep(delay_s)

    async def _send(
        self,
        method: str,
        path: str,
        json: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        wait_s: float | None,
        key: str | None,
        if_match: str | None,
    ) -> httpx.Response:
        if method in ("POST", "PATCH") and key is None and "client_order_id" not in (json or {}):
            key = secrets.token_hex(16)
        tried = _Tried()
        try:
            given = _headers(method, key, if_match, wait_s)
            return await self._attempts(tried, method, path, json, params, wait_s, given)
        except TBotError as error:
            # A refusal has looked whether it was done before, and what was deleted is not there.
            # Nothing else tells of an attempt that was not answered: no token, say, or no server.
            knows = isinstance(error, Refused) or (
                method == "DELETE" and isinstance(error, NotFound)
            )
            if tried.maybe_done and method != "GET" and not knows:
                raise OutcomeUnknown(str(error), key) from error
            raise

    async def _attempts(
        self,
        tried: _Tried,
        method: str,
        path: str,
        json: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        wait_s: float | None,
        given: Mapping[str, str],
    ) -> httpx.Response:
        backoff = FullJitter(0.1, 5.0)
        deadline_s = time.monotonic() + self._retry_s
        query = {name: value for name, value in (params or {}).items() if value is not None}
        timeout_s = (self._http.timeout.read or 10.0) + (wait_s or 0.0)
        stepped_up = False
        refused_token: str | None = None
        while True:
            token = await self._tokens.get(stale=refused_token)
            headers = {**given, "Authorization": f"Bearer {token}"}
            at_least_s = 0.0
            try:
                response = await self._http.request(
                    method, path, json=json, params=query, headers=headers, timeout=timeout_s
                )
            except NEVER_SENT as error:
                why = f"cannot reach {self._http.base_url}: {error}"
            except httpx.TransportError as error:
                tried.maybe_done = True
                why = f"no answer to {method} {path}: {error!r}"
            else:
                status = response.status_code
                if status < 400:
                    return response
                why = f"{method} {path} was answered {status}"
                if status == 401 and refused_token is None:
                    refused_token = token
                    continue
                if status == 403 and not stepped_up:
                    stepped_up = await self._tokens.step_up(response, token)
                    if stepped_up:
                        continue
                if status in _BUSY:
                    at_least_s = retry_after_s(response)
                elif status in _LOST:
                    tried.maybe_done = True
                else:
                    raise error_of(response)
            delay_s = backoff.next_s(at_least_s)
            if time.monotonic() + delay_s > deadline_s:
                raise Unavailable(why)
            await asyncio.sleep(delay_s)


def _headers(
    method: str, key: str | None, if_match: str | None, wait_s: float | None
) -> dict[str, str]:
    """What a request says beside who sends it."""
    headers = {}
    if method == "PATCH" or if_match is not None:
        headers["If-Match"] = if_match or ANY
    if key is not None:
        headers["Idempotency-Key"] = key
    if wait_s is not None:
        headers["Prefer"] = f"wait={wait_s:g}"
    return headers


async def save(chunks: AsyncIterator[bytes], target: Path) -> int:
    """Write what comes to a file, which appears when it is complete; its size in bytes.

    When it breaks off, an older file of that name is left as it was.
    """
    partial = target.with_name(target.name + ".part")
    size_bytes = 0
    try:
        with partial.open("wb") as file:
            async for chunk in chunks:
                size_bytes += file.write(chunk)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return size_bytes


def error_of(response: httpx.Response) -> TBotError:
    """The error that a problem document means."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    status = response.status_code
    code = str(problem.get("code") or f"http_{status}")
    detail = str(problem.get("detail") or problem.get("title") or response.reason_phrase)
    if status in (401, 403):
        return AuthError(detail, code)
    if status == 404:
        return NotFound(detail)
    return Refused(code, detail, status, problem)
