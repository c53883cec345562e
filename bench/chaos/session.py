"""A logged-in HTTP client for whoever needs comfort rather than speed."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx


class Session:
    """HTTP with a token that is renewed when it is refused."""

    def __init__(self, url: str, credentials: dict[str, Any]) -> None:
        self._credentials = credentials
        self._token = ""
        self.http = httpx.AsyncClient(base_url=url, timeout=30)

    async def login(self) -> str:
        """A fresh access token; waits for the server to come back."""
        while True:
            try:
                answer = await self.http.post(
                    "/v1/token",
                    data={
                        "username": self._credentials["username"],
                        "password": self._credentials["password"],
                    },
                )
                if answer.status_code == 200:
                    self._token = answer.json()["access_token"]
                    return self._token
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request, with one renewal of the token if it is refused."""
        for _ in range(2):
            headers = {"Authorization": f"Bearer {self._token}", **more.pop("headers", {})}
            answer = await self.http.request(method, path, headers=headers, **more)
            if answer.status_code != 401:
                return answer
            await self.login()
        return answer
