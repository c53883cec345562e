"""What a request may be before anything reads it: its size, its media type, its JSON.

Entry points: `limited`, `parse_json`, `check_media_type`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from tbot.web.methods import ACCEPT_PATCH
from tbot.web.problems import Problem

URI_BYTES_MAX: Final = 8192

_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)
_JSON: Final = re.compile(r'application/json(?:\s*;\s*charset="?utf-8"?)?\s*', re.IGNORECASE)
_MERGE: Final = re.compile(
    r'application/(?:merge-patch\+)?json(?:\s*;\s*charset="?utf-8"?)?\s*', re.IGNORECASE
)
_FORM: Final = re.compile(
    r'application/x-www-form-urlencoded(?:\s*;\s*charset="?utf-8"?)?\s*', re.IGNORECASE
)


def _too_large(bytes_max: int) -> Problem:
    # The rest of the body is not read, so this connection cannot serve another request.
    return Problem(
        "body_too_large",
        f"a body has at most {bytes_max} bytes",
        headers={"Connection": "close"},
    )


def limited(scope: Scope, receive: Receive, bytes_max: int) -> Receive:
    """A `receive` that ends with a problem as soon as the body is, or says it will be, too large.

    Args:
        bytes_max: Largest body. It is counted as it arrives, so chunked bodies are bounded too.

    Raises:
        Problem: `uri_too_long`, or `body_too_large` by its declared length.
    """
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > URI_BYTES_MAX:
        raise Problem("uri_too_long", f"path and query have at most {URI_BYTES_MAX} bytes")
    for name, value in scope["headers"]:
        if name == b"content-length" and (len(value) > 15 or int(value) > bytes_max):
            raise _too_large(bytes_max)
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > bytes_max:
                raise _too_large(bytes_max)
        return message

    return counted


def parse_json(body: bytes, depth_max: int) -> Any:
    """Read one JSON value strictly: UTF-8, no repeated member, no NaN, bounded depth.

    Args:
        body: At most `http.body_bytes_max` bytes.
        depth_max: Deepest nesting of arrays and objects.

    Raises:
        Problem: `malformed_json`, with the position where one can be given.
    """
    value = _plain(body, depth_max)
    if value is not None:
        return value
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("malformed_json", f"byte {error.start} of the body is not UTF-8") from None
    if text.count("[") + text.count("{") > depth_max:
        _check_depth(text, depth_max)
    try:
        return _strict(text)
    except json.JSONDecodeError as error:
        raise Problem(
            "malformed_json", f"line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except ValueError:  # a whole number of thousands of digits
        raise Problem("malformed_json", "a number in the body is too long") from None


def _plain(body: bytes, depth_max: int) -> Any:
    """What a good body without any escape says; None for all others, which are read with care.

    A repeated member shows in the number of quotation marks: two for each string there is.
    """
    if b"\\" in body:
        return None
    try:
        value = _quick(body)
        whole = 2 * _strings(value, depth_max) == body.count(b'"')
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if whole else None


def _strings(value: Any, depth_max: int) -> int:
    """How many strings a JSON value has, names of members included.

    Raises:
        RecursionError: It nests too deeply.
    """
    if isinstance(value, str):
        return 1
    count = 0
    if isinstance(value, dict):
        count = len(value)
        value = value.values()
    elif not isinstance(value, list):
        return 0
    if depth_max <= 0:
        raise RecursionError
    for item in value:
        kind = type(item)
        if kind is str:
            count += 1
        elif kind is dict or kind is list:
            count += _strings(item, depth_max - 1)
    return count


def _check_depth(text: str, depth_max: int) -> None:
    depth = 0
    for found in _BRACKETS.finditer(text):
        if found[1]:
            depth += 1
            if depth > depth_max:
                raise Problem("malformed_json", f"nested more than {depth_max} levels deep")
        elif found[2]:
            depth -= 1


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Problem("malformed_json", "an object in the body has a member twice")
    return members


def _no_constant(name: str) -> None:
    raise Problem("malformed_json", f"{name} is not JSON; amounts are strings of digits")


_strict: Final = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_no_constant).decode
_quick: Final = msgspec.json.Decoder().decode


def check_media_type(headers: Headers, form: bool, method: str = "POST") -> None:
    """Check that a body is what its route reads, and is not compressed.

    Args:
        form: Whether it is to be a form; else JSON, or for PATCH a JSON merge patch (RFC 7396).

    Raises:
        Problem: `unsupported_media_type`.
    """
    wanted, name = (
        (_FORM, "application/x-www-form-urlencoded") if form else (_JSON, "application/json")
    )
    # What would do instead: RFC 9110, 12.5.1 and 12.5.3; RFC 5789, 3.1.
    takes = {"Accept": name}
    if method == "PATCH":
        wanted, takes = _MERGE, {"Accept-Patch": ACCEPT_PATCH}
    if not wanted.fullmatch(headers.get("content-type", "")):
        detail = f"the body's Content-Type has to be {name}"
        raise Problem("unsupported_media_type", detail, headers=takes)
    if headers.get("content-encoding", "identity").lower() != "identity":
        detail = "the body must not have a Content-Encoding"
        raise Problem("unsupported_media_type", detail, headers={"Accept-Encoding": "identity"})
