"""What every command shares: settings, output, and errors as one clear line with an exit code.

Exit codes: 0 done; 1 a definite no (refused, or faults were found); 2 it cannot run like this (the
message says what to do); 3 the server or the database is not there, or the outcome is unknown; 130
interrupted.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any, Final

import rich.console
from pydantic import ValidationError

from tbot.core.errors import (
    ConfigurationError,
    IntegrityError,
    OutcomeUnknown,
    TBotError,
    Unavailable,
    VenueError,
)
from tbot.core.settings import Settings

REFUSED: Final = 1
CANNOT: Final = 2
AWAY: Final = 3
INTERRUPTED: Final = 130

# In a pipe nothing may be folded to a width that nobody has.
_WIDTH: Final = None if sys.stdout.isatty() else 200

out: Final = rich.console.Console(highlight=False, soft_wrap=True, width=_WIDTH)
err: Final = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)


def load_settings() -> Settings:
    """The settings of the environment.

    Raises:
        ConfigurationError: One is unknown or has no sense; the message names its variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        parts = []
        for problem in error.errors():
            name = "TBOT_" + "__".join(str(part).upper() for part in problem["loc"])
            parts.append(f"{name}: {problem['msg']}")
        raise ConfigurationError("; ".join(parts) + " (see docs/settings.md)") from None


def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine, on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


def exit_code(error: BaseException) -> int | None:
    """The exit code for an error that deserves one line; None for a fault of the program.

    The error's text is what the line says.
    """
    import asyncpg
    import httpx

    from tbot.client import errors as client_errors

    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return INTERRUPTED
    if isinstance(error, ConfigurationError):
        return CANNOT
    if isinstance(error, IntegrityError):
        return REFUSED
    if isinstance(error, Unavailable | OutcomeUnknown | VenueError):
        return AWAY
    if isinstance(error, client_errors.Unavailable | client_errors.OutcomeUnknown):
        return AWAY
    if isinstance(error, TBotError | client_errors.TBotError):
        return REFUSED
    if isinstance(error, httpx.TransportError | ConnectionError):
        return AWAY
    if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.InvalidPasswordError):
        return AWAY
    return None


def complain(text: str) -> None:
    """One line on stderr."""
    line = " ".join(text.split())
    sys.stderr.write(f"tbot: {line}\n")


def status(text: str) -> AbstractContextManager[Any]:
    """A spinner on a terminal, nothing elsewhere."""
    return err.status(text)
