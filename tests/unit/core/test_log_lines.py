"""The quick way to a line of JSON: it writes what the careful way would, and misses no secret."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tbot.core import log, trace

# What secrets begin with, what they go on with, and what may be around them.
_PIECES = st.sampled_from([
    "eyJ", "eyJhbGciOi", ".", "tbk_", "tbt_", "tb", "whsec_", "otpauth://", "$argon2id$", "://", "@",
    ":", "/", "bearer ", "Bearer ", "BASIC ", "baſic ", "password", "Password=", "secret=", "Token=",
    "': '", '": "', "'", '"', "&", "=", "-", "_", "x", "ſ", "K", "é", "\n", "\\", " ",
    "0123456789abcdef", "QWERTYUIOPASDFGH", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
])  # fmt: skip
_TEXTS = st.lists(_PIECES, max_size=8).map("".join)
_VALUES: Any = st.one_of(
    _TEXTS, st.text(max_size=20), st.integers(), st.booleans(), st.none(),
    st.floats(allow_nan=False, allow_infinity=False), st.lists(_TEXTS, max_size=2),
    st.dictionaries(st.sampled_from(["token", "at"]), _TEXTS, max_size=2),
)  # fmt: skip
_NAMES = st.sampled_from(["order", "error", "client", "code", "note", "password"])


@given(_TEXTS)
@example("baſic abcdefgh")
@example("a\ntbk_0123456789abcdef")
def test_what_is_masked_was_suspicious_first(text: str) -> None:
    found = log._SECRET_VALUES.sub("[masked]", text)
    assert log.suspicious(text) or found == text
    assert log.masked(text) == found


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(_TEXTS, st.dictionaries(_NAMES, _VALUES, max_size=4))
def test_the_quick_line_says_what_the_careful_one_would(event: str, fields: Any) -> None:
    whole = {"event": event, "level": "info", "logger": "t", "timestamp": "now", **fields}
    line = log._line(dict(whole))
    assert line.isascii() and "\n" not in line
    assert json.loads(line) == json.loads(json.dumps(dict(log._allow(None, "", whole))))


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What is written as JSON; everything is heard."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    written = io.StringIO()
    with contextlib.redirect_stderr(written):
        log.configure("debug", "json")
    yield written
    structlog.reset_defaults()
    root.handlers[:], root.level = before, level


class Showy:
    """Something that shows a secret when it is asked what it is."""

    def __repr__(self) -> str:
        return "<Showy tbk_0123456789abcdef0123456789>"


def test_whatever_is_logged_is_one_line_of_json(out: io.StringIO) -> None:
    logger = structlog.get_logger("a.module")
    odd = ("\ud800", 2**80, float("nan"), "\x7f\x80", Showy(), b"tbk_0123456789abcdef", {1: {2}})
    for value in odd:
        logger.info("odd", error=value, found=[value])
    trace.naming({"request_id": "r-1", "level": "a lie"})
    logger.warning("told", order="7")
    trace.naming({})
    try:
        raise ValueError("bad tbk_0123456789abcdef0123456789")
    except ValueError as error:
        logger.exception("failed")
        logger.error("failed", exc_info=error)
    lines = out.getvalue().splitlines()
    assert len(lines) == len(odd) + 3
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert "tbk_0" not in out.getvalue()
    told = json.loads(lines[len(odd)])
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        "event": "told", "level": "warning", "logger": "a.module", "request_id": "r-1", "order": "7",
    }  # fmt: skip
    for line in lines[-2:]:
        failed = json.loads(line)
        assert failed["level"] == "error" and "ValueError: bad [masked]" in failed["exception"]
        assert "exc_info" not in failed


def test_standard_loggers_go_the_same_way(out: io.StringIO) -> None:
    logging.getLogger("some.library").error("tbk_0123456789abcdef é %s", "x", extra={"order": "1"})
    line = json.loads(out.getvalue())
    assert line == {**line, "event": "[masked] é x", "level": "error", "logger": "some.library"}
    assert "order" not in line, "what others attach is not written"


def test_what_nobody_hears_is_not_written_and_levels_are_kept() -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            log.configure("warning", "json")
        logger = structlog.get_logger("t")
        for name in ("debug", "info", "warning", "error", "critical"):
            getattr(logger, name)("said", code=name)
    finally:
        structlog.reset_defaults()
        root.handlers[:], root.level = before, level
    told = [json.loads(line)["level"] for line in written.getvalue().splitlines()]
    assert told == ["warning", "error", "critical"]


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    gone = io.StringIO()
    stderr, sys.stderr = sys.stderr, gone
    try:
        log.configure("info", "json")
        gone.close()
        structlog.get_logger("t").info("said")
        assert gone.closed
    finally:
        sys.stderr = stderr
        structlog.reset_defaults()
        root.handlers[:], root.level = before, level
