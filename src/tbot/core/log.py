"""Structured logs: one JSON line an event, or readable lines on a terminal; never a secret.

Events are stable snake_case names; whatever varies is a field. Three guards keep secrets out: only
fields of `FIELDS` are written, whatever a secret's name is masked even there, and so is anything in
a text that looks like one of our tokens or says of itself that it is a password. Control characters
cannot break a line or deceive who reads it: JSON escapes them, and the terminal form does the same.
docs/logging.md tells the rest.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

from tbot.core import trace

FIELDS: Final = frozenset("""
    account address age_s asked at_byte bucket by cache candle check client client_id clients
    code command commands complete cut_bytes detail dropped duration_ms duty ended entries epoch
    error events evidence file first for_s found holder id index instruments interval key_id kid
    known landed last_id late_s lease leaves limit method missing name offset_ms op open order
    orders outcome path payment pid position reason records reference report request_id role
    route said seq session session_id signal signs_in_s source span_id speed status symbol task
    through timeout_s trace_id update_id url user_id venue venue_order_id version wanted webhook
    why
    """.split())  # noqa: SIM905 - read as text, it is a list that one can read
"""What an event may carry besides `event`, `level`, `logger`, `timestamp` and a traceback.

Whoever adds one asks first: can a caller put anything there that must not be read by others?
"""
_FRAME: Final = frozenset(
    {"event", "level", "logger", "timestamp", "exception", "stack", "exc_info"}
    | {"_record", "_from_structlog"}
)
_SECRET_NAMES: Final = re.compile(
    r"pass(word|wd)|secret|token|authorization|cookie|api_?key|signature|otp|credential|dsn",
    re.IGNORECASE,
)
_SECRET_VALUES: Final = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # JSON web tokens
    r"|\btb[a-z]_[\w-]{16,}"  # refresh tokens, API keys, tickets, logins that wait
    r"|\bwhsec_[\w+/=-]+"
    r"|\botpauth://\S+"
    r"|\$argon2\w*\$\S+"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"  # user:password in a URL
    r"|(?i:(?<=bearer )|(?<=basic ))[\w.~+/=-]{8,}"
    r"|(?i:(?<=password=)|(?<=secret=)|(?<=token=)|(?<=password': ')|(?<=password\": \"))[^\s&'\"]+"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MASK: Final = "[masked]"
_UNLISTED: Final = "[unlisted]"
_LENGTH_MAX: Final = 2000
_TRACEBACK_LENGTH_MAX: Final = 20_000


def masked(value: Any) -> Any:
    """A copy of a JSON-like value without anything that looks like a secret.

    Example:
        >>> masked({"password": "hunter2", "user": "ann"})
        {'password': '[masked]', 'user': 'ann'}
    """
    if isinstance(value, str):
        return _SECRET_VALUES.sub(_MASK, value)
    if isinstance(value, dict):
        return {
            key: (
                _MASK
                if isinstance(key, str) and _SECRET_NAMES.search(key) and item
                else masked(item)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def _allow(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write only what is meant to be written, and that without secrets."""
    kept: dict[str, Any] = {}
    for key, value in event.items():
        if key in ("exc_info", "_record", "_from_structlog"):
            kept[key] = value
        elif key in FIELDS or key in _FRAME:
            kept[key] = _cut(masked({key: value})[key], key)
        else:
            # The name tells whoever misses it where to look: it has to be listed first.
            kept[key[:40]] = _UNLISTED
    return kept


def _cut(value: Any, key: str) -> Any:
    most = _TRACEBACK_LENGTH_MAX if key in ("exception", "stack") else _LENGTH_MAX
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]}… ({len(value)} characters)"
    return value


def _escape(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Of the terminal form: one line stays one line, and of a traceback each is marked as such."""
    for key, value in event.items():
        if not isinstance(value, str):
            continue
        if key in ("exception", "stack"):
            event[key] = "\n".join(f"  | {_visible(line)}" for line in value.split("\n"))
        else:
            event[key] = _visible(value)
    return event


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_least = logging.NOTSET


def heard(level: int) -> bool:
    """Whether an event of this level (`logging.INFO` …) is written anywhere."""
    return level >= _least


def configure(level: str = "info", form: Literal["auto", "json", "text"] = "auto") -> None:
    """Send structlog and standard logging to stderr through the same guards.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `json` for machines, `text` for people, `auto` to choose by whether stderr is a
            terminal.
    """
    global _least  # noqa: PLW0603 - logging is the process's
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        trace.merged,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _allow,
    ]
    renderer: list[Any] = (
        [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if as_text
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # Of other libraries' records the text alone: what they attach is nobody's to read.
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _least = root.level
    for noisy in ("httpx", "httpcore", "websockets", "asyncio", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
