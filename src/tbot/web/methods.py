"""Which methods there are at a path: for `Allow`, for OPTIONS and for preflights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.routing import BaseRoute, Route

MERGE_PATCH: Final = "application/merge-patch+json"
ACCEPT_PATCH: Final = f"{MERGE_PATCH}, application/json"
"""What PATCH takes: both are read as RFC 7396 merge patches."""


def allowed_methods(routes: Sequence[BaseRoute], path: str) -> list[str]:
    """Every method that some route takes at a path, HEAD and OPTIONS included; none if none does.

    Starlette itself names only the first route's.
    """
    found = [route for route in routes if isinstance(route, Route)]
    # A path that is written out is its own resource, although a template would match it, too.
    at = [route for route in found if route.path == path]
    at = at or [route for route in found if path == "*" or route.path_regex.match(path)]
    methods: set[str] = set().union(*(route.methods or () for route in at))
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods | {"OPTIONS"}) if methods else []
