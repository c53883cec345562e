"""Secrets of second factors are sealed for one user under one key, and opened by nothing else."""

from __future__ import annotations

from uuid import UUID

import pytest
from pydantic import SecretStr, ValidationError

from tbot.auth.sealing import Sealing
from tbot.core.errors import ConfigurationError, IntegrityError
from tbot.core.settings import AuthSettings

ANN, BOB = UUID(int=1), UUID(int=2)
KEY, OTHER = "first key, thirty-two characters", "other key, thirty-two characters"
SECRET = b"12345678901234567890"


def test_what_is_sealed_is_opened_by_its_key_for_its_user() -> None:
    sealing = Sealing(KEY)
    sealed = sealing.seal(ANN, SECRET)
    assert SECRET not in sealed.stored
    assert sealed.sealed_by == sealing.current and KEY.encode() not in (sealed.sealed_by or b"")
    assert sealing.open(ANN, *sealed) == SECRET
    assert Sealing(KEY).open(ANN, *sealed) == SECRET, "another process"
    assert sealing.seal(ANN, SECRET).stored != sealed.stored, "no nonce is used twice"
    with pytest.raises(IntegrityError):
        sealing.open(BOB, *sealed)


def test_whatever_is_changed_is_not_opened() -> None:
    sealing = Sealing(KEY)
    stored, sealed_by = sealing.seal(ANN, SECRET)
    for place in range(len(stored)):
        changed = bytearray(stored)
        changed[place] ^= 1
        with pytest.raises(IntegrityError):
            sealing.open(ANN, bytes(changed), sealed_by)
    for shorter in (stored[:-1], stored[:12], b""):
        with pytest.raises((IntegrityError, ValueError)):
            sealing.open(ANN, shorter, sealed_by)


def test_keys_are_told_apart_and_changed() -> None:
    sealed = Sealing(KEY).seal(ANN, SECRET)
    for without in (Sealing(), Sealing(OTHER)):
        with pytest.raises(ConfigurationError, match="TBOT_AUTH__FACTOR_KEY"):
            without.open(ANN, *sealed)
    changing = Sealing(OTHER, before=KEY)
    assert changing.open(ANN, *sealed) == SECRET
    anew = changing.seal(ANN, SECRET)
    assert anew.sealed_by != sealed.sealed_by
    assert Sealing(OTHER).open(ANN, *anew) == SECRET


def test_without_a_key_secrets_stay_as_they_are() -> None:
    assert Sealing().seal(ANN, SECRET) == (SECRET, None)
    assert Sealing(KEY).open(ANN, SECRET, None) == SECRET


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        AuthSettings(factor_key=SecretStr(KEY[:-1]))
    assert KEY not in repr(AuthSettings(factor_key=SecretStr(KEY)))
