"""What we write is read by supervisord's own reader."""

import io
import signal
import sys
from contextlib import redirect_stderr
from unittest.mock import Mock

import pytest
from supervisor.options import ProcessConfig, ServerOptions
from supervisor.process import Subprocess
from supervisor.states import ProcessStates, SupervisorStates

from tandem.cli.deployment import Deployment, Overrides, make_run_dir, resolve
from tandem.cli.supervision import render_conf
from tandem.config.settings import KEEPER_SOCKET, MODES
from tandem.errors import ConfigError
from tandem.rpc.server import LATE_S


def read_by_supervisor(deployment: Deployment) -> tuple[ServerOptions, dict[str, ProcessConfig]]:
    make_run_dir(deployment.run_dir)
    conf = deployment.run_dir / "supervisord.conf"
    conf.write_text(render_conf(deployment, {}))
    options = ServerOptions()
    with redirect_stderr(io.StringIO()):
        options.realize(args=["-c", str(conf)])
    return options, {group.name: group.process_configs[0] for group in options.process_group_configs}


def command_of(config: ProcessConfig) -> list[str]:
    from shlex import split

    return split(config.command)


@pytest.fixture
def deployment(tmp_path):
    return resolve(Overrides(run_dir=tmp_path / "run dir"), {})


def test_five_programs_each_its_own_module(deployment):
    _, programs = read_by_supervisor(deployment)
    assert set(programs) == {*MODES["semi-pd"], "keeper", "watchdog"}
    for service in MODES["semi-pd"]:
        program = programs[service]
        assert command_of(program)[:4] == [sys.executable, "-P", "-m", f"services.{service}.main"]
        assert command_of(program)[4:] == deployment.flags(service)


def test_the_keeper_is_nobodys_child_and_listens_where_memd_looks(deployment):
    _, programs = read_by_supervisor(deployment)
    command = command_of(programs["keeper"])
    assert command[:5] == [sys.executable, "-P", "-m", "services.memd.keeper", "--socket"]
    assert command[5] == str(deployment.run_dir / KEEPER_SOCKET)


def test_the_watchdog_is_there_unless_it_is_turned_off(deployment, tmp_path):
    _, programs = read_by_supervisor(deployment)
    command = command_of(programs["watchdog"])
    assert command[3] == "tandem.cli.watchdog"
    assert str(deployment.run_dir) in command
    off = resolve(Overrides(run_dir=tmp_path / "off"), {"TANDEM_HANG_TIMEOUT_S": "0"})
    assert "watchdog" not in read_by_supervisor(off)[1]


def test_colocated_has_one_process_for_both_phases(tmp_path):
    deployment = resolve(Overrides(run_dir=tmp_path / "run", mode="colocated"), {})
    _, programs = read_by_supervisor(deployment)
    assert set(programs) == {"gateway", "colocated", "controller", "memd", "keeper", "watchdog"}
    assert all("OMP_WAIT_POLICY" in program.environment for program in programs.values())


@pytest.mark.parametrize("name", ["my model", "a %s b", "x #1 ;2", "it's", 'say "no"', "back\\slash", "$HOME", "ünï"])
def test_any_file_name_reaches_the_service_as_it_is(tmp_path, name):
    deployment = resolve(Overrides(run_dir=tmp_path / "run", model=str(tmp_path / name)), {})
    _, programs = read_by_supervisor(deployment)
    assert command_of(programs["memd"])[-1] == str(tmp_path / name)


def test_a_line_break_in_a_path_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="line break"):
        render_conf(resolve(Overrides(run_dir=tmp_path, model="/a\nb"), {}), {})


def test_what_dies_is_started_again_and_asked_to_drain(tmp_path):
    deployment = resolve(Overrides(run_dir=tmp_path / "r"), {"TANDEM_DRAIN_TIMEOUT_S": "42.5"})
    _, programs = read_by_supervisor(deployment)
    for name, program in programs.items():
        assert program.autostart
        assert program.autorestart is not False
        assert program.startretries >= 100
        assert program.stopsignal == signal.SIGTERM
        assert program.stopwaitsecs > 42.5 + LATE_S or name in ("keeper", "watchdog")
        assert program.environment["OMP_WAIT_POLICY"] == "passive"


class Life(Subprocess):
    """Of a program under supervisord, by its own rules, and with no process behind it."""

    now_s = 1000.0

    def spawn(self) -> None:
        self.laststart = self.now_s
        self.pid = 1
        self.change_state(ProcessStates.STARTING)

    def ends_after(self, life_s: float) -> float:
        """How long it is gone then, to a tenth of a second."""
        self.transition()
        self.now_s += life_s
        self.transition()
        ended_s = self.now_s
        self.finish(1, 1 << 8)
        while self.state is not ProcessStates.STARTING:
            self.now_s += 0.1
            self.transition()
        return round(self.now_s - ended_s, 1)


