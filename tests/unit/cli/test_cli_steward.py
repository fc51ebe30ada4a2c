"""The steward over real processes, which are smaller than a phase."""

import asyncio
import json
import os
import sys

import pytest

from tandem.cli.deployment import Overrides, resolve
from tandem.cli.spares import forget_shares, needs_steward, worker_pids
from tandem.cli.steward import EXIT_NOT_STARTED, EXIT_USAGE, Steward, main
from tandem.cli.supervision import render_conf
from tandem.phase.start_environment import StartEnvironment
from tandem.types import Phase

WORKER = """
import os, signal, socket, sys
folder, spare_says = sys.argv[1:]
role = os.environ["PHASE_ROLE"]
steward = socket.socket(fileno=int(os.environ["PHASE_STEWARD_FD"]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
open(f"{folder}/{role}", "w").close()
if role == "spare" and not spare_says:
    sys.exit(1)
words = b"serving\\nsuccessor_wanted\\n" if role == "first" else spare_says.encode() + b"\\n"
steward.sendall(words)
heard = steward.recv(100).decode().strip()
open(f"{folder}/{role}.heard", "w").write(heard)
if heard == "retire":
    sys.exit(0)
signal.pause()
"""


async def until_there(path) -> None:
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.01)


async def until_left(others: set[int], num_workers: int) -> None:
    """Of the steward's, beside `others`."""
    async with asyncio.timeout(60):
        while len(set(worker_pids(os.getpid())) - others) != num_workers:
            await asyncio.sleep(0.01)


def steward_of(folder, spare_says: str, spare_timeout_s: float = 0.0) -> Steward:
    return Steward([sys.executable, "-S", "-c", WORKER, str(folder), spare_says], {}, spare_timeout_s)


async def test_the_spare_worker_stays_and_its_status_is_the_stewards(tmp_path):
    steward = steward_of(tmp_path, "serving")
    others = set(worker_pids(os.getpid()))  # that other tests have left running
    running = asyncio.ensure_future(steward.run())
    await until_there(tmp_path / "first.heard")
    await until_left(others, 1)
    assert not running.done()
    steward.stop()
    assert await running == 3
    assert (tmp_path / "first.heard").read_text() == "retire"


async def test_a_spare_worker_that_fails_leaves_the_first_one(tmp_path):
    others = set(worker_pids(os.getpid()))  # that other tests have left running
    steward = steward_of(tmp_path, "")
    running = asyncio.ensure_future(steward.run())
    await until_there(tmp_path / "first.heard")
    assert not running.done()
    await until_left(others, 1)
    steward.stop()
    assert await running == 3
    assert (tmp_path / "first.heard").read_text() == "no_successor"


async def test_a_spare_worker_that_hangs_is_killed_and_leaves_the_first_one(tmp_path):
    others = set(worker_pids(os.getpid()))  # that other tests have left running
    steward = steward_of(tmp_path, "successor_wanted", spare_timeout_s=0.3)
    running = asyncio.ensure_future(steward.run())
    await until_there(tmp_path / "first.heard")
    await until_left(others, 1)
    steward.stop()
    assert await running == 3
    assert (tmp_path / "first.heard").read_text() == "no_successor"


async def test_a_command_that_is_not_there():
    assert await Steward(["/nonexistent/program"], {}, 0.0).run() == EXIT_NOT_STARTED


def test_a_configuration_that_is_refused(capsys):
    assert main(["decode", "--max-sequences", "none"]) == EXIT_USAGE
    assert "decode.max_sequences" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["mps-percentage", "mps-green"])
def test_phases_whose_share_is_fixed_at_their_start_have_one(tmp_path, backend):
    deployment = resolve(Overrides(run_dir=tmp_path), {"TANDEM_DECODE_PARTITION_BACKEND": backend})
    has_one = backend == "mps-percentage"
    assert {service for service in deployment.services if needs_steward(deployment, service)} == (
        {"decode"} if has_one else set()
    )
    programs = {part.split("]")[0]: part for part in render_conf(deployment, {}).split("[program:")[1:]}
    assert ("-m tandem.cli.steward decode" in programs["decode"]) == has_one
    assert ("killasgroup = true" in programs["decode"]) == has_one
    assert "stopasgroup = false" in programs["decode"]
    assert "services.prefill.main" in programs["prefill"]


def test_a_new_deployment_starts_as_configured(tmp_path):
    for phase in Phase:
        StartEnvironment(tmp_path, phase).write({"PERCENT": "30"})
    assert json.loads((tmp_path / "decode.start").read_text()) == {"PERCENT": "30"}
    forget_shares(tmp_path)
    assert [StartEnvironment(tmp_path, phase).read() for phase in Phase] == [{}, {}]
