"""``python -m bench.micro.split_worker``: one phase's steps under the splits that it is told, as its process has them.

Reads JSON lines, answers each with one: a split is applied, then steps run for the time given.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.micro.steps import MS, StepBench, open_steps, step_parts
from bench.micro.table import StepShape
from kernels.native.team import place_team
from tandem.config.settings import PhaseConfig
from tandem.device.partition import PartitionBackend
from tandem.device.partition_backends import PartitionSite, make_partition_backend
from tandem.phase.storage import choose_pausing_kernels
from tandem.rpc.memd_client import MemdClient
from tandem.telemetry.logs import configure_logging
from tandem.types import Phase, Split

SHAPES = {
    Phase.PREFILL: StepShape(Phase.PREFILL, 1, 1, 512, 512),
    Phase.DECODE: StepShape(Phase.DECODE, 1, 16, 1, 256),
}


async def steps_ms(bench: StepBench, shape: StepShape, seconds: float) -> list[float]:
    """Of as many as fit into the time, one at least."""
    parts = step_parts(shape, bench.layout.block_size)
    end_s = time.perf_counter() + seconds
    taken: list[float] = []
    while (started_s := time.perf_counter()) < end_s or not taken:
        await bench.step(parts)
        taken.append((time.perf_counter() - started_s) * MS)
    return taken


async def work(phase: Phase, memd: str, backend: PartitionBackend) -> None:
    """Until the input ends."""
    client = MemdClient(memd)
    try:
        async with open_steps(client, partial(choose_pausing_kernels, backend.pause), backend.turn) as bench:
            _say("ready")
            while line := await asyncio.to_thread(sys.stdin.readline):
                asked = json.loads(line)
                await bench.run_in_thread(partial(backend.apply, phase, Split(*asked["split"])))
                _say(await steps_ms(bench, SHAPES[phase], asked["seconds"]))
    finally:
        await client.close()


def main(arguments: Sequence[str]) -> int:
    """``PHASE MEMD_ADDRESS RUN_DIR BACKEND``; the exit status."""
    phase, memd, run_dir, backend = arguments
    configure_logging("bench", "error")
    site = PartitionSite((Phase(phase),), Path(run_dir), os.environ, place_team=place_team)
    asyncio.run(work(Phase(phase), memd, make_partition_backend(backend or PhaseConfig().partition_backend, site)))
    return 0


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
