"""Where a request comes from: the connection's peer, or what a trusted proxy says.

`X-Forwarded-For` and `Forwarded` are lists that anybody can begin and every proxy appends to. They
are read from the right, for as long as whoever appended is one of `http.trusted_proxies`; the first
address that is not is the client. Without trusted proxies (the default) they mean nothing.

Everything that asks for the client's address (limits, API keys, logs, the journal) reads it from
the request's scope, where `Proxies.resolve` puts it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, MutableMapping
from functools import lru_cache
from typing import Any, Final

from tbot.core.settings import HttpSettings

_HOPS_MAX: Final = 32
_FOR: Final = re.compile(
    r"""(?:^|[;,\s])for\s*=\s*(?:"\[?(?P<quoted>[^"\]]*)[^"]*"|(?P<plain>[^;,\s"]*))""",
    re.IGNORECASE,
)
_PROTO: Final = re.compile(r'(?:^|[;,\s])proto\s*=\s*"?(https?)"?(?:[;,\s]|$)', re.IGNORECASE)


class Proxies:
    """The reverse proxies that are believed.

    Attributes:
        any: Whether there are any.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self._networks = [ipaddress.ip_network(text) for text in settings.trusted_proxies]
        self._standard = settings.forwarded_header == "forwarded"
        self._header = settings.forwarded_header.encode("ascii")
        self.any = bool(self._networks)
        self._trusts = lru_cache(4096)(self._looked_up)

    def trusts(self, address: str) -> bool:
        """Whether an address is one of theirs."""
        return self.any and self._trusts(address)

    def _looked_up(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self._networks
        )

    def resolve(self, scope: MutableMapping[str, Any]) -> None:
        """Put the client's address, and what it speaks to the proxy, into a request's scope."""
        client = scope.get("client")
        if client is None or not self.trusts(client[0]):
            return
        said = b", ".join(value for name, value in scope["headers"] if name == self._header)
        address: str = client[0]
        if said:
            address = self._client(said.decode("latin-1"), address)
        if address != client[0]:
            scope["client"] = (address, 0)
        proto = _proto(said if self._standard else _last(scope, b"x-forwarded-proto"))
        if proto is not None:
            scope["scheme"] = proto.replace("http", "ws") if scope["type"] == "websocket" else proto

    def _client(self, said: str, peer: str) -> str:
        """The first address from the right that is no proxy's; the last good one if it is none."""
        address = peer
        hops = _forwarded(said) if self._standard else reversed(said.split(","))
        for number, hop in enumerate(hops):
            parsed = _parsed(_without_port(hop.strip()))
            if parsed is None or number >= _HOPS_MAX:
                break
            address = str(parsed)
            if not self.trusts(address):
                break
        return address


def _forwarded(said: str) -> Iterator[str]:
    """The `for` of every element of `Forwarded` (RFC 7239), the last first; "" without one."""
    for element in reversed(_elements(said)):
        found = _FOR.search(element)
        yield "" if found is None else found["quoted"] or found["plain"] or ""


def _elements(said: str) -> list[str]:
    elements, quoted, begin = [], False, 0
    for at, character in enumerate(said):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            elements.append(said[begin:at])
            begin = at + 1
    return [*elements, said[begin:]]


def _proto(said: bytes) -> str | None:
    """`http` or `https`, by what the last proxy appended."""
    text = said.decode("latin-1")
    if text.strip().lower() in ("http", "https"):
        return text.strip().lower()
    found = _PROTO.search(_elements(text)[-1])
    return found[1].lower() if found else None


def _last(scope: MutableMapping[str, Any], wanted: bytes) -> bytes:
    values = [value for name, value in scope["headers"] if name == wanted]
    return bytes(values[-1].rpartition(b",")[2]) if values else b""


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    if hop.count(":") == 1:
        return hop.partition(":")[0]
    return hop


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
