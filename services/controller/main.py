"""The controller's process."""

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry

from services.controller.controller import Controller
from services.controller.service import SERVICE_NAME, add_to_server
from tandem.clock import MonotonicClock
from tandem.config.settings import ControllerConfig
from tandem.config.step_times import read_step_times
from tandem.partition.law_fit import fit_laws
from tandem.partition.monitor import Monitor, WindowLimits
from tandem.partition.registry import PlannerOptions, make_planner
from tandem.partition.slo import Slo, SloPolicy
from tandem.partition.steering import Steering
from tandem.partition.step_times import StepLaws
from tandem.partition.traits import CPU_LAWS
from tandem.rpc.ending import end_process
from tandem.rpc.listening import replica_ports
from tandem.rpc.server import ServiceHost, service_main
from tandem.telemetry.metrics import ControllerMetrics, start_metrics_server
from tandem.types import RequestClass, Split

STEP_TIMES = "controller.step_times"
STOP_GRACE_S = 0.2  # the controller holds nothing that a peer would miss


def make_controller(config: ControllerConfig, registry: CollectorRegistry) -> Controller:
    """The controller as configured."""
    initial = Split(config.prefill_percent, config.decode_percent)
    slos = _slos(config)
    planner = make_planner(config.planner, PlannerOptions(initial, slos, config.slo_margin, _laws(config)))
    monitor = Monitor(WindowLimits(config.window_s, config.window_requests), initial, slos)
    steering = Steering(planner, monitor, config.decision_interval_s)
    return Controller(steering, initial, MonotonicClock(), ControllerMetrics.create(registry))


def _slos(config: ControllerConfig) -> SloPolicy:
    batch = Slo(config.batch_slo_ttft_ms, config.batch_slo_tpot_ms)
    return SloPolicy(Slo(config.slo_ttft_ms, config.slo_tpot_ms), {RequestClass.BATCH: batch})


def _laws(config: ControllerConfig) -> StepLaws | None:
    """Of the file that was measured; None: what is known of the backend. ConfigError."""
    if not config.step_times:
        return None
    return fit_laws(read_step_times(Path(config.step_times), STEP_TIMES), CPU_LAWS, STEP_TIMES)


async def serve(config: ControllerConfig, stop: asyncio.Event) -> int:
    """Serves until `stop`; the exit status."""
    registry = CollectorRegistry()
    controller = make_controller(config, registry)
    metrics_server = start_metrics_server(registry, config.metrics_port, config.metrics_host)
    ports = replica_ports("controller", config)
    host = ServiceHost([SERVICE_NAME], [config.socket("controller")], ports=ports)
    add_to_server(controller, host.server)
    try:
        await host.start()
        host.set_serving(True)
        await stop.wait()
        controller.close()
    finally:
        await host.stop(STOP_GRACE_S)
        metrics_server.close()
    return 0


def main() -> int:
    """Runs the service; the exit status."""
    return service_main("controller", ControllerConfig, serve)


if __name__ == "__main__":
    end_process(main())
