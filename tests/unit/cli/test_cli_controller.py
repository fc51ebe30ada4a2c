"""`tandem controller` against a real controller, and what its tables say."""

import asyncio
import io
import threading

import pytest
from click.testing import CliRunner
from rich.console import Console

from tandem.cli.controller import history_table, status_table
from tandem.cli.main import main
from tandem.config.settings import ControllerConfig
from tandem.partition.observations import RequestStatistics
from tandem.partition.planner import AdmissionAdvice
from tandem.partition.status import AppliedShare, ControllerStatus, Decision, DecisionRecord, PhaseStatus, ShareApplied
from tandem.types import Phase, Split
from tests.support.controller import HostedController


@pytest.fixture
def ask(tmp_path, short_run_dir):
    hosted = HostedController(ControllerConfig(run_dir=short_run_dir))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(hosted.start(), loop).result(20)
    try:
        yield lambda *words: CliRunner().invoke(main, ["controller", *words, "--run-dir", str(short_run_dir)])
    finally:
        asyncio.run_coroutine_threadsafe(hosted.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def short_run_dir():
    from bench.deployment.local import run_dir

    with run_dir() as path:
        yield path


def test_a_split_by_hand_then_the_planner_again(ask):
    assert "decision 2; the planner is paused" in ask("set", "30,70").output
    shown = ask("status").output
    assert "paused" in shown
    assert "30 %" in shown
    assert "70 %" in shown
    assert ask("resume").output.splitlines()[-1] == "the planner decides"
    assert "decides" in ask("status").output
    assert ask("pause").output.splitlines()[-1] == "the planner is paused"
    recorded = ask("history").output
    assert "50,50" in recorded
    assert "30,70" in recorded
    assert "hand" in recorded


@pytest.mark.parametrize("split", ["", "30", "a,b", "0,50", "30,101", "1,2,3", "nan,50", "99999999999,50"])
def test_a_split_that_is_none_is_refused_by_name(ask, split):
    failed = ask("set", split)
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: split: ")


def test_nobody_to_ask(tmp_path):
    failed = CliRunner().invoke(main, ["controller", "status", "--run-dir", str(tmp_path)])
    assert failed.exit_code == 1
    assert "controller" in failed.output


def test_tables_of_what_has_gone_and_what_was_answered():
    decision = Decision(3, Split(20, 80), "why")
    gone = PhaseStatus(Phase.PREFILL, False, 9, "cpu-cadence")
    advice = AdmissionAdvice(0.4, "no split meets the SLOs")
    status = status_table(ControllerStatus(decision, "static", (gone,), RequestStatistics(), admission=advice))
    assert list(status.columns[2].cells) == ["gone"]
    assert str(status.caption).endswith("admit 40 %: no split meets the SLOs")
    applied = (
        AppliedShare(Phase.DECODE, ShareApplied(3, False, "x", 1.25), 20.4),
        AppliedShare(Phase.PREFILL, ShareApplied(3, True, "x", 1.25), 30.0),
    )
    table = history_table((DecisionRecord(decision, 0, RequestStatistics(), None, applied, advice),))
    narrow = Console(file=io.StringIO(), width=80)
    narrow.print(table)
    assert "00:00:00" in narrow.file.getvalue()
    assert "…" not in narrow.file.getvalue()
    assert list(table.columns[6].cells) == ["40 %"]
    assert list(table.columns[7].cells) == [
        "decode after 20 ms (stood 1.2 ms), prefill after 30 ms (needs a new process)"
    ]
