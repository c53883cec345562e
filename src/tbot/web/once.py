"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a write happens once.

A route makes an `Once` with `keyed`, passes it to its flow, and answers with `respond`. The answer
is kept in the transaction of the write, so a repetition gets it byte for byte, with
`Idempotent-Replayed: true`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
from fastapi import Header
from starlette.requests import Request
from starlette.responses import Response

from tbot.auth.flow import Principal
from tbot.core.refusals import PASSING, Reason, Refused
from tbot.db.pool import transaction
from tbot.journal.once import Connection, Kept, Once, beside, contents_of, keep, key_of
from tbot.web.answers import JsonAnswer
from tbot.web.deps import Deps
from tbot.web.problems import Problem, refused

HEADERS: Final = "tbot.headers"
"""Where a request's scope has its headers by name, if it is known that each came once."""
CONTENT: Final = "tbot.content"
"""Where a request's scope has what its body says, if that was read already."""
KEY_TEXT: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
_KEY: Final = re.compile(
    # A string of structured fields (RFC 9651, section 3.3.3), or the same without its quotes.
    r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,128})"|([\x21\x23-\x5b\x5d-\x7e]{1,128})'
)
_ESCAPED: Final = re.compile(r'\\(["\\])')
_KEPT_HEADERS: Final = frozenset({"content-type", "location", "etag"})
canonical = msgspec.json.Encoder(order="sorted").encode

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=258,
        # Only told, not checked here: what does not fit answers `malformed_header`.
        json_schema_extra={"pattern": r'^("([ !#-\[\]-~]|\\["\\]){1,128}"|[!#-\[\]-~]{1,128})$'},
        description="Any text of 1 to 128 printable characters, unique for what is asked: repeat "
        "the request under it after a timeout or a 5xx answer, and it is carried out once. The "
        "original answer is repeated with `Idempotent-Replayed: true`; other content answers "
        "`idempotency_key_reused`. Kept for `idempotency.keep_h` hours.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]


def key_text(header: str | None) -> str | None:
    r"""The key in the header: a string in quotes, as the draft has it, or bare.

    Raises:
        Problem: `malformed_header`.

    Example:
        >>> key_text('"a-1"'), key_text("a-1"), key_text(r'"a \"b\""'), key_text(None)
        ('a-1', 'a-1', 'a "b"', None)
    """
    if header is None:
        return None
    found = _KEY.fullmatch(header.strip())
    if found is None:
        raise Problem(
            "malformed_header",
            "an Idempotency-Key has 1 to 128 printable ASCII characters, spaces only in quotes",
        )
    return _ESCAPED.sub(r"\1", found[1]) if found[1] is not None else found[2]


def request_key(request: Request) -> str | None:
    """The key that a request came with.

    Raises:
        Problem: `malformed_header`.
    """
    headers: dict[bytes, bytes] | None = request.scope.get(HEADERS)
    if headers is not None:
        only = headers.get(b"idempotency-key")
        return None if only is None else key_text(only.decode("latin-1"))
    given = [value for name, value in request.scope["headers"] if name == b"idempotency-key"]
    if len(given) > 1:
        raise Problem("malformed_header", "there is more than one Idempotency-Key")
    return key_text(given[0].decode("latin-1") if given else None)


async def keyed(
    request: Request,
    deps: Deps,
    principal: Principal,
    answer: Callable[[Any], Response],
) -> Once | None:
    """What makes repetitions of this request recognisable; None without a key.

    Args:
        answer: The response to the command's result; pure, it is called inside the batch.

    Raises:
        Problem: `malformed_header`.
    """
    key = request_key(request)
    if key is None:
        return None
    scope = request.scope
    if CONTENT in scope:
        content = scope[CONTENT]
    else:
        content = await request.json() if await request.body() else None
    request_id = scope.get("tbot.request_id", "")
    target = target_of(request)
    return once_of(deps, principal, answer, key, target, content, request_id)


def target_of(request: Request) -> bytes:
    """What a request's fingerprint begins with."""
    return f"{request.scope['method']} {request.scope['path']}".encode()