def test_what_dies_soon_after_each_start_is_started_later_each_time_and_else_at_once(deployment, monkeypatch):
    options, programs = read_by_supervisor(deployment)
    options.logger, options.mood = Mock(), SupervisorStates.RUNNING
    life = Life(programs["decode"])
    monkeypatch.setattr("supervisor.process.time", Mock(time=lambda: life.now_s))
    life.spawn()
    assert [life.ends_after(1.0) for _ in range(4)] == pytest.approx([1, 2, 3, 4], abs=0.15)
    assert life.ends_after(6.0) < 0.2
    assert life.ends_after(1.0) == pytest.approx(1, abs=0.15)


def test_only_memd_is_stopped_with_its_children(deployment):
    _, programs = read_by_supervisor(deployment)
    assert {name for name, program in programs.items() if program.stopasgroup and program.killasgroup} == {"memd"}
    assert not any(program.stopasgroup for name, program in programs.items() if name != "memd")


def test_the_gateway_is_stopped_first_and_memd_last_but_for_the_keeper(deployment):
    options, _ = read_by_supervisor(deployment)
    stopped = [group.name for group in sorted(options.process_group_configs, reverse=True)]
    assert stopped == ["watchdog", *MODES["semi-pd"], "keeper"]


def test_socket_pid_and_logs_are_in_the_run_dir(deployment):
    options, programs = read_by_supervisor(deployment)
    run_dir = deployment.run_dir
    [server] = options.server_configs
    assert server["file"] == str(run_dir / "supervisor.sock")
    assert server["chmod"] == 0o700
    assert options.pidfile == str(run_dir / "supervisord.pid")
    assert programs["decode"].stdout_logfile == str(run_dir / "logs" / "decode.log")
    assert programs["decode"].redirect_stderr
    assert programs["decode"].stdout_logfile_backups > 0


def replicated(run_dir, num_replicas: int, **environ: str) -> Deployment:
    return resolve(Overrides(run_dir=run_dir, num_replicas=num_replicas), environ)


def test_each_replica_has_all_but_the_gateway_and_the_watchdog(tmp_path):
    deployment = replicated(tmp_path / "run dir", 3)
    _, programs = read_by_supervisor(deployment)
    own = [service for service in (*MODES["semi-pd"], "keeper") if service != "gateway"]
    others = {f"{service}-{replica}" for service in own for replica in (1, 2)}
    assert set(programs) == {"gateway", "watchdog", *own, *others}
    command = command_of(programs["decode-2"])
    assert command[-len(deployment.flags("decode", 2)) :] == deployment.flags("decode", 2)
    assert "services.decode.main" in command
    assert programs["decode-2"].stdout_logfile == str(deployment.run_dir / "logs" / "decode-2.log")
    folder = deployment.run_dir / "replica-2"
    assert str(folder / KEEPER_SOCKET) in command_of(programs["keeper-2"])
    assert deployment.address("decode", 2) == f"unix:{folder}/decode.sock"


def test_the_gateway_is_told_of_all_replicas_and_keeps_its_place(tmp_path):
    deployment = replicated(tmp_path, 2)
    command = command_of(read_by_supervisor(deployment)[1]["gateway"])
    assert command[command.index("--replicas") + 1] == f"{tmp_path},{tmp_path}/replica-1"
    assert command[command.index("--run-dir") + 1] == str(tmp_path)
    assert "--replicas" not in resolve(Overrides(run_dir=tmp_path), {}).flags("gateway")


def test_replicas_end_service_by_service_and_the_keepers_last(tmp_path):
    options, _ = read_by_supervisor(replicated(tmp_path, 2))
    stopped = [group.name.partition("-")[0] for group in sorted(options.process_group_configs, reverse=True)]
    both = [service for service in MODES["semi-pd"][1:] for _ in range(2)]
    assert stopped == ["watchdog", "gateway", *both, "keeper", "keeper"]


def test_replicas_have_cores_of_their_own_where_there_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5})
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/taskset")
    programs = read_by_supervisor(replicated(tmp_path, 2))[1]
    assert command_of(programs["memd"])[:3] == ["taskset", "--cpu-list", "0,1"]
    assert command_of(programs["prefill-1"])[:3] == ["taskset", "--cpu-list", "2,5"]
    assert command_of(programs["gateway"])[0] == sys.executable
    assert all(
        command_of(each)[0] == sys.executable for each in read_by_supervisor(replicated(tmp_path, 5))[1].values()
    )
    assert command_of(read_by_supervisor(replicated(tmp_path, 1))[1]["memd"])[0] == sys.executable


def test_replicas_have_metrics_ports_of_their_own(tmp_path):
    deployment = replicated(tmp_path, 3, TANDEM_MEMD_METRICS_PORT="9100")
    assert "--metrics-port" not in deployment.flags("memd")
    assert deployment.flags("memd", 2)[-2:] == ["--metrics-port", "9120"]
    assert "--metrics-port" not in deployment.flags("decode", 2)


def test_a_replica_for_a_gateway_elsewhere_has_none(tmp_path):
    deployment = resolve(Overrides(run_dir=tmp_path, has_gateway=False), {"TANDEM_MEMD_LISTEN": "127.0.0.1:7000"})
    assert set(read_by_supervisor(deployment)[1]) == {*MODES["semi-pd"][1:], "keeper", "watchdog"}
