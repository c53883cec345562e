"""The SDK against the OpenAPI document: what each of its methods sends and reads is in it.

Every public method is called with made-up arguments against a server that answers nothing useful;
its request is checked as the document has it: path, method, parameters, headers, body. What it
would read is checked against the schema of the answer. A method that this does not reach fails.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tbot.client import TBotClient, TBotError
from tbot.client.http import Api
from tbot.client.transfers import NewTransfer

ID = "0199f3a2-7c4e-7c51-9d0e-3f6b8a2c4d10"
NEW = NewTransfer(ID, ID, "USDT", "1.5", pending=True, expires_in_s=60, metadata={"a": "b"})
SAMPLES: dict[str, Any] = {
    "account_id": ID, "order_id": ID, "transfer_id": ID, "payment_id": ID, "webhook_id": ID,
    "source": ID, "target": ID, "user_id": ID, "key_id": ID, "session_id": ID,
    "symbol": "BTC-USDT", "side": "buy", "asset": "USDT", "amount": "1.5", "quantity": "1.5",
    "limit_price": "99.5", "quote": "USDT", "name": "main", "destination": "DE89", "reason": "no",
    "url": "https://example.com/", "kinds": ["order.filled"], "enabled": True, "from_sequence": 1,
    "starting_balance": {"USDT": "10"}, "venue": "paper", "status": "frozen", "is_open": True,
    "limits": {"max_open_orders": 3}, "time_in_force": "gtc", "client_order_id": "a-1",
    "wait_s": 1.0, "timeout_s": 0.0, "depth": 20, "limit": 5, "page": 10, "after": 3,
    "interval": "1m", "overlap_s": 60, "begin": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z",
    "at": "2026-11-02T00:00:00Z", "holds": False, "metadata": {"a": "b"}, "pending": True, "halted": True, "to_come": True,
    "expires_in_s": 60, "transfers": [NEW, NEW], "key": "k-1", "dead": True, "state": None,
    "if_match": '"5f0c3e9a1b2d4c6e.41"', "kind": None, "quote_amount": None, "post_only": True, "scope": "market:read", "role": "trader", "change_user.status": "disabled",
}  # fmt: skip
BESIDE_HTTP = {"close", "events", "stream"}
"""Of the client itself: ends it, opens a stream of events, and a WebSocket."""
NEEDLESS = {
    ("Idempotency-Key", "issue_ticket"),
}
"""Sent, and ignored: a spare ticket runs out."""
PARTS = ("", "candles", "statements", "transfers", "payments", "webhooks", "switches")


class Document:
    """The document, asked about requests."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self._registry = Registry().with_resource("urn:tbot", resource)

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema, following what it refers to."""
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def operation(self, method: str, path: str) -> tuple[str, dict[str, Any]]:
        """The operation that a request is for; a literal path goes before one with parameters."""
        for template in sorted(self.document["paths"], key=lambda one: one.count("{")):
            pattern = re.sub(r"\{\w+\}", "[^/]+", template)
            operation = self.document["paths"][template].get(method.lower())
            if operation is not None and re.fullmatch(pattern, path):
                return template, operation
        raise AssertionError(f"the document has no {method} {path}")

    def faults(self, value: Any, schema: dict[str, Any]) -> list[str]:
        """How a value does not fit a schema."""
        whole = {**schema, "components": self.document["components"]}
        validator = OAS31Validator(whole, registry=self._registry)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]

    def check(self, request: httpx.Request) -> dict[str, Any]:
        """Check a request; the operation that it is for."""
        path = request.url.path
        _, operation = self.operation(request.method, path)
        parameters = {(one["in"], one["name"]): one for one in operation.get("parameters", ())}
        for name, value in request.url.params.multi_items():
            assert ("query", name) in parameters, f"{path}: parameter {name} is not documented"
            schema = parameters["query", name]["schema"]
            texts: list[Any] = [value]
            texts += [int(value)] if value.isdigit() else []
            texts += [value == "true"] if value in ("true", "false") else []
            assert any(not self.faults(one, schema) for one in texts), (path, name, value)
        for name in ("Idempotency-Key", "Prefer", "If-Match"):
            if name in request.headers and (name, operation["operationId"]) not in NEEDLESS:
                assert ("header", name) in parameters, f"{request.method} {path}: {name}"
        missing = [
            name
            for (place, name), one in parameters.items()
            if one.get("required")
            and not (
                place == "path"
                or name in request.url.params
                or (place == "header" and name in request.headers)
            )
        ]
        assert not missing, (path, missing)
        body = operation.get("requestBody")
        if request.content:
            assert body is not None, f"{request.method} {path} takes no body"
            schema = body["content"]["application/json"]["schema"]
            found = self.faults(msgspec.json.decode(request.content), schema)
            assert not found, (request.method, path, found)
        else:
            assert body is None or not body.get("required"), path
        return operation

    def answer(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The schema of what a good answer brings."""
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get("application/json")
            if status.startswith("2") and content is not None:
                return self.resolved(content["schema"])
        raise AssertionError("no good answer in JSON is documented")


