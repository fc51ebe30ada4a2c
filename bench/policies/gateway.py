"""The simulated gateway around the dispatcher that serves."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.policies.sequences import SharingSequence
from bench.simulate.events import EventQueue
from bench.simulate.systems import EngineLimits
from tandem.config.settings import QueuePolicy
from tandem.kv.cache_store import CacheNews
from tandem.routing.published import PublishedBlocks, PublishedPrefixes
from tandem.scheduler.dispatch import Claim, Dispatcher
from tandem.scheduler.fair_share import ANSWER_TOKEN_WORK
from tandem.scheduler.policies import PolicyOptions, make_policy

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """As the gateway is configured."""

    policy: QueuePolicy
    max_wait_s: float
    backlog_tokens: int


class PolicyGateway:
    """Requests from their arrival to their end. `submit` puts one into prefill."""

    def __init__(
        self,
        options: GatewayOptions,
        limits: EngineLimits,
        published: PublishedBlocks,
        events: EventQueue,
        submit: Callable[[SharingSequence], None],
    ) -> None:
        """`published` is heard of here alone."""
        self._limits = limits
        self._events = events
        self._submit = submit
        self._num_running = 0
        view = PublishedPrefixes(lambda: limits.num_blocks - limits.num_reserve_blocks, published)
        policy = make_policy(options.policy, PolicyOptions(options.max_wait_s))
        self._dispatcher: Dispatcher[SharingSequence] = Dispatcher(policy, view, options.backlog_tokens)

    def arrive(self, sequence: SharingSequence) -> None:
        """A request, or a sequence that a phase has let go; it keeps its place in the order."""
        block_size = self._limits.block_size
        claim = Claim(
            priority=sequence.priority,
            arrival_unix_ns=sequence.arrival_unix_ns,
            index=0,
            tenant=sequence.tenant,
            num_tokens=sequence.num_tokens,
            keys=sequence.keys,
            block_size=block_size,
        )
        self._dispatcher.push(sequence, claim)
        self._dispatch()

    def prefilled(self, sequence: SharingSequence) -> None:
        """It has a token more, and all before that are computed."""
        self._dispatcher.finish(sequence, sequence.num_computed - sequence.num_cached_tokens)
        self._dispatch()

    def preempted(self, sequence: SharingSequence) -> None:
        """Decode has let it go."""
        self._num_running -= 1
        self.arrive(sequence)

    def complete(self, sequence: SharingSequence) -> None:
        """It has its whole answer."""
        self._num_running -= 1
        self._dispatcher.charge(sequence.tenant, ANSWER_TOKEN_WORK * sequence.num_output_tokens)
        self._dispatch()

    def hear(self, news: CacheNews) -> None:
        """Of what is published."""
        self._dispatcher.hear(news)

    def _dispatch(self) -> None:
        while self._num_running < self._limits.max_running:
            sequence = self._dispatcher.take(int(self._events.now_s * NS_PER_S))
            if sequence is None:
                return
            self._num_running += 1
            sequence.sent_s = self._events.now_s if sequence.sent_s is None else sequence.sent_s
            self._submit(sequence)
