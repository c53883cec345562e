"""What the clients asked for and were told, as their log has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from . import log

PASSING = frozenset(
    {"instrument_halted", "venue_halted", "no_market_price", "gateway_away", "send_too_late"}
)
"""Refusals about the moment: documented as not kept under a key."""
AT_THE_EDGE = frozenset({"not_found", "validation_failed", "invalid_token"})
"""Refusals that no command was made for: nothing is kept under a key either."""
NEVER = 1 << 60


class Verdict(Enum):
    """What a request's answers allow to be found."""

    THERE = "acknowledged"
    NOT_THERE = "refused"
    EITHER = "unanswered"


@dataclass(slots=True)
class Asked:
    """One request, from its first attempt to its first clear answer.

    Attributes:
        began, ended: Line numbers: moments.
        again: Answers to the same request later, or at the same time.
        results: Of a bulk request: status and id of each item.
        repeated: The same of the same list under the same key, later.
    """

    n: int
    kind: str
    path: str
    body: dict[str, Any] | None
    key: str | None
    of: str | None
    began: int
    ended: int = NEVER
    how: str = "open"
    status: int = 0
    code: str = ""
    id: str | None = None
    sha: str = ""
    unclear: bool = True
    again: list[dict[str, Any]] = field(default_factory=list)
    results: list[tuple[int, str | None]] = field(default_factory=list)
    repeated: list[list[tuple[int, str | None]]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """What must be found of it."""
        if self.how == "ack":
            return Verdict.THERE
        kept = self.how == "refused" and self.kept
        return Verdict.NOT_THERE if kept or not self.unclear else Verdict.EITHER

    @property
    def kept(self) -> bool:
        """Whether its answer is to be kept under its key."""
        if self.key is None:
            return False
        return self.how == "ack" or self.code not in PASSING | AT_THE_EDGE

    def __str__(self) -> str:
        return f"request {self.n} ({self.kind} {self.key or ''}, line {self.began})"


@dataclass(slots=True)
class Item:
    """One transfer that a request asks for: the request itself, or one of several."""

    asked: Asked
    body: dict[str, Any]
    verdict: Verdict
    id: str | None


class Story:
    """A whole log.

    Attributes:
        requests: By number.
        by_client_id: Orders by their client_order_id.
        by_tag: Transfers by the tag in their metadata.
        faults: Answers of status 500 and above that are no documented way to say no.
    """

    def __init__(self) -> None:
        self.requests: dict[int, Asked] = {}
        self.by_client_id: dict[str, Asked] = {}
        self.by_tag: dict[str, Item] = {}
        self.mutated: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []

    def of(self, *kinds: str) -> list[Asked]:
        """All requests of these kinds."""
        return [asked for asked in self.requests.values() if asked.kind in kinds]

    def finish(self) -> None:
        """Once every line is in: what each transfer's request allows to be found."""
        for asked in self.of("transfer", "pending"):
            self._item(asked, asked.body or {}, asked.verdict, asked.id)
        for asked in self.of("linked"):
            # Told apart by their tags; the answer names the group.
            for item in (asked.body or {})["transfers"]:
                self._item(asked, item, asked.verdict, None)
        for asked in self.of("bulk"):
            items = (asked.body or {})["transfers"]
            if not asked.results:
                for item in items:
                    self._item(asked, item, asked.verdict, None)
            for item, (status, id_) in zip(items, asked.results, strict=False):
                if status < 300:
                    verdict = Verdict.THERE
                else:  # each item is kept under a key of its own, but for what was about the moment
                    passing = status >= 500 and asked.unclear
                    verdict = Verdict.EITHER if passing else Verdict.NOT_THERE
                self._item(asked, item, verdict, id_)

    def _item(self, asked: Asked, body: dict[str, Any], verdict: Verdict, id_: str | None) -> None:
        self.by_tag[body["metadata"]["tag"]] = Item(asked, body, verdict, id_)


def tell(lines: Iterable[dict[str, Any]]) -> Story:
    """Read the lines of a log, in order."""
    told = Story()
    for number, line in enumerate(lines):
        kind = line["t"]
        if kind == "ask":
            asked = Asked(
                line["n"],
                line["kind"],
                line["path"],
                line["body"],
                line["key"],
                line.get("of"),
                number,
            )
            told.requests[asked.n] = asked
            if asked.kind == "order" and asked.body and "client_order_id" in asked.body:
                told.by_client_id[asked.body["client_order_id"]] = asked
            continue
        if kind == "mutated":
            told.mutated.append(line)
        elif kind == "fault":
            told.faults.append(line)
        elif kind in ("again", "twin"):
            told.requests[line["n"]].again.append(line)
        elif kind == "items":
            results = [(status, id_) for status, id_ in line["results"]]
            told.requests[line["n"]].results = results
        elif kind == "items_again":
            results = [(status, id_) for status, id_ in line["results"]]
            told.requests[line["n"]].repeated.append(results)
        elif kind == "end":
            asked = told.requests[line["n"]]
            asked.ended, asked.how = number, line["how"]
            asked.unclear = line["unclear"]
            asked.status, asked.code = line.get("status", 0), line.get("code", "")
            asked.id, asked.sha = line.get("id"), line.get("sha", "")
    told.finish()
    return told


def read(path: Path) -> Story:
    """Read a log."""
    return tell(log.read(path))
