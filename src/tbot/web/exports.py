"""Lists as files: NDJSON and CSV instead of JSON pages, by `Accept`, in constant memory.

An export is a generator of chunks that reads its list in pages, on a connection that it borrows
for each page only. The next page is read when the last one was taken: a slow reader costs one
chunk. How many exports run at once is bounded, and so is how long one may wait for its reader.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from enum import StrEnum
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import Counter, Gauge
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tbot.core.errors import Overloaded
from tbot.core.settings import HttpSettings
from tbot.web.negotiation import PACKED, preferred
from tbot.web.problems import Problem, invalid

_log = structlog.get_logger(__name__)

_RUNNING: Final = Gauge("tbot_http_exports", "Exports that are being sent.")
_ENDED: Final = Counter("tbot_http_exports_ended", "Exports that ended, by how.", ["how"])


class Format(StrEnum):
    """What a list can be had as."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    CSV = "text/csv"


_SUFFIX: Final = {Format.NDJSON: "ndjson", Format.CSV: "csv"}
_CONTENT_TYPE: Final = {
    Format.NDJSON: "application/x-ndjson; charset=utf-8",
    Format.CSV: "text/csv; charset=utf-8; header=present",
}
_OFFERS: Final = (*(one.value for one in Format), *PACKED)

EXPORTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {
            Format.NDJSON.value: {
                "schema": {"type": "string", "description": "One JSON object a line."}
            },
            Format.CSV.value: {
                "schema": {"type": "string", "description": "RFC 4180 with a header line."}
            },
        }
    }
}
"""The `responses` of a route that can also answer with an export."""


def format_of(request: Request) -> Format:
    """The format that a request asks for.

    Not a declared parameter: in OpenAPI the answers' media types say what `Accept` may be.

    Raises:
        Problem: `not_acceptable`.
    """
    return chosen_format(",".join(request.headers.getlist("accept")))


def chosen_format(accept: str) -> Format:
    """The format that the caller likes best (RFC 9110, 12.5.1); JSON when it is all the same.

    MessagePack is a form of the JSON answer, which the edge gives it.

    Raises:
        Problem: `not_acceptable`: they like none of them.

    Example:
        >>> chosen_format("text/csv, */*;q=0.1").value, chosen_format("*/*").value
        ('text/csv', 'application/json')
    """
    best = preferred(accept, _OFFERS)
    if best is None:
        raise Problem("not_acceptable", "this can be had as " + ", ".join(_OFFERS))
    return Format.JSON if best in PACKED else Format(best)


def refuse_paging(limit: int | None, cursor: str | None) -> None:
    """An export is the whole list: a page of it would be mistaken for that.

    Raises:
        Problem: One of both was given.
    """
    for name, value in (("limit", limit), ("cursor", cursor)):
        if value is not None:
            raise invalid(
                f"{name} is for JSON pages; this format has everything at once", parameter=name
            )


class Exports:
    """How many exports run; the next one over the bound is told to come back."""

    __slots__ = ("_settings", "running")

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self.running = 0

    @property
    def stall_timeout_s(self) -> float:
        """How long a reader may take nothing."""
        return self._settings.export_stall_timeout_s

    def begin(self) -> None:
        """Take a place.

        Raises:
            Overloaded: There is none.
        """
        if self.running >= self._settings.exports_max:
            raise Overloaded("too many exports are running", retry_after_s=5.0)
        self.running += 1
        _RUNNING.inc()

    def end(self, how: str) -> None:
        """Give the place back."""
        self.running -= 1
        _RUNNING.dec()
        _ENDED.labels(how).inc()


class Export(Response):
    """A streamed answer.

    The chunks begin only when the headers are on their way; whatever goes wrong after that ends
    the connection without the last chunk, so nobody takes half a list for a whole one.

    Args:
        name: Of the file, without suffix; plain ASCII letters, digits and dashes.
    """

    def __init__(
        self,
        exports: Exports,
        format: Format,
        name: str,
        chunks: AsyncGenerator[bytes],
    ) -> None:
        self._exports = exports
        self._chunks = chunks
        headers = {
            "Content-Disposition": f'attachment; filename="{name}.{_SUFFIX[format]}"',
            "Content-Type": _CONTENT_TYPE[format],
        }
        self.status_code = 200
        self.background = None
        self.init_headers(headers)

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """As given: a stream has no length."""
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (headers or {}).items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the chunks at the reader's pace, until the end or until nobody reads any more."""
        self._exports.begin()
        how = "failed"
        gone = asyncio.create_task(_disconnected(receive))
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(self._exports.stall_timeout_s):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    if gone.done():
                        how = "abandoned"
                        return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            how = "complete"
        except ClientDisconnect:
            how = "abandoned"
            raise
        except TimeoutError:
            how = "stalled"
            _log.warning("export_stalled", path=scope["path"])
            raise
        finally:
            gone.cancel()
            self._exports.end(how)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def exports_of(request: Request) -> Exports:
    """The application's."""
    exports: Exports = request.app.state.exports
    return exports


# Encoding

_encode: Final = msgspec.json.Encoder()


def ndjson(rows: Iterable[Any]) -> bytes:
    r"""One JSON value a line.

    Example:
        >>> ndjson([{"a": 1}, {"a": 2}])
        b'{"a":1}\n{"a":2}\n'
    """
    return _encode.encode_lines(list(rows))


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def harmless(text: str | None) -> str:
    """A cell of text that no spreadsheet takes for a formula.

    For what people or venues wrote. Amounts are no text: a minus is theirs.

    Example:
        >>> harmless("=1+1"), harmless("rent"), harmless(None)
        ("'=1+1", 'rent', '')
    """
    if text is None:
        return ""
    return "'" + text if text.startswith(_FORMULA) else text


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    r"""Lines of CSV as RFC 4180 has them.

    Example:
        >>> csv_lines([("a", "b,c"), ("", "d")])
        b'a,"b,c"\r\n,d\r\n'
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue().encode()
