"""Signatures of messages between servers, as Standard Webhooks has them: pure.

`v1` is base64 of HMAC-SHA256 over `id.timestamp.body`. The timestamp is signed, so an old message
cannot be sent again later; the id lets a receiver see that it has a message already.
See https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

Entry points: `sign`, `verify`, `secret_text`, `secret_bytes`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from tbot.core.errors import InvalidSignature

PREFIX: Final = "whsec_"
_VERSION: Final = "v1"
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_SIGNATURES_MAX: Final = 8
_ID_LENGTH_MAX: Final = 256


def secret_text(secret: bytes) -> str:
    """A secret as people copy it.

    Example:
        >>> secret_text(bytes(24))
        'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
    """
    return PREFIX + base64.b64encode(secret).decode("ascii")


def secret_bytes(text: str) -> bytes:
    """What `secret_text` was given.

    Raises:
        ValueError: It is no such text.
    """
    if not text.startswith(PREFIX):
        raise ValueError(f"a secret begins with {PREFIX}")
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise ValueError("a secret is base64") from None


def sign(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature` for a message.

    Example:
        >>> sign(b"0" * 32, "msg_1", 1614265330, b"{}")[:15]
        'v1,kAedy4pm3LZa'
    """
    mac = _mac(secret, message_id, str(timestamp_s), body)
    return f"{_VERSION},{base64.b64encode(mac).decode('ascii')}"


def headers(
    secrets: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """The headers that make a body a signed message.

    Args:
        secrets: Each signs it; more than one while a receiver changes over to another.
    """
    signatures = (sign(secret, message_id, timestamp_s, body) for secret in secrets)
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }


def verify(
    secret: bytes,
    message_id: str,
    timestamp: str,
    signatures: str,
    body: bytes,
    *,
    now_s: float,
    tolerance_s: float,
) -> None:
    """Check a message's signature; the comparison takes the same time whatever is wrong.

    Args:
        signatures: One or several, separated by spaces: a sender that changes its secret signs
            with both for a while.
        now_s: Wall time in seconds since the epoch.
        tolerance_s: How far the timestamp may be from it, before or after.

    Raises:
        InvalidSignature: No signature fits, or the timestamp is outside the tolerance.
    """
    if not _TIMESTAMP.fullmatch(timestamp) or not 0 < len(message_id) <= _ID_LENGTH_MAX:
        raise InvalidSignature("the message's id or timestamp is missing or malformed")
    expected = _mac(secret, message_id, timestamp, body)
    found = False
    for signature in signatures.split(" ")[:_SIGNATURES_MAX]:
        version, _, encoded = signature.partition(",")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            continue
        found |= version == _VERSION and hmac.compare_digest(given, expected)
    if not found:
        raise InvalidSignature("no signature fits the message")
    if abs(now_s - int(timestamp)) > tolerance_s:
        raise InvalidSignature("the message was signed too long ago, or in the future")


def _mac(secret: bytes, message_id: str, timestamp: str, body: bytes) -> bytes:
    message = f"{message_id}.{timestamp}.".encode() + body
    return hmac.digest(secret, message, hashlib.sha256)
