"""The circuit breaker: closed, open, half-open, with a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from tbot.core.breaker import Breaker, BreakerState
from tbot.core.errors import CircuitOpen


class Down(Exception):
    """What counts as a failure here."""


class Circuit:
    """A breaker with a clock to turn."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.calls = 0
        self.breaker = Breaker("test", 3, 10.0, lambda: self.now_s)

    async def call(self, error: Exception | None = None) -> str:
        async def operation() -> str:
            self.calls += 1
            if error is not None:
                raise error
            return "done"

        return await self.breaker.call(operation, Down)

    async def fail(self, times: int) -> None:
        for _ in range(times):
            with pytest.raises(Down):
                await self.call(Down())


async def test_failures_in_a_row_open_it_and_calls_are_refused_untried() -> None:
    circuit = Circuit()
    await circuit.fail(2)
    assert await circuit.call() == "done"
    await circuit.fail(2)
    assert circuit.breaker.state is BreakerState.CLOSED
    await circuit.fail(1)
    assert circuit.breaker.state is BreakerState.OPEN
    calls = circuit.calls
    with pytest.raises(CircuitOpen) as refused:
        await circuit.call()
    assert refused.value.retry_after_s == pytest.approx(10.0)
    assert circuit.calls == calls


async def test_after_its_time_one_probe_decides() -> None:
    circuit = Circuit()
    await circuit.fail(3)
    circuit.now_s += 10
    assert circuit.breaker.state is BreakerState.HALF_OPEN
    await circuit.fail(1)
    assert circuit.breaker.state is BreakerState.OPEN
    circuit.now_s += 10
    assert await circuit.call() == "done"
    assert circuit.breaker.state is BreakerState.CLOSED
    await circuit.fail(2)
    assert circuit.breaker.state is BreakerState.CLOSED


async def test_only_one_probe_at_a_time_and_a_canceled_one_says_nothing() -> None:
    circuit = Circuit()
    await circuit.fail(3)
    circuit.now_s += 10
    gate = asyncio.Event()
    probe = asyncio.create_task(circuit.breaker.call(gate.wait, Down))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await circuit.call()
    probe.cancel()
    await asyncio.wait({probe})
    assert circuit.breaker.state is BreakerState.HALF_OPEN
    assert await circuit.call() == "done"


async def test_other_exceptions_are_no_failures() -> None:
    circuit = Circuit()
    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            await circuit.call(ValueError("no"))
    assert circuit.breaker.state is BreakerState.CLOSED
