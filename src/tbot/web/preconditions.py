"""Entity tags: what a representation is called, and what a change asks for (RFC 9110, 8.8, 13).

A tag of something that can be changed is `"VERSION.REST"`: the version names what a change can
touch, the rest whatever else the representation shows. `If-Match` compares versions, so that an
order being filled does not keep anybody from renaming an account; `If-None-Match` compares all of
it. Other forms of a representation have a suffix (`+msgpack`, `+gzip`): strong tags stay strong.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Annotated, Any, Final

from fastapi import Header
from starlette.requests import Request

from tbot.web.problems import Problem

_TAGS: Final = re.compile(r'\s*(?:(W/)?"([\x21\x23-\x2b\x2d-\x7e]*)"\s*(?:,\s*|$))+')
_TAG: Final = re.compile(r'(W/)?"([^"]*)"')
_TAGS_CHARS_MAX: Final = 2000

IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        # Only told, not checked here: what does not fit answers `malformed_header`.
        json_schema_extra={
            "pattern": r'^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$',
            "maxLength": _TAGS_CHARS_MAX,
        },
        description="The `ETag` of what is to be changed, so that nobody else's change is lost: "
        "`412` when it was changed since, `428` without. `*` is for whatever it is now.",
        examples=['"5f0c3e9a1b2d4c6e.41"'],
    ),
]

TAGGED: Final[dict[str, Any]] = {"headers": {"ETag": {"schema": {"type": "string"}}}}
"""The `responses` entry of an answer with a tag."""


def tag_of(version: str | int, rest: str | int) -> str:
    """The strong tag of something that can be changed.

    Example:
        >>> tag_of("5f0c", 41)
        '"5f0c.41"'
    """
    return f'"{version}.{rest}"'


def digest(body: bytes, *salt: bytes) -> str:
    """What stands for a body's exact bytes in a tag.

    Args:
        salt: Whose body it is: equal bodies of two users have different tags.
    """
    maker = blake2b(body, digest_size=12)
    for part in salt:
        maker.update(part)
    return maker.hexdigest()


def expected_versions(request: Request) -> frozenset[str] | None:
    """The versions that a change is for; None for whichever there is.

    Weak tags are never equal in the strong sense (RFC 9110, 8.8.3.2), so they name no version.

    Raises:
        Problem: `precondition_required` without `If-Match`; `malformed_header`.
    """
    given = request.headers.getlist("if-match")
    if not given:
        raise Problem(
            "precondition_required", "send the ETag of what you change in If-Match, or * for any"
        )
    text = ", ".join(given).strip()
    if text == "*":
        return None
    if len(text) > _TAGS_CHARS_MAX or not _TAGS.fullmatch(text):
        raise Problem("malformed_header", "If-Match has entity tags in quotes, or one *")
    tags = _TAG.findall(text)
    return frozenset(tag.partition(".")[0] for weak, tag in tags if not weak)


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Whether `If-None-Match` names a tag, compared weakly (RFC 9110, 13.1.2).

    Example:
        >>> matches(b'"a", W/"b"', b'"b"'), matches(b"*", b'"b"'), matches(b'"b+gzip"', b'"b"')
        (True, True, False)
    """
    opaque = tag.removeprefix(b"W/")
    given = [item.strip().removeprefix(b"W/") for item in if_none_match.split(b",")]
    return opaque in given or given == [b"*"]
