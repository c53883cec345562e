"""Access tokens (signed) and refresh tokens (opaque). Pure: no I/O, the time is an argument.

Entry points: `KeyRing`, `sign_access`, `key_id`, `verify_access`, `new_refresh`, `refresh_hash`.

An access token is a JWT in the shape of RFC 9068: header exactly `{alg: Ed25519, typ: at+jwt,
kid}`, claims iss, aud, sub (user), sid (session), jti, iat, nbf, exp, scope.

Invariants:

1. A token is accepted only if it is byte for byte the canonical form: three non-empty unpadded
   base64url segments, no duplicate member anywhere, no header member beyond the three. So keys
   inside tokens (`jwk`, `jku`, `x5u`), `crit`, `b64` and every other algorithm never get as far
   as the signature.
2. The key is chosen by `kid` from our own ring, by exact match; nothing is ever fetched.
3. Every claim is required and of its exact type; a string `exp` or a Boolean one is refused.
4. Size is bounded before anything is decoded.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from joserfc.util import urlsafe_b64decode

from tbot.auth.scopes import Scope, parse, text
from tbot.core.errors import IntegrityError, InvalidToken
from tbot.core.ids import new_id, read_id

ALGORITHM: Final = "Ed25519"  # RFC 9864: fully specified, unlike "EdDSA"
ACCESS_TYPE: Final = "at+jwt"
TOKEN_BYTES_MAX: Final = 2048
CLOCK_SKEW_S: Final = 5
"""How far another of our hosts' clock may be ahead: for `nbf` and `iat` only, never for `exp`."""

