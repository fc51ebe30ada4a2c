"""How soon a phase that starts again computes: weights and KV are there, in memory that another process exported.

And whether they still are when no process uses the device any more, the descriptor alone kept open.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.gpu.bench import Bench
from bench.gpu.children import ExportedBytes, answer_of, exporting
from bench.gpu.record import Value

if TYPE_CHECKING:
    from kernels.quantised import Weight
    from tandem.model.config import ModelConfig

MODEL = "llama-3-8b"
NUM_KV_BLOCKS = 4096
START_S = 8.0  # of a phase's process may well take
SAMPLE = 1 << 20  # numbers of the weights


def attach(bench: Bench) -> None:
    """A process fills the weights and ends; one attaches beside the exporter, one, kernels compiled, after its end."""
    bench.needs_gpu("exported memory")
    from bench.gpu.subject import MODELS
    from tandem.model.manifest import build_manifest
    from tandem.model.registry import get_family

    config = MODELS[MODEL]
    manifest = build_manifest(get_family(config.family).parameters(config), "bfloat16")
    bench.expect(("fill", "first", "again", "outlives_the_last_user"))
    with exporting(manifest.total_bytes) as segment:
        filled, _ = (_record(bench, how, segment) for how in ("fill", "first"))
        if bench.has_time(START_S):
            segment.end_exporter()
            again = _record(bench, "again", segment)
            bench.record("outlives_the_last_user", again["sample"] == filled["sample"])


def _record(bench: Bench, how: str, segment: ExportedBytes) -> Mapping[str, Value]:
    answer = answer_of([how, *segment.arguments], segment.fd, __name__)
    bench.record(how, answer)
    return answer


def main(how: str, fd: str, size_bytes: str) -> None:
    """A phase's process: fills the weights, or maps them and computes."""
    started_s = time.perf_counter()
    import torch

    from bench.gpu.subject import MODELS
    from tandem.device.memory import SegmentKind
    from tandem.device.memory_backends import IMPORTERS, SegmentImporter
    from tandem.model.manifest import build_manifest
    from tandem.model.registry import get_family
    from tandem.model.views import weight_views
    from tandem.rpc.segments import ReceivedSegment

    torch.cuda.init()  # type: ignore[no-untyped-call]
    ready_s = time.perf_counter()
    segment = ReceivedSegment("weights", int(fd), int(size_bytes), SegmentKind.CUDA_VMM, sealed=False)
    mapped = SegmentImporter(IMPORTERS).map(segment, writable=how == "fill")
    config = MODELS[MODEL]
    views = weight_views(mapped, build_manifest(get_family(config.family).parameters(config), "bfloat16"))
    torch.cuda.synchronize()
    found = {"start_s": ready_s - started_s, "map_s": time.perf_counter() - ready_s}
    found |= _fill(views) if how == "fill" else _compute(config, views)
    found["sample"] = _sample(views)
    sys.stdout.write(json.dumps(found) + "\n")


def _fill(views: "Mapping[str, Weight]") -> dict[str, float]:
    """All of a size at which nothing overflows."""
    import torch

    started_s = time.perf_counter()
    for view in views.values():
        if isinstance(view, torch.Tensor):
            view.normal_(0.0, 0.02)
    torch.cuda.synchronize()
    return {"fill_s": time.perf_counter() - started_s}


def _sample(views: "Mapping[str, Weight]") -> float:
    """Of the first weight: what another process finds again if they are the same."""
    import torch

    first = next(view for view in views.values() if isinstance(view, torch.Tensor))
    return float(first.flatten()[:SAMPLE].double().abs().sum())


def _compute(config: "ModelConfig", views: "Mapping[str, Weight]") -> dict[str, float]:
    """A prompt's first token, then two steps of decode: the second of them is a replay."""
    import torch

    from bench.gpu.subject import BLOCK_SIZE, GREEDY, open_steps
    from tandem.model.batch import SequenceRows
    from tandem.runner.cuda.graphs import StepStream
    from tandem.runner.sampler import Draw

    started_s = time.perf_counter()
    shape = (config.num_layers, 2, NUM_KV_BLOCKS, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    cache = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    steps, block_ids = open_steps(config, views, cache, StepStream()), list(range(40))
    steps.execute([SequenceRows([5] * 512, 0, block_ids)], [Draw(GREEDY, 512, (), ())])
    first_s = time.perf_counter()
    for position in (512, 513):
        steps.execute([SequenceRows([5], position, block_ids)], [Draw(GREEDY, position + 1, (), ())])
    return {
        "first_token_s": first_s - started_s,
        "graph_s": time.perf_counter() - first_s,
        "allocated_beside_cache_bytes": torch.cuda.memory_allocated() - cache.nbytes,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
