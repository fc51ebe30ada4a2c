"""What is right: an answer against the one without faults, and the blocks at the end. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tandem.client import ServerStatus
from tandem.kv.store import StorageStatistics
from tandem.types import FinishReason
from tests.chaos.cases import Ending
from tests.chaos.records import Answers, End, Heard, Record

LOGPROB_TOLERANCE = 1e-3  # the shape of a batch moves the last bits of a float32


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be."""

    rule: str
    what: str
    start_s: float = 0.0  # when it may have come about; both 0: at no certain time
    end_s: float = 0.0


def judge(record: Record, expected: Answers) -> Violation | None:
    """Of a request that has ended, or never did."""
    if record.end in (End.OPEN, End.STUCK):
        return _violation(record, "no stream is stuck", "nothing came any more")
    if record.end is End.FAILED:
        if record.case.ending is Ending.ABORT:
            return None
        return _violation(record, "no error reaches a client", record.error)
    problem = difference(record.answers, expected, may_be_short=record.case.ending is not Ending.READ)
    return _violation(record, "every answer is the undisturbed one", problem) if problem else None


def difference(got: Answers, expected: Answers, *, may_be_short: bool = False) -> str:
    """Where the answers differ first; empty when they do not. A client that left may have the beginning alone."""
    if not may_be_short and got.keys() != expected.keys():
        return f"answers {sorted(got)} came, not {sorted(expected)}"
    problems = ((index, _problem(heard, expected.get(index, Heard()), may_be_short)) for index, heard in got.items())
    return next((f"answer {index}: {problem}" for index, problem in problems if problem), "")


def _problem(got: Heard, expected: Heard, may_be_short: bool) -> str:
    has_left = may_be_short and got.finish_reason in (FinishReason.NONE, FinishReason.ABORT)
    num_tokens = len(got.token_ids)
    if got.token_ids != (expected.token_ids[:num_tokens] if has_left else expected.token_ids):
        return _first_difference(got.token_ids, expected.token_ids)
    if not (expected.text.startswith(got.text) if has_left else got.text == expected.text):
        return f"text {got.text!r}, not {expected.text!r}"
    if not has_left and got.finish_reason is not expected.finish_reason:
        return f"it ended by {got.finish_reason.name}, not {expected.finish_reason.name}"
    return _logprob_problem(got.logprobs, expected.logprobs[: len(got.logprobs)] if has_left else expected.logprobs)


def _first_difference(got: Sequence[int], expected: Sequence[int]) -> str:
    place = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"{len(got)} tokens, not {len(expected)}"
    return f"token {place} of {len(expected)} is {got[place]}, not {expected[place]}"


def _logprob_problem(got: Sequence[float], expected: Sequence[float]) -> str:
    if len(got) != len(expected):
        return f"{len(got)} log probabilities, not {len(expected)}"
    furthest = max((abs(a - b) for a, b in zip(got, expected, strict=True)), default=0.0)
    return f"a log probability is off by {furthest:.2g}" if furthest > LOGPROB_TOLERANCE else ""


def _violation(record: Record, rule: str, problem: str) -> Violation:
    end_s = record.ended_s or record.heard_s
    what = (
        f"stream {record.stream}, request {record.request_id}, case {record.case.number}, "
        f"{record.began_s:.1f} to {end_s:.1f} s, {record.num_tokens} tokens: {problem}"
    )
    return Violation(rule, what, record.began_s, end_s)


@dataclass(frozen=True, slots=True)
class RestingSystem:
    """What the services say once nothing is left to do."""

    storage: StorageStatistics
    status: ServerStatus
    pids: Mapping[str, int]
    spare_blocks: Mapping[str, int]  # by phase, as the phase itself counts them


def leftovers(resting: RestingSystem) -> Iterator[Violation]:
    """What is not accounted for."""
    storage, status = resting.storage, resting.status
    parts = {
        "free": storage.num_free_blocks,
        "spare": storage.num_spare_blocks,
        "leased": storage.num_leased_blocks,
        "cached": storage.num_cached_blocks,
    }
    if sum(parts.values()) != storage.num_blocks:
        yield Violation("every block is accounted for", f"{parts} of {storage.num_blocks}")
    if storage.num_leased_blocks or storage.num_sequences:
        yield Violation("no lease is left", f"{storage.num_sequences} leases, {storage.num_leased_blocks} blocks")
    holders = {(holder.service, holder.pid) for holder in storage.holders}
    phases = {(phase, resting.pids.get(phase, 0)) for phase in resting.spare_blocks}
    if holders != phases or len(storage.holders) != len(phases):
        yield Violation("only living phases hold blocks", f"holders {sorted(holders)}, phases {sorted(phases)}")
    held = {holder.service: holder.num_spare_blocks for holder in storage.holders}
    if held != dict(resting.spare_blocks):
        yield Violation("a phase knows of its spare blocks", f"memd says {held}, they {dict(resting.spare_blocks)}")
    if status.num_waiting or status.num_prefilling or status.num_decoding:
        yield Violation("the gateway is empty", str(status))
