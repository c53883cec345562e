"""Transfers as they are written: the quick way says what the other one says."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbot.core.ids import new_id
from tbot.ledger.transfers import Transfer, TransferState
from tbot.web.transfer_forms import TransferOut, transfer_bytes, transfer_json

AMOUNTS = st.decimals(min_value=0, max_value=10**18, allow_nan=False, places=18)


def transfer(**more: Any) -> Transfer:
    given = {
        "id": new_id(),
        "source_id": new_id(),
        "target_id": new_id(),
        "asset": "EUR",
        "amount": Decimal("12.50"),
        "state": TransferState.POSTED,
        "created_at": "2026-11-22T05:14:43.123456Z",
        "updated_at": "2026-11-22T05:14:43.123456Z",
    }
    return Transfer(**{**given, **more})


@given(
    st.sampled_from(TransferState),
    AMOUNTS,
    AMOUNTS,
    st.sampled_from([Decimal("1E+3"), Decimal("1E-18"), Decimal("0.000"), Decimal(7)]),
    st.sampled_from(["EUR", "1INCH", 'A"B', "Ä", "a\\"]),
)
def test_both_ways_write_the_same(
    state: TransferState, amount: Decimal, posted: Decimal, odd: Decimal, asset: str
) -> None:
    for paid in (posted, odd):
        one = transfer(state=state, amount=amount, posted_amount=paid, asset=asset)
        assert transfer_bytes(one) == msgspec.json.encode(transfer_json(one))


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"invoice": 'no. "7"'}},
        {"expires_at": "2026-11-22T05:14:43.123456Z"},
        {"reverses": new_id()},
        {"reversed_by": new_id()},
        {"group_id": new_id()},
    ],
)
def test_what_is_special_is_told(more: dict[str, Any]) -> None:
    one = transfer(**more)
    written = transfer_bytes(one)
    assert written == msgspec.json.encode(transfer_json(one))
    TransferOut.model_validate_json(written)
