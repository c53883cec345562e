"""Secrets of second factors at rest: sealed under a key that is not in the database. Pure.

Entry points: `Sealing`, `Sealed`.

AES-256-GCM under a key derived by HKDF-SHA256 (RFC 5869) from `auth.factor_key`. The user's id is
authenticated with it, so that nobody who can write to the table puts their own secret in another's
place. Nonces are random: 2**32 factors under one key are far away (NIST SP 800-38D, 8.3).
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tbot.core.errors import ConfigurationError, IntegrityError

_KEY_BYTES: Final = 32
_NAME_BYTES: Final = 8
_NONCE_BYTES: Final = 12


class Sealed(NamedTuple):
    """A secret as it is stored.

    Attributes:
        stored: A nonce, the ciphertext and its tag; the secret itself where there is no key.
        sealed_by: The name of the key; None for none.
    """

    stored: bytes
    sealed_by: bytes | None


class Sealing:
    """Seals and opens with what the settings give.

    Args:
        key: Of at least 32 random characters; None leaves secrets as they are.
        before: The key that was in use before; None for none.
    """

    __slots__ = ("_ciphers", "current")

    def __init__(self, key: str | None = None, before: str | None = None) -> None:
        self._ciphers = {_derived(k, b"name", _NAME_BYTES): _cipher(k) for k in (before, key) if k}
        self.current = _derived(key, b"name", _NAME_BYTES) if key else None
        """What is sealed from now on is sealed by this; None for nothing."""

    def seal(self, user_id: UUID, secret: bytes) -> Sealed:
        """A user's secret as it is to be stored."""
        if self.current is None:
            return Sealed(secret, None)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.current].encrypt(nonce, secret, _about(user_id))
        return Sealed(nonce + sealed, self.current)

    def open(self, user_id: UUID, stored: bytes, sealed_by: bytes | None) -> bytes:
        """The secret that was stored for a user.

        Raises:
            ConfigurationError: It was sealed by another key.
            IntegrityError: It was changed, or is somebody else's.
        """
        if sealed_by is None:
            return stored
        cipher = self._ciphers.get(sealed_by)
        if cipher is None:
            raise ConfigurationError(
                "second factors are sealed by a key that is not there: give it as"
                " TBOT_AUTH__FACTOR_KEY or, to seal them anew, as TBOT_AUTH__FACTOR_KEY_BEFORE"
            )
        nonce, sealed = stored[:_NONCE_BYTES], stored[_NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, sealed, _about(user_id))
        except InvalidTag:
            raise IntegrityError(f"the second factor of user {user_id} was tampered with") from None


def _derived(key: str, use: bytes, size_bytes: int) -> bytes:
    info = b"tbot:second-factors:" + use
    return HKDF(algorithm=SHA256(), length=size_bytes, salt=None, info=info).derive(key.encode())


def _cipher(key: str) -> AESGCM:
    return AESGCM(_derived(key, b"seal", _KEY_BYTES))


def _about(user_id: UUID) -> bytes:
    return b"tbot:totp:" + user_id.bytes
