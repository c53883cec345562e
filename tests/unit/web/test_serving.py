"""A server asks for as many open files as its clients may take."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
import structlog

from tbot.core.limit_settings import OverloadSettings
from tbot.core.settings import Settings, StreamSettings
from tbot.serving import allow_connections


@pytest.fixture
def few_files() -> Iterator[int]:
    """A process that was given few, and may have more: how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _settings(clients: int, connections: int = 100) -> Settings:
    overload = OverloadSettings(connections_max=connections)
    return Settings(stream=StreamSettings(clients_max=clients), overload=overload)


def test_it_gets_what_its_clients_take(few_files: int) -> None:
    """Those of the stream and those of HTTP have places of their own, and may all be there."""
    allow_connections(_settings(few_files - 1600, 1000))
    assert few_files - 600 < resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= few_files


def test_it_says_when_it_may_not(few_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with structlog.testing.capture_logs() as said:
        allow_connections(_settings(few_files))
    monkeypatch.undo()
    assert [event["event"] for event in said] == ["open_files_limited"]
    assert said[0]["limit"] == 512


def test_what_suffices_is_left_alone(few_files: int) -> None:
    allow_connections(_settings(few_files - 700))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_connections(_settings(1))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
