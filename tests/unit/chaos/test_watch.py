"""A watcher that is refused comes back, unless it was refused for good."""

from __future__ import annotations

from typing import Any

import pytest
from chaos.clients import Pulse, Token
from chaos.watch import SUB, Watcher

UNAVAILABLE = {"code": "unavailable", "msg": "temporarily unavailable", "temporary": True}
NOT_FOUND = {"code": "not_found", "msg": "no such account", "temporary": False}


@pytest.fixture
def watcher() -> Watcher:
    nothing: Any = None
    token: Token = nothing
    pulse: Pulse = nothing
    return Watcher(token, ("http://nowhere",), "a", pulse)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("error", "faults"), [(UNAVAILABLE, 0), (NOT_FOUND, 1)])
def test_a_refused_subscription_ends_the_connection(
    watcher: Watcher, error: dict[str, Any], whole: bool, faults: int
) -> None:
    """Nothing more would come on it; and what is refused for good is told of."""
    subbed = {"op": "subbed", "id": SUB, "subs": [{"error": error}]}
    with pytest.raises(ConnectionError):
        watcher._heard({"op": "error", "id": SUB, **error} if whole else subbed)
    assert len(watcher.faults) == faults


def test_the_last_words_of_a_connection_are_no_refusal(watcher: Watcher) -> None:
    watcher._heard({"op": "error", "code": "token_expired", "temporary": True})
    assert not watcher.faults
