"""Both phases over their share of the SMs, alone and side by side; and whether a graph keeps to its share."""

import os

from bench.gpu.bench import Bench
from bench.gpu.load import DECODE_PERCENTS, PhaseLoad, can_have_a_peer
from bench.gpu.partitions import GREEN, BackendChoice
from bench.gpu.partner import Load
from bench.gpu.peer import Peer, peer
from bench.gpu.record import Value
from tandem.types import Phase

GRAPH_PERCENTS = {"graph_on_its_own_share": 31, "graph_from_a_wider_share": 88}
SECONDS = 0.4  # a figure of the table
CELL_S = 5.0  # a row of the table may well take
PROBE_NS = 100_000


def shares(bench: Bench) -> None:
    """Decode in this process, prefill in another: graphs, then the table from its middle outwards."""
    bench.expect(GRAPH_PERCENTS if not bench.is_dry else ())
    bench.expect(map(_row, DECODE_PERCENTS))
    has_peer = can_have_a_peer(bench)
    load = Load(BackendChoice(GREEN, os.curdir, is_alone=not has_peer, is_dry=bench.is_dry))
    with peer(load) as prefill:
        decode = PhaseLoad(bench, load, Phase.DECODE)
        if not bench.is_dry:
            _graph_keeps_its_sms(bench, decode)
        for percent in DECODE_PERCENTS:
            if bench.has_time(CELL_S):
                bench.record(_row(percent), _cells(bench, decode, prefill, percent, has_peer=has_peer))


def _row(percent: int) -> str:
    return f"decode_{percent}_percent"


def _cells(bench: Bench, decode: PhaseLoad, prefill: Peer, percent: int, *, has_peer: bool) -> dict[str, Value]:
    """Decode of batch 1 and 64, then prefill, the other phase idle; then both."""
    seconds, large = SECONDS if not bench.is_dry else 0.0, bench.pick(64, 4)
    has = decode.use(percent)
    alone = {str(batch): decode.decode_ms(batch, seconds) for batch in (1, large)}
    prefill.begin(percent, seconds)
    found: dict[str, Value] = {
        "has": has,
        "first_step_ms": {batch: each["first"] for batch, each in alone.items()},
        "decode_ms": {batch: each["median"] for batch, each in alone.items()},
        "prefill_tokens_per_s": prefill.tokens_per_s(),
    }
    if has_peer:
        prefill.begin(percent, CELL_S)
        beside_ms = decode.decode_ms(large, 2 * seconds)["median"]  # chunks on a small share are long
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
