"""Both phases over their share of the SMs, alone and side by side; and what a change of the share costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.gpu.bench import Bench
from bench.gpu.load import DECODE_PERCENTS, PhaseLoad, can_have_a_peer
from bench.gpu.peer import Peer, peer
from bench.gpu.record import NO_TIME, Value
from bench.gpu.subject import DecodeBatch
from tandem.types import Phase

SWITCHED_PERCENTS = (50, 69)
SWITCHES, SWITCHES_ALONE = 1000, 300
SWITCHED_BATCH = 16
GRAPH_PERCENTS = {"graph_on_its_own_share": 31, "graph_from_a_wider_share": 88}
SECONDS = 0.5  # a figure of the table
CELL_S = 6.0  # a row of the table may well take
BESIDE_PART, ALONE_PART = 0.4, 0.15  # of the time left that switches may take
PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
NO_PEER = "no MPS"
PROBE_NS = 100_000


@dataclass(frozen=True, slots=True)
class Switching:
    """So many changes of the share, but no longer than that."""

    count: int
    allowed_s: float


def shares(bench: Bench) -> None:
    """Decode in this process, prefill in another: graphs, switches, then the table from its middle outwards."""
    bench.expect(GRAPH_PERCENTS if not bench.is_dry else ())
    bench.expect(["first_step_on_a_share_ms", "switches_beside_prefill", "switches_alone", *map(_row, DECODE_PERCENTS)])
    has_peer = can_have_a_peer(bench)
    with peer(is_dry=bench.is_dry, is_alone=not has_peer) as prefill:
        decode = PhaseLoad(bench, Phase.DECODE, is_alone=True)
        if not bench.is_dry:
            _graph_keeps_its_sms(bench, decode)
        _switching(bench, decode, prefill if has_peer else None)
        for percent in DECODE_PERCENTS:
            if bench.has_time(CELL_S):
                bench.record(_row(percent), _cells(bench, decode, prefill, percent, has_peer=has_peer))


def _row(percent: int) -> str:
    return f"decode_{percent}_percent"


def _switching(bench: Bench, decode: PhaseLoad, prefill: Peer | None) -> None:
    """Before every second step of decode the share changes; the two shares are captured before."""
    steps = decode.decode_steps(bench.pick(SWITCHED_BATCH, 2))
    first_ms = []
    for percent in SWITCHED_PERCENTS:
        decode.use(percent)
        first_ms.append(_seconds_of(steps) * 1e3)
        _seconds_of(steps)
    bench.record("first_step_on_a_share_ms", first_ms)
    if prefill is None:
        bench.leave_out("switches_beside_prefill", NO_PEER)
    else:
        allowed_s = bench.left_s * BESIDE_PART
        prefill.begin(max(SWITCHED_PERCENTS), allowed_s)
        _switches(bench, "switches_beside_prefill", decode, steps, Switching(bench.pick(SWITCHES, 6), allowed_s))
        prefill.stop()
    alone = Switching(bench.pick(SWITCHES_ALONE, 6), bench.left_s * ALONE_PART)
    _switches(bench, "switches_alone", decode, steps, alone)


def _switches(bench: Bench, name: str, decode: PhaseLoad, steps: DecodeBatch, wanted: Switching) -> None:
    """What a step loses to the switch before it: the switch, and by how much it is longer than the next."""
    stalls_s: list[float] = []
    usual_s: list[float] = []
    until_s = time.perf_counter() + wanted.allowed_s
    while len(stalls_s) < wanted.count and (not stalls_s or time.perf_counter() < until_s):
        started_s = time.perf_counter()
        decode.use(SWITCHED_PERCENTS[len(stalls_s) % 2])
        switch_s = time.perf_counter() - started_s
        switched_s, next_s = _seconds_of(steps), _seconds_of(steps)
        stalls_s.append(switch_s + max(0.0, switched_s - next_s))
        usual_s.append(next_s)
    found = {"stall_us": _percentiles_us(stalls_s), "step_us": _percentiles_us(usual_s)}
    bench.record(name, {"switches": len(stalls_s), **found})
    if len(stalls_s) < wanted.count:
        bench.leave_out(f"{name}: {wanted.count - len(stalls_s)} more", NO_TIME)


def _cells(bench: Bench, decode: PhaseLoad, prefill: Peer, percent: int, *, has_peer: bool) -> dict[str, Value]:
    """Decode of batch 1 and 64, then prefill, the other phase idle; then both."""
    seconds, large = SECONDS if not bench.is_dry else 0.0, bench.pick(64, 4)
    has = decode.use(percent)
    decode_ms = {str(batch): decode.decode_ms(batch, seconds) for batch in (1, large)}
    prefill.begin(percent, seconds)
    found: dict[str, Value] = {"has": has, "decode_ms": decode_ms, "prefill_tokens_per_s": prefill.tokens_per_s()}
    if has_peer:
        prefill.begin(percent, CELL_S)
        beside_ms = decode.decode_ms(large, 2 * seconds)  # chunks on a small share are long
        found["together"] = {"decode_ms": {str(large): beside_ms}, "prefill_tokens_per_s": prefill.stop()}
    return found


def _graph_keeps_its_sms(bench: Bench, decode: PhaseLoad) -> None:
    """A probe, captured on a share's stream: replayed there, then replayed from the stream of another share."""
    import torch

    from kernels.gpu.sm_probe import PROGRAMS_PER_SM, launch_probe
    from tandem.runner.cuda.graphs import TorchGraphs

    graphs = TorchGraphs(bench.device, decode.stream)
    num_sms = torch.cuda.get_device_properties(bench.device).multi_processor_count
    runs = torch.zeros(PROGRAMS_PER_SM * num_sms, 3, dtype=torch.int64, device=bench.device)
    bench.wait()
    decode.use(GRAPH_PERCENTS["graph_on_its_own_share"])
    launch_probe(runs, PROBE_NS)
    graphs.wait()
    replay = graphs.capture(lambda: launch_probe(runs, PROBE_NS))
    for name, percent in GRAPH_PERCENTS.items():
        decode.use(percent)
        replay()
        graphs.wait()
        bench.record(name, {"quota": decode.stream.num_sms or num_sms, "sms": len(set(runs[:, 0].tolist()))})


def _seconds_of(steps: DecodeBatch) -> float:
    started_s = time.perf_counter()
    steps.step()
    return time.perf_counter() - started_s


def _percentiles_us(times_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {name: ordered[int(at * (len(ordered) - 1))] * 1e6 for name, at in PERCENTILES}
