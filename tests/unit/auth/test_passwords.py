"""Passwords: rules, and what an overloaded pool of hashers does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tbot.auth import passwords
from tbot.auth.passwords import Passwords
from tbot.core.errors import Overloaded
from tbot.core.settings import AuthSettings


@pytest.mark.parametrize(
    ("password", "broken"),
    [
        ("fourteen chars", "characters"),
        ("long enough pass", None),
        ("x" * 257, "characters"),
        ("a" * 20, "different"),
        ("my name is ann ok", "user name"),
        ("nul \x00 in the middle", "control"),
        ("lone \ud800 surrogate", "control"),
        ("пароль на пятнадцать", None),
    ],
)
def test_rules(password: str, broken: str | None) -> None:
    rule = Passwords(AuthSettings()).broken_rule("ann", password)
    assert rule is None if broken is None else rule is not None and broken in rule
    assert rule is None or password not in rule


async def test_hash_and_match() -> None:
    hasher = Passwords(AuthSettings())
    stored = await hasher.hash("correct horsé battery")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hasher.matches(stored, "correct horse\u0301 battery"), "composed differently"
    assert not await hasher.matches(stored, "wrong")
    assert not await hasher.matches("not a hash", "wrong")
    hasher.close()


async def test_attack_19_one_hash_for_whoever_asks() -> None:
    hasher = Passwords(AuthSettings())
    stored = await hasher.hash("correct horse battery")
    for known, offered in (
        (stored, "correct horse battery"),
        (stored, "wrong"),
        (None, "wrong"),
        (None, ""),
        (stored, "x" * 1_000_000),
        (None, "x" * 1_000_000),
        (stored, "\ud800"),
    ):
        before = hasher.hashes
        matched = await hasher.matches(known, offered)
        assert matched is (offered == "correct horse battery")
        assert hasher.hashes == before + 1
    hasher.close()


async def test_attack_21_a_flood_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(_stored: str, _password: str) -> bool:
        release.wait(10)
        return False

    monkeypatch.setattr(passwords, "_matches", slow)
    hasher = Passwords(AuthSettings(hash_workers=1, hash_queue_max=3))
    waiting = [asyncio.create_task(hasher.matches(None, "x")) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as error:
        await hasher.matches(None, "x")
    assert error.value.retry_after_s >= 1
    # A caller that goes away does not give its place to another while its thread still works.
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    with pytest.raises(Overloaded):
        await hasher.matches(None, "x")
    release.set()
    assert await asyncio.gather(*waiting[1:]) == [False] * 3
    assert await hasher.matches(None, "x") is False
    hasher.close()


def test_generated_passwords_keep_the_rules() -> None:
    hasher = Passwords(AuthSettings())
    made = {passwords.generated() for _ in range(100)}
    assert len(made) == 100
    assert all(hasher.broken_rule("admin", password) is None for password in made)
