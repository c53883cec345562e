"""Structured logs: one JSON line an event, or readable lines on a terminal; never a secret.

Events are stable snake_case names; whatever varies is a field. Three guards keep secrets out: only
fields of `FIELDS` are written, whatever a secret's name is masked even there, and so is anything in
a text that looks like one of our tokens or says of itself that it is a password. Control characters
cannot break a line or deceive who reads it: JSON escapes them, and the terminal form does the same.
docs/logging.md tells the rest.

As JSON, the program's own events do not go through standard logging: an access log costs every
request one. Each is encoded first; if its line is plain (scalars of listed fields, nothing escaped,
nothing that even begins like a secret) it is written as it is, and otherwise looked at with care.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import msgspec
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
_OUR_TOKENS: Final = re.compile(r"tb[a-z]_")
_HINTS: Final = (
    *("eyj", "whsec_", "$argon2", "://", "bearer ", "basic "),
    *("password=", "secret=", "token=", "password'", 'password"'),
)
"""One of these, or `_OUR_TOKENS`, is in every text that `_SECRET_VALUES` finds something in."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SCALARS: Final = (str, int, float, bool, type(None))
_PLAIN: Final = frozenset(
    name
    for name in FIELDS | {"event", "level", "logger", "timestamp"}
    if not _SECRET_NAMES.search(name)
)
_PLAIN_TYPES: Final = frozenset(_SCALARS)
_MASK: Final = "[masked]"
_UNLISTED: Final = "[unlisted]"
_LENGTH_MAX: Final = 2000
_TRACEBACK_LENGTH_MAX: Final = 20_000


def suspicious(text: str) -> bool:
    """Whether a text may have something in it that looks like a secret: quick, and too careful.

    Example:
        >>> suspicious("order_sent"), suspicious("tbk_"), suspicious("BASIC")
        (False, True, False)
    """
    if not text.isascii() or _OUR_TOKENS.search(text) is not None:
        return True  # other alphabets have letters that pass for an s or an i
    lower = text.lower()
    for hint in _HINTS:  # noqa: SIM110 - twice as quick as any()
        if hint in lower:
            return True
    return False


def masked(value: Any) -> Any:
    """A copy of a JSON-like value without anything that looks like a secret.

    Example:
        >>> masked({"password": "hunter2", "user": "ann"})
        {'password': '[masked]', 'user': 'ann'}
    """
    if isinstance(value, str):
        return _SECRET_VALUES.sub(_MASK, value) if suspicious(value) else value
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
    # Whatever else there is would be written as it shows itself.
    return value if isinstance(value, _SCALARS) else masked(repr(value))


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


_encode: Final = msgspec.json.Encoder().encode


def _line(event: dict[str, Any]) -> str:
    """An event as a line of JSON that may be written."""
    if event.keys() <= _PLAIN and _PLAIN_TYPES.issuperset(map(type, event.values())):
        line = _json(event)
        # Without a backslash the values are in it as they are, so that one look is enough.
        if len(line) <= _LENGTH_MAX and "\\" not in line and not suspicious(line):
            return line
    return _json(dict(_allow(None, "", event)))


def _json(event: dict[str, Any]) -> str:
    """An event in ASCII without control characters."""
    try:
        encoded = _encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        encoded = b"\xff"  # lone surrogates, huge numbers and the like: Python's own can do them
    line = encoded.decode("ascii") if encoded.isascii() else json.dumps(event, default=repr)
    return line.replace("\x7f", "\\u007f")


def _now() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _rendered(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """All that the chain of processors does for an event of ours, in one step."""
    frame = {"event": event["event"], "level": method, "logger": logger.name, "timestamp": _now()}
    made = {**frame, **trace.names(), **event, **frame}
    if "exc_info" in made or "stack_info" in made:
        stacked = structlog.processors.StackInfoRenderer()(logger, method, made)
        made = dict(structlog.processors.format_exc_info(logger, method, stacked))
    return _line(made)


class _Sink:
    """Writes lines under the name of a module.

    Args:
        stream: Where to.
    """

    __slots__ = ("_stream", "name")

    def __init__(self, name: str, stream: TextIO) -> None:
        self.name = name
        self._stream = stream

    def write(self, line: str) -> None:
        """Write a line, in one piece. What cannot be written is lost: nothing else is to suffer."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError, RuntimeError):
            pass  # gone, closed, or written to from a signal's handler in the middle of a line


class _Sinks:
    """The sinks of one stream, a module's always the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._known: dict[str, _Sink] = {}

    def __call__(self, name: str = "tbot", *_: Any) -> _Sink:
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = _Sink(name, self._stream)
        return found


class _Logger(structlog.BoundLoggerBase):
    """What modules log with: an event that nobody hears costs a comparison."""

    def debug(self, event: str, **fields: Any) -> None:
        """For who looks for a fault."""
        if _least <= logging.DEBUG:
            self._log("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens in the course of things."""
        if _least <= logging.INFO:
            self._log("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What somebody should look at some time."""
        if _least <= logging.WARNING:
            self._log("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What somebody has to look at."""
        if _least <= logging.ERROR:
            self._log("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error, with the traceback of the exception at hand."""
        self.error(event, **{"exc_info": True, **fields})

    def critical(self, event: str, **fields: Any) -> None:
        """What somebody has to look at now."""
        if _least <= logging.CRITICAL:
            self._log("critical", event, fields)

    def _log(self, method: str, event: str, fields: dict[str, Any]) -> None:
        try:
            written, named = self._process_event(method, event, fields)
        except structlog.DropEvent:
            return
        self._logger.write(*written, **named)


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
    if as_text:
        renderer: list[Any] = [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        structlog.configure(
            processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=False,
        )
    else:
        renderer = [lambda _logger, _method, event: _json(event)]
        structlog.configure(
            processors=[_rendered],
            wrapper_class=_Logger,
            logger_factory=_Sinks(sys.stderr),
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
