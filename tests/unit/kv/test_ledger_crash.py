"""A writer killed between any two stores leaves a ledger that opens again; one that no kill explains is refused."""

import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest

from tandem.errors import LedgerCorruptError
from tandem.kv import ledger as ledger_module
from tandem.kv import occupants as occupants_module
from tandem.kv import published as published_module
from tandem.kv import records as records_module
from tandem.kv import repair as repair_module
from tandem.kv.ledger import Ledger
from tandem.kv.records import LAYOUT_VERSION, LedgerRecords, ledger_bytes
from tandem.kv.repair import Repairs, repair
from tandem.kv.store import PromptTokens, SequenceUpdate
from tests.support.contents import NAMESPACE, block_tokens, entry, key, keyed

MODULES = (ledger_module, occupants_module, published_module, records_module, repair_module)
FILES = {module.__file__ for module in MODULES}


SEGMENTS = [entry("private:a", range(first, first + 4)) for first in (0, 50)]
PROMPT = PromptTokens(NAMESPACE, (*block_tokens(0), *block_tokens(1)[:3], 99))


class KilledError(Exception):
    pass


def run_killed_at(line: int, action: Callable[[], object]) -> bool:
    """Runs `action` up to its `line`-th line in the ledger's code; says whether it was killed there."""
    left = line

    def trace(frame: FrameType, event: str, _: object):
        nonlocal left
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KilledError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KilledError:
        return True
    finally:
        sys.settrace(before)
    return False


def scene() -> tuple[bytearray, Ledger, dict[str, Callable[[], object]]]:
    """A ledger in use, and one operation of each kind on it."""
    buffer = bytearray(ledger_bytes(16, 4))
    ledger = Ledger.create(buffer, num_blocks=16, block_size=4, epoch=1)
    prefill, decode = ledger.add_holder("prefill", 1), ledger.add_holder("decode", 2)
    ledger.acquire_sequence(prefill, 100, "r", create=True, now_s=0.0)
    blocks = ledger.lease_blocks(prefill, 8, 0)
    ledger.update_sequences(prefill, [SequenceUpdate(100, blocks[:4], 16)], now_s=0.0)
    ledger.fork_sequence(100, 200, "r", 8, now_s=0.0)
    publish_and_release(ledger, prefill)
    ledger.acquire_sequence(decode, 500, "r", create=True, now_s=0.0)
    operations: dict[str, Callable[[], object]] = {
        "grant": lambda: ledger.lease_blocks(decode, 3, 0),
        "return": lambda: ledger.return_blocks(prefill, blocks[6:]),
        "extend": lambda: ledger.update_sequences(prefill, [SequenceUpdate(100, blocks[4:6], 24)], now_s=0.0),
        "fork": lambda: ledger.fork_sequence(100, 300, "r", 16, now_s=0.0),
        "open": lambda: ledger.acquire_sequence(decode, 400, "r", create=True, now_s=0.0),
        "hand over": lambda: ledger.acquire_sequence(decode, 100, "r", create=False, now_s=0.0),
        "release": lambda: ledger.release_sequences([100]),
        "release shared": lambda: ledger.release_sequences([200, 100]),
        "publish": lambda: ledger.update_sequences(
            prefill, [SequenceUpdate(100, (), 16, (keyed(9, ordinal=2),))], now_s=0.0
        ),
        "publish for another": lambda: ledger.update_sequences(
            prefill, [SequenceUpdate(100, (), 16, SEGMENTS[1])], now_s=0.0, num_segment_blocks=1
        ),
        "grant the cached": lambda: ledger.lease_blocks(decode, 9, 0),
        "claim": lambda: ledger.claim_prefix(decode, 500, [key(0), key(1)], 0, now_s=0.0),
        "claim to copy": lambda: ledger.claim_prefix(decode, 500, [key(0)], 0, prompt=PROMPT, now_s=0.0),
        "copy of what was given away": lambda: copy_what_was_given_away(ledger, decode),
        "pin": lambda: ledger.published.pin([key(0), key(1)], 2),
        "withdraw": lambda: claim_and_withdraw(ledger, decode),
        "withdraw all": lambda: claim_and_withdraw_all(ledger, decode),
        "withdraw the pinned": lambda: (ledger.published.pin([key(0)], 2), ledger.published.withdraw_all()),
        "unclaim": lambda: unclaim(ledger, decode),
        "unclaim the withdrawn": lambda: unclaim_withdrawn(ledger, decode),
        "release published": lambda: claim_and_release(ledger, decode),
        "abandon": lambda: ledger.abandon_sequences([100, 200]),
        "let go": lambda: abandon_and_let_go(ledger, prefill),
        "drop with abandoned": lambda: abandon_and_drop(ledger, prefill),
        "attach": lambda: ledger.add_holder("decode", 3),
        "drop": lambda: ledger.drop_holder(prefill),
    }
    return buffer, ledger, operations


