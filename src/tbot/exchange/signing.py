"""Who a request is from: API keys and signatures by Binance's rules. Pure.

REST: the signature covers the raw query string followed by the raw body, without the `signature`
parameter itself; nothing is re-encoded. WebSocket API: it covers the parameters sorted by name,
joined as `name=value&…` without encoding. HMAC-SHA256 as hexadecimal in either case, or Ed25519 as
base64, by the kind of the key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

WINDOW_MS: Final = 5_000
WINDOW_MS_MAX: Final = 60_000
_AHEAD_MS: Final = 1_000
_SIGNATURE: Final = re.compile(rb"(?:^|&)signature=([^&]*)")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that may sign for an account: either a shared secret or an Ed25519 public key."""

    key: str
    account: str
    secret: bytes = b""
    public_key: Ed25519PublicKey | None = None

    def verify(self, payload: bytes, signature: str) -> bool:
        """Whether the signature of the payload is this key's."""
        if self.public_key is None:
            expected = hmac.digest(self.secret, payload, "sha256").hex()
            return hmac.compare_digest(expected.encode(), signature.lower().encode())
        try:
            self.public_key.verify(base64.b64decode(signature, validate=True), payload)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


def split_signature(query: bytes, body: bytes) -> tuple[bytes, str | None]:
    """The signed payload of a REST request, and its signature (None when there is none)."""
    signature: str | None = None
    parts = []
    for part in (query, body):
        found = _SIGNATURE.search(part)
        if found is None or signature is not None:
            parts.append(part)
            continue
        signature = unquote(found.group(1).decode("latin-1"))
        rest = part[: found.start()] + part[found.end() :]
        parts.append(rest.removeprefix(b"&") if found.start() == 0 else rest)
    return b"".join(parts), signature


def socket_payload(params: Mapping[str, str]) -> bytes:
    """The signed payload of a WebSocket API request."""
    return "&".join(
        f"{name}={params[name]}" for name in sorted(params) if name != "signature"
    ).encode()


def timely(timestamp: str, window: str | None, now_ms: int) -> int | None:
    """Check a request's age. Returns None when it is fine, else the error code.

    Args:
        timestamp: Milliseconds, or microseconds (16 digits and more).
        window: `recvWindow` in milliseconds, up to three decimals; None for 5000.
    """
    try:
        at_ms = int(timestamp)
        window_ms = float(window) if window is not None else WINDOW_MS
    except ValueError:
        return -1100
    if at_ms > 10**14:
        at_ms //= 1000
    if not 0 <= window_ms <= WINDOW_MS_MAX:
        return -1131
    if at_ms >= now_ms + _AHEAD_MS or now_ms - at_ms > window_ms:
        return -1021
    return None
