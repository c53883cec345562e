"""The client: accounts, orders and market data over REST, and the way to the streams."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from uuid import UUID

import httpx

from tbot.client.amounts import Amount, amount_text
from tbot.client.candles import Candles
from tbot.client.errors import OutcomeUnknown
from tbot.client.events import EventStream
from tbot.client.http import Api
from tbot.client.models import (
    Account,
    Balances,
    BookSnapshot,
    Equity,
    Fill,
    Instrument,
    Order,
    Positions,
    Ticker,
    Ticket,
    Trade,
    User,
)
from tbot.client.ordering import NewOrder
from tbot.client.payments import Payments, Webhooks
from tbot.client.statements import Moment, Statements, moment_text
from tbot.client.staying import Timing
from tbot.client.streams import Stream
from tbot.client.subscribing import GapListener
from tbot.client.switches import Switches
from tbot.client.tokens import SecondFactor, TokenKeeper
from tbot.client.transfers import Transfers

DEFAULT_URL: Final = "http://127.0.0.1:8000"


class TBotClient:
    """A connection to a T-Bot server, as one user.

    Use it as an async context manager. It logs in when it first has to, renews its tokens by
    itself, and tries again where that cannot do anything twice.

    Args:
        base_url: Of the server.
        username, password: To log in with.
        token: An access token instead; with `refresh_token` it is renewed.
        api_key: An API key instead of all these.
        second_factor: Gives a code of the second factor when the login, or a call that needs a
            fresh proof, asks for one; each code is good once.
        retry_s: How long a request is tried again while the server is away or busy.
        timeout_s: Of one attempt.
        http: Another transport, for tests.

    Attributes:
        candles: Past candles, and how markets are.
        statements: What happened on accounts, also as files.
        transfers: Moving money between accounts.
        payments: Deposits and withdrawals.
        webhooks: What happens on accounts, sent to an address of yours.
        switches: Halting and resuming trading, withdrawals and transfers.

    Example:
        >>> async def first_order() -> None:
        ...     async with TBotClient(username="ann", password="…") as client:
        ...         async for account in client.accounts():
        ...             order = await client.place(
        ...                 account.id, "BTC-USDT", "buy", quote_amount="25", wait_s=10
        ...             )
        ...             print(order.state, order.average_price)
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        refresh_token: str | None = None,
        api_key: str | None = None,
        second_factor: SecondFactor | None = None,
        retry_s: float = 30.0,
        timeout_s: float = 10.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        token = api_key or token
        if token is None and (username is None or password is None):
            raise ValueError("give username and password, or a token, or an API key")
        self.base_url = base_url.rstrip("/")
        self._http = http or httpx.AsyncClient(base_url=self.base_url, timeout=timeout_s)
        self._tokens = TokenKeeper(
            self._http, username, password, token, refresh_token, retry_s, second_factor
        )
        self._api = Api(self._http, self._tokens, retry_s)
        self.candles = Candles(self._api)
        self.statements = Statements(self._api)
        self.transfers = Transfers(self._api)
        self.payments = Payments(self._api)
        self.webhooks = Webhooks(self._api)
        self.switches = Switches(self._api)
        self._logs_out = password is not None
        self._streams: set[Stream | EventStream] = set()
        self._retry_s = retry_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the streams, end the login session, close the connections; safe to call twice."""
        for stream in list(self._streams):
            await stream.close()
        if self._logs_out and not self._http.is_closed:
            await self._tokens.log_out()
        await self._http.aclose()

    # Accounts

    async def me(self) -> dict[str, Any]:
        """Who is logged in."""
        return await self._api.request(dict[str, Any], "GET", "/v1/me")

    async def user(self, user_id: UUID | str) -> User:
        """A user, for administrators."""
        return await self._api.request(User, "GET", f"/v1/users/{user_id}")

    async def change_user(
        self,
        user_id: UUID | str,
        *,
        role: Literal["admin", "trader", "viewer", "auditor", "service"] | None = None,
        status: Literal["active", "disabled"] | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> User:
        """Change what a user is, or whether they may come in; what is None stays.

        For administrators. Whoever it is about is logged out everywhere.

        Args:
            if_match: The `etag` of the user as you saw them; None for whatever they are now.

        Raises:
            Refused: `precondition_failed`: they were changed since; look again.
        """
        given = {"role": role, "status": status}
        body = {one: value for one, value in given.items() if value is not None}
        path = f"/v1/users/{user_id}"
        return await self._api.request(User, "PATCH", path, json=body, key=key, if_match=if_match)

    def accounts(
        self,
        *,
        kind: Literal["trading", "cash"] | None = None,
        status: Literal["open", "frozen", "closed"] | None = None,
    ) -> AsyncIterator[Account]:
        """Your accounts, oldest first.

        Args:
            kind, status: Only these; None for all.
        """
        return self._api.pages(Account, "/v1/accounts", {"kind": kind, "status": status})

    async def account(self, account_id: UUID | str) -> Account:
        """One account."""
        return await self._api.request(Account, "GET", f"/v1/accounts/{account_id}")

    async def create_account(
        self,
        name: str,
        starting_balance: Mapping[str, Amount],
        venue: str = "paper",
        *,
        key: str | None = None,
    ) -> Account:
        """Open a paper account.

        Args:
            starting_balance: Asset → amount, such as `{"USDT": "10000"}`.
            key: An `Idempotency-Key` of your own, to be able to call again after a crash.

        Raises:
            OutcomeUnknown: Call again with its `key` to learn what became of it.
        """
        amounts = {asset: amount_text(amount) for asset, amount in starting_balance.items()}
        body = {"name": name, "venue": venue, "starting_balance": amounts}
        return await self._api.request(Account, "POST", "/v1/accounts", json=body, key=key)

    async def create_cash_account(self, name: str, *, key: str | None = None) -> Account:
        """Open an account for payments, without a venue and empty.

        Raises:
            OutcomeUnknown: Call again with its `key` to learn what became of it.
        """
        body = {"kind": "cash", "name": name}
        return await self._api.request(Account, "POST", "/v1/accounts", json=body, key=key)

    async def change_account(
        self,
        account_id: UUID | str,
        *,
        name: str | None = None,
        status: Literal["open", "frozen", "closed"] | None = None,
        limits: Mapping[str, Any] | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Account:
        """Change an account; what is None stays.

        Args:
            status: For administrators.
            limits: Those to be changed, such as `{"max_open_orders": 5}`; `overdraft` is for
                administrators.
            if_match: The `etag` of the account as you saw it; None for whatever it is now.

        Raises:
            Refused: `precondition_failed`: it was changed since; look again.
        """
        given = {"name": name, "status": status, "limits": limits}
        body = {one: value for one, value in given.items() if value is not None}
        path = f"/v1/accounts/{account_id}"
        return await self._api.request(
            Account, "PATCH", path, json=body, key=key, if_match=if_match
        )

    async def balances(self, account_id: UUID | str, at: Moment | None = None) -> Balances:
        """What an account has, or had at a moment."""
        path = f"/v1/accounts/{account_id}/balances"
        return await self._api.request(Balances, "GET", path, params={"at": moment_text(at)})

    async def positions(self, account_id: UUID | str) -> Positions:
        """What an account traded and still has."""
        return await self._api.request(Positions, "GET", f"/v1/accounts/{account_id}/positions")

    async def equity(self, account_id: UUID | str, quote: str = "USDT") -> Equity:
        """What an account is worth in an asset."""
        path = f"/v1/accounts/{account_id}/equity"
        return await self._api.request(Equity, "GET", path, params={"quote": quote})

    def fills(
        self,
        account_id: UUID | str,
        *,
        symbol: str | None = None,
        order_id: UUID | str | None = None,
    ) -> AsyncIterator[Fill]:
        """An account's fills, newest first."""
        params = {"symbol": symbol, "order_id": None if order_id is None else str(order_id)}
        return self._api.pages(Fill, f"/v1/accounts/{account_id}/fills", params)

    # Market data

    async def instruments(self) -> list[Instrument]:
        """Every market and its trading rules."""
        answer = await self._api.request(_InstrumentList, "GET", "/v1/instruments")
        return answer.items

    async def instrument(self, symbol: str) -> Instrument:
        """One market and its trading rules."""
        return await self._api.request(Instrument, "GET", f"/v1/instruments/{symbol}")

    async def ticker(self, symbol: str) -> Ticker:
        """A market in figures."""
        return await self._api.request(Ticker, "GET", f"/v1/instruments/{symbol}/ticker")

    async def book(self, symbol: str, depth: int = 50) -> BookSnapshot:
        """A market's book now; `client.stream().book(…)` keeps one current."""
        path = f"/v1/instruments/{symbol}/book"
        return await self._api.request(BookSnapshot, "GET", path, params={"depth": depth})

    async def trades(self, symbol: str, limit: int = 100) -> list[Trade]:
        """Recent public trades, newest first."""
        path = f"/v1/instruments/{symbol}/trades"
        answer = await self._api.request(_TradeList, "GET", path, params={"limit": limit})
        return answer.items

    # Orders

    async def place(
        self,
        account_id: UUID | str,
        symbol: str,
        side: Literal["buy", "sell"],
        *,
        quantity: Amount | None = None,
        quote_amount: Amount | None = None,
        limit_price: Amount | None = None,
        time_in_force: Literal["gtc", "ioc", "fok"] | None = None,
        post_only: bool = False,
        client_order_id: str | None = None,
        wait_s: float | None = None,
    ) -> Order:
        """Place an order: a limit order when there is a `limit_price`, else a market order.

        The request carries a `client_order_id`, made here when none is given, and is repeated
        under the same one while its answer is missing. So it never places two orders.

        Args:
            quantity: In the base asset.
            quote_amount: Market orders only, instead of `quantity`: what to spend or receive.
            wait_s: Let the server wait this long for the venue's word (and a market order's end).

        Raises:
            Refused: With the reason's `code`; nothing was placed.
            Unavailable: Nothing was placed.
            OutcomeUnknown: Call again with its `client_order_id` to learn what became of it.
        """
        key = client_order_id or f"sdk-{secrets.token_hex(14)}"
        order = NewOrder(
            account_id,
            symbol,
            side,
            quantity,
            quote_amount,
            limit_price,
            time_in_force,
            post_only,
            key,
        )
        body = order.body()
        try:
            return await self._api.request(Order, "POST", "/v1/orders", json=body, wait_s=wait_s)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(str(error), key) from error

    async def order(self, order_id: UUID | str) -> Order:
        """An order as it is now."""
        return await self._api.request(Order, "GET", f"/v1/orders/{order_id}")

    def orders(
        self,
        account_id: UUID | str | None = None,
        *,
        symbol: str | None = None,
        side: Literal["buy", "sell"] | None = None,
        state: str | None = None,
        is_open: bool | None = None,
    ) -> AsyncIterator[Order]:
        """Orders, newest first; of all your accounts when none is given."""
        params = {
            "account_id": None if account_id is None else str(account_id),
            "symbol": symbol,
            "side": side,
            "state": state,
            "open": None if is_open is None else str(is_open).lower(),
        }
        return self._api.pages(Order, "/v1/orders", params)

    async def cancel(self, order_id: UUID | str, wait_s: float | None = None) -> Order:
        """Ask for an order's cancellation; with `wait_s` the answer is its end, if that is in time.

        Raises:
            Refused: `order_closed`: it had ended already.
        """
        return await self._api.request(Order, "DELETE", f"/v1/orders/{order_id}", wait_s=wait_s)

    async def cancel_all(self, account_id: UUID | str, symbol: str | None = None) -> list[UUID]:
        """Ask for the cancellation of all open orders; the ids of those it was asked for."""
        params = {"account_id": str(account_id), "symbol": symbol}
        answer = await self._api.request(_Requested, "DELETE", "/v1/orders", params=params)
        return answer.orders

    async def wait_filled(self, order_id: UUID | str, timeout_s: float = 30.0) -> Order:
        """Wait until an order has ended.

        Returns:
            Its last version: look at `state`, it need not be `filled`.

        Raises:
            TimeoutError: It is still open after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        delay_s = 0.02
        while True:
            order = await self.order(order_id)
            if order.final:
                return order
            if time.monotonic() + delay_s > deadline_s:
                raise TimeoutError(f"order {order_id} is still {order.state}")
            await asyncio.sleep(delay_s)
            delay_s = min(1.0, delay_s * 1.5)

    # Streams

    def stream(
        self,
        on_gap: GapListener | None = None,
        packed: bool = False,
        timing: Timing | None = None,
    ) -> Stream:
        """A stream of market data and private events; use it as an async context manager.

        Args:
            on_gap: Called whenever something was missed on a public channel.
            packed: Whether messages are in msgpack: smaller, and quicker to read.
            timing: How patient it is.
        """
        timing = timing or Timing(open_s=self._retry_s)
        stream = Stream(self.base_url, self._tokens, on_gap, self._streams.discard, packed, timing)
        self._streams.add(stream)
        return stream

    def events(
        self, on_gap: GapListener | None = None, timing: Timing | None = None
    ) -> EventStream:
        """The same as server-sent events, for where WebSockets do not get through.

        The channels of `stream` are taken the same way; orders go over REST.
        """
        timing = timing or Timing(open_s=self._retry_s)
        stream = EventStream(self._http, self._tokens, on_gap, self._streams.discard, timing)
        self._streams.add(stream)
        return stream

    async def ticket(self, scope: str = "") -> Ticket:
        """A ticket: opens a stream once, soon, for a web page or a program without a token.

        Args:
            scope: Scopes separated by spaces, of those that you have; empty for all of them.
        """
        return await self._api.request(Ticket, "POST", "/v1/stream/tickets", json={"scope": scope})


@dataclass(frozen=True, slots=True)
class _InstrumentList:
    items: list[Instrument]


@dataclass(frozen=True, slots=True)
class _TradeList:
    items: list[Trade]


@dataclass(frozen=True, slots=True)
class _Requested:
    orders: list[UUID]
