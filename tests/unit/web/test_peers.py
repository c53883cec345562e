"""Where a request comes from, and who may say so."""

from __future__ import annotations

from typing import Any

import pytest

from tbot.core.settings import HttpSettings
from tbot.web.peers import Proxies


def seen(
    peer: str,
    *headers: tuple[str, str],
    trusted: tuple[str, ...] = ("10.0.0.0/8", "fd00::/8"),
    by: Any = None,
) -> str:
    scope: dict[str, Any] = {
        "type": "http",
        "scheme": "http",
        "client": (peer, 1),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    settings = HttpSettings(trusted_proxies=list(trusted), forwarded_header=by or "x-forwarded-for")
    Proxies(settings).resolve(scope)
    address: str = scope["client"][0]
    return f"{scope['scheme']} {address}"


XFF = "x-forwarded-for"


@pytest.mark.parametrize(
    ("peer", "said", "expected"),
    [
        ("203.0.113.1", "198.51.100.1", "203.0.113.1"),  # nobody whom we trust says so
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # whatever came before is hearsay
        ("10.0.0.1", "1.1.1.1, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, <script>", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", ", ".join(["10.0.0.2"] * 100 + ["10.0.0.3"]), "10.0.0.2"),
    ],
)
def test_only_what_trusted_proxies_appended_counts(peer: str, said: str, expected: str) -> None:
    assert seen(peer, (XFF, said)) == f"http {expected}"
    assert seen(peer, (XFF, said), trusted=()) == f"http {peer}"


def test_several_lines_are_one_list() -> None:
    lines = ((XFF, "1.1.1.1"), (XFF, "198.51.100.1"), (XFF, "10.0.0.2"))
    assert seen("10.0.0.1", *lines) == "http 198.51.100.1"


def test_of_the_two_headers_only_the_one_that_the_proxy_sets_counts() -> None:
    both = ((XFF, "1.1.1.1"), ("forwarded", "for=2.2.2.2;proto=https"))
    assert seen("10.0.0.1", *both) == "http 1.1.1.1"
    assert seen("10.0.0.1", *both, by="forwarded") == "https 2.2.2.2"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("for=1.1.1.1, for=198.51.100.1", "http 198.51.100.1"),
        ('For="[2001:db8::5]:4711";Proto=https', "https 2001:db8::5"),
        ('for="198.51.100.1:80";by=10.0.0.1;proto=http', "http 198.51.100.1"),
        ("for=1.1.1.1, for=unknown", "http 10.0.0.1"),
        ("for=1.1.1.1, for=_hidden", "http 10.0.0.1"),
        ("by=1.1.1.1", "http 10.0.0.1"),
        ('for="1.1.1.1, for=2.2.2.2"', "http 10.0.0.1"),
    ],
)
def test_forwarded(said: str, expected: str) -> None:
    assert seen("10.0.0.1", ("forwarded", said), by="forwarded") == expected


def test_the_scheme_is_the_last_proxys_word() -> None:
    proto = ("x-forwarded-proto", "http, https")
    assert seen("10.0.0.1", proto) == "https 10.0.0.1"
    assert seen("203.0.113.1", proto) == "http 203.0.113.1"
    assert seen("10.0.0.1", ("x-forwarded-proto", "javascript")) == "http 10.0.0.1"


def test_a_network_that_is_none_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        HttpSettings(trusted_proxies=["10.0.0.0/99"])
