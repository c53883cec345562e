"""The catalogue of problems, and the one mapping from errors to it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tbot.core import errors
from tbot.core.refusals import Reason, Refused
from tbot.web.problems import CATALOGUE, Problem, catalogue_markdown, problem_of, refused

DOCS = Path(__file__).parents[3] / "docs" / "problems.md"

MAPPED = {
    errors.AuthError("x"): (401, "unauthenticated"),
    errors.InvalidCredentials("x"): (401, "invalid_credentials"),
    errors.InvalidToken("x"): (401, "invalid_token"),
    errors.InsufficientScope("admin"): (403, "insufficient_scope"),
    errors.NotFound("x"): (404, "not_found"),
    errors.InvalidCursor("x"): (400, "invalid_cursor"),
    errors.InvalidAmount("x"): (422, "validation_failed"),
    errors.InvalidUser("username", "x"): (422, "validation_failed"),
    errors.UserExists("x"): (409, "user_exists"),
    errors.Unavailable("x", 2.5): (503, "unavailable"),
    errors.Overloaded("x"): (503, "overloaded"),
    errors.JournalUnavailable("x"): (503, "unavailable"),
    errors.MarketDataUnavailable("x"): (503, "unavailable"),
    errors.OutcomeUnknown("x"): (504, "outcome_unknown"),
    errors.VenueDown("x"): (503, "unavailable"),
    errors.VenueRateLimited("x", "", 7.0): (503, "unavailable"),
    asyncpg.ConnectionDoesNotExistError("x"): (503, "unavailable"),
    ConnectionRefusedError("x"): (503, "unavailable"),
    FileNotFoundError("x"): (503, "unavailable"),
}


@pytest.mark.parametrize("error", list(MAPPED), ids=lambda error: type(error).__name__)
def test_each_error_has_its_status(error: Exception) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert (problem.status_code, problem.code) == MAPPED[error]
    headers = problem.headers or {}
    assert ("WWW-Authenticate" in headers) == (problem.status_code in (401, 403))
    assert ("Retry-After" in headers) == (problem.status_code == 503)


def test_retry_after_is_never_too_early() -> None:
    problem = problem_of(errors.Unavailable("x", 2.1))
    assert problem is not None
    assert problem.headers == {"Retry-After": "3"}


def test_every_error_that_may_reach_the_edge_is_decided() -> None:
    ours = {
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if error.__module__ == errors.__name__
    }
    known = {type(error) for error in MAPPED}
    # Faults of ours answer 500; venue errors never leave the gateway but for deposits.
    fault = {errors.TBotError, errors.ConfigurationError, errors.IntegrityError}
    for error in ours - known - fault:
        assert any(issubclass(error, base) for base in (*known, *fault, errors.VenueError)), error


@pytest.mark.parametrize("error", [ValueError("secret"), errors.IntegrityError("x"), KeyError("x")])
def test_a_fault_of_ours_is_no_problem_of_the_caller(error: Exception) -> None:
    assert problem_of(error) is None


@pytest.mark.parametrize("reason", list(Reason))
def test_each_refusal_has_a_document(reason: Reason) -> None:
    problem = refused(Refused(reason, "why", {"limit": "5"}))
    document = problem.document("r1")
    assert document["code"] == reason.value
    assert document["status"] in (403, 404, 409, 412, 422, 503)
    assert document["facts"] == {"limit": "5"}
    assert document["title"]
    assert not set(CATALOGUE) & {reason.value}


def test_documents_are_inert_whatever_is_reflected() -> None:
    body = Problem("bad_request", '<script>"\r\n\ud800\u202e').response("r1").body
    parsed: dict[str, Any] = json.loads(bytes(body))
    assert parsed["detail"].startswith("<script>")
    assert bytes(body).isascii()
    assert b"\n" not in bytes(body)


def test_errors_are_capped() -> None:
    many = [{"pointer": f"/{i}", "detail": "x"} for i in range(1000)]
    assert len(Problem("validation_failed", "x", errors=many).document("r1")["errors"]) == 50


def test_the_documentation_is_what_the_code_says() -> None:
    assert DOCS.read_text(encoding="utf-8") == catalogue_markdown(), "run `make docs`"
