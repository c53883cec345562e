"""Frames from clients: whole, cut anywhere, and wrong in every way that matters."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbot.web.stream_frames import Event, Inbound, Kind, Violation, close_frame, unmasked

LIMIT = 1 << 20


def client_frame(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    mask = os.urandom(4)
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    return bytes((first,)) + length + mask + unmasked(payload, mask)


messages = st.lists(
    st.one_of(
        st.tuples(st.just(Kind.TEXT), st.text(max_size=300), st.integers(1, 4)),
        st.tuples(st.just(Kind.BINARY), st.binary(max_size=300), st.integers(1, 4)),
        st.tuples(st.sampled_from([Kind.PING, Kind.PONG]), st.binary(max_size=125), st.just(1)),
    ),
    max_size=8,
)


@given(messages=messages, cuts=st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_what_was_sent_is_what_arrives_however_it_is_cut(messages: list, cuts: list) -> None:
    sent = b""
    expected: list[Event] = []
    for kind, content, parts in messages:
        data = content.encode() if isinstance(content, str) else content
        if kind is Kind.TEXT:
            expected.append(Event(kind, text=content))
        else:
            expected.append(Event(kind, data=data))
        step = max(1, -(-len(data) // parts))
        pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            sent += client_frame(kind if number == 0 else 0, piece, fin=last)
    inbound = Inbound(LIMIT)
    heard: list[Event] = []
    at = turn = 0
    while at < len(sent):
        size = cuts[turn % len(cuts)]
        heard += inbound.take(sent[at : at + size])
        at += size
        turn += 1
    assert heard == expected
    assert inbound.idle


@given(data=st.binary(max_size=400), cut=st.integers(0, 400))
def test_rubbish_is_refused_or_waited_for_and_never_anything_else(data: bytes, cut: int) -> None:
    inbound = Inbound(256)
    code = None
    try:
        for part in (data[:cut], data[cut:]):
            for event in inbound.take(part):
                assert len(event.data) + len(event.text) <= 256
    except Violation as violation:
        code = violation.code
    assert code in (None, 1002, 1007, 1009)


def test_a_message_may_not_be_larger_than_allowed_in_whatever_pieces() -> None:
    assert Inbound(100).take(client_frame(2, b"x" * 100))[0].data == b"x" * 100
    with pytest.raises(Violation) as caught:
        Inbound(100).take(client_frame(2, b"x" * 101))
    assert caught.value.code == 1009
    inbound = Inbound(100)
    inbound.take(client_frame(1, b"x" * 60, fin=False))
    with pytest.raises(Violation) as caught:
        inbound.take(client_frame(0, b"x" * 41)[:3])  # its header is enough
    assert caught.value.code == 1009


def test_what_was_complete_before_a_violation_still_counts() -> None:
    with pytest.raises(Violation) as caught:
        Inbound(LIMIT).take(client_frame(1, b"a") + client_frame(9, b"b") + client_frame(3))
    assert [event.kind for event in caught.value.events] == [Kind.TEXT, Kind.PING]


def test_a_close_frame_fits_however_long_its_reason_is() -> None:
    assert close_frame(1005, "not sent") == b"\x88\x00"
    assert len(close_frame(4000, "x" * 300)) == 2 + 125
