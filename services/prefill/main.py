"""The prefill phase's process."""

import asyncio

from services.prefill.engine import PrefillEngine
from services.prefill.service import SERVICE_NAME, register
from tandem.config.settings import PrefillConfig
from tandem.phase.joint import JointWork
from tandem.phase.process import PhaseService, run_phases
from tandem.rpc.ending import end_process
from tandem.rpc.server import service_main
from tandem.types import Phase, PrefillResult


async def serve(config: PrefillConfig, stop: asyncio.Event) -> int:
    """Serves until `stop`, or until memd is gone; the exit status."""
    service: PhaseService[PrefillResult] = PhaseService(
        Phase.PREFILL, SERVICE_NAME, register, lambda outfit: PrefillEngine(outfit, lambda: config.chunk_tokens)
    )
    return await run_phases([service], JointWork(), config, stop)


def main() -> int:
    """Runs the service; the exit status."""
    return service_main("prefill", PrefillConfig, serve)


if __name__ == "__main__":
    end_process(main())
