"""How uvicorn is to serve the application: the arguments of its `Config`."""

from __future__ import annotations

import math
from typing import Any

from starlette.types import ASGIApp

from tbot.core.settings import Settings
from tbot.web.connections import guarded
from tbot.web.sockets import uvicorn_options


def server_options(app: ASGIApp, settings: Settings) -> dict[str, Any]:
    """Keyword arguments for `uvicorn.Config`.

    `boot` runs the server, and before `should_exit` it drains the streams: uvicorn would cut them.
    """
    http = settings.http
    return {
        "app": app,
        "host": http.host,
        "port": http.port,
        "http": guarded(app, settings),
        "lifespan": "off",  # boot starts and stops the parts around the server
        # Forwarding headers are worth no more than who sends them: on loopback, anybody.
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,  # ours is in `tbot.web.edge`
        "log_config": None,
        "timeout_keep_alive": math.ceil(settings.overload.keep_alive_s),
        "timeout_graceful_shutdown": math.ceil(http.shutdown_timeout_s),
        **uvicorn_options(settings.stream),
    }