def methods(client: TBotClient) -> Iterator[tuple[str, Any]]:
    for part in PARTS:
        owner = getattr(client, part) if part else client
        for name, function in inspect.getmembers(type(owner), inspect.isfunction):
            if not name.startswith("_") and not (part == "" and name in BESIDE_HTTP):
                yield f"{part}.{name}".strip("."), getattr(owner, name)
                assert function.__doc__


def arguments(function: Any, tmp_path: Path) -> dict[str, Any]:
    given = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "target" and "Path" in str(parameter.annotation):
            given[name] = tmp_path / "file"
        elif name == "format":
            given[name] = "ndjson"
        else:
            method = f"{function.__name__}.{name}"
            assert {name, method} & set(SAMPLES), f"give {name} a sample in this test"
            given[name] = SAMPLES.get(method, SAMPLES.get(name))
    return given


async def call(function: Any, tmp_path: Path) -> None:
    given = arguments(function, tmp_path)
    with pytest.raises((TBotError, TimeoutError)):
        made = function(**given)
        if inspect.isawaitable(made):
            await made
        else:
            async for _ in made:
                pass


def takes(operation: dict[str, Any], header: str) -> bool:
    """Whether an operation takes a header."""
    return any(
        (one["in"], one["name"]) == ("header", header) for one in operation.get("parameters", ())
    )


def is_tagged(operation: dict[str, Any]) -> bool:
    """Whether its good answers have a tag."""
    good = [one for status, one in operation["responses"].items() if status.startswith("2")]
    return any("ETag" in one.get("headers", ()) for one in good)


type Promises = dict[type, set[str]]


def reads(
    document: Document, kind: Any, schema: dict[str, Any], where: str, promises: Promises
) -> None:
    """Check that what a type of the SDK needs is what the schema promises; note all it promises."""
    if not hasattr(kind, "__dataclass_fields__") and not hasattr(kind, "__struct_fields__"):
        return
    schema = document.resolved(schema)
    always = set(schema.get("required", ()))
    for one in fields_of(kind):
        assert not one.required or one.encode_name in always, f"{where}: {one.encode_name}"
    promises.setdefault(kind, set()).update(schema.get("properties", {}))


def fields_of(kind: Any) -> Any:
    """What msgspec reads into a type."""
    return msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]


async def test_every_method_sends_and_reads_what_the_document_says(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = Document(document)
    requests: list[httpx.Request] = []
    results: list[Any] = []
    request, pages = Api.request, Api.pages

    def noted(original: Any) -> Any:
        def wrapper(self: Any, result: Any, *args: Any, **kwargs: Any) -> Any:
            results.append((original is pages, result))
            return original(self, result, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(Api, "request", noted(request))
    monkeypatch.setattr(Api, "pages", noted(pages))

    def answer(sent: httpx.Request) -> httpx.Response:
        requests.append(sent)
        return httpx.Response(404, json={"code": "not_found", "detail": "nothing here"})

    transport = httpx.MockTransport(answer)
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    reached: set[tuple[str, str]] = set()
    promises: Promises = {}
    async with TBotClient(token="a.b.c", retry_s=0.0, http=http) as client:
        for name, function in methods(client):
            requests.clear()
            results.clear()
            await call(function, tmp_path)
            assert requests, f"{name} sent nothing"
            for sent in requests:
                operation = described.check(sent)
                if takes(operation, "If-Match"):
                    assert (
                        sent.headers["If-Match"] == SAMPLES["if_match"]
                    ), f"{name} has no if_match"
                reached.add((sent.method, operation["operationId"]))
            if results:
                paged, kind = results[0]
                schema = described.answer(operation)
                if paged:
                    schema = described.resolved(schema["properties"]["items"]["items"])
                reads(described, kind, schema, name, promises)
                if kind in promises and is_tagged(operation) and not paged:
                    promises[kind].add("etag")  # a header, not a member
    assert len(reached) >= 35
    for kind, promised in promises.items():
        # What may lack has to come with some answer that is read into the type.
        names = {one.encode_name for one in fields_of(kind)}
        assert names <= promised, (kind, names - promised)


def test_the_checker_finds_faults(document: dict[str, Any]) -> None:
    described = Document(document)
    for method, path, content in (
        ("GET", "/v1/nothing", None),
        ("PUT", "/v1/orders", None),
        ("GET", "/v1/orders?colour=red", None),
        ("GET", "/v1/orders?limit=many", None),
        ("GET", f"/v1/orders/{ID}", {"a": 1}),
        ("POST", "/v1/accounts", {"name": "a", "owner_id": ID}),
        ("POST", "/v1/accounts", {}),
        ("POST", "/v1/orders", {"account_id": "x"}),
    ):
        with pytest.raises(AssertionError):
            described.check(httpx.Request(method, f"http://test{path}", json=content))
