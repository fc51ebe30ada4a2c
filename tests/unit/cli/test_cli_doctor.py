"""What the doctor says of machines that this one is not, and of this one."""

import json
import os
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kernels.gpu.sm_use import SmUse
from tandem.cli.attach_check import ATTACH_BYTES, AttachReport, check_attach
from tandem.cli.checkup import Surroundings, examine_device, examine_machine, examine_shares, seconds_to_serve
from tandem.cli.deployment import Deployment, Overrides, resolve
from tandem.cli.main import main
from tandem.cli.sm_check import SmReport, check_sms
from tandem.cli.supervision import child_environment
from tandem.clock import MonotonicClock
from tandem.device.cpu.memory import MemfdExporter
from tandem.device.cuda.gpu import GpuFacts, GpuSearch, find_gpu
from tandem.device.cuda.look import free_bytes_from_child
from tandem.device.cuda.mps import MpsControl, MpsDirectories
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.memory import MemoryExporter, SegmentKind
from tandem.errors import DeviceError
from tandem.types import Phase, Split
from tests.support import fake_mps_control
from tests.support.fake_cuda.host import fake_driver

H200 = GpuFacts("H200", (13, 0), (9, 0), 132, 141 << 30, has_mps=True)
NO_DRIVER = GpuSearch(None, "no CUDA driver: not found")
needs_no_gpu = pytest.mark.skipif(find_gpu().gpu is not None, reason="there is a GPU on this machine")
PROBE = """
import json, sys
phase, *split = sys.argv[1:]
print("a log event")
print("ready", flush=True)
sys.stdin.readline()
first = 0 if phase == "prefill" else {first_of_decode}
json.dump(dict(quota=64, sm_ids=list(range(first, first + 64)), from_ns=5, to_ns=9), sys.stdout)
"""


@pytest.fixture
def deployment():
    with tempfile.TemporaryDirectory(prefix="td") as name:
        yield resolve(Overrides(run_dir=Path(name), port=0), {})


@pytest.fixture
def mps(tmp_path) -> MpsControl:
    program = fake_mps_control.install(tmp_path) / fake_mps_control.PROGRAM
    return MpsControl(MpsDirectories(tmp_path / "pipe", tmp_path / "log"), os.environ, str(program))


def on_gpu(mps: MpsControl, *, has_mps: bool = True) -> Surroundings:
    return Surroundings(GpuSearch(replace(H200, has_mps=has_mps)), mps, {}, is_running=False)


def lines(findings) -> dict[str, str]:
    """By subject, several joined."""
    found: dict[str, str] = {}
    for finding in findings:
        found[finding.subject] = "; ".join(filter(None, (found.get(finding.subject), finding.text)))
    return found


def no_check(split: Split, environ) -> SmReport:
    raise AssertionError("not to be probed")


def no_attach(exporter: MemoryExporter, environ) -> AttachReport:
    raise DeviceError("no process")


