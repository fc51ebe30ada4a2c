"""The replicas as the gateway knows them: who there is, what is cached where, what was sent where. Pure.

Whoever owns the connections says what happened (`join`, `leave`, `lose`, `prefilled`, `end`), and asks `route`
where a sequence goes. It sends the sequence, and asks again with those that `lose` returns. What memds tell of their
caches, it hears.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic

from tandem.clock import Clock
from tandem.errors import NotReadyError
from tandem.routing.load import Item, ReplicaLoad, Sent
from tandem.routing.membership import Membership, ReplicaState
from tandem.routing.prompt import Prompt, Reuse, expected_reuse
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.routing.router import Prospect, Router

UNKNOWN_SECONDS_A_TOKEN = 1e-4  # before any replica has computed a prompt
DECODE_LOAD_S = 1.0  # that a pool counts for which decode holds wholly: new prompts push out what is cached, or wait


@dataclass(frozen=True, slots=True)
class _Cache:
    """A replica's, while it gets sequences."""

    num_blocks: Callable[[], int]
    view: PublishedPrefixes


class Fleet(Generic[Item]):
    """Items are sequences under way."""

    def __init__(self, router: Router, clock: Clock) -> None:
        self.membership = Membership()
        self._router = router
        self._clock = clock
        self._num_turns = 0
        self._caches: dict[str, _Cache] = {}
        self._loads: dict[str, ReplicaLoad[Item]] = {}
        self._places: dict[Item, str] = {}
        self._away: set[str] = set()

    def join(self, replica_id: str, num_blocks: Callable[[], int], blocks: PublishedBlocks) -> None:
        """It gets sequences from now on. ValueError when it is there already.

        `num_blocks`: of its pool. `blocks`: what is published there, of which somebody else hears.
        """
        self.membership = self.membership.moved(replica_id, ReplicaState.JOINED)
        self._caches[replica_id] = _Cache(num_blocks, PublishedPrefixes(num_blocks, blocks))
        self._loads[replica_id] = ReplicaLoad(self._clock)

    def leave(self, replica_id: str) -> None:
        """It gets no more sequences, and ends those that it has. ValueError when it is not joined."""
        self.membership = self.membership.moved(replica_id, ReplicaState.LEAVING)
        del self._caches[replica_id]

    def lose(self, replica_id: str) -> tuple[Item, ...]:
        """It is gone; the items that it had, for other replicas. ValueError when it was gone already."""
        self.membership = self.membership.moved(replica_id, ReplicaState.GONE)
        self._caches.pop(replica_id, None)
        self._away.discard(replica_id)
        items = self._loads.pop(replica_id).items
        for item in items:
            del self._places[item]
        return items

    def note_away(self, replica_id: str) -> None:
        """It does not answer: others get the sequences, while there are others that do."""
        self._away.add(replica_id)

    def note_back(self, replica_id: str) -> None:
        """It answers again."""
        self._away.discard(replica_id)

    def route(self, item: Item, prompt: Prompt) -> Prospect:
        """Where it goes; it counts as sent. NotReadyError: nobody serves. ValueError: it is under way already."""
        self._check_is_new(item)
        if not self._caches:
            raise NotReadyError("no replica serves")
        candidates = self._caches.keys() - self._away or self._caches.keys()
        reuses = {
            each: expected_reuse(prompt, cache.view) for each, cache in self._caches.items() if each in candidates
        }
        chosen = self._router.choose([self._prospect(*each) for each in reuses.items()])
        self._send(item, chosen.replica_id, prompt, reuses[chosen.replica_id])
        return chosen

    def place(self, item: Item, replica_id: str, prompt: Prompt) -> None:
        """It goes there without choice, and counts as sent with nothing found. KeyError: that one does not serve."""
        self._check_is_new(item)
        self._send(item, replica_id, prompt, Reuse(0, 0, prompt.num_tokens, prompt.keys))

    def prefilled(self, item: Item, num_computed_tokens: int) -> None:
        """It has its first token; nothing happens when it had one before. KeyError: it is not under way."""
        self._loads[self._places[item]].prefilled(item, num_computed_tokens)

    def end(self, item: Item) -> None:
        """It has ended, or its replica has let it go. KeyError: it is not under way."""
        replica_id = self._places.pop(item)
        sent = self._loads[replica_id].end(item)
        if replica_id in self._caches:
            self._caches[replica_id].view.ended(sent.certain_keys)

    def items(self, replica_id: str) -> Sequence[Item]:
        """That it has. KeyError when it is gone."""
        return self._loads[replica_id].items

    def _check_is_new(self, item: Item) -> None:
        if item in self._places:
            raise ValueError(f"{item!r} is at replica {self._places[item]} already")

    def _send(self, item: Item, replica_id: str, prompt: Prompt, reuse: Reuse) -> None:
        self._num_turns += 1
        load = self._loads[replica_id]
        load.last_turn = self._num_turns
        load.route(item, Sent(reuse.num_computed_tokens, prompt.num_blocks, reuse.certain_keys))
        self._caches[replica_id].view.sent(reuse.certain_keys)
        self._places[item] = replica_id

    def _prospect(self, replica_id: str, reuse: Reuse) -> Prospect:
        load = self._loads[replica_id]
        seconds_a_token = load.seconds_a_token or self._usual_seconds_a_token()
        return Prospect(
            replica_id=replica_id,
            num_exact_tokens=reuse.num_exact_tokens,
            num_segment_tokens=reuse.num_segment_tokens,
            num_computed_tokens=reuse.num_computed_tokens,
            wait_s=load.wait_s(seconds_a_token),
            compute_s=reuse.num_computed_tokens * seconds_a_token,
            utilisation=load.utilisation(seconds_a_token),
            load_s=DECODE_LOAD_S * load.num_decode_blocks / self._caches[replica_id].num_blocks(),
            last_turn=load.last_turn,
        )

    def _usual_seconds_a_token(self) -> float:
        """Of those that are known: who has just joined is as fast until it has shown otherwise."""
        known = [load.seconds_a_token for load in self._loads.values() if load.seconds_a_token]
        return fmean(known) if known else UNKNOWN_SECONDS_A_TOKEN
