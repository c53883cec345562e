"""The market's own book as the source plays it, with what users took from it.

Pure. Entry points: `MarketBook.apply_snapshot`, `apply_depth`, `apply_best`, `take`.

A venue publishes best prices at once but depth only every 100 ms. Orders must not execute at
prices that the best-price stream has already called gone, so the *live* ladders, which matching
uses, follow both; the *reference* value of a level is what snapshot and depth diffs alone say, and
is what an unmodified depth stream tells clients.

Invariants:

1. reference(p) is the book rebuilt from snapshot and diffs, at every update.
2. live(p) = reference(p), except where a later best-price event said otherwise (`_hidden` keeps the
   reference value until a diff catches up) and less what users took there (`_taken`).
3. What users took stays taken until the source next sets that level: by a diff that names it, or
   by a best price that shows another price or quantity than before.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from tbot.core.money import ZERO
from tbot.exchange.events import Best, Depth, Levels, Snapshot
from tbot.exchange.ladder import Ladder


class BookSide:
    """One side: the live ladder and how it differs from the reference."""

    __slots__ = ("_best", "_hidden", "live", "taken")

    def __init__(self, is_bid: bool) -> None:
        self.live = Ladder(is_bid)
        self.taken: dict[Decimal, Decimal] = {}
        self._hidden: dict[Decimal, Decimal] = {}
        self._best: tuple[Decimal, Decimal] | None = None

    def load(self, levels: Levels) -> None:
        """Start over from a snapshot."""
        self.live.load(levels)
        self.taken.clear()
        self._hidden.clear()
        self._best = None

    def reference(self, price: Decimal) -> Decimal:
        """What snapshot and diffs say of a level."""
        hidden = self._hidden.get(price)
        if hidden is not None:
            return hidden
        return self.live.get(price) + self.taken.get(price, ZERO)

    def reference_levels(self) -> dict[Decimal, Decimal]:
        """Every level of the reference, unordered."""
        levels = dict(self.live.quantities)
        for price, quantity in self.taken.items():
            levels[price] = levels.get(price, ZERO) + quantity
        levels.update(self._hidden)
        return levels

    @property
    def hidden_prices(self) -> Iterable[Decimal]:
        """Levels where best prices overrule the reference."""
        return self._hidden

    @property
    def is_plain(self) -> bool:
        """Whether live equals reference at every level."""
        return not self._hidden and not self.taken

    def unhide(self) -> None:
        """Forget what best prices said: a diff as new as they were is about to be applied."""
        for price, quantity in self._hidden.items():
            taken = min(self.taken.pop(price, ZERO), quantity)
            if taken:
                self.taken[price] = taken
            self.live.set(price, quantity - taken)
        self._hidden.clear()

    def apply(self, levels: Levels) -> None:
        """Set the levels of a diff."""
        live, taken = self.live, self.taken
        for price, quantity in levels:
            live.set(price, quantity)
            if taken:
                taken.pop(price, None)

    def show_best(self, price: Decimal, quantity: Decimal) -> None:
        """Make `price` the best level with `quantity`; what was better is gone."""
        live = self.live
        for gone in live.better(price):
            self._hide(gone)
            live.set(gone, ZERO)
        taken = self.taken
        if self._best != (price, quantity):
            self._best = (price, quantity)
            if price in taken:  # the source set the level anew
                self._hide(price)
                del taken[price]
        left = quantity - taken[price] if price in taken else quantity
        if live.get(price) != left:
            self._hide(price)
            live.set(price, left)

    def _hide(self, price: Decimal) -> None:
        if price not in self._hidden:
            self._hidden[price] = self.live.get(price) + self.taken.get(price, ZERO)

    def take(self, price: Decimal, quantity: Decimal) -> None:
        """Remove what a user's order took from a level."""
        self.live.set(price, self.live.get(price) - quantity)
        self.taken[price] = self.taken.get(price, ZERO) + quantity


class MarketBook:
    """Both sides and the source's update ids.

    Attributes:
        last_id: Last update id of the reference, 0 before the snapshot.
        best_id: Update id of the newest best prices.
        gapped: A diff did not continue the one before; the next snapshot mends it.
    """

    __slots__ = ("_newest", "asks", "best_id", "bids", "gapped", "last_id")

    def __init__(self) -> None:
        self.bids = BookSide(True)
        self.asks = BookSide(False)
        self.last_id = 0
        self.best_id = 0
        self.gapped = False
        self._newest: Best | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the live book equals the reference."""
        return self.bids.is_plain and self.asks.is_plain

    def apply_snapshot(self, snapshot: Snapshot) -> bool:
        """Load a snapshot when there is no sound book yet; False when it was not needed."""
        if self.last_id and not self.gapped:
            return False
        self.bids.load(snapshot.bids)
        self.asks.load(snapshot.asks)
        self.last_id = snapshot.last_id
        self.gapped = False
        return True

    def apply_depth(self, diff: Depth) -> bool:
        """Apply a diff by the venue's rule; False when it is too old, or there is no book."""
        if not self.last_id or diff.last_id <= self.last_id:
            return False
        if diff.first_id > self.last_id + 1:
            self.gapped = True
        self.bids.unhide()
        self.asks.unhide()
        self.bids.apply(diff.bids)
        self.asks.apply(diff.asks)
        self.last_id = diff.last_id
        newest = self._newest
        if newest is not None and newest.update_id > diff.last_id:
            self._show(newest)
        return True

    def apply_best(self, best: Best) -> None:
        """Let newer best prices overrule the live book."""
        if best.update_id <= self.best_id:
            return
        self.best_id = best.update_id
        if self.last_id and best.update_id > self.last_id:
            self._newest = best
            self._show(best)

    def _show(self, best: Best) -> None:
        self.bids.show_best(best.bid, best.bid_quantity)
        self.asks.show_best(best.ask, best.ask_quantity)