class TestDevice:
    def test_a_gpu_with_mps(self, deployment, mps):
        mps.start()
        fake_mps_control.connect(mps.directories.pipe, 700, 41, 42)
        found = lines(examine_device(deployment, on_gpu(mps), no_attach))
        assert found["device"] == "H200, 141 GiB, 132 SMs"
        assert found["driver"] == "serves CUDA 13.0; compute capability 9.0"
        assert found["mps"].endswith("pipe, serves this machine's phases; clients now: 2")
        assert found["partition"].count("mps-green (MPS and green contexts)") == 2

    def test_mps_that_is_silently_missing(self, deployment, mps):
        mps.start()
        found = lines(examine_device(deployment, on_gpu(mps, has_mps=False), no_attach))
        assert "serves nobody" in found["mps"]
        assert "timeshare (no MPS (device attribute 133 is 0)" in found["partition"]

    def test_a_daemon_that_does_not_run(self, deployment, mps):
        found = lines(examine_device(deployment, on_gpu(mps, has_mps=False), no_attach))
        assert found["mps"] == "its control daemon does not run; `tandem up` starts it"

    def test_free_memory_beside_all_of_it(self, deployment, mps):
        around = replace(on_gpu(mps), free_bytes=100 << 30)
        assert (
            lines(examine_device(deployment, around, no_attach))["device"] == "H200, 100.0 GiB free of 141 GiB, 132 SMs"
        )

    def test_how_soon_memory_is_mapped(self, deployment, mps):
        def check(exporter: MemoryExporter, environ) -> AttachReport:
            return AttachReport(SegmentKind.CUDA_VMM, 256 << 20, 3.21, 0.00456)

        found = lines(examine_device(deployment, on_gpu(mps), check))["attach"]
        assert found == "256 MiB of cuda-vmm mapped 3.2 s after a process's start; a mapping alone 4.56 ms"

    def test_a_mapping_that_fails_is_no_failure_of_the_doctor(self, deployment, mps):
        assert lines(examine_device(deployment, on_gpu(mps), no_attach))["attach"] == "not measured: no process"

    def test_beside_a_running_deployment_nothing_is_mapped(self, deployment, mps):
        around = replace(on_gpu(mps), is_running=True)
        found = lines(examine_device(deployment, around, no_attach))
        assert "attach" not in found
        assert found["memory"]

    @needs_no_gpu
    def test_without_a_gpu(self, deployment):
        found = lines(examine_device(deployment, Surroundings(NO_DRIVER, None, {}, is_running=False), no_attach))
        assert found["device"] == "no GPU: no CUDA driver: not found"
        assert (found["mps"], "driver" in found) == ("not used", False)
        assert found["partition"].startswith("prefill: cpu-")
        assert "(no CUDA driver" in found["partition"]
        assert found["memory"].startswith("memfd (no CUDA driver")

    @needs_no_gpu
    def test_memory_that_is_not_to_be_had_is_no_failure_of_the_doctor(self, deployment):
        asking = replace(deployment, memory_backend="cuda")
        found = lines(examine_device(asking, Surroundings(NO_DRIVER, None, {}, is_running=False), no_attach))
        assert found["memory"].startswith("cuda: not to be had: ")


class TestMachine:
    around = Surroundings(NO_DRIVER, None, {}, is_running=False)

    def test_the_processor_and_its_kernels(self, deployment):
        found = lines(examine_machine(deployment, self.around))
        assert found["processor"].startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores")
        assert found["kernels"]
        assert found["ram"].endswith("GiB available")

    def test_a_port_that_is_free_and_one_that_is_not(self, deployment):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            told = lines(examine_machine(replace(deployment, port=port), self.around))["port"]
        assert told == f"127.0.0.1:{port}: Address already in use"
        told = lines(examine_machine(replace(deployment, port=port), self.around))["port"]
        assert told == f"127.0.0.1:{port} is free"


class TestShares:
    def test_disjoint_sms_are_told(self, deployment, mps):
        def check(split: Split, environ) -> SmReport:
            uses = {Phase.PREFILL: SmUse(frozenset(range(64)), 0, 9), Phase.DECODE: SmUse(frozenset({64, 65}), 5, 7)}
            return SmReport(dict.fromkeys(Phase, 64), uses)

        found = lines(examine_shares(deployment, on_gpu(mps), check))
        assert found["prefill"] == "ran on 64 SMs of 64 that it has"
        assert found["decode"] == "ran on 2 SMs of 64 that it has"
        assert found["SMs"].startswith("the phases' SMs are disjoint")

    def test_a_probe_that_fails_is_no_failure_of_the_doctor(self, deployment, mps):
        def check(split: Split, environ) -> SmReport:
            raise DeviceError("the SM probe failed: no Triton")

        assert lines(examine_shares(deployment, on_gpu(mps), check)) == {
            "SMs": "not probed: the SM probe failed: no Triton"
        }

    def test_without_mps_there_is_nothing_to_probe(self, deployment, mps):
        found = lines(examine_shares(deployment, on_gpu(mps, has_mps=False), no_check))
        assert found == {"SMs": "not probed: without MPS no phase has SMs of its own"}

    def test_without_a_gpu_nothing_is_said(self, deployment):
        around = Surroundings(NO_DRIVER, None, {}, is_running=False)
        assert not list(examine_shares(deployment, around, no_check))

    def test_a_running_deployment_is_asked_and_not_disturbed(self, deployment, mps):
        around = replace(on_gpu(mps), is_running=True)
        assert "not known" in lines(examine_shares(deployment, around, no_check))["shares"]


