"""Which block of which domain goes for another one, against a search through all of them."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tandem.kv.domain_blocks import DomainBlocks

DOMAINS = [b"a", b"b", b"c"]
BLOCKS = st.integers(0, 11)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: DomainBlocks[int] = DomainBlocks()
        self.domains: dict[int, bytes] = {}
        self.idle: list[int] = []

    @rule(block_id=BLOCKS, domain=st.sampled_from(DOMAINS))
    def add(self, block_id: int, domain: bytes) -> None:
        assert (block_id in self.blocks) == (block_id in self.domains)
        if block_id not in self.domains:
            self.blocks.add(block_id, domain)
            self.domains[block_id] = domain

    @rule(block_id=BLOCKS)
    def discard(self, block_id: int) -> None:
        self.blocks.discard(block_id)
        self.domains.pop(block_id, None)
        self.leave(block_id)

    @rule(block_id=BLOCKS)
    def use(self, block_id: int) -> None:
        self.blocks.use(block_id)
        self.leave(block_id)

    @rule(block_id=BLOCKS)
    def keep(self, block_id: int) -> None:
        self.blocks.keep(block_id)
        self.leave(block_id)
        if block_id in self.domains:
            self.idle.append(block_id)

    def leave(self, block_id: int) -> None:
        if block_id in self.idle:
            self.idle.remove(block_id)

    @invariant()
    def the_longest_unused_of_the_largest_domain_goes(self) -> None:
        sizes = Counter(self.domains.values())
        assert len(self.blocks) == sizes.total()
        assert self.blocks.num_idle == len(self.idle)
        assert [block for block in self.blocks if self.blocks.is_idle(block)] == [
            block for block in self.domains if block in self.idle
        ]
        for domain in DOMAINS:
            larger = [block for block in self.idle if sizes[self.domains[block]] > sizes[domain]]
            most = max((sizes[self.domains[block]] for block in larger), default=0)
            own = [block for block in self.idle if self.domains[block] == domain]
            expected = [block for block in larger if sizes[self.domains[block]] == most] or own
            firsts = {self.domains[block]: block for block in reversed(expected)}
            chosen = self.blocks.first_to_go(domain)
            assert chosen in firsts.values() if firsts else chosen is None


TestDomainBlocks = Machine.TestCase
TestDomainBlocks.settings = settings(max_examples=60, stateful_step_count=40)
