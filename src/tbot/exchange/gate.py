"""Lets requests in: identifies the caller, checks age and signature, applies fault knobs.

Shared by REST and the WebSocket API. A fault knob is armed through `/paper/v1/faults` (only with
the `faults` setting) and used up by the next requests that it applies to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from tbot.core.clock import wall_ms
from tbot.core.errors import ExchangeRefusal
from tbot.exchange.api import CALLS, invoke
from tbot.exchange.floor import Floor
from tbot.exchange.params import Caller, mandatory
from tbot.exchange.signing import ApiKey, timely

_log = structlog.get_logger(__name__)

_TIMING: Final = {
    -1021: "Timestamp for this request is outside of the recvWindow.",
    -1100: "Illegal characters found in parameter 'timestamp'; legal range is '^[0-9]{1,20}$'.",
    -1131: "recvWindow must be less than 60000.",
}

ORDER_FAULTS: Final = (
    "drop_before",
    "drop_after",
    "timeout_before",
    "timeout_after",
    "delay_before",
    "delay_after",
    "rate_limited",
)
"""Faults of order requests: lose the connection, -1007, wait, 429."""
KINDS: Final = (*ORDER_FAULTS, "not_found", "drop_user_streams")

TIMEOUT: Final = ExchangeRefusal(
    -1007,
    "Timeout waiting for response from backend server. Send status unknown; execution status "
    "unknown.",
    504,
)


@dataclass(slots=True)
class Fault:
    """An armed fault: how often it still happens, and how long a delay lasts."""

    kind: str
    count: int
    delay_ms: int


@dataclass(slots=True)
class Faults:
    """Armed faults, first armed first used."""

    armed: list[Fault] = field(default_factory=list)

    def take(self, *kinds: str) -> Fault | None:
        """Use up one occurrence of the first armed fault of these kinds."""
        for fault in self.armed:
            if fault.kind in kinds:
                fault.count -= 1
                if fault.count <= 0:
                    self.armed.remove(fault)
                return fault
        return None


class Gate:
    """Identifies callers and runs calls for them.

    Args:
        floor: What the calls act on.
        keys: API keys by their text.
        broken: Ends the process; called when a call failed in a way that it must not.
    """

    def __init__(
        self, floor: Floor, keys: Mapping[str, ApiKey], broken: Callable[[], None]
    ) -> None:
        self.floor = floor
        self._broken = broken
        self._keys = keys
        self.faults = Faults()

    def key(self, text: str | None) -> ApiKey:
        """The API key of that text.

        Raises:
            ExchangeRefusal: -2014 when none was sent, -2015 when it is not known.
        """
        if not text:
            raise ExchangeRefusal(-2014, "API-key format invalid.", 401)
        key = self._keys.get(text)
        if key is None:
            raise ExchangeRefusal(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        return key

    def account_of(self, text: str) -> str:
        """The account behind a key, empty for an unknown key."""
        key = self._keys.get(text)
        return key.account if key is not None else ""

    def check_time(self, params: Mapping[str, str]) -> None:
        """Refuse a request that is too old, or from the future."""
        timestamp = mandatory(params, "timestamp")
        now_ms = wall_ms()
        code = timely(timestamp, params.get("recvWindow"), now_ms)
        if code is not None:
            message = _TIMING[code]
            if code == -1021 and int(timestamp) > now_ms:
                message = "Timestamp for this request was 1000ms ahead of the server's time."
            raise ExchangeRefusal(code, message)

    def check_signature(self, key: ApiKey, payload: bytes, signature: str | None) -> None:
        """Refuse a request that the key did not sign."""
        if not signature:
            raise ExchangeRefusal(
                -1102,
                "Mandatory parameter 'signature' was not sent, was empty/null, or malformed.",
            )
        if not key.verify(payload, signature):
            raise ExchangeRefusal(-1022, "Signature for this request is not valid.")

    def fault_for(self, name: str) -> Fault | None:
        """The fault that the next call of that name meets, if any; it is used up."""
        if not self.faults.armed:
            return None
        if name == "order.status":
            return self.faults.take("not_found")
        return self.faults.take(*ORDER_FAULTS) if CALLS[name].changes_orders else None

    def run(
        self, name: str, params: Mapping[str, str], account: str, address: str, fault: Fault | None
    ) -> Any:
        """Run an admitted call, with the answer that a fault forces on it.

        Raises:
            ExchangeRefusal: The call was refused, or the fault says so.
        """
        kind = fault.kind if fault is not None else ""
        if kind == "timeout_before":
            raise TIMEOUT
        if kind == "rate_limited":
            raise ExchangeRefusal(-1003, "Too many requests.", 429, 1)
        if kind == "not_found":
            raise ExchangeRefusal(-2013, "Order does not exist.")
        try:
            result = invoke(Caller(self.floor, address, wall_ms(), account), name, params)
        except ExchangeRefusal:
            raise
        except Exception:  # noqa: BLE001 - a bug: logged, answered, and fatal where it must be
            _log.exception("call_failed", method=name)
            if CALLS[name].changes_state:
                # Memory may be ahead of the log now. A restart from the log is the way back.
                self._broken()
            raise ExchangeRefusal(
                -1000, "An unknown error occurred while processing the request.", 500
            ) from None
        if kind == "timeout_after":
            raise TIMEOUT
        return result

    def arm(self, params: Mapping[str, str]) -> list[dict[str, Any]]:
        """Arm a fault by `kind`, `count` (1) and `delay_ms` (0); returns all that are armed."""
        kind = mandatory(params, "kind")
        if kind not in KINDS:
            raise ExchangeRefusal(-1130, f"Unknown fault; one of {', '.join(KINDS)}.")
        try:
            fault = Fault(kind, int(params.get("count", 1)), int(params.get("delay_ms", 0)))
        except ValueError:
            raise ExchangeRefusal(-1100, "count and delay_ms are whole numbers.") from None
        self.faults.armed.append(fault)
        return self.armed()

    def armed(self) -> list[dict[str, Any]]:
        """The armed faults."""
        return [
            {"kind": fault.kind, "count": fault.count, "delay_ms": fault.delay_ms}
            for fault in self.faults.armed
        ]
