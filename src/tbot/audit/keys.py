"""The key that signs anchors and exports: Ed25519, in a file of its own outside the database."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tbot.core.errors import ConfigurationError

_KEY_BYTES_MAX: Final = 4096


class PublicKey:
    """Verifies what the audit key signed.

    Attributes:
        fingerprint: SHA-256 of the raw key, 64 hex digits.
    """

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.fingerprint = hashlib.sha256(raw).hexdigest()

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is of this message, by this key."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> str:
        """As a PEM file."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class SigningKey:
    """The audit key: its public half, and the power to sign."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    def sign(self, message: bytes) -> bytes:
        """A signature, 64 bytes."""
        return self._key.sign(message)


def load_public(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        ConfigurationError: The file is not there, or holds no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        raise ConfigurationError(f"{path} holds no public key in PEM form") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path} holds a public key of another kind than Ed25519")
    return PublicKey(key)


def load_signing(path: Path) -> SigningKey:
    """Read the signing key.

    Raises:
        ConfigurationError: The file is not there, others may read it, or it holds no such key.
    """
    content = _read(path)
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"others may read the audit key: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise ConfigurationError(f"{path} holds no unencrypted private key in PEM form") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} holds a private key of another kind than Ed25519")
    return SigningKey(key)


def make_signing(path: Path) -> SigningKey:
    """Make a new key in a new file that only its owner can read.

    Raises:
        FileExistsError: There is a file already; it is left alone.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return SigningKey(key)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
