"""The OpenAPI document: valid, complete, and true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tbot.auth.scopes import Scope
from tbot.web import docs_page, openapi
from tbot.web.routes import required_scopes


def operations(site: Any) -> list[tuple[Any, dict[str, Any]]]:
    return list(openapi.operations(site.app, site.app.openapi()))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_operation_is_named_tagged_and_told(site: Any) -> None:
    found = operations(site)
    ids = [operation["operationId"] for _, operation in found]
    assert len(set(ids)) == len(ids)
    assert all(name.islower() and name.isidentifier() for name in ids)
    tags = {tag["name"] for tag in site.app.openapi()["tags"]}
    for _, operation in found:
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["tags"]) <= tags and len(operation["tags"]) == 1


def test_security_is_what_the_routes_check(site: Any) -> None:
    document = site.app.openapi()
    flow = document["components"]["securitySchemes"]["password"]["flows"]["password"]
    assert flow["tokenUrl"] == "/v1/token"
    assert flow["refreshUrl"] == "/v1/token/refresh"
    assert flow["scopes"] == {scope.value: scope.doc for scope in Scope}
    for route, operation in operations(site):
        scopes = required_scopes(route)
        expected = (
            None
            if scopes is None
            else [
                {"password": list(scopes)},
                {"api_key": list(scopes)},
            ]
        )
        assert operation.get("security") == expected, route.path


def test_errors_are_problem_documents_and_complete(site: Any) -> None:
    for route, operation in operations(site):
        responses = operation["responses"]
        expected = {"414", "500"}
        if required_scopes(route) is not None:
            expected |= {"401", "503"}
        if required_scopes(route):
            expected.add("403")
        if route.body_field is not None:
            expected |= {"400", "413", "415", "422"}
        if "{" in route.path:
            expected.add("404")
        assert expected <= set(responses), route.path
        assert any(status.startswith("2") for status in responses)
        for status, response in responses.items():
            assert response["description"]
            assert "X-Request-Id" in response["headers"]
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"]
            if status in ("401", "403"):
                assert "WWW-Authenticate" in response["headers"]
            if status == "503":
                assert "Retry-After" in response["headers"]
            if status == "201" and "PUT" not in route.methods:
                assert "Location" in response["headers"]


def test_references_lead_somewhere_and_nothing_of_fastapis_own_errors_is_left(site: Any) -> None:
    document = site.app.openapi()
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert "HTTPValidationError" not in json.dumps(document)
    assert document["openapi"].startswith("3.1")


def test_amounts_are_strings_everywhere(site: Any) -> None:
    """No JSON number but counts, sequences, scales and the like."""
    counts = {
        "attempts", "base_scale", "expires_in", "expires_in_s", "first_trade_id",
        "from_sequence", "head", "last_trade_id", "max_open_orders", "overlap_s", "quote_scale",
        "recovery_codes_left", "requested", "seq",
        "sequence", "status", "trade_id", "trades", "update_id",
    }  # fmt: skip
    for schema in site.app.openapi()["components"]["schemas"].values():
        for name, member in schema.get("properties", {}).items():
            kinds = {member.get("type"), *(one.get("type") for one in member.get("anyOf", ()))}
            assert "number" not in kinds, name
            assert "integer" not in kinds or name in counts, name


def test_bodies_take_no_unknown_members(site: Any) -> None:
    schemas = site.app.openapi()["components"]["schemas"]
    for route, operation in operations(site):
        if route.body_field is None:
            continue
        contents = list(operation["requestBody"]["content"].values())
        assert all(content == contents[0] for content in contents)
        schema = contents[0]["schema"]
        # A body that may be left out is described as one that may be null.
        reference = schema.get("$ref") or schema["anyOf"][0]["$ref"]
        name = reference.rpartition("/")[2]
        if not name.startswith("Body_"):
            assert schemas[name]["additionalProperties"] is False, name


async def test_the_document_is_served_and_the_page_works_offline(site: Any) -> None:
    pytest.importorskip("fastapi_swagger", reason="the package with Swagger UI is not installed")
    async with site.client() as client:
        served = await client.get("/openapi.json")
        assert served.json() == json.loads(json.dumps(site.app.openapi()))
        page = await client.get("/docs")
        assert "script-src 'self';" in page.headers["content-security-policy"]
        assert "//" not in page.text.replace("<!doctype html>", "")
        for path in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
            assert f"/docs/{path}" in page.text
            answer = await client.get(f"/docs/{path}")
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
        start = (await client.get("/docs/start.js")).text
        assert '"/openapi.json"' in start


async def test_docs_can_be_turned_off(new_site: Any, problem: Any) -> None:
    site = await new_site(http={"public_docs": False})
    async with site.client() as client:
        for path in ("/docs", "/openapi.json", "/redoc"):
            problem(await client.get(path), 404, "not_found")


async def test_without_the_package_of_the_page_the_document_still_serves(
    new_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_page, "_PACKAGE", "no_such_package")
    site = await new_site()
    async with site.client() as client:
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "/openapi.json" in page.text
        assert (await client.get("/openapi.json")).status_code == 200
