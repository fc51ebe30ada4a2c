"""``python -m bench.engines.tandem_worker``: our engine as a worker of `bench.engines.worker`.

Weights and KV are memd's segments, mapped as a phase maps them; steps are the phases' own, sampling included. Nobody
else has a part in a step.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence

from bench.engines.cases import Case
from bench.engines.worker import MARK, READY
from bench.micro.steps import GREEDY, StepBench, open_steps
from tandem.kv.layout import num_blocks_for
from tandem.model.batch import SequenceRows
from tandem.phase.stepper import StepPart
from tandem.rpc.memd_client import MemdClient
from tandem.runner.sampler import Draw, SampledToken
from tandem.telemetry.logs import configure_logging
from tandem.types import Phase


class Sequences:
    """Those of one case, over blocks that nobody else uses."""

    def __init__(self, case: Case, vocab_size: int, block_size: int) -> None:
        blocks_each = num_blocks_for(case.num_prompt_tokens + case.num_new_tokens, block_size)
        self._tables = [range(n * blocks_each, (n + 1) * blocks_each) for n in range(case.num_sequences)]
        rng = random.Random(case.num_sequences)  # noqa: S311 - prompts, no secrets
        self._rows = [[rng.randrange(vocab_size) for _ in range(case.num_prompt_tokens)] for _ in self._tables]
        self._start = 0

    async def step(self, bench: StepBench) -> None:
        """The prompts first; then, each time, the tokens that the step before has drawn."""
        end = self._start + len(self._rows[0])
        draw = Draw(GREEDY, end, (), ())
        parts = [
            StepPart(SequenceRows(row, self._start, table), draw)
            for row, table in zip(self._rows, self._tables, strict=True)
        ]
        tokens = await bench.step(parts)
        self._rows = [[token.token_id] for token in tokens if isinstance(token, SampledToken)]
        self._start = end


async def seconds(bench: StepBench, case: Case) -> float:
    """Of one case."""
    sequences = Sequences(case, bench.config.vocab_size, bench.layout.block_size)
    started_s = time.perf_counter()
    await sequences.step(bench)
    if case.phase is Phase.DECODE:
        started_s = time.perf_counter()
        for _ in range(case.num_new_tokens):
            await sequences.step(bench)
    return time.perf_counter() - started_s


async def work(memd: str, num_threads: int) -> None:
    """Until the input ends."""
    client = MemdClient(memd)
    try:
        async with open_steps(client) as bench:
            await bench.use_threads(num_threads)
            _say(READY)
            while line := await asyncio.to_thread(sys.stdin.readline):
                fields = json.loads(line)
                _say(str(await seconds(bench, Case(Phase(fields.pop("phase")), **fields))))
    finally:
        await client.close()


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="bench.engines.tandem_worker")
    parser.add_argument("--memd", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    configure_logging("bench", "error")
    asyncio.run(work(options.memd, options.threads))
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{MARK}{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
