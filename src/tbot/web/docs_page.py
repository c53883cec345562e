"""`/docs`: Swagger UI, served from an installed package, so it works without the internet."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute

_PACKAGE: Final = "fastapi_swagger"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_FILES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>T-Bot API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_OPTIONS: Final = {
    "url": "/openapi.json",
    "dom_id": "#swagger-ui",
    "layout": "BaseLayout",
    "deepLinking": True,
    "displayRequestDuration": True,
    "persistAuthorization": False,
    "validatorUrl": None,
}
_START: Final = f"""window.ui = SwaggerUIBundle({{
  ...{json.dumps(_OPTIONS)},
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
}});
"""


def docs_routes() -> list[BaseRoute]:
    """Routes of the page and its files; only a hint where the package is missing."""
    spec = importlib.util.find_spec(_PACKAGE)
    router = APIRouter(include_in_schema=False)
    if spec is None or not spec.submodule_search_locations:
        router.add_api_route("/docs", _missing)
        return router.routes
    files = Path(spec.submodule_search_locations[0]) / "resources"

    async def page() -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    async def start() -> Response:
        return Response(_START, media_type="text/javascript", headers=_kept())

    async def file(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return FileResponse(files / name, media_type=_FILES[name], headers=_kept())

    router.add_api_route("/docs", page)
    router.add_api_route("/docs/start.js", start)
    for name in _FILES:
        if (files / name).is_file():
            router.add_api_route(f"/docs/{name}", file)
    return router.routes


def _kept() -> dict[str, str]:
    return {"Cache-Control": "public, max-age=3600"}


async def _missing() -> Response:
    return HTMLResponse(
        "<p>The package <code>fastapi-swagger</code> is not installed. "
        'The API is described in <a href="/openapi.json">openapi.json</a>.</p>'
    )
