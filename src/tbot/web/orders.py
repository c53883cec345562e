"""Placing, following and canceling orders."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core import money
from tbot.core.money import MoneyText
from tbot.core.refusals import Reason
from tbot.ledger.members import Access
from tbot.orders import flow, store
from tbot.orders.commands import Placed
from tbot.orders.model import Order, State
from tbot.orders.rules import OrderRequest
from tbot.venues.base import OrderType, Side, TimeInForce
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    AccountFilter,
    OrderReader,
    OrderWriter,
    PageCursor,
    PageLimit,
    Parts,
    PreferHeader,
    actor_of,
    page_limit,
    preferred_wait_s,
)
from tbot.web.fields import Answer, ClientOrderId, Id, PositiveAmount, Request, Symbol, Timestamp
from tbot.web.once import KeyHeader, keyed, respond
from tbot.web.openapi import problems
from tbot.web.ownership import own_account, own_accounts, own_order, owned
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.problems import invalid
from tbot.web.routes import router

routes = router("orders")

_PLACE_REASONS = (
    Reason.ACCOUNT_CLOSED,
    Reason.ACCOUNT_FROZEN,
    Reason.ACCOUNT_KIND,
    Reason.ACCOUNT_NEGATIVE,
    Reason.AMOUNT_TOO_PRECISE,
    Reason.CLIENT_ORDER_ID_REUSED,
    Reason.GATEWAY_AWAY,
    Reason.INSTRUMENT_HALTED,
    Reason.INSTRUMENT_NOT_ALLOWED,
    Reason.INSTRUMENT_UNKNOWN,
    Reason.INSUFFICIENT_FUNDS,
    Reason.MAX_OPEN_ORDERS,
    Reason.MAX_ORDER_NOTIONAL,
    Reason.NOTIONAL_OUT_OF_RANGE,
    Reason.NO_MARKET_PRICE,
    Reason.PRICE_OFF_TICK,
    Reason.PRICE_OUTSIDE_COLLAR,
    Reason.PRICE_OUT_OF_RANGE,
    Reason.QUANTITY_OFF_STEP,
    Reason.QUANTITY_OUT_OF_RANGE,
    Reason.SEND_TOO_LATE,
    Reason.VENUE_HALTED,
)


class NewOrder(Request):
    """An order to be placed."""

    account_id: Id
    symbol: Symbol
    side: Side
    type: OrderType
    quantity: Annotated[
        PositiveAmount | None, Field(description="In the base asset; a multiple of the step.")
    ] = None
    quote_amount: Annotated[
        PositiveAmount | None,
        Field(description="Market orders only, instead of `quantity`: in the quote asset."),
    ] = None
    limit_price: Annotated[
        PositiveAmount | None, Field(description="Limit orders only; a multiple of the tick.")
    ] = None
    time_in_force: Annotated[
        TimeInForce | None, Field(description="Limit orders only; `gtc` when absent.")
    ] = None
    post_only: Annotated[
        bool, Field(strict=True, description="Limit orders only: never take liquidity.")
    ] = False
    client_order_id: ClientOrderId | None = None


class AssetAmount(Answer):
    """An amount of an asset."""

    asset: Annotated[str, Field(examples=["USDT"])]
    amount: MoneyText


class OrderOut(Answer):
    """An order as it is now."""

    id: Id
    account_id: Id
    client_order_id: str | None
    venue: Annotated[str, Field(examples=["paper"])]
    symbol: Symbol
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    post_only: bool
    quantity: MoneyText | None
    quote_amount: MoneyText | None
    limit_price: MoneyText | None
    state: State
    reason: Annotated[
        str | None, Field(description="Why it was rejected, canceled, expired or is unknown.")
    ]
    filled_quantity: MoneyText
    filled_quote: MoneyText
    average_price: MoneyText | None
    fees: list[AssetAmount]
    held: Annotated[AssetAmount | None, Field(description="What is still held for it.")]
    cancel_requested: bool
    venue_order_id: str | None
    created_at: Timestamp
    updated_at: Timestamp
    sequence: Annotated[int, Field(description="The journal entry that made this version.")]


class OrderPage(Answer):
    """A page of orders, newest first."""

    items: list[OrderOut]
    next: str | None


class CancelsRequested(Answer):
    """Orders whose cancellation is under way."""

    requested: int
    orders: list[Id]


def order_json(order: Order) -> dict[str, Any]:
    """An order as `OrderOut` describes it, in JSON types."""
    average = order.average_price
    held = order.held_amount
    return {
        "id": order.id,
        "account_id": order.account_id,
        "client_order_id": order.client_order_id,
        "venue": order.venue,
        "symbol": order.symbol,
        "side": order.side,
        "type": order.type,
        "time_in_force": order.time_in_force,
        "post_only": order.post_only,
        "quantity": _text(order.quantity),
        "quote_amount": _text(order.quote_amount),
        "limit_price": _text(order.limit_price),
        "state": order.state,
        "reason": order.reason,
        "filled_quantity": money.text(order.filled_quantity),
        "filled_quote": money.text(order.filled_quote),
        "average_price": _text(average),
        "fees": [{"asset": asset, "amount": amount} for asset, amount in order.fees.items()],
        "held": {"asset": order.held_asset, "amount": money.text(held)} if held else None,
        "cancel_requested": order.cancel_requested,
        "venue_order_id": order.venue_order_id,
        "created_at": order.created_at,
        "updated_at": order.updated_at,
        "sequence": order.seq,
    }


def _text(value: Any) -> str | None:
    return None if value is None else money.text(value)


def _tag(order: Order) -> str:
    return f'"{order.account_id.hex}-{order.seq}"'


def order_request(body: NewOrder) -> OrderRequest:
    """What is asked for, once its members fit together.

    Raises:
        Problem: A member is missing, or makes no sense for this type of order.
    """
    if body.type is OrderType.MARKET:
        for name in ("limit_price", "time_in_force"):
            if getattr(body, name) is not None:
                raise invalid(f"a market order has no {name}", pointer=f"/{name}")
        if body.post_only:
            raise invalid("a market order cannot be post-only", pointer="/post_only")
        if (body.quantity is None) == (body.quote_amount is None):
            raise invalid(
                "a market order has either a quantity or a quote_amount", pointer="/quantity"
            )
    else:
        for name in ("quantity", "limit_price"):
            if getattr(body, name) is None:
                raise invalid(f"a limit order needs a {name}", pointer=f"/{name}")
        if body.quote_amount is not None:
            raise invalid("a limit order has no quote_amount", pointer="/quote_amount")
        if body.post_only and body.time_in_force not in (None, TimeInForce.GTC):
            raise invalid("a post-only order is good till canceled", pointer="/time_in_force")
    return OrderRequest(
        symbol=body.symbol,
        side=body.side,
        type=body.type,
        time_in_force=body.time_in_force or TimeInForce.GTC,
        quantity=body.quantity,
        quote_amount=body.quote_amount,
        limit_price=body.limit_price,
        post_only=body.post_only,
        client_order_id=body.client_order_id,
    )


@routes.post(
    "/orders",
    operation_id="place_order",
    status_code=201,
    response_model=OrderOut,
    responses={
        201: {
            "description": "Accepted and durable.",
            "headers": {
                "Location": {"schema": {"type": "string"}},
                "ETag": {"schema": {"type": "string"}},
                "Preference-Applied": {"schema": {"type": "string"}},
            },
        },
        200: {
            "model": OrderOut,
            "description": "This `client_order_id` had placed the same order before: here it is.",
        },
        **problems("not_found", "overloaded", "outcome_unknown", *_PLACE_REASONS),
    },
)
async def place_order(
    request: HttpRequest,
    parts: Parts,
    principal: OrderWriter,
    body: NewOrder,
    prefer: PreferHeader = None,
    _key: KeyHeader = None,
) -> Response:
    """Place an order.

    Once this answers, the order is durable and is sent to the venue at most once, whatever
    crashes. `pending_new` means that the venue may already have it.
    """
    wanted = order_request(body)
    if owned(parts, principal, body.account_id) is None:
        await own_account(parts, principal, body.account_id, need=Access.TRADE)
    once = await keyed(request, parts, principal, placed)
    outcome = await flow.place(
        parts.orders, actor_of(request, principal), body.account_id, wanted, once
    )
    wait_s = preferred_wait_s(prefer, parts.settings.http.wait_s_max)
    if wait_s is None or not isinstance(outcome, Placed):
        return respond(outcome, placed, once)
    order = outcome.order
    if outcome.replayed or not flow.settled(order):
        order = await flow.wait_for(parts.orders, order, flow.settled, wait_s)
    response = placed(Placed(order, outcome.replayed))
    response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    return response


def placed(result: Placed) -> Response:
    """The answer to an order that was accepted, now or before."""
    order = result.order
    headers = {"Location": f"/v1/orders/{order.id}", "ETag": _tag(order)}
    if result.replayed:
        headers["Idempotent-Replayed"] = "true"
    return json_answer(order_json(order), 200 if result.replayed else 201, headers)


@routes.get(
    "/orders",
    operation_id="list_orders",
    response_model=OrderPage,
    responses=problems("not_found", "invalid_cursor"),
)
async def list_orders(
    request: HttpRequest,
    parts: Parts,
    principal: OrderReader,
    account_id: AccountFilter = None,
    symbol: Annotated[Symbol | None, Query()] = None,
    side: Annotated[Side | None, Query()] = None,
    state: Annotated[State | None, Query()] = None,
    is_open: Annotated[
        bool | None, Query(alias="open", description="Whether it can still change.")
    ] = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List orders, newest first."""
    size = page_limit(limit, parts)
    given = {"account_id": account_id, "symbol": symbol, "side": side, "state": state}
    filters = {name: str(value) for name, value in given.items() if value is not None}
    if is_open is not None:
        filters["open"] = "true" if is_open else "false"
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    before = None
    if cursor is not None:
        before = UUID(str(decode_cursor(secret, reader, "orders", filters, cursor)[0]))
    account_ids = await own_accounts(parts, principal, account_id)
    async with parts.pool.acquire() as connection:
        found = await store.list_orders(
            connection,
            account_ids,
            symbol=symbol,
            side=side,
            states=None if state is None else [state],
            is_open=is_open,
            before=before,
            limit=size + 1,
        )
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, "orders", filters, [str(found[size - 1].id)])
        headers["Link"] = next_link(request, filters, size, following)
    page = {"items": [order_json(order) for order in found[:size]], "next": following}
    return json_answer(page, headers=headers)


