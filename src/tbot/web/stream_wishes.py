"""What a client asks to subscribe to: each wish checked by itself, and what it begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tbot.auth.flow import Principal
from tbot.journal.chain import HASH_PREFIX_DIGITS
from tbot.market.channels import CHANNELS, EVERY, Channel, Denied, wanted
from tbot.market.subscribers import Subscriber
from tbot.market.topics import Frame, Topic
from tbot.web.ownership import may_listen
from tbot.web.stream_account import PrivateStream, read_snapshot, snapshot_frame
from tbot.web.stream_words import FULL, denial_of, is_wish, resume_of, uuid_of

if TYPE_CHECKING:
    from tbot.web.stream import Streams

type Start = tuple[Topic, int | None] | tuple[PrivateStream, list[Frame]]
"""What to begin and how: a topic from a place on, or an account's stream with first frames."""


class Wishes:
    """The wishes of one message.

    Args:
        streams: What all sessions of the process share.
        subscriber: Who asks.
        principal: As whom.
        private: The accounts' streams that it has.
    """

    def __init__(
        self,
        streams: Streams,
        subscriber: Subscriber,
        principal: Principal,
        private: Mapping[int, PrivateStream],
    ) -> None:
        self._streams = streams
        self._subscriber = subscriber
        self._principal = principal
        self._private = private

    async def check(self, request: Any, taken: set[int]) -> tuple[dict[str, Any], Sequence[Start]]:
        """Check one wish; what to answer and what to start.

        Args:
            taken: Numbers of what is subscribed already.
        """
        found = CHANNELS.get(request.get("channel")) if is_wish(request) else None
        if found is None:
            return denial_of(Denied("unknown_channel", f"channels are {', '.join(CHANNELS)}")), ()
        if found.scope not in self._principal.scopes:
            return denial_of(Denied("insufficient_scope", f"needs the scope {found.scope}")), ()
        full = len(taken) >= self._streams.settings.subscriptions_max
        if found.private:
            answer, start = await self._private_wish(found, request, full)
            return answer, () if start is None else (start,)
        if request.get("symbol") == EVERY:
            return self._every(found, request, taken)
        wish = wanted(found, request)
        codec = self._subscriber.codec
        topic = wish if isinstance(wish, Denied) else self._streams.market.topic(wish, codec)
        if isinstance(topic, Denied):
            return denial_of(topic), ()
        if full and topic.number not in taken:
            return denial_of(FULL), ()
        answer = {"ch": topic.number, "channel": found.name, **topic.parameters}
        cursor: int | None = None
        resume = request.get("resume")
        if resume is not None:
            cursor = self._resumed(topic, resume)
            answer["recovered"] = cursor is not None
        return answer, ((topic, cursor),)

    def _every(
        self, channel: Channel, request: dict[str, Any], taken: set[int]
    ) -> tuple[dict[str, Any], Sequence[Start]]:
        """A wish for every market: all of them or none."""
        market, codec = self._streams.market, self._subscriber.codec
        symbols = market.symbols()
        if isinstance(symbols, Denied):
            return denial_of(symbols), ()
        if "resume" in request:
            return denial_of(Denied("bad_parameter", "one resumes one market at a time")), ()
        wishes = [wanted(channel, {**request, "symbol": symbol}) for symbol in symbols]
        have = {
            (topic.channel, *topic.parameters.values())
            for topic in self._subscriber.subscriptions.values()
        }
        new = [wish for wish in wishes if not isinstance(wish, Denied) and wish.key not in have]
        if len(taken) + len(new) > self._streams.settings.subscriptions_max:
            return denial_of(FULL), ()
        topics: list[Topic] = []
        for wish in wishes:
            topic = wish if isinstance(wish, Denied) else market.topic(wish, codec)
            if isinstance(topic, Denied):
                return denial_of(topic), ()
            topics.append(topic)
        subs = [{"ch": one.number, "channel": channel.name, **one.parameters} for one in topics]
        answer = {"channel": channel.name, "symbol": EVERY, "subs": subs}
        return answer, [(topic, None) for topic in topics]

    def _resumed(self, topic: Topic, resume: Any) -> int | None:
        """The number to go on after, if the topic still is the one that the client knows."""
        if not isinstance(resume, dict) or resume.get("epoch") != self._streams.epoch:
            return None
        seq = resume.get("seq")
        if resume.get("ch") != topic.number or not isinstance(seq, int):
            return None
        return seq if topic.holds_after(seq) else None

    async def _private_wish(
        self, channel: Channel, request: dict[str, Any], full: bool
    ) -> tuple[dict[str, Any], tuple[PrivateStream, list[Frame]] | None]:
        unknown = sorted(set(request) - {"channel", "account_id", "resume"})
        if unknown:
            return denial_of(Denied("bad_parameter", f"no such parameter: {unknown[0]:.40}")), None
        account_id = uuid_of(request.get("account_id"))
        pool, journal = self._streams.pool, self._streams.journal
        permissions = self._streams.permissions
        if account_id is None or not await may_listen(permissions, self._principal, account_id):
            return denial_of(Denied("not_found", "no such account, or it is not yours")), None
        mine = self._private.values()
        if full and not any(one.account_id == account_id for one in mine):
            return denial_of(FULL), None
        resume = request.get("resume")
        place = None
        answer: dict[str, Any] = {"channel": channel.name, "account_id": str(account_id)}
        if resume is not None:
            seq, prefix = resume_of(resume)
            if prefix is None:
                hint = f"resume is seq and hash, the first {HASH_PREFIX_DIGITS} hex digits"
                return denial_of(Denied("bad_parameter", hint)), None
            place = await journal.find(account_id, seq, prefix)
            answer["recovered"] = place is not None
        data = None
        if place is None:
            place, data = await read_snapshot(pool, account_id)
        number = self._streams.hub.private_number(account_id)
        stream = PrivateStream(journal, self._subscriber, account_id, number, place)
        codec = self._subscriber.codec
        first = [] if data is None else [snapshot_frame(number, place, data, codec)]
        return {"ch": number, **answer}, (stream, first)
