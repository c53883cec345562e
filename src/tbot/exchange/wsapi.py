"""The WebSocket API: `{"id", "method", "params"}` in, `{"id", "status", "result"}` out.

One object per connection. It knows no sockets: it is given texts and returns what to do.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tbot.core.clock import wall_ms
from tbot.core.errors import ExchangeRefusal
from tbot.exchange.api import CALLS
from tbot.exchange.gate import Fault, Gate
from tbot.exchange.hub import Hub, Receiver, text_frame
from tbot.exchange.limits import weight_entry
from tbot.exchange.rest import Answer
from tbot.exchange.signing import ApiKey, socket_payload

_PRIVATE_MAX: Final = 100
_decoder = msgspec.json.Decoder(float_hook=str)
_ORDER_CALLS: Final = frozenset(("order.place",))


def _param_text(value: Any) -> str:
    """A JSON value as it enters the signature."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return msgspec.json.encode(value).decode()


class Call:
    """A parsed request."""

    __slots__ = ("fault", "id", "method", "params")

    def __init__(self, id: Any, method: str, params: dict[str, str], fault: Fault | None) -> None:
        self.id = id
        self.method = method
        self.params = params
        self.fault = fault


class Session:
    """One WebSocket API connection.

    Args:
        gate: Admits and runs calls.
        hub: For private events.
        receiver: The connection.
        address: Where it comes from, for request weight.
        limits_told: Whether answers carry `rateLimits`.
    """

    def __init__(
        self, gate: Gate, hub: Hub, receiver: Receiver, address: str, limits_told: bool
    ) -> None:
        self._gate = gate
        self._hub = hub
        self._receiver = receiver
        self._address = address
        self._limits_told = limits_told
        self._connected_ms = wall_ms()
        self._logon: ApiKey | None = None
        self._logon_ms = 0
        self._subscriptions: dict[int, str] = {}
        self._next_subscription = 0

    @property
    def has_private_stream(self) -> bool:
        """Whether private events are sent to this connection."""
        return bool(self._subscriptions)

    def parse(self, text: bytes) -> Call | Answer:
        """Read a request; an answer at once when it cannot be read."""
        try:
            message = _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._failure(None, ExchangeRefusal(-1135, "JSON Request sent was malformed."))
        if not isinstance(message, dict):
            return self._failure(None, ExchangeRefusal(-1135, "JSON Request sent was malformed."))
        number, method = message.get("id"), message.get("method")
        params = message.get("params") or {}
        if not isinstance(number, str | int | None) or not isinstance(method, str):
            return self._failure(None, ExchangeRefusal(-1135, "Invalid JSON Request."))
        if not isinstance(params, dict):
            return self._failure(number, ExchangeRefusal(-1135, "Invalid JSON Request."))
        texts = {name: _param_text(value) for name, value in params.items() if value is not None}
        fault = self._gate.fault_for(method) if method in CALLS else None
        return Call(number, method, texts, fault)

    def handle(self, call: Call) -> Answer:
        """Run a request and say what to send."""
        kind = call.fault.kind if call.fault is not None else ""
        if kind == "drop_before":
            return Answer(b"", drop=True)
        try:
            answer = self._success(call, self._dispatch(call))
        except ExchangeRefusal as refusal:
            answer = self._failure(call.id, refusal, call)
        if kind == "drop_after":
            return Answer(b"", drop=True)
        if kind == "delay_after" and call.fault is not None:
            return Answer(answer.data, call.fault.delay_ms / 1000)
        return answer

    def _dispatch(self, call: Call) -> Any:
        known = CALLS.get(call.method)
        if known is not None:
            account = self._account(call).account if known.signed else ""
            return self._gate.run(call.method, call.params, account, self._address, call.fault)
        if call.method == "session.logon":
            return self._log_on(call)
        if call.method == "session.status":
            return self._status()
        if call.method == "session.logout":
            return self._log_out()
        if call.method == "session.subscriptions":
            return [{"subscriptionId": number} for number in self._subscriptions]
        if call.method == "userDataStream.subscribe":
            if self._logon is None:
                raise ExchangeRefusal(-2015, "Invalid API-key, IP, or permissions for action.", 401)
            return self._subscribe(self._logon.account)
        if call.method == "userDataStream.subscribe.signature":
            return self._subscribe(self._account(call).account)
        if call.method == "userDataStream.unsubscribe":
            return self._unsubscribe(call)
        raise ExchangeRefusal(-1020, "This operation is not supported.")

    def _account(self, call: Call) -> ApiKey:
        """Who signed a request, or who logged the connection on."""
        params = call.params
        if self._logon is not None and "apiKey" not in params and "signature" not in params:
            self._gate.check_time(params)
            return self._logon
        key = self._gate.key(params.get("apiKey"))
        if not params.get("timestamp"):
            self._gate.check_time(params)
        self._gate.check_signature(key, socket_payload(params), params.get("signature"))
        self._gate.check_time(params)
        return key

    def _log_on(self, call: Call) -> Any:
        key = self._gate.key(call.params.get("apiKey"))
        if key.public_key is None:
            raise ExchangeRefusal(-4056, "HMAC_SHA256 API key is not supported.")
        self._gate.check_signature(key, socket_payload(call.params), call.params.get("signature"))
        self._gate.check_time(call.params)
        self._logon, self._logon_ms = key, wall_ms()
        return self._status()

    def _status(self) -> Any:
        return {
            "apiKey": self._logon.key if self._logon else None,
            "authorizedSince": self._logon_ms if self._logon else None,
            "connectedSince": self._connected_ms,
            "returnRateLimits": self._limits_told,
            "serverTime": wall_ms(),
            "userDataStream": bool(self._subscriptions),
        }

    def _log_out(self) -> Any:
        if self._logon is not None:
            for number, account in list(self._subscriptions.items()):
                if account == self._logon.account:
                    self._end(number)
        self._logon = None
        return self._status()

    def _subscribe(self, account: str) -> Any:
        if account in self._subscriptions.values():
            raise ExchangeRefusal(-2035, "The account is subscribed on this connection already.")
        if len(self._subscriptions) >= _PRIVATE_MAX:
            raise ExchangeRefusal(-1034, "Too many subscriptions on this connection.")
        number = self._next_subscription
        self._next_subscription += 1
        self._subscriptions[number] = account
        self._hub.listen(self._receiver, account, number)
        return {"subscriptionId": number}

    def _unsubscribe(self, call: Call) -> Any:
        wanted = call.params.get("subscriptionId")
        for number in list(self._subscriptions):
            if wanted is None or wanted == str(number):
                self._end(number)
        return {}

    def _end(self, number: int) -> None:
        account = self._subscriptions.pop(number)
        self._hub.unlisten(self._receiver, account, number)
        event = {"e": "eventStreamTerminated", "E": wall_ms()}
        self._receiver.say(
            text_frame(msgspec.json.encode({"subscriptionId": number, "event": event}))
        )

    def close(self) -> None:
        """The connection is gone."""
        for number, account in self._subscriptions.items():
            self._hub.unlisten(self._receiver, account, number)
        self._subscriptions.clear()

    # Answers

    def _limits(self, call: Call | None) -> list[dict[str, Any]]:
        now_ms = wall_ms()
        limits = self._gate.floor.limits
        weight = limits.weight(self._address, now_ms)
        entries = [weight_entry(weight.limit, weight.count)]
        if call is not None and call.method in _ORDER_CALLS:
            account = self._logon.account if self._logon else ""
            if "apiKey" in call.params:
                account = self._gate.account_of(call.params["apiKey"])
            if account:
                entries = limits.order_entries(account, now_ms) + entries
        return entries

    def _told(self, call: Call | None) -> bool:
        wish = call.params.get("returnRateLimits") if call is not None else None
        return self._limits_told if wish is None else wish == "true"

    def _success(self, call: Call, result: Any) -> Answer:
        body: dict[str, Any] = {"id": call.id, "status": 200, "result": result}
        if self._told(call):
            body["rateLimits"] = self._limits(call)
        return Answer(text_frame(msgspec.json.encode(body)))

    def _failure(self, id: Any, refusal: ExchangeRefusal, call: Call | None = None) -> Answer:
        error: dict[str, Any] = {"code": refusal.code, "msg": refusal.message}
        if refusal.retry_after_s is not None:
            now_ms = wall_ms()
            error["data"] = {
                "serverTime": now_ms,
                "retryAfter": now_ms + refusal.retry_after_s * 1000,
            }
        body: dict[str, Any] = {"id": id, "status": refusal.status, "error": error}
        if self._told(call):
            body["rateLimits"] = self._limits(call)
        return Answer(text_frame(msgspec.json.encode(body)))
