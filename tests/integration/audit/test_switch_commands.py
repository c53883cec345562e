"""`tbot switches` at the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest


async def test_a_halt_and_its_end_at_the_command_line(tbot: Any, desk: Any) -> None:
    assert (await tbot("switches", "list"))[1] == "No switch was ever turned: everything trades.\n"
    code, said, _ = await tbot("switches", "halt", "trading", "--reason", "an inspection")
    assert (code, said) == (0, "trading is halted.\n")
    account = await desk.open(USDT="1000")
    assert (await desk.place(account)).detail == "an inspection"
    code, said, _ = await tbot("switches", "resume", "trading", "--reason", "done")
    assert code == 1
    assert "Nothing was changed. Say --confirm to do this." in said
    assert "an inspection" in said
    code, said, _ = await tbot("switches", "resume", "trading", "--reason", "done", "--confirm")
    assert code == 0
    assert said.endswith("trading is resumed.\n")
    assert (await desk.place(account)).result.order
    code, said, _ = await tbot("switches", "list", "trading", "--json")
    turns = [json.loads(line) for line in said.splitlines()]
    assert [(turn["halted"], turn["reason"]) for turn in turns] == [
        (False, "done"),
        (True, "an inspection"),
    ]
    assert all(turn["by"].startswith("operator ") for turn in turns)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["halt", "venues", "--reason", "x"], "'venues' is no switch"),
        (["halt", "trading", "--reason", " "], "--reason needs some words"),
        (["resume", "trading", "--reason", "x"], "trading is not halted"),
        (["list", "nothing"], "'nothing' is no switch"),
    ],
)
def test_bad_input_is_one_clear_line(tbot_here: Any, arguments: list[str], words: str) -> None:
    code, said, told = tbot_here("switches", *arguments)
    assert code in (1, 2)
    assert words in told
    assert (said, told.count("\n")) == ("", 1)
