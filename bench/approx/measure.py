"""Items, one after another: full recompute, then every case against it, in one process and one cache."""

from collections.abc import Callable, Sequence

import torch

from bench.approx.answer import difference, follow, pick
from bench.approx.cases import Case, cases_of
from bench.approx.item import Item
from bench.approx.model import ApproxModel
from bench.approx.prefills import Prefills
from bench.approx.prepared import Prepared, prepare
from bench.approx.record import ItemRecord, Outcome
from bench.approx.settings import Settings
from bench.approx.stage import StageTrial
from bench.approx.timing import Stopwatch
from tandem.clock import Clock


def measure(
    model: ApproxModel, items: Sequence[Item], settings: Settings, clock: Clock, advance: Callable[[], None]
) -> list[ItemRecord]:
    """`advance` is called once an item. The first is done once before, and not counted: memory grows to its size."""
    stopwatch = Stopwatch(clock)
    _record(model, items[0], settings, stopwatch)
    records = []
    for item in items:
        records.append(_record(model, item, settings, stopwatch))
        advance()
    return records


@torch.inference_mode()
def _record(model: ApproxModel, item: Item, settings: Settings, stopwatch: Stopwatch) -> ItemRecord:
    prepared = prepare(model, item, settings, stopwatch)
    prefills = Prefills(model, prepared, stopwatch)
    outcomes = tuple(_outcome(model, prepared, prefills, case) for case in cases_of(settings.ratios))
    stage = StageTrial(model, prepared, settings, stopwatch).run(prefills)
    return ItemRecord(
        name=item.name,
        num_tokens=len(item.token_ids),
        num_reused=sum(placement.num_tokens for placement in prepared.placements),
        picked=pick(model, prepared.full.value, item.choices),
        full_ms=prepared.full.ms,
        build_ms=prepared.entries.ms,
        step_ms=prepared.continuation.ms / settings.continuation_tokens,
        refresh_ms=stage.refresh_ms,
        outcomes=outcomes,
        stages=stage.outcomes,
    )


def _outcome(model: ApproxModel, prepared: Prepared, prefills: Prefills, case: Case) -> Outcome:
    prefill = prefills.run(case)
    logits = follow(model, prefill.prompt, prepared.continuation.value[: len(prepared.expected)])
    seen = difference(prepared.expected, logits)
    picked = pick(model, prefill.prompt, prepared.item.choices)
    return Outcome(case, seen.kl, seen.agrees, picked, len(prefill.computed), prefill.ttft_ms)
