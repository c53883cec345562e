"""REST: paths, signatures over the raw request, answers with Binance's headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from tbot.core.clock import wall_ms
from tbot.core.errors import ExchangeRefusal
from tbot.exchange.api import CALLS
from tbot.exchange.gate import Fault, Gate
from tbot.exchange.signing import ApiKey, split_signature

_ROUTES: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/api/v3/ping"): "ping",
    ("GET", "/api/v3/time"): "time",
    ("GET", "/api/v3/exchangeInfo"): "exchangeInfo",
    ("GET", "/api/v3/depth"): "depth",
    ("GET", "/api/v3/trades"): "trades.recent",
    ("GET", "/api/v3/historicalTrades"): "trades.historical",
    ("GET", "/api/v3/aggTrades"): "trades.aggregate",
    ("GET", "/api/v3/klines"): "klines",
    ("GET", "/api/v3/uiKlines"): "uiKlines",
    ("GET", "/api/v3/avgPrice"): "avgPrice",
    ("GET", "/api/v3/ticker/24hr"): "ticker.24hr",
    ("GET", "/api/v3/ticker/price"): "ticker.price",
    ("GET", "/api/v3/ticker/bookTicker"): "ticker.book",
    ("POST", "/api/v3/order"): "order.place",
    ("POST", "/api/v3/order/test"): "order.test",
    ("GET", "/api/v3/order"): "order.status",
    ("DELETE", "/api/v3/order"): "order.cancel",
    ("GET", "/api/v3/openOrders"): "openOrders.status",
    ("DELETE", "/api/v3/openOrders"): "openOrders.cancelAll",
    ("GET", "/api/v3/allOrders"): "allOrders",
    ("GET", "/api/v3/myTrades"): "myTrades",
    ("GET", "/api/v3/account"): "account.status",
    ("GET", "/api/v3/account/commission"): "account.commission",
    ("GET", "/api/v3/rateLimit/order"): "account.rateLimits.orders",
    ("POST", "/paper/v1/deposits"): "paper.deposit",
}
_PATHS: Final = frozenset(path for _, path in _ROUTES)
_REASONS: Final = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 418: "I'm a teapot", 429: "Too Many Requests",
    500: "Internal Server Error", 504: "Gateway Timeout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as it arrived."""

    method: str
    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    address: str
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do with a request: send bytes, perhaps later, or drop the connection."""

    data: bytes
    delay_s: float = 0.0
    drop: bool = False


def _pairs(text: bytes) -> list[tuple[str, str]]:
    return parse_qsl(text.decode("latin-1"), keep_blank_values=True)


class Rest:
    """The REST side of the exchange.

    Args:
        gate: Admits and runs calls.
        session: Describes the session for `/paper/v1/session`.
        drop_user_streams: Disconnects every private stream (a fault knob).
    """

    def __init__(
        self,
        gate: Gate,
        session: Callable[[], dict[str, Any]],
        drop_user_streams: Callable[[], int],
    ) -> None:
        self._gate = gate
        self._session = session
        self._drop_user_streams = drop_user_streams

    def delay_before_s(self, request: Request) -> tuple[Fault | None, float]:
        """The fault that this request meets, and how long to wait before handling it."""
        name = _ROUTES.get((request.method, request.path))
        fault = self._gate.fault_for(name) if name is not None else None
        if fault is not None and fault.kind == "delay_before":
            return fault, fault.delay_ms / 1000
        return fault, 0.0

    def handle(self, request: Request, fault: Fault | None) -> Answer:
        """Answer a request; `fault` is what `delay_before_s` returned."""
        if fault is not None and fault.kind == "drop_before":
            return Answer(b"", drop=True)
        account = ""
        try:
            result, account = self._dispatch(request, fault)
            status, body, retry_after_s = 200, msgspec.json.encode(result), None
        except ExchangeRefusal as refusal:
            status, retry_after_s = refusal.status, refusal.retry_after_s
            body = msgspec.json.encode({"code": refusal.code, "msg": refusal.message})
        if fault is not None and fault.kind == "drop_after":
            return Answer(b"", drop=True)
        delay_s = (
            fault.delay_ms / 1000 if fault is not None and fault.kind == "delay_after" else 0.0
        )
        return Answer(self._response(request, status, body, account, retry_after_s), delay_s)

    def _dispatch(self, request: Request, fault: Fault | None) -> tuple[Any, str]:
        name = _ROUTES.get((request.method, request.path))
        if name is None:
            return self._paper(request), ""
        params = dict(_pairs(request.body)) if request.body else {}
        params.update(_pairs(request.query))
        account = ""
        if CALLS[name].signed:
            account = self._authenticate(request, params).account
        params.pop("signature", None)
        return self._gate.run(name, params, account, request.address, fault), account

    def _authenticate(self, request: Request, params: Mapping[str, str]) -> ApiKey:
        key = self._gate.key(request.headers.get(b"x-mbx-apikey", b"").decode("latin-1"))
        payload, signature = split_signature(request.query, request.body)
        if not params.get("timestamp"):
            self._gate.check_time(params)
        self._gate.check_signature(key, payload, signature)
        self._gate.check_time(params)
        return key

    def _paper(self, request: Request) -> Any:
        if request.path == "/paper/v1/health" and request.method == "GET":
            return {"status": "ok"}
        if request.path == "/paper/v1/session" and request.method == "GET":
            return self._session()
        if request.path == "/paper/v1/faults" and self._gate.floor.settings.faults:
            params = dict(_pairs(request.body)) | dict(_pairs(request.query))
            self._authenticate(request, params)
            return self._faults(request.method, params)
        if request.path in _PATHS:
            raise ExchangeRefusal(-1020, "This operation is not supported.", 405)
        raise ExchangeRefusal(-1020, "This operation is not supported.", 404)

    def _faults(self, method: str, params: Mapping[str, str]) -> Any:
        if method == "POST":
            if params.get("kind") == "drop_user_streams":
                return {"dropped": self._drop_user_streams()}
            return self._gate.arm(params)
        if method == "DELETE":
            self._gate.faults.armed.clear()
        return self._gate.armed()

    def _response(
        self,
        request: Request,
        status: int,
        body: bytes,
        account: str,
        retry_after_s: int | None,
    ) -> bytes:
        now_ms = wall_ms()
        limits = self._gate.floor.limits
        head = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}",
            "content-type: application/json;charset=UTF-8",
            f"content-length: {len(body)}",
            f"x-mbx-used-weight: {(weight := limits.weight(request.address, now_ms).count)}",
            f"x-mbx-used-weight-1m: {weight}",
        ]
        if account and request.path == "/api/v3/order":
            ten_s, day = limits.orders(account, now_ms)
            head.append(f"x-mbx-order-count-10s: {ten_s.count}")
            head.append(f"x-mbx-order-count-1d: {day.count}")
        if retry_after_s is not None:
            head.append(f"retry-after: {retry_after_s}")
        if not request.keep_alive:
            head.append("connection: close")
        return "\r\n".join((*head, "", "")).encode("latin-1") + body
