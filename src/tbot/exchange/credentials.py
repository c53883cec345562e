"""`exchange.json`: the exchange's address, session and API keys, readable by its owner only.

Created at the first start; later starts keep the keys and refresh the rest. The account `main` has
two keys: one that signs by HMAC and an Ed25519 one, which may also log a WebSocket session on.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from tbot.core.errors import DataDirectoryError
from tbot.exchange.signing import ApiKey

FILE: Final = "exchange.json"
ACCOUNT: Final = "main"


class Extra(msgspec.Struct):
    """A further key, added to the file by hand: another account, or another key of `main`."""

    api_key: str
    account: str
    api_secret: str = ""
    ed25519_public_key: str = ""


class Credentials(msgspec.Struct):
    """The file's content.

    Attributes:
        url: Base address, as `http://127.0.0.1:8100`.
        session_id: Changes when the exchange's data was lost or removed.
        api_key, api_secret: Sign by HMAC-SHA256.
        ed25519_api_key, ed25519_private_key: Sign by Ed25519; the key is PEM (PKCS 8).
        extra: Further keys.
    """

    api_key: str
    api_secret: str
    ed25519_api_key: str
    ed25519_private_key: str
    url: str = ""
    host: str = ""
    port: int = 0
    session_id: str = ""
    extra: list[Extra] = []

    def keys(self) -> dict[str, ApiKey]:
        """Every API key by its text."""
        private = serialization.load_pem_private_key(self.ed25519_private_key.encode(), None)
        if not isinstance(private, Ed25519PrivateKey):
            raise DataDirectoryError(f"{FILE}: ed25519_private_key is not an Ed25519 key")
        keys = [
            ApiKey(self.api_key, ACCOUNT, secret=self.api_secret.encode()),
            ApiKey(self.ed25519_api_key, ACCOUNT, public_key=private.public_key()),
        ]
        for extra in self.extra:
            public: Ed25519PublicKey | None = None
            if extra.ed25519_public_key:
                found = serialization.load_pem_public_key(extra.ed25519_public_key.encode())
                if not isinstance(found, Ed25519PublicKey):
                    raise DataDirectoryError(f"{FILE}: a key of {extra.account} is not Ed25519")
                public = found
            keys.append(ApiKey(extra.api_key, extra.account, extra.api_secret.encode(), public))
        return {key.key: key for key in keys}


def create() -> Credentials:
    """Fresh random keys."""
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Credentials(
        api_key=secrets.token_hex(32),
        api_secret=secrets.token_hex(32),
        ed25519_api_key=secrets.token_hex(32),
        ed25519_private_key=private.decode(),
    )


def load(directory: Path) -> Credentials | None:
    """The file's content, None when there is no file.

    Raises:
        DataDirectoryError: It cannot be read.
    """
    path = directory / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credentials)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise DataDirectoryError(
            f"{path} cannot be read ({error}); repair it, or remove it for new keys"
        ) from None


def save(directory: Path, credentials: Credentials) -> None:
    """Write the file, whole or not at all, for its owner only."""
    path = directory / FILE
    temporary = path.with_suffix(".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(credentials)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