_REGISTRY: Final = jws.JWSRegistry(algorithms=[ALGORITHM])
_HEADER_MEMBERS: Final = frozenset({"alg", "typ", "kid"})
_KID: Final = re.compile(r"[A-Za-z0-9_-]{8,43}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

REFRESH_PREFIX: Final = "tbr_"
MFA_PREFIX: Final = "tbm_"
_REFRESH: Final = re.compile(r"tbr_[A-Za-z0-9_-]{43}", re.ASCII)
_MFA: Final = re.compile(r"tbm_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a good access token says.

    Attributes:
        issued_at_s, expires_at_s: Whole seconds since the epoch.
        kid: The key that signed it; a retired key takes its tokens along.
    """

    user_id: UUID
    session_id: UUID
    token_id: UUID
    scopes: frozenset[Scope]
    issued_at_s: int
    expires_at_s: int
    kid: str


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One Ed25519 key and the times (seconds since the epoch) in which it signs and verifies."""

    kid: str
    key: OKPKey
    signs_from_s: float
    signs_until_s: float
    retires_at_s: float

    @staticmethod
    def from_seed(
        seed: bytes, signs_from_s: float, signs_until_s: float, retires_at_s: float
    ) -> SigningKey:
        """The key of a 32-byte seed; its id is the RFC 7638 thumbprint of its public half."""
        raw = Ed25519PrivateKey.from_private_bytes(seed)
        key = OKPKey.import_key(raw)
        return SigningKey(key.thumbprint(), key, signs_from_s, signs_until_s, retires_at_s)


class KeyRing:
    """The keys known at one time; immutable, replaced as a whole when keys rotate."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[SigningKey]) -> None:
        self._keys = {key.kid: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def verifying(self, kid: str, now_s: float) -> SigningKey | None:
        """The key of this id, or None if there is none or it is retired."""
        key = self._keys.get(kid)
        return key if key is not None and now_s < key.retires_at_s else None

    def signing(self, now_s: float) -> SigningKey:
        """The key to sign with: of those in their time, the one that signs longest.

        Raises:
            IntegrityError: No key signs now; whoever owns the ring has to make one first.
        """
        usable = [
            key for key in self._keys.values() if key.signs_from_s <= now_s < key.signs_until_s
        ]
        if not usable:
            raise IntegrityError("no signing key is valid at this time")
        return max(usable, key=lambda key: (key.signs_until_s, key.kid))

    def newest_signs_until_s(self) -> float:
        """When the ring runs out of keys to sign with; 0 for an empty ring."""
        return max((key.signs_until_s for key in self._keys.values()), default=0.0)

    def public_keys(self, now_s: float) -> Sequence[dict[str, Any]]:
        """Public halves as JSON Web Keys (RFC 7517) of every key that still verifies."""
        return [
            {
                **key.key.as_dict(private=False),
                "kid": key.kid,
                "alg": ALGORITHM,
                "use": "sig",
            }
            for key in self._keys.values()
            if now_s < key.retires_at_s
        ]


def sign_access(
    ring: KeyRing,
    *,
    user_id: UUID,
    session_id: UUID,
    scopes: frozenset[Scope],
    issuer: str,
    audience: str,
    now_s: float,
    ttl_s: int,
) -> str:
    """A signed access token that is good for `ttl_s` seconds.

    Raises:
        IntegrityError: The ring has no key that signs now.
    """
    key = ring.signing(now_s)
    issued_at_s = int(now_s)
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": str(user_id),
        "sid": str(session_id),
        "jti": str(new_id()),
        "iat": issued_at_s,
        "nbf": issued_at_s,
        "exp": issued_at_s + ttl_s,
        "scope": text(scopes),
    }
    header = {"alg": ALGORITHM, "typ": ACCESS_TYPE, "kid": key.kid}
    payload = json.dumps(claims, separators=(",", ":"))
    return jws.serialize_compact(header, payload, key.key, registry=_REGISTRY)


def key_id(token: str) -> str:
    """The key that a token *says* it is signed with, after every check of its form and header.

    Raises:
        InvalidToken: The form or the header is not that of our access tokens.
    """
    if len(token) > TOKEN_BYTES_MAX or not token.isascii():
        raise InvalidToken("the token is too long or not ASCII")
    segments = token.split(".")
    if len(segments) != 3 or not all(segments):
        raise InvalidToken("not a signed token of three parts")
    header = _json_object(segments[0])
    if header.keys() != _HEADER_MEMBERS:
        raise InvalidToken("the header must have alg, typ and kid, and nothing else")
    if header["alg"] != ALGORITHM:
        raise InvalidToken("the algorithm is not allowed")
    if header["typ"] != ACCESS_TYPE:
        raise InvalidToken("not an access token")
    kid = header["kid"]
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise InvalidToken("the key id is malformed")
    return kid


def verify_access(
    ring: KeyRing, token: str, *, issuer: str, audience: str, now_s: float
) -> AccessClaims:
    """Check everything about an access token but whether its session still lives.

    Args:
        token: As it came; at most `TOKEN_BYTES_MAX` characters are looked at.

    Raises:
        InvalidToken: With a message for the caller that says which rule broke, never what the
            token contains. The caller answers 401.
    """
    key = ring.verifying(key_id(token), now_s)
    if key is None:
        raise InvalidToken("signed with an unknown or retired key")
    try:
        jws.deserialize_compact(token, key.key, registry=_REGISTRY)
    except (JoseError, ValueError, TypeError):
        raise InvalidToken("the signature does not verify") from None
    return _claims(_json_object(token.split(".")[1]), key.kid, issuer, audience, now_s)


def _claims(
    claims: dict[str, Any], kid: str, issuer: str, audience: str, now_s: float
) -> AccessClaims:
    if claims.get("iss") != issuer:
        raise InvalidToken("issued by someone else")
    if claims.get("aud") != audience:
        raise InvalidToken("meant for someone else")
    issued_at_s, not_before_s, expires_at_s = (
        _whole(claims, "iat"),
        _whole(claims, "nbf"),
        _whole(claims, "exp"),
    )
    if now_s >= expires_at_s:
        raise InvalidToken("the token has expired")
    if not_before_s > now_s + CLOCK_SKEW_S or issued_at_s > now_s + CLOCK_SKEW_S:
        raise InvalidToken("the token is not valid yet")
    if expires_at_s <= issued_at_s:
        raise InvalidToken("the token ends before it begins")
    scope = claims.get("scope")
    if not isinstance(scope, str):
        raise InvalidToken("the claim scope is missing or malformed")
    return AccessClaims(
        user_id=_id(claims, "sub"),
        session_id=_id(claims, "sid"),
        token_id=_id(claims, "jti"),
        scopes=parse(scope),
        issued_at_s=issued_at_s,
        expires_at_s=expires_at_s,
        kid=kid,
    )


def _whole(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise InvalidToken(f"the claim {name} is missing or not a whole number")
    return value


def _id(claims: dict[str, Any], name: str) -> UUID:
    value = claims.get(name)
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise InvalidToken(f"the claim {name} is missing or malformed")
    return read_id(value)


def _json_object(segment: str) -> dict[str, Any]:
    try:
        value = json.loads(
            urlsafe_b64decode(segment.encode("ascii")),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        raise InvalidToken("a part of the token is not canonical base64url of JSON") from None
    if not isinstance(value, dict):
        raise InvalidToken("a part of the token is not a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse(name: str) -> None:
    raise ValueError(name)


def new_refresh() -> str:
    """A new opaque refresh token of 256 random bits; only its hash is ever stored."""
    return REFRESH_PREFIX + secrets.token_urlsafe(32)


def refresh_hash(token: str) -> bytes | None:
    """The SHA-256 that a refresh token is stored under; None for what cannot be one of ours.

    A fast hash suffices: the token is random, not chosen by a person.
    """
    return hashlib.sha256(token.encode("ascii")).digest() if _REFRESH.fullmatch(token) else None


def new_mfa() -> str:
    """A token of a login that waits for its second factor: good for nothing else."""
    return MFA_PREFIX + secrets.token_urlsafe(32)


def mfa_hash(token: str) -> bytes | None:
    """The SHA-256 that such a token is stored under; None for what cannot be one of ours."""
    return hashlib.sha256(token.encode("ascii")).digest() if _MFA.fullmatch(token) else None
