"""`python -m tbot.exchange`: the paper exchange as a process of its own."""

import typer

from tbot.exchange.cli import serve

if __name__ == "__main__":
    typer.run(serve)
