"""What other programs look for at well-known addresses: the keys that verify our tokens."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field
from starlette.responses import Response

from tbot.web.answers import json_answer
from tbot.web.dependencies import Parts
from tbot.web.fields import Answer
from tbot.web.routes import router

routes = router("tokens", "/.well-known")

_CACHED_S: Final = 300


class KeySet(Answer):
    """Public keys (RFC 7517)."""

    keys: Annotated[
        list[dict[str, Any]],
        Field(
            examples=[
                [
                    {
                        "kty": "OKP",
                        "crv": "Ed25519",
                        "x": "…",
                        "kid": "…",
                        "alg": "Ed25519",
                        "use": "sig",
                    }
                ]
            ]
        ),
    ]


@routes.get("/jwks.json", operation_id="get_jwks", response_model=KeySet)
async def get_jwks(parts: Parts) -> Response:
    """List the public keys that verify access tokens.

    The next key is listed long before it signs, so this may be kept for some minutes; a token
    whose `kid` is not in a kept answer is a reason to ask again.
    """
    # Less than the time between a key's being made and its first signature.
    cached_s = min(_CACHED_S, parts.settings.auth.signing_key_ttl_s // 16)
    keys = sorted(
        parts.auth.keys.ring.public_keys(parts.auth.clock()), key=lambda key: str(key["kid"])
    )
    return json_answer({"keys": keys}, headers={"Cache-Control": f"public, max-age={cached_s}"})