@routes.get(
    "/orders/{order_id}",
    operation_id="get_order",
    response_model=OrderOut,
)
async def get_order(parts: Parts, principal: OrderReader, order_id: Id) -> Response:
    """Get one order as it is now."""
    order = await own_order(parts, principal, order_id, need=Access.READ)
    return json_answer(order_json(order), headers={"ETag": _tag(order)})


@routes.delete(
    "/orders/{order_id}",
    operation_id="cancel_order",
    status_code=202,
    response_model=OrderOut,
    responses={
        202: {"description": "The cancellation is durable; the venue decides if it is in time."},
        200: {"model": OrderOut, "description": "With `Prefer: wait`: the order has ended."},
        **problems("overloaded", "outcome_unknown", Reason.ORDER_CLOSED),
    },
)
async def cancel_order(
    request: HttpRequest,
    parts: Parts,
    principal: OrderWriter,
    order_id: Id,
    prefer: PreferHeader = None,
    _key: KeyHeader = None,
) -> Response:
    """Ask for an order's cancellation. Repeating it is harmless."""
    order = await own_order(parts, principal, order_id)
    once = await keyed(request, parts, principal, canceled)
    outcome = await flow.cancel(
        parts.orders, actor_of(request, principal), order.account_id, order.id, once
    )
    wait_s = preferred_wait_s(prefer, parts.settings.http.wait_s_max)
    if wait_s is None or not isinstance(outcome, Order):
        return respond(outcome, canceled)
    response = canceled(await flow.wait_for(parts.orders, outcome, ended, wait_s))
    response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    return response


def canceled(order: Order) -> Response:
    """The answer to a cancellation that is under way, or needless."""
    return json_answer(order_json(order), 200 if order.final else 202)


def ended(order: Order) -> bool:
    """Whether waiting for an order's cancellation is over."""
    return order.final


@routes.delete(
    "/orders",
    operation_id="cancel_orders",
    status_code=202,
    responses=problems("not_found", "overloaded", "outcome_unknown"),
)
async def cancel_orders(
    request: HttpRequest,
    parts: Parts,
    principal: OrderWriter,
    account_id: Annotated[Id, Query()],
    symbol: Annotated[Symbol | None, Query(description="Only of this instrument.")] = None,
) -> CancelsRequested:
    """Ask for the cancellation of every open order of an account."""
    await own_account(parts, principal, account_id, need=Access.TRADE)
    ids = await flow.cancel_all(parts.orders, actor_of(request, principal), account_id, symbol)
    return CancelsRequested(requested=len(ids), orders=ids)
