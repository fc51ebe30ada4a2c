"""What `tandem top` shows, on terminals of any size, of services that come and go."""

import io
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tandem.cli.main import main
from tandem.cli.top import Watch
from tandem.cli.top_frame import NAME_WIDTH, SPAN_S, Board, Size
from tandem.cli.top_series import BARS, Series, bar
from tandem.cli.top_sources import ControllerView, Curve, Snapshot, points
from tandem.clock import ManualClock
from tandem.errors import NotReadyError
from tandem.kv.store import StorageStatistics
from tandem.partition.observations import LatencyStatistics, PhaseStatistics, RequestStatistics
from tandem.partition.slo import Slo
from tandem.partition.status import (
    AppliedShare,
    ControllerStatus,
    Decision,
    DecisionRecord,
    PhaseStatus,
    ShareApplied,
)
from tandem.rpc.gateway_values import ServerStatus
from tandem.types import Fingerprint, Phase, Split

GATEWAY = ServerStatus(3, 2, 5, 40, 900, True, True, True, 1.25, 180.2)
STORAGE = StorageStatistics(Fingerprint(), 1, 200, 150, 20, 24, 6, 3, 256 << 20, 1 << 30, ())
REQUESTS = RequestStatistics(
    50,
    2,
    LatencyStatistics(48, 120, 2400, 2100),
    LatencyStatistics(48, 21.5, 99, 40),
    num_in_window=50,
    num_attained=43,
)
PHASES = (
    PhaseStatus(Phase.PREFILL, True, 7, "cpu-cadence", 3, "cores 0", PhaseStatistics(LatencyStatistics(9, 30, 80), 60)),
    PhaseStatus(Phase.DECODE, True, 8, "cpu-cadence", 3, "cores 1", PhaseStatistics(LatencyStatistics(9, 20, 31), 75)),
)
ANSI = "\x1b["


def record(decision_id: int, reason: str, **restart_required: bool) -> DecisionRecord:
    answers = tuple(
        AppliedShare(Phase(phase), ShareApplied(decision_id, needed, "", 1.0), 1500.0)
        for phase, needed in restart_required.items()
    )
    return DecisionRecord(Decision(decision_id, Split(55, 45), reason), 10**18, RequestStatistics(), None, answers)


HISTORY = (
    record(1, "as configured", prefill=False, decode=False),
    record(2, "TPOT is above its SLO", prefill=False, decode=True),
    record(3, "fixed by hand"),
)
STATUS = ControllerStatus(
    Decision(3, Split(55, 45), "fixed by hand"), "predictive", PHASES, REQUESTS, False, Slo(2000, 100)
)
EVERYTHING = Snapshot(GATEWAY, ControllerView(STATUS, HISTORY), STORAGE)
NOBODY = Snapshot(None, None, None)


def frame(*snapshots: Snapshot, width: int = 80, height: int = 24) -> list[str]:
    board = Board("/run/tandem")
    for second, snapshot in enumerate(snapshots):
        board.take(snapshot, float(second))
    return board.frame(Size(width, height), "12:00:00").plain.split("\n")


def line(lines: list[str], name: str) -> str:
    return next(each for each in lines if each.startswith(f"{name:<{NAME_WIDTH}}"))


def test_everything_is_on_a_small_terminal():
    lines = frame(EVERYTHING)
    assert len(lines) <= 24
    assert "prefill 55, decode 45 %  predictive " in line(lines, "split")
    assert re.search(r"p50 +120.0  p90 +2100.0  SLO 2000 ms", line(lines, "TTFT"))
    assert re.search(r"p50 +21.5  p90 +40.0  SLO 100 ms", line(lines, "TPOT"))
    assert "86.0 % of the newest 50 requests" in line(lines, "in SLO")
    assert "3 waiting · 2 in prefill · 5 in decode" in line(lines, "queue")
    assert "180.2 tokens/s · 1.25 requests/s" in line(lines, "output")
    assert "leased 12 cached 3 spare 10 free 75 % of 200" in line(lines, "KV")
    assert "step p50 20.0 p99 31.0 ms · 75 tokens/s" in line(lines, "decode")
    assert sum("cores" in each for each in lines) == 2


