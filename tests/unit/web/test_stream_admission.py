"""The doorkeeper of the stream, and how fast a client may talk."""

from __future__ import annotations

from uuid import UUID

import pytest
from starlette.requests import HTTPConnection

from tbot.core import clock
from tbot.core.settings import StreamSettings
from tbot.web import stream_admission
from tbot.web.stream_admission import Admission, Denial
from tbot.web.stream_words import Meter, orders_per_message

GUEST = HTTPConnection(
    {"type": "websocket", "path": "/v1/stream", "query_string": b"", "headers": []}
)


def denied(admission: Admission, address: str) -> str | None:
    found = admission.denial(GUEST, address)
    return found.code if isinstance(found, Denial) else None


def test_of_ipv6_a_whole_network_is_one_address() -> None:
    """Whoever has a /64 has 2**64 addresses, and none of them is another person."""
    admission = Admission(StreamSettings(clients_per_address_max=2), lambda: 0)
    for address in ("2001:db8::1", "2001:db8::2"):
        admission.arrived(address)
    assert denied(admission, "2001:db8::3") == "too_many_clients"
    assert denied(admission, "2001:db8:0:1::3") is None
    assert denied(admission, "192.0.2.1") is None
    admission.left("2001:db8::1", None)
    assert denied(admission, "2001:db8::3") is None
    admission.left("2001:db8::2", None)
    assert not admission.addresses and not admission.newcomers


@pytest.mark.parametrize(("left_s", "said_s"), [(2.0, 2), (1.2, 2), (0.4, 1), (0.0, 1), (-7.0, 1)])
def test_who_comes_while_it_drains_is_sent_away_until_its_end_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, left_s: float, said_s: int
) -> None:
    now_s = clock.boot_s()
    monkeypatch.setattr(stream_admission, "boot_s", lambda: now_s)
    admission = Admission(StreamSettings(), lambda: 0)
    admission.draining, admission.drained_at_s = True, now_s + left_s
    for _ in range(30):
        refused = admission.denial(GUEST, "192.0.2.1")
        assert refused is not None
        assert (refused.status, refused.headers) == (503, {"Retry-After": str(said_s)})


def test_a_user_is_counted_until_the_last_connection_is_gone() -> None:
    admission = Admission(StreamSettings(clients_per_user_max=1), lambda: 0)
    user = UUID(int=1)
    admission.arrived("")
    assert admission.admit(user) and not admission.admit(user)
    admission.known()
    admission.left("", user)
    assert not admission.users and not admission.addresses


def test_a_single_pause_refuses_nobody_and_a_late_server_does() -> None:
    """After a pause everybody comes back at once, and they have to be let in."""
    admission = Admission(StreamSettings(admission_lag_ms_max=500), lambda: 0)
    for late_s in (0.0, 0.0, 0.0, 0.0, 5.0, 0.01, 0.0):
        admission.look(late_s)
        assert denied(admission, "192.0.2.1") is None
    for _ in range(3):
        admission.look(0.6)
        assert denied(admission, "192.0.2.1") is None
    admission.look(0.6)
    assert denied(admission, "192.0.2.1") == "overloaded"
    admission.look(0.4)
    assert denied(admission, "192.0.2.1") is None


@pytest.mark.parametrize("per_s", [0.2, 0.5, 3.0, 10.0, 1000.0])
def test_a_message_that_may_be_sent_is_taken_by_one_who_has_waited(per_s: float) -> None:
    settings = StreamSettings(orders_per_s_max=per_s, orders_in_flight_max=40)
    most = orders_per_message(settings)
    assert 1 <= most <= 40
    meter, now_s = Meter(per_s), 1000.0
    for _ in range(10):
        wait_s = meter.take(now_s, most)
        if wait_s:
            now_s += wait_s
            assert meter.take(now_s, most) == 0.0
