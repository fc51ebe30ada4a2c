import os

import pytest
from cuda.bindings import driver as real

from tandem.device.cuda.gpu import ENV_PERCENTAGE, find_gpu, read_gpu, running_percentage
from tandem.device.cuda.health import check_device
from tandem.device.cuda.look import free_memory, look, look_from_child
from tandem.device.cuda.percentage import PercentageBackend
from tandem.device.partition import Applied, RestartRequired
from tandem.errors import DeviceError, DeviceFaultError
from tandem.types import Phase, Split


def test_what_is_read_makes_no_context(mps_cuda):
    cuda = mps_cuda()
    gpu = read_gpu(cuda)
    assert (gpu.name, gpu.num_sms, gpu.compute_capability) == ("NVIDIA H200 (fake)", 132, (9, 0))
    assert (gpu.cuda_version, gpu.memory_bytes, gpu.has_mps) == ((13, 0), 1 << 30, True)
    assert not cuda.base.contexts


def test_a_machine_without_a_driver_says_why():
    def no_driver():
        raise DeviceError("no CUDA driver: not found")

    search = find_gpu(no_driver)
    assert (search.gpu, search.reason) == (None, "no CUDA driver: not found")


def test_a_driver_without_a_device_says_why(mps_cuda):
    cuda = mps_cuda()
    cuda.base.spec.num_devices = 0
    assert find_gpu(lambda: cuda).reason == "cuDeviceGet: CUDA_ERROR_INVALID_DEVICE (101)"


def test_a_gpu_whose_mps_recovers_from_a_fault_is_not_taken_for_none(mps_cuda):
    cuda = mps_cuda()
    cuda.base.sticky = real.CUresult.CUDA_ERROR_MPS_SERVER_NOT_READY
    with pytest.raises(DeviceFaultError, match="MPS_SERVER_NOT_READY"):
        find_gpu(lambda: cuda)
    assert look(lambda: cuda).reason == "cuDeviceGet: CUDA_ERROR_MPS_SERVER_NOT_READY (807)"


def test_a_driver_that_never_answers_is_given_up_in_time():
    search = look_from_child(os.environ, timeout_s=0.001)
    assert search.gpu is None
    assert "timed out after 0.001 seconds" in search.reason


@pytest.mark.parametrize(("text", "percent"), [(None, 100), ("", 100), ("40", 40), ("12.5", 12.5), ("100", 100)])
def test_the_percentage_of_this_process(text, percent):
    assert running_percentage({} if text is None else {ENV_PERCENTAGE: text}) == percent


@pytest.mark.parametrize("text", ["0", "-1", "101", "half", "nan"])
def test_a_percentage_that_mps_would_ignore(text):
    with pytest.raises(DeviceError, match=ENV_PERCENTAGE):
        running_percentage({ENV_PERCENTAGE: text})


def percentage_backend(mps_cuda, **environ: str) -> PercentageBackend:
    return PercentageBackend(read_gpu(mps_cuda()), environ)


def test_the_share_that_the_process_was_started_with_is_applied(mps_cuda):
    backend = percentage_backend(mps_cuda, CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="40")
    assert isinstance(backend.apply(Phase.PREFILL, Split(40, 60)), Applied)


def test_another_share_needs_a_process_with_that_percentage(mps_cuda):
    backend = percentage_backend(mps_cuda, CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="40")
    outcome = backend.apply(Phase.DECODE, Split(40, 60))
    assert isinstance(outcome, RestartRequired)
    assert outcome.detail == f"started with 40 %; a new process needs {ENV_PERCENTAGE}=60"
    successor = percentage_backend(mps_cuda, **outcome.environment)
    assert isinstance(successor.apply(Phase.DECODE, Split(40, 60)), Applied)


def test_a_percentage_means_nothing_without_mps(mps_cuda):
    with pytest.raises(DeviceError, match="no client of MPS"):
        PercentageBackend(read_gpu(mps_cuda(mps_enabled=0)), {ENV_PERCENTAGE: "40"})


def test_a_fault_is_found_after_a_failed_step(mps_cuda):
    cuda = mps_cuda()
    cuda.base.sticky = real.CUresult.CUDA_ERROR_MPS_CLIENT_TERMINATED
    with pytest.raises(DeviceFaultError, match="MPS_CLIENT_TERMINATED"):
        check_device(lambda: cuda)


def test_a_step_may_fail_for_other_reasons(mps_cuda):
    cuda = mps_cuda()
    check_device(lambda: cuda)  # no context is current: this thread uses no GPU
    cuda.cuCtxSetCurrent(cuda.cuDevicePrimaryCtxRetain(0)[1])
    check_device(lambda: cuda)


def test_a_machine_without_a_gpu_has_no_fault():
    def no_driver():
        raise DeviceError("no CUDA driver")

    check_device(no_driver)


def test_splits_are_on_offer_where_another_process_takes_over_while_this_one_serves(mps_cuda):
    gpu = read_gpu(mps_cuda())
    backend = PercentageBackend(gpu, {ENV_PERCENTAGE: "35"}, has_steward=True)
    outcomes = [backend.apply(Phase.PREFILL, split) for split in backend.splits]
    assert [isinstance(outcome, Applied) for outcome in outcomes] == [False, True, False, False, False]
    assert PercentageBackend(gpu, {}).splits == ()


def test_free_memory_is_asked_of_a_context_of_its_own(mps_cuda):
    cuda = mps_cuda()
    assert free_memory(cuda) == {"free_bytes": cuda.base.spec.memory_bytes}
    assert len(cuda.base.contexts) == 1
