"""The SDK's requests: what is repeated and what is not, and tokens under pressure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import httpx
import pytest

from tbot.client import AuthError, NotFound, OutcomeUnknown, Refused, TBotClient, Unavailable

ACCOUNT = UUID(int=5)
ORDER = {
    "id": str(UUID(int=1)),
    "account_id": str(ACCOUNT),
    "client_order_id": None,
    "venue": "paper",
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "market",
    "time_in_force": "gtc",
    "post_only": False,
    "quantity": None,
    "quote_amount": "25",
    "limit_price": None,
    "state": "filled",
    "reason": None,
    "filled_quantity": "0.0004",
    "filled_quote": "24.8",
    "average_price": "62000",
    "fees": [{"asset": "BTC", "amount": "0.0000004"}],
    "held": None,
    "cancel_requested": False,
    "venue_order_id": "7",
    "created_at": "2026-01-01T00:00:00.000000Z",
    "updated_at": "2026-01-01T00:00:01.000000Z",
    "sequence": 4,
    "from_the_future": True,
}


class Server:
    """A server in memory: logs in, counts, and answers orders as a test says."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.logins = 0
        self.refreshes: list[str] = []
        self.on_refresh: Callable[[str], httpx.Response] | None = None
        self.expires_in = 900
        self.good: set[str] = set()

    def client(self, retry_s: float = 5.0, **credentials: Any) -> TBotClient:
        credentials = credentials or {"username": "ann", "password": "secret"}
        transport = httpx.MockTransport(self.answer)
        http = httpx.AsyncClient(base_url="http://server", transport=transport)
        return TBotClient("http://server", http=http, retry_s=retry_s, **credentials)

    def pair(self) -> httpx.Response:
        number = self.logins + len(self.refreshes)
        self.good = {f"access-{number}"}
        return httpx.Response(
            200,
            json={
                "access_token": f"access-{number}",
                "token_type": "bearer",
                "expires_in": self.expires_in,
                "refresh_token": f"refresh-{number}",
                "scope": "",
            },
        )

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        path = request.url.path
        if path == "/v1/token":
            form = parse_qs(request.content.decode())
            if form["password"] != ["secret"]:
                return httpx.Response(401, json={"code": "invalid_credentials"})
            self.logins += 1
            return self.pair()
        if path == "/v1/token/refresh":
            token = json.loads(request.content)["refresh_token"]
            assert token not in self.refreshes, "a refresh token was sent twice"
            self.refreshes.append(token)
            return self.on_refresh(token) if self.on_refresh else self.pair()
        if path == "/v1/token/revoke":
            return httpx.Response(200, json={})
        if request.headers["authorization"].removeprefix("Bearer ") not in self.good:
            return httpx.Response(401, json={"code": "invalid_token"})
        if request.content:
            self.keys.append(request.headers.get("Idempotency-Key"))
            self.bodies.append(json.loads(request.content))
        answer = self.answers.pop(0) if self.answers else 200
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(answer, json=ORDER if answer < 300 else {"code": "x"})


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "because"}, headers=headers)


async def test_an_order_is_repeated_under_the_same_id_until_it_is_answered() -> None:
    server = Server(
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("no answer"),
        problem(503, "overloaded"),
        problem(504, "outcome_unknown"),
        httpx.RemoteProtocolError("gone"),
        201,
    )
    async with server.client() as client:
        order = await client.place(ACCOUNT, "BTC-USDT", "buy", quote_amount=Decimal(25))
    assert order.average_price == Decimal(62000) and order.final
    assert order.fees[0].amount == Decimal("0.0000004")
    assert len(server.bodies) == 6
    assert len({body["client_order_id"] for body in server.bodies}) == 1
    assert all(body == server.bodies[0] for body in server.bodies)


async def test_a_refusal_is_final_and_carries_its_code() -> None:
    server = Server(problem(422, "insufficient_funds"))
    async with server.client() as client:
        with pytest.raises(Refused) as refused:
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity=1, limit_price="1")
    assert refused.value.code == "insufficient_funds" and refused.value.detail == "because"
    assert len(server.bodies) == 1 and server.bodies[0]["type"] == "limit"


async def test_what_never_reached_the_server_is_unavailable_and_a_lost_answer_is_unknown() -> None:
    down = Server(*[httpx.ConnectError("refused")] * 50)
    async with down.client(retry_s=0.3) as client:
        with pytest.raises(Unavailable):
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity="1")
    lost = Server(*[httpx.ReadTimeout("no answer")] * 50)
    async with lost.client(retry_s=0.3) as client:
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity="1")
    assert unknown.value.key == lost.bodies[0]["client_order_id"]


