"""Liveness, readiness and metrics. For the operator's network: they need no token."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import structlog
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from tbot.web.dependencies import Parts
from tbot.web.deps import Check
from tbot.web.fields import Answer
from tbot.web.openapi import problems
from tbot.web.problems import Problem

_log = structlog.get_logger(__name__)

CHECK_TIMEOUT_S: Final = 2.0

routes = APIRouter(tags=["health"])


class Alive(Answer):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Answer):
    """Every part is ready: `checks` names them."""

    status: Literal["ok"] = "ok"
    checks: dict[str, Literal["ok"]]


@routes.get("/health/live", operation_id="is_live", responses=problems())
async def live() -> Alive:
    """Whether the process runs at all. Restart it when this fails."""
    return Alive()


@routes.get("/health/ready", operation_id="is_ready", responses=problems("not_ready"))
async def ready(parts: Parts) -> Ready:
    """Whether requests can be served. Send none while this fails."""
    names = list(parts.checks)
    results = await asyncio.gather(*(_run(name, parts.checks[name]) for name in names))
    failed = {name: why for name, why in zip(names, results, strict=True) if why is not None}
    if failed:
        states = {name: failed.get(name, "ok") for name in names}
        raise Problem(
            "not_ready",
            "not ready: " + ", ".join(sorted(failed)),
            extras={"checks": states},
            headers={"Retry-After": "1"},
        )
    return Ready(checks=dict.fromkeys(names, "ok"))


async def _run(name: str, check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check()
    except TimeoutError:
        return "no answer in time"
    except Exception:  # noqa: BLE001
        # Whatever a part's failure is, the answer is that it is not ready.
        _log.warning("readiness_check_failed", check=name, exc_info=True)
        return "failed"


@routes.get(
    "/metrics",
    operation_id="get_metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()},
)
async def metrics() -> Response:
    """Metrics in the Prometheus text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
