"""What one gets from FastAPI as its documentation has it: a POST with JWT that does nothing.

Same Pydantic model, same token verifier and (where it says so) the same cache of verified tokens
as ours; no database, no ledger, no journal.
"""

import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel

from tbot.auth import tokens
from tbot.auth.flow import Auth, authenticate

type Claims = Any


def stock_app(auth: Auth, path: str, model: type[BaseModel], cached: bool) -> FastAPI:
    """An application with one POST route.

    Args:
        cached: Verify as ours does, which remembers good tokens; else check the signature anew for
            each request.
    """
    app = FastAPI()
    bearer = OAuth2PasswordBearer(tokenUrl="token")

    async def claims_of(token: Annotated[str, Depends(bearer)]) -> Claims:
        if cached:
            return await authenticate(auth, token)
        return tokens.verify_access(
            auth.keys.ring,
            token,
            issuer=auth.settings.issuer,
            audience=auth.settings.audience,
            now_s=time.time(),
        )

    @app.post(path, status_code=201)
    async def nothing(body: model, claims: Annotated[Claims, Depends(claims_of)]) -> dict[str, str]:  # type: ignore[valid-type]
        return {"status": "accepted"}

    return app