def once_of(
    deps: Deps,
    principal: Principal,
    answer: Callable[[Any], Response],
    key: str,
    target: bytes,
    content: Any,
    request_id: str,
) -> Once:
    """What makes repetitions of a request recognisable, however it came.

    Args:
        answer: As for `keyed`.
        target: Method and path of the route that does the same.
        content: The request's body, parsed; None without one.
    """
    fingerprint = contents_of(deps.auth.keys.cursor_secret, target)(canonical(content))
    rendering = _Rendering(answer, request_id)
    return Once(key_of(principal.user_id, key), fingerprint, rendering)


class _Rendering:
    """Makes the answer that is kept, and remembers the response that it was made from."""

    __slots__ = ("_answer", "_request_id", "made")

    def __init__(self, answer: Callable[[Any], Response], request_id: str) -> None:
        self._answer = answer
        self._request_id = request_id
        self.made: tuple[Any, Response] | None = None

    def __call__(self, outcome: Any) -> Kept | None:
        if isinstance(outcome, Refused):
            return kept_refusal(outcome, self._request_id)
        response = self._answer(outcome)
        self.made = outcome, response
        return _kept(response)


class BodyRendering:
    """Makes the 201 that is kept from a body and its place, without a response around it.

    Args:
        answer: Body and `Location` of a command's result.
    """

    __slots__ = ("_answer", "_made", "_request_id")

    def __init__(self, answer: Callable[[Any], tuple[bytes, str]], request_id: str) -> None:
        self._answer = answer
        self._request_id = request_id
        self._made: tuple[Any, bytes] | None = None

    def __call__(self, outcome: Any) -> Kept | None:
        """The answer to a result or a refusal."""
        if isinstance(outcome, Refused):
            return kept_refusal(outcome, self._request_id)
        body, location = self._answer(outcome)
        self._made = outcome, body
        return Kept(201, {"location": location, "content-type": "application/json"}, body)

    def body_of(self, outcome: Any) -> bytes | None:
        """The body that was made of this very outcome to keep it, if it was."""
        return self._made[1] if self._made is not None and self._made[0] is outcome else None


def kept_refusal(outcome: Refused, request_id: str) -> Kept | None:
    """What is kept of a refusal; nothing of one that is about the moment, or about the key."""
    if outcome.reason in PASSING or outcome.reason is Reason.ACCOUNT_EXISTS:
        return None
    return _kept(refused(outcome).response(request_id))


def _kept(response: Response) -> Kept:
    if type(response) is JsonAnswer:  # nearly always: its headers are still at hand as texts
        headers = {
            kept: value
            for name, value in response.told.items()
            if (kept := name.lower()) in _KEPT_HEADERS
        }
        headers["content-type"] = "application/json"
        return Kept(response.status_code, headers, response.body)
    headers = {
        name: value.decode("latin-1")
        for header, value in response.raw_headers
        if (name := header.decode("latin-1")) in _KEPT_HEADERS
    }
    return Kept(response.status_code, headers, bytes(response.body))


async def carried_out[T](
    deps: Deps, once: Once | None, write: Callable[[Connection], Awaitable[T]]
) -> T | Refused | Kept:
    """Do a write that is no command, in a transaction that keeps its answer under its key, if any.

    Args:
        write: Its outcome is kept, a refusal too; what it raises undoes all of it.

    Returns:
        The outcome, or for a repetition what it is due.
    """
    async with transaction(deps.pool) as connection:
        if once is not None:
            before = await beside(connection, once)
            if before is not None:
                return before
        outcome = await write(connection)
        if once is not None:
            await keep(connection, once, outcome)
        return outcome


def respond(outcome: Any, answer: Callable[[Any], Response], once: Once | None = None) -> Response:
    """The response to a flow's outcome: a kept one again, or a new one.

    Args:
        once: What the flow was given: the response that was made to be kept is sent itself.

    Raises:
        Problem: It was refused.
    """
    if isinstance(outcome, Kept):
        return replayed(outcome)
    if isinstance(outcome, Refused):
        raise refused(outcome)
    return rendered(once, outcome) or answer(outcome)


def rendered(once: Once | None, outcome: Any) -> Response | None:
    """The response that was made of this very outcome to keep it, if it was."""
    if once is not None and isinstance(once.render, _Rendering):
        made = once.render.made
        if made is not None and made[0] is outcome:
            return made[1]
    return None


def replayed(kept: Kept) -> Response:
    """A kept answer, marked as such."""
    headers = {**kept.headers, "Idempotent-Replayed": "true"}
    return Response(kept.body, kept.status, headers)
