"""Settings that could never work are refused at the start."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tbot.core.settings import AuthSettings, HttpSettings, StreamSettings

GOOD = ["https://app.example.com", "http://localhost:3000", "http://[::1]:80", "app-x://a_b.c-d"]
BAD = ["https://app.example.com/", "app.example.com", "*", "https://*.example.com", "null", ""]
NEVER = ["https://App.example.com", "https://exämple.com", "https://a b", "https://a.com\n"]


@pytest.mark.parametrize("origin", GOOD)
def test_origins_are_what_browsers_send(origin: str) -> None:
    assert HttpSettings(cors_origins=[origin]).cors_origins == [origin]
    assert AuthSettings(browser_origins=[origin]).browser_origins == [origin]
    assert StreamSettings(origins=[origin]).origins == [origin]


@pytest.mark.parametrize("origin", [*BAD, *NEVER])
def test_an_origin_that_no_browser_sends_is_an_error(origin: str) -> None:
    for make in (
        lambda: HttpSettings(cors_origins=[origin]),
        lambda: AuthSettings(browser_origins=[origin]),
        lambda: StreamSettings(origins=[origin]),
    ):
        with pytest.raises(ValidationError):
            make()