def publish_and_release(ledger: Ledger, holder: int) -> None:
    """Leaves two cached blocks of a prompt, and one of a segment."""
    for lease_id, publish in ((600, (keyed(0), keyed(1))), (700, SEGMENTS[0])):
        ledger.acquire_sequence(holder, lease_id, "r", create=True, now_s=0.0)
        blocks = ledger.lease_blocks(holder, len(publish), 0)
        update = SequenceUpdate(lease_id, blocks, 4 * len(blocks), publish)
        ledger.update_sequences(holder, [update], now_s=0.0, num_segment_blocks=1)
        ledger.release_sequences([lease_id])


def unclaim(ledger: Ledger, holder: int) -> None:
    ledger.claim_prefix(holder, 500, [key(0), key(1)], 0, now_s=0.0)
    ledger.claim_prefix(holder, 500, [], 0, now_s=0.0)


def unclaim_withdrawn(ledger: Ledger, holder: int) -> None:
    """Nothing keeps its blocks: they become free, not cached."""
    ledger.claim_prefix(holder, 500, [key(0), key(1)], 0, now_s=0.0)
    ledger.published.withdraw(NAMESPACE)
    ledger.claim_prefix(holder, 500, [], 0, now_s=0.0)


def claim_and_release(ledger: Ledger, holder: int) -> None:
    ledger.claim_prefix(holder, 500, [key(0), key(1)], 0, now_s=0.0)
    ledger.release_sequences([500])


def copy_what_was_given_away(ledger: Ledger, holder: int) -> None:
    source = ledger.claim_prefix(holder, 500, [key(0)], 0, prompt=PROMPT, now_s=0.0).copy_source
    ledger.lease_blocks(holder, 16, 0)
    ledger.update_sequences(holder, [SequenceUpdate(500, (), 4, copied_from=(source.block,))], now_s=0.0)


def claim_and_withdraw(ledger: Ledger, holder: int) -> None:
    """One block that is withdrawn is in a lease, the other in none."""
    ledger.claim_prefix(holder, 500, [key(0)], 0, now_s=0.0)
    ledger.published.withdraw(NAMESPACE)


def claim_and_withdraw_all(ledger: Ledger, holder: int) -> None:
    ledger.claim_prefix(holder, 500, [key(0)], 0, now_s=0.0)
    ledger.published.withdraw_all()


def abandon_and_let_go(ledger: Ledger, holder: int) -> None:
    ledger.abandon_sequences([100])
    ledger.update_sequences(holder, [SequenceUpdate(100, (), 0, let_go=True)], now_s=0.0)


def abandon_and_drop(ledger: Ledger, holder: int) -> None:
    ledger.abandon_sequences([100])
    ledger.drop_holder(holder)


@pytest.mark.parametrize("name", list(scene()[2]))
def test_every_kill_leaves_a_ledger_to_go_on_with(name):
    line, repaired = 0, 0
    while True:
        buffer, _, operations = scene()
        if not run_killed_at(line, operations[name]):
            break
        again = Ledger.open(buffer)
        again.check()
        repaired += again.repairs != Repairs()
        everything_can_be_given_back(again)
        line += 1
    assert line > 10
    assert repaired > 0 or name in {"grant", "publish", "open", "hand over", "attach", "pin"}  # others are counted


def everything_can_be_given_back(ledger: Ledger) -> None:
    for holder in ledger.statistics().holders:
        ledger.drop_holder(holder.holder_id)
    ledger.expire(now_s=100.0, ttl_s=1.0)
    ledger.check()
    assert ledger.statistics().num_free_blocks + ledger.statistics().num_cached_blocks == 16
    num_pinned = ledger.statistics().num_pinned_blocks
    holder = ledger.add_holder("decode", 1)
    assert len(ledger.lease_blocks(holder, 16, 0)) == 16 - num_pinned
    assert ledger.published.withdraw_all().num_freed_blocks == num_pinned
    ledger.check()


@pytest.mark.parametrize(
    "name",
    [
        "extend",
        "fork",
        "release",
        "release shared",
        "claim",
        "unclaim",
        "unclaim the withdrawn",
        "release published",
        "withdraw",
    ],
)
def test_the_repair_itself_may_be_killed(name):
    def torn(line: int) -> bytearray | None:
        buffer, _, operations = scene()
        return buffer if run_killed_at(line, operations[name]) else None

    line = 0
    while (buffer := torn(line)) is not None:
        repair_line = 0
        while was_killed := repair_killed_at(repair_line, buffer):
            everything_can_be_given_back(Ledger.open(was_killed))
            repair_line += 7
        assert repair_line > 0
        line += 5


