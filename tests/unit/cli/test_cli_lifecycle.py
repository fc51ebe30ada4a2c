"""`tandem up` over a real supervisord whose services are harmless programs."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tandem.cli.deployment import Overrides, make_run_dir, resolve
from tandem.cli.supervision import DaemonState, Supervisor, render_conf

PROGRAM = "\n[program:memd]\ncommand = sleep 1000\n"
WITHIN_S = 60  # generous: the machine may be loaded


@pytest.fixture
def supervisor():
    with tempfile.TemporaryDirectory(prefix="tl") as name:
        run_dir = Path(name)
        make_run_dir(run_dir)
        ours = render_conf(resolve(Overrides(run_dir=run_dir), {}), {})
        supervisor = Supervisor(run_dir)
        supervisor.start(ours[: ours.index("\n[program:")] + PROGRAM)
        yield supervisor
        if supervisor.state() is DaemonState.RUNNING:
            supervisor.request_shutdown()
        supervisor.wait_ended(WITHIN_S)


def test_a_start_in_the_foreground_that_is_refused_leaves_alone_what_runs(supervisor):
    before = supervisor.processes()["memd"].pid
    words = ["up", "--foreground", "--run-dir", str(supervisor.conf_path.parent), "--model", "/none"]
    refused = subprocess.run(
        [sys.executable, "-m", "tandem.cli.main", *words], capture_output=True, text=True, check=False, timeout=WITHIN_S
    )
    assert refused.returncode == 1
    assert "/none: no such file" in refused.stderr
    assert supervisor.processes()["memd"].pid == before
