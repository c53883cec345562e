"""Structured logs: one JSON line an event, or readable lines on a terminal; never a secret.

Events are stable snake_case names; whatever varies is a field. Two guards keep secrets out: fields
with telling names are masked, and so is anything in a value that looks like one of our tokens.
Control characters cannot break a line: JSON escapes them, and the terminal form does the same.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

_SECRET_NAMES: Final = re.compile(
    r"pass(word|wd)|secret|token|authorization|cookie|api_?key|signature|otp|credential|dsn",
    re.IGNORECASE,
)
_SECRET_VALUES: Final = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # JSON web tokens
    r"|tbr_[\w-]{16,}"  # refresh tokens
    r"|\$argon2\w*\$\S+"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)",  # user:password in a URL
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MASK: Final = "[masked]"


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


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {
        key: (
            value
            if key in ("exc_info", "_record", "_from_structlog")
            else masked({key: value})[key]
        )
        for key, value in event.items()
    }


def _escape(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
    return event


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
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _mask,
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
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _least = root.level
    for noisy in ("httpx", "httpcore", "websockets", "asyncio", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
