"""Prefill and decode in one process: the usual engine, for who wants it and as the baseline of every comparison.

It answers on both phases' sockets, so nobody else knows the difference.
"""

import asyncio

from services.decode import service as decode_service
from services.decode.engine import DecodeEngine
from services.decode.refreshes import Refreshes, policy_of
from services.prefill import service as prefill_service
from services.prefill.engine import PrefillEngine
from tandem.config.settings import ColocatedConfig
from tandem.phase.joint import JointWork
from tandem.phase.process import PhaseService, run_phases
from tandem.rpc.ending import end_process
from tandem.rpc.server import service_main
from tandem.types import DecodeResult, Phase, PrefillResult


async def serve(config: ColocatedConfig, stop: asyncio.Event) -> int:
    """Serves until `stop`, or until memd is gone; the exit status."""
    steps = JointWork()

    def budget() -> int:
        return max(0, config.step_tokens - steps.num_rows)

    decode: PhaseService[DecodeResult] = PhaseService(
        Phase.DECODE,
        decode_service.SERVICE_NAME,
        decode_service.register,
        lambda outfit: DecodeEngine(outfit, Refreshes(policy_of(config), config.step_tokens)),
    )
    prefill: PhaseService[PrefillResult] = PhaseService(
        Phase.PREFILL,
        prefill_service.SERVICE_NAME,
        prefill_service.register,
        lambda outfit: PrefillEngine(outfit, budget),
    )
    return await run_phases([decode, prefill], steps, config, stop)


def main() -> int:
    """Runs the service; the exit status."""
    return service_main("colocated", ColocatedConfig, serve)


if __name__ == "__main__":
    end_process(main())
