"""Requests to addresses that users name, without lending them our place in the network.

Only http and https; a name is resolved by us, every address it has is checked, and the connection
goes to the checked address itself, so a name cannot point elsewhere between the check and the
use. No redirect is followed, no proxy of the environment used, no connection kept, and nothing of
the answer but its status is looked at.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx

URL_LENGTH_MAX: Final = 2048
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address
type Resolve = Callable[[str, int], Awaitable[list[str]]]


class Forbidden(Exception):
    """A URL that we do not send anything to; the message says why, for its owner."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt.

    Attributes:
        status: Of the answer; None when there was none.
        error: Why it failed; None for a 2xx answer.
    """

    status: int | None
    error: str | None


def check_url(url: str, allow_private: bool) -> httpx.URL:
    """A URL that may be subscribed, as far as can be told without resolving its host.

    Raises:
        Forbidden: It is none.

    Example:
        >>> check_url("https://example.com/hook", False).host
        'example.com'
        >>> check_url("http://[::1]/", False)
        Traceback (most recent call last):
        ...
        tbot.ledger.webhooks_target.Forbidden: the address is not public
    """
    if len(url) > URL_LENGTH_MAX:
        raise Forbidden(f"longer than {URL_LENGTH_MAX} characters")
    if not url.isascii() or any(ord(character) <= 0x20 for character in url):
        raise Forbidden("has characters that a URL may not have")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise Forbidden("is not a URL") from None
    if parsed.scheme not in ("http", "https"):
        raise Forbidden("begins with neither https:// nor http://")
    if not parsed.host:
        raise Forbidden("names no host")
    if parsed.userinfo:
        raise Forbidden("has a user name or password in it")
    if parsed.fragment:
        raise Forbidden("has a fragment")
    literal = _literal(parsed.host)
    if literal is not None and not allow_private and not is_public(literal):
        raise Forbidden("the address is not public")
    return parsed


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also when it is wrapped in another.

    Example:
        >>> [is_public(ipaddress.ip_address(a)) for a in ("8.8.8.8", "10.0.0.1", "::ffff:10.0.0.1")]
        [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, in the resolver's order."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Sender:
    """Posts to users' addresses.

    Args:
        allow_private: Also to addresses that are not public.
        timeout_s: Of a whole attempt, with name resolution.
        at_once: Most connections.
        resolve: Finds a name's addresses.
    """

    def __init__(
        self, allow_private: bool, timeout_s: float, at_once: int, resolve: Resolve = resolve
    ) -> None:
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._resolve = resolve
        # Connections are not kept: they are known by address, and two names may share one.
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        await self._client.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """One attempt; whatever goes wrong is its outcome."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(url, headers, body)
        except Forbidden as error:
            return Outcome(None, str(error))
        except (TimeoutError, httpx.TimeoutException):
            return Outcome(None, "no answer in time")
        except OSError:
            return Outcome(None, "the host cannot be resolved")
        except httpx.HTTPError as error:
            return Outcome(None, f"no connection, or a broken one ({type(error).__name__})")
        return Outcome(status, None if 200 <= status < 300 else f"answered {status}")

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        parsed = check_url(url, self._allow_private)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        addresses = await self._resolve(parsed.host, port)
        if not addresses:
            raise Forbidden("the host has no address")
        if not self._allow_private:
            for address in addresses:
                if not is_public(ipaddress.ip_address(address.partition("%")[0])):
                    raise Forbidden("the host has an address that is not public")
        async with self._client.stream(
            "POST",
            parsed.copy_with(host=addresses[0]),
            content=body,
            headers={**headers, "Host": parsed.netloc.decode("ascii"), "User-Agent": "T-Bot"},
            extensions={"sni_hostname": parsed.host},
            follow_redirects=False,
        ) as response:
            return response.status_code
