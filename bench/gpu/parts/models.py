"""Whole models against their floors."""

import time
from statistics import median

from bench.gpu.bench import Bench
from bench.gpu.floors import decode_floor_ms, prefill_flop
from bench.gpu.subject import DecodeBatch, Subject, model_named, open_subject, prefill_step
from tandem.runner.cuda.graphs import StepStream


def llama(bench: Bench) -> None:
    """Decode at batch 1 and 64 with 1,024 tokens of context, prefill of 8 x 2,048."""
    _model(bench, "llama-3-8b")


def qwen(bench: Bench) -> None:
    """Likewise."""
    _model(bench, "qwen2.5-7b")


def _model(bench: Bench, name: str) -> None:
    config, num_steps = model_named(bench, name), bench.pick(128, 8)
    context, length = bench.pick(1024, 32), bench.pick(2048, 32)
    batches = (1, bench.pick(64, 4))
    num_prompts = bench.pick(8, 2)
    rates = bench.rates()
    bench.record("copy_gb_per_s", rates.copy_gb_per_s)
    bench.record("matmul_tflop_per_s", rates.matmul_tflop_per_s)
    num_tokens = max(DecodeBatch.num_tokens(batches[-1], context, num_steps), num_prompts * length)
    subject = open_subject(bench, config, num_tokens, StepStream())
    for batch in batches:
        floor_ms = decode_floor_ms(config, batch, context + num_steps // 2, rates)
        steps = DecodeBatch(subject, batch, context, num_steps)
        found = decode_ms(bench, steps, num_steps)
        bench.record(f"decode_{batch}", {**found, "floor_ms": floor_ms, "over_floor": found["median_ms"] / floor_ms})
    bench.record("prefill", _prefill(bench, subject, num_prompts, length, rates.matmul_tflop_per_s))


def decode_ms(bench: Bench, steps: DecodeBatch, num_steps: int) -> dict[str, float]:
    """From the call to its tokens on the host; the first step runs launch by launch and is captured."""
    started_s = time.perf_counter()
    steps.step()
    first_s = time.perf_counter() - started_s
    steps.step()
    times_ms = []
    for _ in range(num_steps):
        started_s = time.perf_counter()
        steps.step()
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    bench.wait()
    return {"first_ms": first_s * 1e3, "median_ms": median(times_ms), "greatest_ms": max(times_ms)}


def _prefill(bench: Bench, subject: Subject, num_prompts: int, length: int, peak: float) -> dict[str, float]:
    seconds = bench.median_s(lambda: prefill_step(subject, num_prompts, length), num_rounds=5, num_warm=2)
    rate = prefill_flop(subject.config, [length] * num_prompts) / seconds / 1e12
    return {"ms": seconds * 1e3, "tflop_per_s": rate, "of_matmul_rate": rate / peak}
