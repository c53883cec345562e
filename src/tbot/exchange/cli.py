"""`tbot exchange serve` and `tbot exchange stats`."""

from __future__ import annotations

import asyncio
import sys
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tbot.core import log
from tbot.core.errors import ConfigurationError
from tbot.core.settings import ExchangeSettings, Settings
from tbot.exchange.replay import Replay
from tbot.exchange.server import run
from tbot.exchange.stats import Figures, measure, table
from tbot.exchange.synthetic import Synthetic

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


@app.command("stats")
def stats_command(
    replay: Annotated[
        list[Path] | None, typer.Option(help="A recording to measure; repeat for several.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the synthetic market.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long a stretch of the synthetic market to measure.")
    ] = 600.0,
    symbol: Annotated[
        list[str] | None, typer.Option(help="Only this symbol; repeat for several.")
    ] = None,
) -> None:
    """Measure the synthetic market, beside recordings when some are given."""
    columns: dict[str, Figures] = {}
    try:
        if replay:
            recording = Replay(replay)
            measured = measure(recording.openings(), recording.events())
            columns |= {f"{name} recorded": found for name, found in measured.items()}
    except ConfigurationError as error:
        print(f"tbot exchange stats: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    market = Synthetic(seed, 0)
    stretch = takewhile(lambda timed: timed.at_ns < seconds * 1e9, market.events())
    recorded = {title.split()[0] for title in columns}
    for name, found in measure(market.openings(), stretch).items():
        if symbol or not recorded or name in recorded:
            columns[f"{name} synthetic"] = found
    if symbol:
        columns = {k: v for k, v in columns.items() if k.split()[0] in symbol}
    Console().print(table(dict(sorted(columns.items()))))


def _run(settings: ExchangeSettings, data_dir: Path, die_with_parent: bool) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(run(settings, data_dir, die_with_parent))
    else:
        uvloop.run(run(settings, data_dir, die_with_parent))
