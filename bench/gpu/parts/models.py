"""Whole models against their floors."""

import time
from collections.abc import Sequence
from statistics import median

from bench.gpu.bench import Bench
from bench.gpu.floors import Rates, decode_floor_ms, prefill_flop
from bench.gpu.subject import DecodeBatch, Subject, model_named, open_subject, prefill_step
from tandem.runner.cuda.graphs import StepStream

NAMES = ("llama-3-8b", "qwen2.5-7b")
OPEN_S, STEPS_S, PREFILL_S = 10.0, 4.0, 4.0  # what each may well take, kernels compiled


def models(bench: Bench) -> None:
    """Decode at batch 1 and 64 with 1,024 tokens of context, prefill of 8 x 2,048; of one model after the other."""
    rates = bench.rates()
    bench.record("copy_gb_per_s", rates.copy_gb_per_s)
    bench.record("matmul_tflop_per_s", rates.matmul_tflop_per_s)
    batches = (1, bench.pick(64, 4))
    bench.expect(f"{name}_{what}" for name in NAMES for what in (*(f"decode_{each}" for each in batches), "prefill"))
    for name in NAMES:
        if bench.has_time(OPEN_S):
            _model(bench, name, batches, rates)


def _model(bench: Bench, name: str, batches: Sequence[int], rates: Rates) -> None:
    config, context, num_steps = model_named(bench, name), bench.pick(1024, 32), bench.pick(64, 8)
    num_prompts, length = bench.pick(8, 2), bench.pick(2048, 32)
    num_tokens = max(DecodeBatch.num_tokens(batches[-1], context, num_steps), num_prompts * length)
    subject = open_subject(bench, config, num_tokens, StepStream())
    for batch in batches:
        if not bench.has_time(STEPS_S):
            return
        floor_ms = decode_floor_ms(config, batch, context + num_steps // 2, rates)
        found = decode_ms(bench, DecodeBatch(subject, batch, context, num_steps), num_steps)
        over_floor = found["median_ms"] / floor_ms
        bench.record(f"{name}_decode_{batch}", {**found, "floor_ms": floor_ms, "over_floor": over_floor})
    if bench.has_time(PREFILL_S):
        bench.record(f"{name}_prefill", _prefill(bench, subject, num_prompts, length, rates.matmul_tflop_per_s))


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
    seconds = bench.median_s(lambda: prefill_step(subject, num_prompts, length), num_rounds=3, num_warm=1)
    rate = prefill_flop(subject.config, [length] * num_prompts) / seconds / 1e12
    return {"ms": seconds * 1e3, "tflop_per_s": rate, "of_matmul_rate": rate / peak}
