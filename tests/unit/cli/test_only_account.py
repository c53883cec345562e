"""Which account an order goes to when none was named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tbot.cli.account import only_account
from tbot.core.errors import ConfigurationError


def having(*ids: str) -> Any:
    """A client of somebody with these open trading accounts, and a cash account."""

    async def accounts(kind: str = "cash", status: str = "") -> AsyncIterator[Any]:
        for account_id in ids if (kind, status) == ("trading", "open") else ("cash", *ids):
            yield SimpleNamespace(id=account_id)

    return SimpleNamespace(accounts=accounts)


async def test_the_only_open_trading_account_is_meant() -> None:
    assert await only_account(having("one")) == "one"


async def test_of_several_none_is_guessed_and_all_are_told() -> None:
    with pytest.raises(ConfigurationError, match=r"2 open trading .* --account: one, two"):
        await only_account(having("one", "two"))


async def test_a_cash_account_is_never_meant() -> None:
    with pytest.raises(ConfigurationError, match="no open trading account"):
        await only_account(having())
