"""The decode phase's process."""

import asyncio

from services.decode.engine import DecodeEngine
from services.decode.refreshes import Refreshes, policy_of
from services.decode.service import SERVICE_NAME, register
from tandem.config.settings import DecodeConfig
from tandem.phase.joint import JointWork
from tandem.phase.process import PhaseService, run_phases
from tandem.rpc.ending import end_process
from tandem.rpc.server import service_main
from tandem.types import DecodeResult, Phase


async def serve(config: DecodeConfig, stop: asyncio.Event) -> int:
    """Serves until `stop`, or until memd is gone; the exit status."""
    service: PhaseService[DecodeResult] = PhaseService(
        Phase.DECODE, SERVICE_NAME, register, lambda outfit: DecodeEngine(outfit, Refreshes(policy_of(config)))
    )
    return await run_phases([service], JointWork(), config, stop)


def main() -> int:
    """Runs the service; the exit status."""
    return service_main("decode", DecodeConfig, serve)


if __name__ == "__main__":
    end_process(main())
