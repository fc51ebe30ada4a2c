"""Fair share across tenants: who has had least of the work of late is next (virtual token counters, as in Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024, that forget).

Each tenant has a counter of the tokens that were computed for it, and of all counters half is forgotten with each
`HALF_LIFE_TOKENS` that are computed for anybody. So who floods has had most whenever one that keeps to its part comes,
and waits for that one's burst; what it had while nobody else wanted it is soon no matter any more. Forgetting goes by
work, not by time, so that it means the same on a slow device as on a fast one.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from sortedcontainers import SortedDict, SortedList

OVERDUE = -math.inf  # the level of what has waited too long: it competes with the best level there is
ANSWER_TOKEN_WORK = 2.0  # in tokens of a prompt; the weight that the paper takes
HALF_LIFE_TOKENS = 200_000  # many of the longest prompts: shares are equal over what matters, not over one prompt
MAX_REMEMBERED = 10_000  # tenants; the longest idle are forgotten, as if they had had nothing
NOTHING = -math.inf


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and for what."""

    tenant: str
    level: float


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """What a tenant has had; of equal ones the one that was charged longer ago goes first.

    Counters stand as logarithms of what they would be had they grown instead of others being forgotten. All of them are
    forgotten alike, so that their order changes only where one is charged.
    """

    log_tokens: float  # to the base 2, and one more for each half-life until then
    last_charge: int
    tenant: str


class FairShare:
    """Tenants by level, lower levels first; a tenant may stand at several. Every call takes O(log tenants)."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, Account] = OrderedDict()  # longest untouched first
        self._levels: dict[str, set[float]] = {}  # of the tenants that wait
        self._lines = SortedDict()  # by level: accounts, least first
        self._num_half_lives = 0.0
        self._num_charges = 0

    def enter(self, tenant: str, level: float) -> None:
        """It has something waiting at that level; nothing happens when it has had already."""
        levels = self._levels.setdefault(tenant, set())
        if level not in levels:
            levels.add(level)
            if level not in self._lines:
                self._lines[level] = SortedList()
            self._lines[level].add(self._account(tenant))

    def leave(self, tenant: str, level: float) -> None:
        """Nothing of it waits at that level any more; nothing happens when nothing did."""
        levels = self._levels.get(tenant)
        if levels is None or level not in levels:
            return
        levels.discard(level)
        self._take_out(level, self._accounts[tenant])
        if not levels:
            del self._levels[tenant]
            self._forget()

    def charge(self, tenant: str, num_tokens: float) -> None:
        """They were computed for it; below zero: fewer than it has been charged."""
        self._num_charges += 1
        self._num_half_lives += num_tokens / HALF_LIFE_TOKENS
        before = self._account(tenant)
        after = Account(self._charged(before, num_tokens), self._num_charges, tenant)
        self._remember(after)
        if tenant not in self._levels:
            self._forget()
            return
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

    def _charged(self, account: Account, num_tokens: float) -> float:
        had_tokens = 2.0 ** (account.log_tokens - self._num_half_lives) + num_tokens
        return math.log2(had_tokens) + self._num_half_lives if had_tokens > 0 else NOTHING

    def _account(self, tenant: str) -> Account:
        account = self._accounts.get(tenant) or Account(NOTHING, 0, tenant)
        self._remember(account)
        return account

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
