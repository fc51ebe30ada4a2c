"""A load that shifts from prompts to answers and back, on running deployments in turn."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.deployment.open import Target
from bench.experiment import Experiment, run_workload
from bench.load.metrics import Slo, meets, summarise
from bench.load.process import Progress
from bench.load.records import RequestRecord
from bench.shift.results import Attained, ShiftFacts, ShiftRun
from bench.shift.switches import stalls
from bench.simulate.loads import LoadSpec, requests_of
from bench.workloads.request import Workload
from tandem.errors import NotReadyError
from tandem.partition.status import DecisionRecord
from tandem.rpc.controller_client import ControllerClient


@dataclass(frozen=True, slots=True)
class ShiftExperiment:
    """Of `experiment` the model's limits and what surrounds a run count."""

    experiment: Experiment
    facts: ShiftFacts
    slo: Slo


@dataclass(frozen=True, slots=True)
class Turn:
    """Who is loaded next: `name` as the user wrote it."""

    name: str
    target: Target
    round_number: int


def turns(names: Sequence[str], targets: Sequence[Target], num_rounds: int) -> Iterator[Turn]:
    """Round after round; who goes first changes with each."""
    pairs = list(zip(names, targets, strict=True))
    for number in range(num_rounds):
        start = number % len(pairs)
        for name, target in (*pairs[start:], *pairs[:start]):
            yield Turn(name, target, number)


def shift_workload(facts: ShiftFacts, context_tokens: int, round_number: int = 0) -> Workload:
    """The simulator's load of the same name, without what comes after the last phase. ConfigError."""
    duration_s = facts.phase_s * facts.num_phases
    spec = LoadSpec(
        name="shift",
        duration_s=duration_s,
        seed=facts.seed + round_number,
        period_s=2 * facts.phase_s,
        length_scale=facts.length_scale,
        context_tokens=context_tokens,
    )
    return Workload("shift", tuple(each for each in requests_of(spec, facts.rate_per_s) if each.at_s < duration_s))


def run_shift(shift: ShiftExperiment, turn: Turn, on_progress: Callable[[Progress], None]) -> ShiftRun:
    """One round. NotReadyError when the deployment does not answer."""
    limits = shift.experiment.spec.limits
    workload = shift_workload(shift.facts, limits.max_context_tokens, turn.round_number)
    salt = f"shift {turn.name} {turn.round_number}"
    run = run_workload(shift.experiment, turn.target, workload, salt, on_progress)
    seen = stalls(_history(turn.target), run.records, run.started_unix_s)
    halves = _by_kind(run.records, shift.facts.phase_s)
    return ShiftRun(
        deployment=turn.name,
        round_number=turn.round_number,
        summary=summarise(run.records, shift.slo),
        prompt_heavy=_attained(halves[0], shift.slo),
        answer_heavy=_attained(halves[1], shift.slo),
        switches=seen.switches,
        steady_gap_p99_ms=seen.steady_gap_p99_ms,
    )


def _by_kind(records: Sequence[RequestRecord], phase_s: float) -> list[list[RequestRecord]]:
    """Those that were due in the prompt-heavy phases, and the others."""
    kinds: list[list[RequestRecord]] = [[], []]
    for record in records:
        kinds[int(record.intended_s // phase_s) % 2].append(record)
    return kinds


def _attained(records: Sequence[RequestRecord], slo: Slo) -> Attained:
    return Attained(len(records), sum(meets(record, slo) for record in records))


def _history(target: Target) -> tuple[DecisionRecord, ...]:
    """None of a deployment of which no controller is known."""
    if not target.controller:
        return ()
    try:
        with ControllerClient(target.controller) as client:
            return client.history()
    except NotReadyError as error:
        raise NotReadyError(f"{target.name}: its controller does not tell its history: {error}") from error
