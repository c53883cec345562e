"""Signatures as Standard Webhooks has them, against its published example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbot.core.errors import InvalidSignature
from tbot.ledger.signatures import headers, secret_bytes, secret_text, sign, verify

# The example of the standard's reference implementations.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, AT, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def check(signatures: str = SIGNATURE, body: bytes = BODY, now_s: float = AT) -> None:
    verify(secret_bytes(SECRET), ID, str(AT), signatures, body, now_s=now_s, tolerance_s=300)


def test_the_published_example() -> None:
    assert sign(secret_bytes(SECRET), ID, AT, BODY) == SIGNATURE
    check()


def test_one_of_several_signatures_is_enough() -> None:
    check(f"v1,AAAA v1a,{SIGNATURE[3:]} {SIGNATURE}")
    with pytest.raises(InvalidSignature):
        check(" ".join(["v1,AAAA"] * 8 + [SIGNATURE]))


def test_every_secret_given_signs() -> None:
    other = bytes(24)
    sent = headers((other, secret_bytes(SECRET)), ID, AT, BODY)["webhook-signature"]
    assert sent == f"{sign(other, ID, AT, BODY)} {SIGNATURE}"
    check(sent)


@pytest.mark.parametrize("seconds", [-300, 300])
def test_the_tolerance_goes_both_ways(seconds: int) -> None:
    check(now_s=AT + seconds)
    with pytest.raises(InvalidSignature):
        check(now_s=AT + seconds + (1 if seconds > 0 else -1))


@given(st.binary(max_size=64), st.text(max_size=80))
def test_nothing_else_is_a_signature(body: bytes, text: str) -> None:
    if body != BODY:
        with pytest.raises(InvalidSignature):
            check(body=body)
    with pytest.raises(InvalidSignature):
        check(text)


@given(st.binary(min_size=24, max_size=64))
def test_secrets_survive_their_text(secret: bytes) -> None:
    assert secret_bytes(secret_text(secret)) == secret


@pytest.mark.parametrize("text", ["", "whsec", "whsec_§", "whsec_A", "MfKQ9r8G"])
def test_what_is_no_secret(text: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        secret_bytes(text)