def event(second: int, name: str, **fields: str) -> str:
    return json.dumps({"timestamp": f"2026-01-01T00:00:{second:02}.500Z", "event": name, **fields})


class TestTimeToServe:
    def test_of_the_newest_start(self):
        lines = [
            *(event(1, "service.starting"), event(9, "phase.state", state="serving")),
            *(event(20, "service.starting"), event(23, "phase.state", state="serving")),
            event(40, "phase.state", state="draining"),
        ]
        assert seconds_to_serve(lines) == 3.0

    @pytest.mark.parametrize(
        "lines", [[], [event(1, "service.starting")], [event(9, "phase.state", state="serving")], ["no event"]]
    )
    def test_not_known(self, lines):
        assert seconds_to_serve(lines) is None

    def test_one_that_has_not_served_since_its_last_start(self):
        before = [event(1, "service.starting"), event(2, "phase.state", state="serving")]
        assert seconds_to_serve([*before, event(20, "service.starting")]) is None


def check_with(program: str) -> SmReport:
    return check_sms(Split(50, 50), os.environ, (sys.executable, "-c", program))


class TestSmCheck:
    def test_two_probes_side_by_side(self):
        report = check_with(PROBE.format(first_of_decode=64))
        assert report.faults == ()
        assert report.uses[Phase.DECODE].sm_ids == frozenset(range(64, 128))
        assert report.quotas == {Phase.PREFILL: 64, Phase.DECODE: 64}

    def test_sms_that_both_ran_on(self):
        (fault,) = check_with(PROBE.format(first_of_decode=63)).faults
        assert fault == "both ran on SMs [63]"

    @pytest.mark.parametrize("program", ["exit('no GPU')", "print('ready', flush=True); input(); exit('no GPU')"])
    def test_a_probe_that_ends_says_why(self, program):
        with pytest.raises(DeviceError, match="the SM probe failed: no GPU"):
            check_with(program)

    @needs_no_gpu
    def test_the_real_probe_needs_a_gpu(self):
        with pytest.raises(DeviceError, match=r"DeviceError: no CUDA driver"):
            check_sms(Split(50, 50), child_environment(os.environ))


ATTACH_OVER_FAKE = (sys.executable, "-m", "tests.support.fake_cuda.attach_probe")


class TestAttachCheck:
    def test_the_machine_s_memory(self):
        report = check_attach(MemfdExporter(), child_environment(os.environ), MonotonicClock())
        assert (report.kind, report.size_bytes) == (SegmentKind.MEMFD, ATTACH_BYTES)
        assert 0 < report.map_s < report.process_s

    def test_a_device_s_memory_is_given_back(self):
        driver = fake_driver()
        environ = child_environment(os.environ)
        report = check_attach(VmmExporter(driver), environ, MonotonicClock(), ATTACH_OVER_FAKE)
        assert (report.kind, report.size_bytes) == (SegmentKind.CUDA_VMM, ATTACH_BYTES)
        assert (driver.memory.owned_bytes, driver.memory.leaks) == (0, {})
        assert not driver.base.contexts  # the memory's owner needs none

    def test_memory_that_is_not_to_be_had(self):
        with pytest.raises(DeviceError, match="segment probe"):
            check_attach(MemfdExporter(lambda: 0), {}, MonotonicClock())

    @pytest.mark.parametrize("program", ["exit('no memory')", "print('mapped', flush=True); exit('no memory')"])
    def test_a_probe_that_ends_says_why(self, program):
        with pytest.raises(DeviceError, match="the attach probe failed: no memory"):
            check_attach(MemfdExporter(), os.environ, MonotonicClock(), (sys.executable, "-c", program))


@needs_no_gpu
def test_free_memory_of_a_machine_without_a_gpu_is_an_error():
    with pytest.raises(DeviceError):
        free_bytes_from_child(child_environment(os.environ))


@needs_no_gpu
def test_the_command_on_this_machine(deployment: Deployment):
    result = CliRunner().invoke(main, ["doctor", "--run-dir", str(deployment.run_dir)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("device     no GPU: ")
    assert "attach     256 MiB of memfd mapped " in result.output
