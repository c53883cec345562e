"""Logs: only listed fields, no secrets, and no text that could forge or deceive a line."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import tbot
from tbot.core import log

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
SECRETS = (
    JWT,
    "tbr_" + "r" * 43,
    "tbk_" + "k" * 43,
    "tbm_" + "m" * 43,
    "tbt_" + "t" * 43,
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "otpauth://totp/T-Bot:ann?secret=JBSWY3DPEHPK3PXP&issuer=T-Bot",
    "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA",
)
EVIL = "ann\r\n2026-11-22 [info] login user=root\x1b[2J\x9b31m\u2028\u202eevil\x00"


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts logging back as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = before, level


def written(capsys: pytest.CaptureFixture[str], form: Any, **fields: Any) -> list[str]:
    log.configure("debug", form)
    structlog.get_logger("t").info(fields.pop("event", "happened"), **fields)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.usefixtures("restored")
def test_our_secrets_are_masked_wherever_they_are(
    capsys: pytest.CaptureFixture[str], form: Any, secret: str
) -> None:
    lines = written(capsys, form, error=f"it was {secret} that failed", code=[{"x": secret}])
    assert len(lines) == 1 and secret not in lines[0] and "[masked]" in lines[0]
    log.configure("debug", form)
    logging.getLogger("some.library").warning("got %s", secret, extra={"note": secret})
    try:
        raise ValueError(f"bad input {secret}")
    except ValueError:
        structlog.get_logger("t").exception("failed")
    text = capsys.readouterr().err
    assert "bad input" in text and secret not in text


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdefgh12345678",
        "password=hunter2222 was wrong",
        '{"password": "hunter2222"}',
        "postgresql://ann:hunter2222@db/x",
    ],
)
def test_what_says_that_it_is_a_secret_is_masked(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (line,) = written(capsys, "json", error=text)
    assert "hunter2222" not in line and "abcdefgh12345678" not in line


@pytest.mark.usefixtures("restored")
def test_attack_59_a_name_of_control_characters_is_one_escaped_json_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (line,) = written(capsys, "json", name=EVIL, event=EVIL)
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["name"] == EVIL and json.loads(line)["event"] == EVIL


@pytest.mark.usefixtures("restored")
def test_attack_59_on_a_terminal_too(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = written(capsys, "text", name=EVIL, event=EVIL)
    assert line.isprintable() and "\\x0a" in line
    try:
        raise ValueError(EVIL)
    except ValueError:
        structlog.get_logger("t").exception("failed")
    first, *traceback = capsys.readouterr().err.splitlines()
    assert "failed" in first
    assert all(one.startswith("  | ") and one.isprintable() for one in traceback if one)


@pytest.mark.usefixtures("restored")
def test_only_listed_fields_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = written(capsys, "json", body="the whole of it", order="1", **{"x" * 100: "long"})
    event = json.loads(line)
    assert event["order"] == "1" and event["body"] == "[unlisted]"
    assert "the whole" not in line and "long" not in line
    assert max(map(len, event)) <= 40
    (line,) = written(capsys, "json", error="e" * 100_000)
    assert len(line) < 3000


def test_every_field_that_the_program_logs_is_listed() -> None:
    unlisted = []
    for path in sorted(Path(tbot.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not isinstance(node.func.value, ast.Name) or node.func.value.id != "_log":
                continue
            named = {word.arg for word in node.keywords if word.arg} - {"exc_info"}
            unlisted += [f"{path.name}:{node.lineno}: {one}" for one in sorted(named - log.FIELDS)]
    assert not unlisted, "list these in tbot.core.log.FIELDS, if no secret can be in them"


@pytest.mark.usefixtures("restored")
def test_a_level_that_nobody_hears_costs_nothing() -> None:
    log.configure("warning", "json")
    assert not log.heard(logging.INFO) and log.heard(logging.ERROR)
    assert logging.getLogger("httpx").level >= logging.WARNING
