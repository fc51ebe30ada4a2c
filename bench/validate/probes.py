"""Requests that show what lies around a deployment's steps, and what is read from their times. Pure.

None of them is of a load that is to be predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from statistics import fmean, median

from bench.load.records import RequestRecord
from bench.simulate.loads import planned
from bench.simulate.step_times import WHOLE_PERCENT, DeviceTable, StepContent
from bench.workloads.lengths import RequestLength
from bench.workloads.request import Workload
from tandem.errors import NotReadyError

LONE = (RequestLength(24, 24), RequestLength(320, 24))
NUM_LONE = 16
ANSWER = RequestLength(16, 160)
SHORT, LONG = RequestLength(32, 2), RequestLength(256, 2)
LEAST_CONTEXT_TOKENS = 512  # that all of them fit into
LONGEST_SHORT_TOKENS = 64
NUM_GROUPS = 3
TIMES_BETWEEN_GROUPS = 1.5
WAITS = {SHORT: 3.0, LONG: 1.8}  # for the next prompt, in times of this one
LAST_PROMPT = 0.85  # of an answer's time, so that it ends beside the answer
STALLS = 0.02  # the longest gaps: the machine stood still
HALF_PERCENT = WHOLE_PERCENT / 2
S = 1e-3  # a millisecond

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """Milliseconds, steps and waits included. TTFT and first gaps are medians, other gaps means without stalls."""

    gap_ms: float  # between two tokens, no prompt beside them
    beside_gap_ms: float  # between two tokens, a long prompt beside them all the time; 0 where there is none
    first_gap_ms: float  # of a prompt that is handed over: from its first token to its second
    short_ttft_ms: float
    long_ttft_ms: float

    @property
    def joining_ms(self) -> float:
        """A first gap beyond a later one."""
        return self.first_gap_ms - self.gap_ms

    @property
    def rows_ms(self) -> float:
        """What the long prompts have more than the short ones."""
        return self.long_ttft_ms - self.short_ttft_ms


def lone_workload() -> Workload:
    """Short and long prompts in turn, from one user who waits for each answer."""
    lengths = [LONE[number % len(LONE)] for number in range(NUM_LONE)]
    return Workload("alone", planned([0.0] * NUM_LONE, lengths), 1)


def ensemble_workload(table: DeviceTable, num_answers: int) -> Workload:
    """So many answers that begin at once, again and again; beside them short and long prompts, one after another."""
    keys = num_answers * (ANSWER.num_prompt_tokens + ANSWER.num_output_tokens // 2)
    step_ms = table.ms(StepContent(num_decode_rows=num_answers, num_decode_keys=keys), HALF_PERCENT)
    answer_s = ANSWER.num_output_tokens * step_ms * S
    pairs = [
        (group * answer_s * TIMES_BETWEEN_GROUPS + at_s, length)
        for group in range(NUM_GROUPS)
        for at_s, length in ((0.0, ANSWER),) * num_answers + tuple(_prompts(table, answer_s))
    ]
    times_s, lengths = zip(*pairs, strict=True)
    return Workload(f"beside {num_answers}", planned(times_s, lengths))


def _prompts(table: DeviceTable, answer_s: float) -> Iterator[tuple[float, RequestLength]]:
    waits_s = {
        length: times * table.ms(StepContent(num_prompt_rows=length.num_prompt_tokens), HALF_PERCENT) * S
        for length, times in WAITS.items()
    }
    at_s, length, following = waits_s[SHORT], LONG, SHORT
    while at_s < answer_s * LAST_PROMPT:
        yield at_s, length
        at_s += waits_s[length]
        length, following = following, length


def seen_alone(records: Sequence[RequestRecord]) -> Seen:
    """Of `lone_workload`. NotReadyError: too little of it succeeded."""
    good = [record for record in records if record.ok]
    return _seen(good, [gap for record in good for gap in _later_gaps(record)], [])


def seen_beside(records: Sequence[RequestRecord]) -> Seen:
    """Of `ensemble_workload`. NotReadyError: too little of it succeeded."""
    good = [record for record in records if record.ok]
    prompts = [record for record in good if not _is_answer(record)]
    gaps = [gap for record in good if _is_answer(record) for gap in _later_gaps(record)]
    present = [(record.intended_s, record.token_times_s[-1]) for record in prompts]
    computing = [(record.intended_s, record.token_times_s[0]) for record in prompts if _is_long(record)]
    free = [gap for gap in gaps if not any(start < gap[1] and gap[0] < end for start, end in present)]
    beside = [gap for gap in gaps if any(start <= gap[0] and gap[1] <= end for start, end in computing)]
    if not beside:
        raise NotReadyError("no answer went on beside a prompt: there is nothing to calibrate by")
    return _seen(prompts, free, beside)


def mean_of(first: Seen, second: Seen) -> Seen:
    """Of each number."""
    return Seen(*((getattr(first, name) + getattr(second, name)) / 2 for name in Seen.__slots__))


def _seen(prompts: Sequence[RequestRecord], free: Sequence[Span], beside: Sequence[Span]) -> Seen:
    short = [record.ttft_ms for record in prompts if not _is_long(record)]
    long = [record.ttft_ms for record in prompts if _is_long(record)]
    first = [record.gaps_ms[0] for record in prompts if record.gaps_ms]
    if not (short and long and first and free):
        raise NotReadyError("too few requests brought their tokens: there is nothing to calibrate by")
    return Seen(_mean_ms(free), _mean_ms(beside), median(first), median(short), median(long))


def _is_answer(record: RequestRecord) -> bool:
    return record.num_expected_tokens > LONG.num_output_tokens


def _is_long(record: RequestRecord) -> bool:
    return record.num_prompt_tokens > LONGEST_SHORT_TOKENS


def _later_gaps(record: RequestRecord) -> list[Span]:
    """Without the first, in which the sequence joins."""
    return list(pairwise(sorted(set(record.token_times_s))))[1:]


def _mean_ms(gaps: Sequence[Span]) -> float:
    lengths_s = sorted(end - start for start, end in gaps)
    return fmean(lengths_s[: ceil(len(lengths_s) * (1.0 - STALLS))]) / S if lengths_s else 0.0
