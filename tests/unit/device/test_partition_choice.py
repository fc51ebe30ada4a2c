import pytest
from cuda.bindings import driver as real

from tandem.device.cpu.affinity import CpuAffinityBackend
from tandem.device.cuda.gpu import ENV_PERCENTAGE, find_gpu
from tandem.device.partition_backends import PARTITION_BACKENDS, choose_partition_backend, make_partition_backend
from tandem.device.whole import WholeDeviceBackend
from tandem.errors import ConfigError, DeviceError, DeviceFaultError
from tandem.types import Phase, Split
from tests.support.partition_backends import GpuProcess


def choose(gpu: GpuProcess, configured: str = "auto", **environ: str) -> tuple[str, str]:
    choice = choose_partition_backend(configured, find_gpu(gpu.open_driver), environ, num_cores=16)
    return choice.name, choice.reason


def no_driver():
    raise DeviceError("no CUDA driver: not found")


def test_without_a_gpu_shares_are_cores_and_the_reason_is_told():
    choice = choose_partition_backend("auto", find_gpu(no_driver), {}, num_cores=6)
    assert (choice.name, choice.reason) == ("cpu-affinity", "no CUDA driver: not found")


@pytest.mark.parametrize("num_cores", [1, 2, 5])
def test_where_whole_cores_make_fewer_than_five_splits_shares_are_times_as_well(num_cores):
    choice = choose_partition_backend("auto", find_gpu(no_driver), {}, num_cores=num_cores)
    assert choice.name == "cpu-cadence"
    assert choice.reason.startswith(f"no CUDA driver: not found; {num_cores} cores")


def test_mps_and_green_contexts_are_the_best():
    assert choose(GpuProcess()) == ("mps-green", "MPS and green contexts")


def test_mps_that_is_silently_missing_is_found_out():
    name, reason = choose(GpuProcess(has_mps=False))
    assert name == "timeshare"
    assert "attribute 133 is 0" in reason


def test_a_process_that_mps_bounds_cannot_be_partitioned_further():
    name, reason = choose(GpuProcess(), **{ENV_PERCENTAGE: "40"})
    assert name == "mps-percentage"
    assert "40 %" in reason


def test_a_driver_before_green_contexts():
    name, reason = choose(GpuProcess(driver_version=12030))
    assert name == "mps-percentage"
    assert "(12, 3)" in reason


@pytest.mark.parametrize("name", PARTITION_BACKENDS)
def test_what_is_configured_is_taken(name):
    assert choose(GpuProcess(), name) == (name, "configured")


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ConfigError, match=rf"cpu-afinity.*auto, {', '.join(PARTITION_BACKENDS)}"):
        choose(GpuProcess(), "cpu-afinity")


def test_the_registry_makes_it_by_name(tmp_path):
    site = GpuProcess().site([Phase.DECODE], tmp_path)
    assert isinstance(make_partition_backend("cpu-affinity", site), CpuAffinityBackend)


def test_auto_is_one_of_them(tmp_path):
    gpu = GpuProcess()
    backend = make_partition_backend("auto", gpu.site([Phase.DECODE], tmp_path, {}))
    backend.apply(Phase.DECODE, Split(50, 50))
    assert backend.name == "mps-green"
    assert len(gpu.sms) == 64


@pytest.mark.parametrize("phases", [[Phase.DECODE], list(Phase)])
@pytest.mark.parametrize("name", ["auto", "timeshare"])
def test_no_processor_s_backend_is_taken_while_mps_recovers_from_a_fault(name, phases, tmp_path):
    gpu = GpuProcess()
    gpu.cuda.base.sticky = real.CUresult.CUDA_ERROR_MPS_SERVER_NOT_READY
    with pytest.raises(DeviceFaultError):
        make_partition_backend(name, gpu.site(phases, tmp_path, {}))


@pytest.mark.parametrize("name", ["mps-green", "mps-percentage"])
def test_what_needs_mps_refuses_to_work_without(name, tmp_path):
    with pytest.raises(DeviceError, match=f"{name}: this process is no client of MPS"):
        make_partition_backend(name, GpuProcess(has_mps=False).site([Phase.DECODE], tmp_path, {}))


def test_a_process_with_both_phases_has_the_whole_device(tmp_path):
    backend = make_partition_backend("auto", GpuProcess().site(list(Phase), tmp_path))
    assert isinstance(backend, WholeDeviceBackend)
    assert backend.apply(Phase.DECODE, Split(50, 50)).detail == "the whole device"


def test_a_turn_on_a_gpu_ends_when_the_work_has(tmp_path):
    gpu = GpuProcess(has_mps=False)
    backend = make_partition_backend("auto", gpu.site([Phase.PREFILL], tmp_path, {}))
    cuda = gpu.open_driver()
    cuda.cuCtxSetCurrent(cuda.cuDevicePrimaryCtxRetain(0)[1])
    with backend.turn():
        assert "cuCtxSynchronize" not in cuda.base.calls
    assert cuda.base.calls[-1] == "cuCtxSynchronize"
