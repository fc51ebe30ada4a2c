"""vLLM's engine as a worker of `bench.engines.worker`; run by the interpreter of the environment that has vLLM.

Nothing of Tandem is imported here: that environment does not have it.
"""

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

FIRST_TOKEN, LAST_TOKEN = 1000, 40_000  # of prompts; special ones lie outside
BATCHED_TOKENS = 4096  # all prompts of a case in one step


def new_engine(model: str, context: int, num_sequences: int, *, eager: bool) -> Any:
    """vLLM's own LLM class, offline."""
    return (
        importlib.import_module("vllm")
        .LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=context,
            max_num_seqs=num_sequences,
            max_num_batched_tokens=BATCHED_TOKENS,
            enable_prefix_caching=False,
            enforce_eager=eager,
            disable_log_stats=True,
        )
        .llm_engine
    )


def seconds(engine: Any, case: Mapping[str, Any], number: int) -> float:
    """From the prompts to the last first token; of a decode case, from there to the end."""
    started_s = time.perf_counter()
    _add(engine, case, number)
    counts: dict[str, int] = {}
    while len(counts) < case["num_sequences"]:
        _step(engine, counts)
    if case["phase"] == "decode":
        started_s = time.perf_counter()
        missing = case["num_sequences"] * (1 + case["num_new_tokens"]) - sum(counts.values())
    while engine.has_unfinished_requests():
        _step(engine, counts)
    took_s = time.perf_counter() - started_s
    if case["phase"] == "decode":  # what came with the last first token was computed before
        took_s *= case["num_sequences"] * case["num_new_tokens"] / missing
    return took_s


def _add(engine: Any, case: Mapping[str, Any], number: int) -> None:
    num_tokens = case["num_new_tokens"] + (case["phase"] == "decode")  # the prefill brings one of its own
    new_params = importlib.import_module("vllm").SamplingParams
    params = new_params(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    for index in range(case["num_sequences"]):
        tokens = [random.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(case["num_prompt_tokens"])]  # noqa: S311
        engine.add_request(f"{number}-{index}", {"prompt_token_ids": tokens}, params)


def _step(engine: Any, counts: dict[str, int]) -> None:
    for output in engine.step():
        counts[output.request_id] = len(output.outputs[0].token_ids)


def main(arguments: Sequence[str]) -> int:
    """Until the input ends; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-context", type=int, required=True)
    parser.add_argument("--max-sequences", type=int, required=True)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args(arguments)
    engine = new_engine(options.model, options.max_context, options.max_sequences, eager=options.eager)
    _say("ready")
    for number, line in enumerate(sys.stdin):
        _say(str(seconds(engine, json.loads(line), number)))
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"@{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
