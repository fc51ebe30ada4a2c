"""What a ledger says of whose KV a block may hold, when it is granted and after."""

import pytest

from tandem.errors import LeaseError
from tandem.kv.contents import domain_of
from tandem.kv.ledger import Ledger
from tandem.kv.occupants import ANYBODYS, NOBODYS, domain_in, entered, must_wipe
from tandem.kv.records import LedgerRecords, ledger_bytes
from tandem.kv.store import SequenceUpdate
from tandem.types import Block
from tests.support.contents import prompts_of
from tests.unit.kv.test_ledger_crash import run_killed_at

A, B, C = (domain_of(prompts_of(f"private:{name}")) for name in "abc")
BLOCK_SIZE, NUM_BLOCKS = 4, 4


class Pool:
    """Few blocks, so that each is soon granted again."""

    def __init__(self) -> None:
        self.buffer = bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
        self.ledger = Ledger.create(self.buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=1)
        self.num_leases = 0
        self.attach()

    def attach(self) -> None:
        self.holder = self.ledger.add_holder("decode", 1)

    def kill_phase(self) -> None:
        self.ledger.drop_holder(self.holder)
        self.attach()

    def restart(self) -> None:
        self.ledger = Ledger.open(self.buffer)
        self.kill_phase()

    def open(self, domain: bytes) -> int:
        self.num_leases += 1
        self.ledger.acquire_sequence(self.holder, self.num_leases, "r", True, now_s=0.0, domain=domain)
        return self.num_leases

    def fill(self, domain: bytes, num_blocks: int = NUM_BLOCKS, num_sealed: int = NUM_BLOCKS * BLOCK_SIZE) -> int:
        """A lease with so many of its tokens sealed."""
        lease_id = self.open(domain)
        blocks = self.ledger.lease_blocks(self.holder, num_blocks, 0)
        self.ledger.update_sequences(self.holder, [SequenceUpdate(lease_id, blocks, 0)], now_s=0.0)
        self.ledger.update_sequences(self.holder, [SequenceUpdate(lease_id, (), num_sealed)], now_s=0.0)
        return lease_id

    def use(self, domain: bytes, num_sealed: int = NUM_BLOCKS * BLOCK_SIZE) -> None:
        self.ledger.release_sequences([self.fill(domain, num_sealed=num_sealed)])

    def granted(self) -> list[bytes]:
        """Occupants of all blocks, which are spare from now on."""
        blocks = self.ledger.lease_blocks(self.holder, NUM_BLOCKS, 0)
        assert len(blocks) == NUM_BLOCKS
        return [block.occupant for block in sorted(blocks, key=lambda block: block.block_id)]


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_at_first_all_is_nobodys(pool: Pool) -> None:
    assert pool.granted() == [NOBODYS] * NUM_BLOCKS


def test_a_domain_is_known_by_what_is_sealed(pool: Pool) -> None:
    pool.open(B)
    pool.use(A, num_sealed=2 * BLOCK_SIZE + 1)
    assert pool.granted() == [A, A, A, ANYBODYS]


@pytest.mark.parametrize("happens", ["restart", "kill_phase"])
def test_it_is_known_after_memd_or_a_phase_has_ended(pool: Pool, happens: str) -> None:
    pool.open(B)
    pool.use(A)
    getattr(pool, happens)()
    assert pool.granted() == [A] * NUM_BLOCKS


@pytest.mark.parametrize("happens", ["restart", "kill_phase"])
def test_what_a_phase_had_when_it_ended_is_anybodys(pool: Pool, happens: str) -> None:
    pool.open(B)
    pool.use(A)
    pool.granted()
    getattr(pool, happens)()
    assert pool.granted() == [ANYBODYS] * NUM_BLOCKS


def test_what_was_returned_is_anybodys(pool: Pool) -> None:
    pool.open(B)
    pool.use(A)
    pool.ledger.return_blocks(pool.holder, pool.ledger.lease_blocks(pool.holder, 1, 0))
    assert ANYBODYS in pool.granted()


def test_a_lease_names_those_that_nothing_is_sealed_in(pool: Pool) -> None:
    pool.open(B)
    pool.use(A)
    lease_id = pool.fill(B, num_sealed=BLOCK_SIZE)
    lease = pool.ledger.acquire_sequence(pool.holder, lease_id, "r", create=False, now_s=0.0)
    assert [block.occupant for block in lease.blocks] == [NOBODYS, ANYBODYS, ANYBODYS, ANYBODYS]


@pytest.mark.parametrize("happens", ["restart", "kill_phase"])
def test_with_one_domain_whatever_happens_it_is_the_occupant(pool: Pool, happens: str) -> None:
    pool.use(A, num_sealed=1)
    getattr(pool, happens)()
    pool.granted()
    getattr(pool, happens)()
    assert pool.granted() == [A] * NUM_BLOCKS


