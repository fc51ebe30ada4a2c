"""Fair share across tenants: who has had least of the work done is next (virtual token counters, as in Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024).

Each tenant has a counter of the tokens that were computed for it. One that comes back from idleness is lifted to the
least counter of those that wait: nobody saves up turns by staying away, and nobody is punished for what it had while
nobody else wanted it.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from sortedcontainers import SortedDict, SortedList

OVERDUE = -math.inf  # the level of what has waited too long: it competes with the best level there is
ANSWER_TOKEN_WORK = 2.0  # in tokens of a prompt; the weight that the paper takes
MAX_REMEMBERED = 10_000  # tenants; the longest idle are forgotten, and begin at the least counter when they come back


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and for what."""

    tenant: str
    level: float


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """What a tenant has had; of equal ones the one that was charged longer ago goes first."""

    num_tokens: float
    last_charge: int
    tenant: str


class FairShare:
    """Tenants by level, lower levels first; a tenant may stand at several. Every call takes O(log tenants)."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, Account] = OrderedDict()  # longest untouched first
        self._levels: dict[str, set[float]] = {}  # of the tenants that wait
        self._lines = SortedDict()  # by level: accounts, least first
        self._waiting = SortedList()  # accounts of all that wait
        self._last_tokens = 0.0  # what the last one to leave had had
        self._num_charges = 0

    def enter(self, tenant: str, level: float) -> None:
        """It has something waiting at that level; nothing happens when it has had already."""
        levels = self._levels.get(tenant)
        if levels is None:
            levels = self._levels[tenant] = set()
            self._waiting.add(self._lifted(tenant))
        if level not in levels:
            levels.add(level)
            self._lines.setdefault(level, SortedList()).add(self._accounts[tenant])

    def leave(self, tenant: str, level: float) -> None:
        """Nothing of it waits at that level any more; nothing happens when nothing did."""
        levels = self._levels.get(tenant)
        if levels is None or level not in levels:
            return
        levels.discard(level)
        self._take_out(level, self._accounts[tenant])
        if not levels:
            del self._levels[tenant]
            self._waiting.remove(self._accounts[tenant])
            self._last_tokens = self._accounts[tenant].num_tokens
            self._forget()

    def charge(self, tenant: str, num_tokens: float) -> None:
        """They were computed for it; below zero: fewer than it has been charged."""
        self._num_charges += 1
        before = self._accounts.get(tenant) or Account(self._floor_tokens(), 0, tenant)
        after = Account(before.num_tokens + num_tokens, self._num_charges, tenant)
        self._remember(after)
        if tenant not in self._levels:
            self._forget()
            return
        self._waiting.remove(before)
        self._waiting.add(after)
        for level in self._levels[tenant]:
            self._lines[level].remove(before)
            self._lines[level].add(after)

    def first(self) -> Turn:
        """Who has had least of those at the best level, or overdue. IndexError when nobody waits."""
        level, line = self._lines.peekitem(0)
        turn = Turn(line[0].tenant, level)
        if level != OVERDUE or len(self._lines) == 1:
            return turn
        best_level, best_line = self._lines.peekitem(1)
        return Turn(best_line[0].tenant, best_level) if best_line[0] < line[0] else turn

    def _lifted(self, tenant: str) -> Account:
        known = self._accounts.get(tenant) or Account(0.0, 0, tenant)
        lifted = Account(max(known.num_tokens, self._floor_tokens()), known.last_charge, tenant)
        self._remember(lifted)
        return lifted

    def _floor_tokens(self) -> float:
        if not self._waiting:
            return self._last_tokens
        least: Account = self._waiting[0]
        return least.num_tokens

    def _take_out(self, level: float, account: Account) -> None:
        self._lines[level].remove(account)
        if not self._lines[level]:
            del self._lines[level]

    def _remember(self, account: Account) -> None:
        self._accounts[account.tenant] = account
        self._accounts.move_to_end(account.tenant)

    def _forget(self) -> None:
        """The longest untouched of too many; one that waits is kept."""
        if len(self._accounts) - len(self._levels) <= MAX_REMEMBERED:
            return
        for tenant in self._accounts:
            if tenant not in self._levels:
                del self._accounts[tenant]
                return
