"""The load generator's process: what it says, and what becomes of its failures."""

from pathlib import Path

import pytest

from bench.load.endpoint import EndpointSpec, Protocols
from bench.load.process import LoadJob, Progress, run_load
from bench.workloads.request import PlannedRequest, Span, Workload
from bench.workloads.tokens import TokenRange
from tandem.errors import NotReadyError

REQUEST = PlannedRequest(0, 0.0, (Span("a", 4),), 2)


def job(tmp_path: Path, warm_up: tuple[PlannedRequest, ...]) -> LoadJob:
    """Against a gateway that is away."""
    endpoint = EndpointSpec(Protocols.TANDEM, f"unix:{tmp_path}/nobody.sock")
    return LoadJob(endpoint, Workload("w", (REQUEST,)), TokenRange(10, 20), warm_up, drain_s=30.0, salt="s")


def test_a_server_that_does_not_answer_the_warm_up_ends_the_run(tmp_path):
    with pytest.raises(NotReadyError, match="nobody"):
        run_load(job(tmp_path, (REQUEST,)), lambda progress: None)


def test_failures_of_the_run_itself_are_records(tmp_path):
    told: list[Progress] = []
    (record,) = run_load(job(tmp_path, ()), told.append)
    assert record.error.startswith("NotReadyError")
    assert record.num_prompt_tokens == 4
    assert told == [Progress(ok=False)]