@pytest.mark.parametrize("later", [problem(404, "not_found"), problem(403, "key_not_allowed")])
async def test_no_later_answer_but_a_refusal_tells_of_an_attempt_that_was_lost(
    later: httpx.Response,
) -> None:
    server = Server(httpx.ReadTimeout("no answer"), later)
    async with server.client() as client:
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity="1")
    assert unknown.value.key == server.bodies[0]["client_order_id"]
    server = Server(httpx.ReadTimeout("no answer"), problem(422, "insufficient_funds"))
    async with server.client() as client:
        with pytest.raises(Refused, match="insufficient_funds"):
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity="1")


async def test_a_token_that_cannot_be_renewed_leaves_a_lost_attempt_unknown() -> None:
    """Certainly not done, or not allowed, would be a lie: the first attempt may have been both."""
    server = Server()
    server.good = {"first"}

    def lost(_request: Any) -> httpx.Response:
        server.good = set()
        raise httpx.ReadTimeout("no answer")

    server.answers = [lost]
    async with server.client(token="first") as client:
        with pytest.raises(OutcomeUnknown):
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity="1")
        with pytest.raises(AuthError):
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity="1")


async def test_a_write_is_repeated_under_one_key_of_the_clients_or_the_callers() -> None:
    for given in (None, "mine"):
        server = Server(*[httpx.ReadTimeout("no answer")] * 50)
        async with server.client(retry_s=0.5) as client:
            with pytest.raises(OutcomeUnknown) as unknown:
                await client.create_account("main", {"USDT": 100}, key=given)
        assert len(server.bodies) > 1
        assert set(server.keys) == {unknown.value.key}
        assert given in (None, unknown.value.key)


async def test_a_float_is_not_an_amount() -> None:
    async with Server().client() as client:
        with pytest.raises(TypeError):
            await client.place(ACCOUNT, "BTC-USDT", "buy", quantity=0.1)  # type: ignore[arg-type]


async def test_many_callers_share_one_login_and_one_refresh() -> None:
    server = Server()
    async with server.client() as client:
        await asyncio.gather(*(client.order(UUID(int=1)) for _ in range(20)))
        assert server.logins == 1
        server.good = {"nothing"}  # the server does not know the token any more
        await asyncio.gather(*(client.order(UUID(int=1)) for _ in range(20)))
    assert server.logins == 1 and server.refreshes == ["refresh-1"]


async def test_a_lost_refresh_is_not_repeated_but_replaced_by_a_login() -> None:
    def lost(token: str) -> httpx.Response:
        raise httpx.ReadTimeout("no answer")

    server = Server()
    server.on_refresh = lost
    async with server.client() as client:
        await client.order(UUID(int=1))
        server.good = {"nothing"}
        await client.order(UUID(int=1))
    assert server.logins == 2 and server.refreshes == ["refresh-1"]


async def test_a_refused_refresh_logs_in_again_or_says_so_where_it_cannot() -> None:
    server = Server()
    server.on_refresh = lambda token: problem(401, "invalid_token")
    async with server.client() as client:
        await client.order(UUID(int=1))
        server.good = {"nothing"}
        await client.order(UUID(int=1))
    assert server.logins == 2
    async with server.client(token="stale", refresh_token="old") as client:
        with pytest.raises(AuthError):
            await client.order(UUID(int=1))


async def test_a_token_near_its_end_is_renewed_before_it_is_used() -> None:
    server = Server()
    server.expires_in = 0
    async with server.client() as client:
        await client.order(UUID(int=1))
        await client.order(UUID(int=1))
    assert server.logins == 1 and server.refreshes == ["refresh-1"]


async def test_a_wrong_password_and_a_missing_thing_have_their_errors() -> None:
    server = Server(problem(404, "not_found"))
    async with server.client(username="ann", password="wrong") as client:
        with pytest.raises(AuthError):
            await client.order(UUID(int=1))
    async with server.client() as client:
        with pytest.raises(NotFound):
            await client.order(UUID(int=1))


async def test_lists_follow_their_pages() -> None:
    first = httpx.Response(200, json={"items": [ORDER, ORDER], "next": "more"})
    last = httpx.Response(200, json={"items": [ORDER], "next": None})
    server = Server(first, problem(503, "overloaded"), last)
    async with server.client() as client:
        orders = [order async for order in client.orders(ACCOUNT, is_open=True)]
    assert len(orders) == 3


async def test_waiting_for_an_order_ends_with_it_or_in_time() -> None:
    still = httpx.Response(200, json={**ORDER, "state": "new"})
    server = Server(still, still, 200)
    async with server.client() as client:
        assert (await client.wait_filled(UUID(int=1))).state == "filled"
        server.answers = [httpx.Response(200, json={**ORDER, "state": "new"}) for _ in range(50)]
        with pytest.raises(TimeoutError):
            await client.wait_filled(UUID(int=1), timeout_s=0.1)