def test_decisions_stand_newest_first_with_what_came_of_them():
    lines = frame(EVERYTHING)
    shown = lines[lines.index("decisions, newest first (UTC)") + 1 :]
    assert [each.split()[1] for each in shown] == ["3", "2", "1"]
    assert [each[25:42].strip() for each in shown] == ["not answered yet", "new process comes", "after 1.50 s"]
    assert shown[1].endswith("TPOT is above its SLO")


def test_who_goes_away_leaves_a_gap_and_the_others_where_they_are():
    with_all, without = frame(EVERYTHING), frame(EVERYTHING, NOBODY)
    for name, service in (("split", "controller"), ("queue", "gateway")):
        assert f"the {service} does not answer" in line(without, name)
    assert "memd does not answer" in line(without, "KV")
    names = [[each[:NAME_WIDTH] for each in lines[1:13]] for lines in (with_all, without)]
    assert names[0] == names[1]
    assert without[-3:] == with_all[-3:], "what was decided stays"
    width = 300 + NAME_WIDTH + 45
    back = line(frame(*[EVERYTHING] * 4, *[NOBODY] * 4, *[EVERYTHING] * 4, width=width), "output")
    assert re.search(r"█+ +█+$", back)


def test_a_phase_that_the_controller_misses():
    gone = replace(STATUS, phases=(PHASES[0], replace(PHASES[1], connected=False)))
    lines = frame(Snapshot(GATEWAY, ControllerView(gone, ()), STORAGE))
    assert "is not there" in line(lines, "decode")
    assert points(Snapshot(None, ControllerView(gone, ()), None))[Curve.DECODE_STEP_MS] is None


@given(st.integers(1, 300), st.integers(1, 60), st.lists(st.sampled_from([EVERYTHING, NOBODY]), min_size=1, max_size=4))
def test_a_frame_fits_its_terminal(width, height, snapshots):
    lines = frame(*snapshots, width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


@given(
    st.lists(st.tuples(st.floats(0, 2 * SPAN_S), st.floats(0, 1e6) | st.none()), max_size=60),
    st.integers(1, 80),
)
def test_cells_are_the_means_of_what_was_seen_in_their_stretch(looks, num_cells):
    series, now_s = Series(SPAN_S), 0.0
    looks = sorted(looks, key=lambda look: look[0])
    for at_s, value in looks:
        series.add(at_s, value)
        now_s = at_s
    stretch_s = SPAN_S / num_cells
    last = math.floor(now_s / stretch_s)
    expected = []
    for place in range(last - num_cells + 1, last + 1):
        values = [value for at_s, value in looks if value is not None and math.floor(at_s / stretch_s) == place]
        expected.append(pytest.approx(sum(values) / len(values)) if values else None)
    assert series.cells(now_s, num_cells) == expected


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_bars_rise_with_their_values(one, other):
    low, high = sorted((one, other))
    assert BARS.index(bar(low, 1e9)) <= BARS.index(bar(high, 1e9))
    assert (bar(0, 1e9), bar(1e9, 1e9), bar(None, 1e9), bar(5, 0)) == (BARS[0], BARS[-1], " ", BARS[0])


def watch(snapshot: Snapshot, *, terminal: bool) -> Watch:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, height=24, color_system="standard")
    if not terminal:
        console = Console(file=io.StringIO(), width=80, height=24)
    return Watch(Board("/run/tandem"), lambda: snapshot, ManualClock(), console)


def output_of(watched: Watch, num_frames: int) -> str:
    left = iter(range(num_frames - 1))

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched.run(0.5, sleep)
    return watched._console.file.getvalue()


def test_frames_follow_each_other_without_colours_where_there_is_no_terminal():
    output = output_of(watch(EVERYTHING, terminal=False), 3)
    assert output.count("tandem top") == 3
    assert ANSI not in output


def test_a_terminal_is_redrawn_in_colours_and_left_as_it_was():
    output = output_of(watch(EVERYTHING, terminal=True), 2)
    assert "\x1b[?1049h" in output
    assert output.endswith("\x1b[?1049l")
    assert re.search(r"\x1b\[31m[^\x1b]*2100.0", output), "above its SLO"
    assert re.search(r"\x1b\[32m[^\x1b]*40.0", output)


def test_one_frame_of_nobody_is_a_failure():
    with pytest.raises(NotReadyError, match="tandem up"):
        watch(NOBODY, terminal=False).once()


def test_services_that_are_not_there_are_asked_in_vain(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["top", "--once"])
    assert ended.value.code == 1
    assert "nobody answers" in capsys.readouterr().err
