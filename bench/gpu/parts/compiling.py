"""Compiles what later sections run, while nothing is timed: Triton and torch keep it for every process."""

from dataclasses import replace

from bench.gpu.bench import Bench
from bench.gpu.load import CONTEXT
from bench.gpu.parts.kernels import NAMES, SPECS, draw_all, flex_attention_of, heads_of_chunks, heads_of_rows
from bench.gpu.subject import DecodeBatch, model_named, open_subject, prefill_step
from tandem.runner.cuda.graphs import StepStream

BATCHES = (1, 64, 256)  # with few rows on many SMs each row's keys are divided among programs, with many not
PROMPTS = (1, 8)


def compile_ahead(bench: Bench) -> None:
    """A layer of each model: whole prompts, rows of decode; then draws, and torch's own attention."""
    bench.expect(["layers", "draws"])
    for name in NAMES:
        _one_layer(bench, name)
    bench.record("layers", list(NAMES))
    draw_all(bench)
    bench.record("draws", list(SPECS))
    if not bench.is_dry:
        bench.expect(["flex"])
        for name in NAMES:
            for heads in (heads_of_rows(bench, name), heads_of_chunks(bench, name)):
                flex_attention_of(heads)()
        bench.wait()
        bench.record("flex", list(NAMES))


def _one_layer(bench: Bench, name: str) -> None:
    config = replace(model_named(bench, name), num_layers=1)
    context, room, length = bench.pick(CONTEXT, 32), 8, bench.pick(2048, 32)
    num_tokens = max(DecodeBatch.num_tokens(max(BATCHES), context, room), max(PROMPTS) * length)
    subject = open_subject(bench, config, num_tokens, StepStream())
    for batch in PROMPTS:
        prefill_step(subject, batch, length)
    for batch in BATCHES:
        DecodeBatch(subject, batch, context, room).step()
