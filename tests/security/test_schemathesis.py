"""The whole API against its own document: schemathesis sends what the document allows and forbids.

All of its checks are on: no server error, no undocumented answer, header or body, no way around
authentication. What business rules refuse (and say so) is no fault, and neither is a market that is
silent.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from tbot.auth.scopes import Role

pytestmark = pytest.mark.asyncio(loop_scope="session")
SELF_ENDING = ("end_session", "end_sessions", "change_password", "revoke_tokens", "change_user")
"""Operations after which the session that asks is over: they are tried apart, last."""
EVENTS = "follow_events"
ACCOUNTS = "list_accounts"
BULK = "create_transfers_in_bulk"
ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "412", "428", "429", "503"]
REFUSED = [
    *("400", "401", "403", "404", "405", "406", "408", "409", "412", "413", "414", "415", "422"),
    *("428", "429", "431", "5xx"),
]
CI = {"phases": "examples,stateful", "examples": 2}
NIGHTLY = {"phases": "examples,coverage,fuzzing,stateful", "examples": 40}


def rules(document: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Schemathesis' configuration for our document, as TOML (of which JSON values are a part)."""
    lines = [
        "continue-on-failure = true",
        "request-timeout = 60.0",
        "max-stream-events = 3",
        f"parameters = {{ {', '.join(f'{json.dumps(k)} = {json.dumps(v)}' for k, v in parameters.items())} }}",
        f"checks.positive_data_acceptance.expected-statuses = {json.dumps(ACCEPTED)}",
        f"checks.negative_data_rejection.expected-statuses = {json.dumps(REFUSED)}",
        # Documented as such: nobody sends orders here, and markets are quiet.
        'checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]',
    ]
    for methods in document["paths"].values():
        for operation in methods.values():
            more = []
            told = operation["responses"].get("422", {}).get("description", "")
            rules = set(told.partition(": ")[2].split(", ")) - {"", "`validation_failed`"}
            if rules or "requestBody" in operation:
                # Business rules, and names that deceive: more than a schema can say.
                more.append("422")
            if any(one["name"] == "cursor" for one in operation.get("parameters", ())):
                more.append("400")  # well-formed, and not of ours
            if operation["operationId"] == ACCOUNTS:
                more.append("422")  # filters of which one forbids the others
            if operation["operationId"] == EVENTS:
                more += ["400", "422"]  # wishes in a language of their own
            checks = []
            if more:
                checks.append(("positive_data_acceptance", ACCEPTED + more))
            if operation["operationId"] == BULK:
                # An item that breaks a rule is refused by itself, within a good answer.
                checks.append(("negative_data_rejection", [*REFUSED, "200"]))
            if checks:
                name = json.dumps(operation["operationId"])
                lines += ["[[operations]]", f"include-operation-id = {name}"]
                lines += [
                    f"checks.{check}.expected-statuses = {json.dumps(statuses)}"
                    for check, statuses in checks
                ]
    return "\n".join(lines) + "\n"


async def run(
    world: Any, place: Path, seed: int, phases: str, examples: int, *selection: str
) -> None:
    """One run; fails with what schemathesis found."""
    off = ("address", "strangers", "logins", "streams", "user", "reads", "writes", "exports")
    world = await world.new_server(limits=dict.fromkeys(off, "off"))
    root = await world.person(Role.ADMIN)
    other = await world.person()
    accounts = [(await world.site.account(root.http))["id"] for _ in range(2)]
    cash = [(await world.site.cash(root.http, USDT="5000"))["id"] for _ in range(2)]
    order = {
        "account_id": accounts[0],
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "limit",
        "quantity": "0.1",
        "limit_price": "99",
    }
    hook = {"account_id": cash[0], "url": "https://example.com/"}
    key = {"name": "k", "scopes": ["market:read"]}
    parameters = {
        "path.account_id": accounts + cash,
        "path.symbol": ["BTC-USDT", "ETH-USDT"],
        "path.name": ["trading", "transfers", "instrument:paper:BTC-USDT"],
        "path.user_id": str(other.id),
        "path.order_id": (await root.http.post("/v1/orders", json=order)).json()["id"],
        "path.webhook_id": (await root.http.post("/v1/webhooks", json=hook)).json()["id"],
        "path.key_id": (await root.http.post("/v1/api-keys", json=key)).json()["id"],
        "query.venue": "paper",
    }
    document = (await root.http.get("/openapi.json")).json()
    settings = place / "schemathesis.toml"
    settings.write_text(rules(document, parameters))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings)),
        *("run", f"{world.url}/openapi.json", "--checks", "all", "--phases", phases),
        *("--max-examples", str(examples), "--seed", str(seed), "--no-shrink"),
        *("--header", f"Authorization: Bearer {root.token}", *selection),
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=place,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    text = said.decode()
    found, _, _ = text.partition("=== WARNINGS ===")
    assert process.returncode == 0, f"seed {seed}\n{found}"
    assert "Tested: 0" not in text
    if not any("--include" in one for one in selection):
        assert (await root.http.get("/v1/me")).status_code == 200, "the session lived throughout"


def excluding(*names: str) -> list[str]:
    return [word for name in names for word in ("--exclude-operation-id", name)]


def including(*names: str) -> list[str]:
    return [word for name in names for word in ("--include-operation-id", name)]


async def test_a_sample_of_the_api(world: Any, tmp_path: Path) -> None:
    await run(world, tmp_path, 1, CI["phases"], CI["examples"], *excluding(*SELF_ENDING))


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, None], ids=["fixed", "random"])
async def test_the_whole_api(world: Any, tmp_path: Path, seed: int | None) -> None:
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    print(f"seed {seed}")
    phases, examples = NIGHTLY["phases"], NIGHTLY["examples"]
    await run(world, tmp_path, seed, phases, examples, *excluding(*SELF_ENDING))
    await run(world, tmp_path, seed, phases, examples, *including(*SELF_ENDING))
