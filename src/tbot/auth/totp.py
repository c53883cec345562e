"""Time-based one-time passwords (RFC 6238): pure, the time is an argument.

Entry points: `new_secret`, `code_at`, `matching_step`, `otpauth_uri`, `new_recovery_codes`,
`recovery_hash`.

SHA-1, 30 seconds and 6 digits, because that is what every authenticator app understands; the code
is bounded by its 30 seconds, by single use and by the limit on failures, not by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final
from urllib.parse import quote, urlencode
from uuid import UUID

STEP_S: Final = 30
DIGITS: Final = 6
SKEW_STEPS: Final = 1
"""Steps that a phone's clock may be off, either way."""
RECOVERY_CODES: Final = 10

_CODE: Final = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY: Final = re.compile(r"[A-Z2-7]{16}", re.ASCII)


def new_secret() -> bytes:
    """160 random bits, the length that RFC 4226 recommends."""
    return secrets.token_bytes(20)


def code_at(secret: bytes, step: int) -> str:
    """The code of a step, which is the time in seconds divided by 30.

    Example:
        >>> code_at(b"12345678901234567890", 59 // 30)  # RFC 6238, appendix B
        '287082'
    """
    digest = hmac.digest(secret, step.to_bytes(8, "big"), hashlib.sha1)
    offset = digest[-1] & 0xF
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def matching_step(secret: bytes, code: str, now_s: float) -> int | None:
    """The step that a code is of, if that is now or right beside it.

    Every candidate is compared, and each in constant time.
    """
    if not _CODE.fullmatch(code):
        return None
    now = int(now_s) // STEP_S
    found = None
    for step in range(now - SKEW_STEPS, now + SKEW_STEPS + 1):
        if hmac.compare_digest(code_at(secret, step), code):
            found = step
    return found


def secret_text(secret: bytes) -> str:
    """A secret as people type it."""
    return base64.b32encode(secret).decode("ascii").rstrip("=")


def otpauth_uri(secret: bytes, issuer: str, username: str) -> str:
    """What an authenticator app reads from a QR code.

    Example:
        >>> otpauth_uri(b"x" * 20, "T-Bot", "ann")[:38]
        'otpauth://totp/T-Bot:ann?secret=PB4HQ6'
    """
    query = urlencode(
        {
            "secret": secret_text(secret),
            "issuer": issuer,
            "algorithm": "SHA1",
            "digits": DIGITS,
            "period": STEP_S,
        },
        quote_via=quote,
    )
    return f"otpauth://totp/{quote(issuer)}:{quote(username)}?{query}"


def new_recovery_codes() -> list[str]:
    """Codes of 80 random bits for who has lost the phone, in groups of four."""
    texts = (
        base64.b32encode(secrets.token_bytes(10)).decode("ascii") for _ in range(RECOVERY_CODES)
    )
    return ["-".join(text[n : n + 4] for n in range(0, 16, 4)) for text in texts]


def recovery_hash(user_id: UUID, code: str) -> bytes | None:
    """What a recovery code is stored under; None for what cannot be one.

    A fast hash suffices: the code is random, not chosen by a person.
    """
    plain = code.replace("-", "").replace(" ", "").upper()
    if not _RECOVERY.fullmatch(plain):
        return None
    return hashlib.sha256(b"tbot:recovery:" + user_id.bytes + plain.encode("ascii")).digest()