def test_a_domain_is_told_of_before_anything_is_written_for_it(pool: Pool) -> None:
    pool.use(A)
    pool.granted()  # the phase may write for B from the moment that its lease is open
    pool.open(B)
    pool.kill_phase()
    assert pool.granted() == [ANYBODYS] * NUM_BLOCKS


def test_whenever_memd_is_killed_no_block_is_said_to_hold_less_than_it_may(pool: Pool) -> None:
    """From the grant of A's blocks until two of them are sealed for B."""
    killed_at = 0
    while True:
        pool = Pool()
        pool.open(B)
        pool.use(A)
        was_killed = run_killed_at(killed_at, lambda pool=pool: pool.fill(B, num_sealed=2 * BLOCK_SIZE))
        records = LedgerRecords.map(pool.buffer)
        granted = [generation > 1 for generation in records.generations(range(NUM_BLOCKS))]
        num_sealed = records.leases["num_sealed_tokens"].max() // BLOCK_SIZE
        in_use = records.references[records.references["lease_id"] != 0]
        sealed = in_use["block_id"][in_use["ordinal"] < num_sealed].tolist()
        pool.restart()
        pool.ledger.release_sequences(range(1, pool.num_leases + 1))
        for block_id, occupant in enumerate(pool.granted()):
            assert occupant != NOBODYS
            assert occupant != A or not granted[block_id]
            assert occupant != B or block_id in sealed
        if not was_killed:
            break
        killed_at += 5
    assert killed_at > 50


@pytest.mark.parametrize("domain", [b"a", A[:-1], A + b"a"])
def test_what_is_no_domain_opens_no_lease_and_leaves_nothing(pool: Pool, domain: bytes) -> None:
    with pytest.raises(LeaseError, match=f"a domain has {len(A)} bytes, not {len(domain)}"):
        pool.open(domain)
    pool.ledger.check()


def test_a_fork_is_of_its_parents_domain(pool: Pool) -> None:
    pool.open(A)
    parent = pool.fill(B, num_blocks=2, num_sealed=BLOCK_SIZE)
    pool.ledger.fork_sequence(parent, 99, "r", BLOCK_SIZE, now_s=0.0)
    pool.ledger.acquire_sequence(pool.holder, 99, "r", create=False, now_s=0.0)
    blocks = pool.ledger.lease_blocks(pool.holder, 1, 0)
    pool.ledger.update_sequences(pool.holder, [SequenceUpdate(99, blocks, 2 * BLOCK_SIZE)], now_s=0.0)
    pool.ledger.release_sequences([parent, 99])
    assert sorted(pool.granted()) == sorted([B, ANYBODYS, B, NOBODYS])


def test_a_lease_of_no_known_domain_leaves_what_is_anybodys(pool: Pool) -> None:
    pool.use(b"")
    assert pool.granted() == [ANYBODYS] * NUM_BLOCKS


def test_nothing_is_told_where_nothing_is_to_be_wiped(pool: Pool) -> None:
    pool.ledger.occupants.are_told = False
    pool.open(B)
    pool.use(A)
    assert pool.granted() == [NOBODYS] * NUM_BLOCKS


@pytest.mark.parametrize(
    ("occupant", "domain", "expected"),
    [
        (NOBODYS, A, False),
        (A, A, False),
        (B, A, True),
        (ANYBODYS, A, True),
        (NOBODYS, ANYBODYS, False),
        (A, ANYBODYS, True),
        (ANYBODYS, ANYBODYS, True),
    ],
)
def test_what_is_wiped(occupant: bytes, domain: bytes, expected: bool) -> None:
    assert must_wipe(occupant, domain) is expected


def test_what_a_phase_knows_of_a_block_that_it_has_taken_and_got_back() -> None:
    assert entered(Block(1, 1, A), A).occupant == A
    assert entered(Block(1, 1), A).occupant == A
    assert entered(Block(1, 1, B), A).occupant == ANYBODYS, "wiped or not, that is not known"
    assert entered(Block(1, 1), ANYBODYS).occupant == ANYBODYS


def test_a_sequence_that_shares_with_nobody_is_of_nobodys_domain() -> None:
    assert domain_in(prompts_of("private:a")) == A
    assert domain_in(prompts_of("private:a", "salt")) == A
    assert domain_in(b"") == ANYBODYS


def test_a_sequence_that_reuses_nothing_may_name_its_domain() -> None:
    assert domain_in(b"", A) == A
    assert domain_in(prompts_of("private:a"), B) == A, "what it shares is its namespace's"
