"""Both phases over their share of the SMs, alone and side by side; and what a change of the share costs."""

import time
from collections.abc import Sequence

from bench.gpu.bench import Bench
from bench.gpu.load import DECODE_PERCENTS, MODEL, PhaseLoad, can_have_a_peer, share_backend, split_of
from bench.gpu.peer import peer
from bench.gpu.record import Value
from bench.gpu.subject import DecodeBatch, model_named, open_subject
from tandem.device.partition import PartitionBackend
from tandem.runner.cuda.graphs import StepStream
from tandem.types import Phase

SECONDS = 1.0  # a cell
SWITCHES = 1000
SWITCHED_PERCENTS = DECODE_PERCENTS[2:4]
LONG_S = 60.0  # the peer is ended before


def alone(bench: Bench) -> None:
    """Decode of batch 1 and 64, then prefill, the other phase idle."""
    decode, seconds = PhaseLoad(bench, Phase.DECODE, is_alone=True), SECONDS if not bench.is_dry else 0.0
    for percent in DECODE_PERCENTS:
        has = decode.use(percent)
        batches = {str(batch): decode.decode_ms(batch, seconds / 2) for batch in (1, bench.pick(64, 4))}
        bench.record(f"decode_{percent}", {"has": has, "ms": dict(batches)})
    del decode
    prefill = PhaseLoad(bench, Phase.PREFILL, is_alone=True)
    for percent in DECODE_PERCENTS:
        has = prefill.use(percent)
        rate = prefill.prefill_tokens_per_s(seconds / 2)
        bench.record(f"prefill_beside_{percent}", {"has": has, "tokens_per_s": rate})


def together(bench: Bench) -> None:
    """Decode of batch 64 in this process, prefill in another, each on its side of the split."""
    decode, seconds = PhaseLoad(bench, Phase.DECODE, is_alone=False), SECONDS if not bench.is_dry else 0.0
    with peer(is_dry=bench.is_dry) as prefill:
        for percent in DECODE_PERCENTS:
            has = decode.use(percent)
            prefill.begin(percent, 2 * seconds)
            decode_ms = decode.decode_ms(bench.pick(64, 4), seconds)
            rate = prefill.tokens_per_s()
            bench.record(f"decode_{percent}", {"has": has, "ms": decode_ms, "prefill_tokens_per_s": rate})


def repartition(bench: Bench) -> None:
    """Decode steps of batch 16; before every second one the share changes, 1,000 times: alone, then beside prefill."""
    stream, batch = StepStream(), bench.pick(16, 2)
    backend = share_backend(bench, Phase.DECODE, stream, is_alone=True)
    context, room = bench.pick(256, 32), bench.pick(512, 8)
    num_tokens = DecodeBatch.num_tokens(batch, context, room)
    subject = open_subject(bench, model_named(bench, MODEL), num_tokens, stream)
    steps = DecodeBatch(subject, batch, context, room)
    first_s = []
    for percent in SWITCHED_PERCENTS:
        backend.apply(Phase.DECODE, split_of(percent))
        first_s.append(_seconds_of(steps))
        _seconds_of(steps)
    bench.record("first_step_on_a_share_ms", [each * 1e3 for each in first_s])
    bench.record("alone", _switches(bench, backend, steps))
    if can_have_a_peer(bench):
        with peer(is_dry=bench.is_dry) as prefill:
            prefill.begin(max(SWITCHED_PERCENTS), LONG_S if not bench.is_dry else 0.0)
            bench.record("beside_prefill", _switches(bench, backend, steps))


def _switches(bench: Bench, backend: PartitionBackend, steps: DecodeBatch) -> dict[str, Value]:
    """What a step loses to the switch before it: the switch, and by how much it is longer than the next."""
    stalls_s, usual_s = [], []
    for index in range(bench.pick(SWITCHES, 6)):
        started_s = time.perf_counter()
        backend.apply(Phase.DECODE, split_of(SWITCHED_PERCENTS[index % 2]))
        stalls_s.append(time.perf_counter() - started_s)
        switched_s, next_s = _seconds_of(steps), _seconds_of(steps)
        stalls_s[-1] += max(0.0, switched_s - next_s)
        usual_s.append(next_s)
    return {"stall_us": _percentiles_us(stalls_s), "step_us": _percentiles_us(usual_s)}


def _seconds_of(steps: DecodeBatch) -> float:
    started_s = time.perf_counter()
    steps.step()
    return time.perf_counter() - started_s


def _percentiles_us(times_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {name: ordered[int(at * (len(ordered) - 1))] * 1e6 for name, at in (("p50", 0.5), ("p99", 0.99), ("max", 1))}