@pytest.mark.parametrize("name", ["claim", "unclaim"])
def test_a_claim_that_was_cut_off_can_be_made_again(name):
    """Whoever asked has no answer, and asks the next memd: what the lease shares is sealed, whole and in order."""
    line = 0
    while True:
        buffer, before, operations = scene()
        if not run_killed_at(line, operations[name]):
            break
        again = Ledger.open(buffer)
        decode = next(each.holder_id for each in again.statistics().holders if each.service == "decode")
        lease = again.claim_prefix(decode, 500, [key(0), key(1)], 0, now_s=0.0)
        assert [block.block_id for block in lease.blocks] == before._index.contents.run([key(0), key(1)])
        assert lease.num_sealed_tokens == 8
        assert again.claim_prefix(decode, 500, [], 0, now_s=0.0).blocks == ()
        again.check()
        line += 1
    assert line > 10


def repair_killed_at(line: int, buffer: bytearray) -> bytearray | None:
    copy = bytearray(buffer)
    return copy if run_killed_at(line, lambda: repair(LedgerRecords.map(copy))) else None


def corrupted(change: Callable[[LedgerRecords], None]) -> bytearray:
    buffer, _, _ = scene()
    change(LedgerRecords.map(buffer))
    return buffer


def put(table: str, row: int, field: str, value: int) -> Callable[[LedgerRecords], None]:
    def change(records: LedgerRecords) -> None:
        getattr(records, table)[field][row] = value

    return change


def lease_slot(lease_id: int) -> int:
    return int(np.flatnonzero(LedgerRecords.map(scene()[0]).leases["lease_id"] == lease_id)[0])


def reference_slot(lease_id: int, ordinal: int) -> int:
    references = LedgerRecords.map(scene()[0]).references
    return int(np.flatnonzero((references["lease_id"] == lease_id) & (references["ordinal"] == ordinal))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("blocks", 3, "state", 0), "block 3 is FREE .* is in lease 100 at position 3"),
        (put("blocks", 12, "state", 2), r"block 12 is LEASED .* is in no lease"),
        (put("blocks", 3, "state", 9), "block 3 is in state 9"),
        (put("blocks", 4, "owner", 77), "block 4 is spare of holder 77, which is not attached"),
        (put("blocks", 3, "owner", 2), "block 3 is LEASED and yet owned by holder 2"),
        (put("blocks", 3, "generation", 5), "block 3 at position 3 of lease 100 has generation 1, not 5"),
        (put("leases", lease_slot(100), "num_sealed_tokens", 17), "lease 100 has 17 sealed tokens in 4 blocks of 4"),
        (put("leases", lease_slot(100), "holder_id", 50), "lease 100 is held by 50, which is not attached"),
        (put("leases", lease_slot(100), "lease_id", 200), "lease 200 has 2 records"),
        (put("references", reference_slot(100, 3), "block_id", 2), "lease 100 holds a block twice: .*2, 2"),
        (put("references", reference_slot(100, 1), "ordinal", 7), r"lease 100 has blocks at positions \[0, 2, 3, 7\]"),
        (put("references", reference_slot(100, 3), "lease_id", 5), "block 3 is at position 3 of lease 5, which does"),
        (put("references", reference_slot(100, 3), "block_id", 99), "block 99 .* is past the pool's end"),
        (put("blocks", 12, "published", 1), "block 12 is published and FREE"),
        (put("blocks", 3, "published", 1), r"blocks \[3, 8\] are all published under 0000"),
        (put("blocks", 8, "kind", 9), "block 8 is published as of kind 9"),
        (put("holders", 63, "holder_id", 2), "holder 2 has 2 records"),
    ],
)
def test_a_contradiction_is_refused_by_name(change, message):
    with pytest.raises(LedgerCorruptError, match=message):
        Ledger.open(corrupted(change))


def test_what_is_no_ledger_is_refused():
    buffer, _, _ = scene()
    with pytest.raises(LedgerCorruptError, match="does not start as a ledger"):
        Ledger.open(bytearray(len(buffer)))
    with pytest.raises(LedgerCorruptError, match="16 blocks need"):
        Ledger.open(buffer[:-64])
    with pytest.raises(LedgerCorruptError, match="less than its header"):
        Ledger.open(bytearray(8))
    with pytest.raises(LedgerCorruptError, match=f"layout version 5, this program {LAYOUT_VERSION}"):
        Ledger.open(corrupted(put("header", 0, "layout_version", 5)))


def test_many_contradictions_are_counted():
    def change(records: LedgerRecords) -> None:
        records.blocks["state"][:] = 7

    with pytest.raises(LedgerCorruptError, match=r"and [0-9]+ more"):
        Ledger.open(corrupted(change))
