"""House rules for the OpenAPI document, which a generator of clients and its readers rely on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.requests import Request

from tbot.web.preconditions import expected_versions
from tbot.web.problems import CATALOGUE, Problem

METHODS = {"get", "post", "put", "patch", "delete", "head", "options"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method in METHODS & set(methods):
            yield f"{method.upper()} {path}", methods[method]


def schemas(value: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below a value, with where it is."""
    if isinstance(value, dict):
        if {"type", "$ref", "anyOf", "oneOf", "enum", "const"} & set(value) and "in" not in value:
            yield place, value
        for name, item in value.items():
            if name not in ("example", "examples", "default"):
                yield from schemas(item, f"{place}/{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from schemas(item, f"{place}/{number}")


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    faults = list(OpenAPIV31SpecValidator(document).iter_errors())
    assert not faults, "\n".join(
        f"{list(fault.absolute_path)}: {fault.message}" for fault in faults
    )


def test_every_operation_is_named_told_secured_and_answered(document: dict[str, Any]) -> None:
    faults = []
    for name, operation in operations(document):
        responses = operation["responses"]
        if not re.fullmatch(r"[a-z]+(_[a-z]+)*", operation.get("operationId", "")):
            faults.append(f"{name}: operationId")
        if not operation.get("description") or not operation.get("summary"):
            faults.append(f"{name}: summary and description")
        if not any(status.startswith("2") for status in responses):
            faults.append(f"{name}: no good answer")
        if not {"414", "500"} <= set(responses):
            faults.append(f"{name}: answers of every request")
        if "security" in operation and not {"401", "503"} <= set(responses):
            faults.append(f"{name}: answers of every secured request")
        for status, response in responses.items():
            if not response.get("description"):
                faults.append(f"{name} {status}: description")
            if status >= "400":
                if set(response.get("content", {})) != {"application/problem+json"}:
                    faults.append(f"{name} {status}: not a problem")
                codes = re.findall(r"`(\w+)`", response["description"])
                if not codes or not all(
                    code not in CATALOGUE or CATALOGUE[code].status == int(status) for code in codes
                ):
                    faults.append(f"{name} {status}: {codes}")
    assert not faults, "\n".join(faults)


def test_every_parameter_is_told_or_obvious_and_bounded(document: dict[str, Any]) -> None:
    faults = []
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            place = f"{name}: {parameter['in']} {parameter['name']}"
            schema = parameter["schema"]
            if parameter["in"] == "path" and not parameter.get("required"):
                faults.append(f"{place}: not required")
            if "null" in str(schema):
                # It would be sent as a word: an optional parameter is there or is not.
                faults.append(f"{place}: null")
            for kind in (schema, *schema.get("anyOf", ())):
                bounds = {"enum", "const", "pattern", "format", "maxLength"}
                bounded = bounds & {*kind, *schema}
                if kind.get("type") == "string" and not bounded and not _any_text(parameter):
                    faults.append(f"{place}: text without a bound")
    assert not faults, "\n".join(faults)


def _any_text(parameter: dict[str, Any]) -> bool:
    """Of HTTP itself: what is not understood is ignored, and the whole head is bounded."""
    name = parameter["name"]
    return parameter["in"] == "header" and name in ("If-None-Match", "Prefer", "Accept")


def test_headers_that_can_be_malformed_have_their_answer(document: dict[str, Any]) -> None:
    faults = []
    for name, operation in operations(document):
        taken = {parameter["name"] for parameter in operation.get("parameters", ())}
        told = operation["responses"].get("400", {}).get("description", "")
        if bool(taken & {"If-Match", "Idempotency-Key"}) != ("`malformed_header`" in told):
            faults.append(name)
    assert not faults, "\n".join(faults)


def test_if_match_is_described_as_it_is_read(document: dict[str, Any]) -> None:
    (schema,) = {
        str(sorted(parameter["schema"].items())): parameter["schema"]
        for _, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if parameter["name"] == "If-Match"
    }.values()
    texts = ("*", '"a"', 'W/"a", "b.1"', '""', '"!#+-~"', '"a" , "b"', "null", "", "a", '"a', "**")
    for text in (*texts, '"a b"', '"a,b"', '"\x7f"', 'w/"a"', '"a""b"', '"' + "a" * 2_000 + '"'):
        request = Request({"type": "http", "headers": [(b"if-match", text.encode())]})
        if OAS31Validator(schema).is_valid(text):
            expected_versions(request)
        else:
            with pytest.raises(Problem) as refused:
                expected_versions(request)
            assert refused.value.code == "malformed_header", text


def test_every_body_has_an_example_and_bounds(document: dict[str, Any]) -> None:
    """An example of the whole, or of each member that is required."""
    known = document["components"]["schemas"]
    faults = []
    for name, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schema = content["schema"]
            schema = schema if "$ref" in schema else schema.get("anyOf", [schema])[0]
            schema = known[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
            if "examples" in content or "example" in content or "examples" in schema:
                continue
            faults += [
                f"{name}: {member} has no example"
                for member in schema.get("required", ())
                if not _shows(schema["properties"][member], known)
            ]
    assert not faults, "\n".join(sorted(faults))


def _shows(schema: dict[str, Any], known: dict[str, Any]) -> bool:
    if {"examples", "example", "enum", "const", "default"} & set(schema):
        return True
    if schema.get("type") in ("boolean", "integer") or schema.get("format") == "password":
        return True
    if "$ref" in schema:
        return _shows(known[schema["$ref"].rpartition("/")[2]], known)
    if schema.get("type") == "array":
        return _shows(schema["items"], known)
    if schema.get("type") == "object":
        required = schema.get("required", ())
        return all(_shows(schema["properties"][name], known) for name in required)
    return any(_shows(one, known) for one in schema.get("anyOf", schema.get("oneOf", ())))


def test_nothing_is_described_and_unused(document: dict[str, Any]) -> None:
    text = str(document)
    unused = [
        name
        for name in document["components"]["schemas"]
        if f"'#/components/schemas/{name}'" not in text
    ]
    assert not unused


def test_references_of_schemas_resolve(document: dict[str, Any]) -> None:
    names = set(document["components"]["schemas"])
    found = 0
    for place, schema in schemas(document):
        if "$ref" in schema:
            assert schema["$ref"].rpartition("/")[2] in names, place
            found += 1
    assert found > 100
