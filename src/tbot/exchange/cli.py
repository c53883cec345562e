"""`tbot exchange serve` and `tbot exchange stats`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tbot.core import log
from tbot.core.errors import ConfigurationError
from tbot.core.settings import ExchangeSettings, Settings
from tbot.exchange.server import run

app = typer.Typer(help="The paper exchange.", no_args_is_help=True, pretty_exceptions_enable=False)


def serve(
    data_dir: Annotated[
        Path | None, typer.Option(help="Its data directory; default: exchange in TBOT_DATA_DIR.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    source: Annotated[str | None, typer.Option(help="synthetic or replay.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the synthetic market.")] = None,
    replay: Annotated[
        list[Path] | None, typer.Option(help="A recording to play; repeat for several.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Times real time; 0 as fast as possible.")
    ] = None,
    wait_for: Annotated[
        list[str] | None, typer.Option(help="A stream that must have a listener first; repeat.")
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="Serve /paper/v1/faults.")] = False,
    die_with_parent: Annotated[
        bool, typer.Option("--die-with-parent", help="Stop when stdin ends.")
    ] = False,
) -> None:
    """Run the exchange until SIGTERM. Options overrule TBOT_EXCHANGE__… settings."""
    base = Settings()
    log.configure(base.log_level, base.log_form)
    changes: dict[str, Any] = {
        "host": host,
        "port": port,
        "source": source or ("replay" if replay else None),
        "seed": seed,
        "replay_files": replay or None,
        "replay_speed": speed,
        "replay_wait_for": wait_for or None,
        "faults": faults or None,
    }
    values = base.exchange.model_dump() | {k: v for k, v in changes.items() if v is not None}
    try:
        settings = ExchangeSettings.model_validate(values)
        _run(settings, data_dir or base.data_dir / "exchange", die_with_parent)
    except (ConfigurationError, ValueError) as error:
        print(f"tbot exchange: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


app.command("serve")(serve)


def _run(settings: ExchangeSettings, data_dir: Path, die_with_parent: bool) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(run(settings, data_dir, die_with_parent))
    else:
        uvloop.run(run(settings, data_dir, die_with_parent))
