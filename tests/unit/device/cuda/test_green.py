import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cuda.bindings import driver as real

from tandem.device.cuda.green import GreenBackend
from tandem.errors import DeviceError, DeviceFaultError
from tandem.types import Phase, Split
from tests.support.fake_cuda import FakeCuda


@pytest.fixture
def cuda(mps_cuda) -> FakeCuda:
    return mps_cuda()


class Streams:
    """Where the backend says which stream to use."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.used: list[tuple[int, int, int]] = []  # handle, SMs, thread

    def use(self, handle: int, num_sms: int) -> None:
        self.used.append((handle, num_sms, threading.get_ident()))

    def sms(self) -> frozenset[int]:
        """On which SMs work on the current stream runs."""
        return self._cuda.partition.streams[self.used[-1][0]]


def sms_of(cuda: FakeCuda, phase: Phase, split: Split) -> frozenset[int]:
    streams = Streams(cuda)
    GreenBackend(cuda, [phase], streams.use).apply(phase, split)
    return streams.sms()


def test_two_processes_have_disjoint_sms_of_the_same_cut(mps_cuda):
    prefill = sms_of(mps_cuda(), Phase.PREFILL, Split(30, 70))
    decode = sms_of(mps_cuda(), Phase.DECODE, Split(30, 70))
    assert (len(prefill), len(decode)) == (40, 88)
    assert not prefill & decode


def test_the_whole_device_has_the_sms_that_are_in_no_group(cuda):
    assert len(sms_of(cuda, Phase.DECODE, Split(50, 100))) == 132


def test_everything_is_made_before_the_first_split_and_nothing_after(cuda):
    streams = Streams(cuda)
    backend = GreenBackend(cuda, [Phase.DECODE], streams.use)
    made = dict(cuda.partition.green)
    for percent in range(1, 101):
        backend.apply(Phase.DECODE, Split(100, percent))
    assert cuda.partition.green == made
    assert 4 <= len(made) <= 7
    assert len({handle for handle, _, _ in streams.used}) == len(made)


def test_the_same_split_is_the_same_stream_again(cuda):
    streams = Streams(cuda)
    backend = GreenBackend(cuda, [Phase.DECODE], streams.use)
    for split in (Split(50, 50), Split(30, 70), Split(50, 50)):
        backend.apply(Phase.DECODE, split)
    first, _, last = streams.used
    assert first == last


def test_the_old_streams_work_ends_before_the_new_one_is_used(cuda):
    streams = Streams(cuda)
    backend = GreenBackend(cuda, [Phase.DECODE], streams.use)
    backend.apply(Phase.DECODE, Split(50, 50))
    assert cuda.partition.synchronised == []
    backend.apply(Phase.DECODE, Split(30, 70))
    assert cuda.partition.synchronised == [streams.used[0][0]]


def test_the_stream_is_set_on_the_thread_that_applies(cuda):
    streams = Streams(cuda)
    backend = GreenBackend(cuda, [Phase.DECODE], streams.use)
    thread = threading.Thread(target=backend.apply, args=(Phase.DECODE, Split(50, 50)))
    thread.start()
    thread.join()
    assert streams.used[0][1:] == (64, thread.ident)


def test_a_thread_without_a_context_of_its_own_can_apply_twice(cuda):
    backend = GreenBackend(cuda, [Phase.DECODE], Streams(cuda).use)
    with ThreadPoolExecutor(1) as thread:
        for split in (Split(50, 50), Split(30, 70)):
            thread.submit(backend.apply, Phase.DECODE, split).result()
    assert len(cuda.partition.synchronised) == 1


def test_without_mps_it_is_refused_with_what_to_do(mps_cuda):
    cuda = mps_cuda(mps_enabled=0)
    with pytest.raises(DeviceError, match=r"no client of MPS.*tandem doctor"):
        GreenBackend(cuda, [Phase.DECODE], Streams(cuda).use)
    assert not cuda.partition.green


def test_a_process_that_has_the_device_alone_needs_no_mps(mps_cuda):
    cuda = mps_cuda(mps_enabled=0)
    streams = Streams(cuda)
    GreenBackend(cuda, [Phase.DECODE], streams.use, is_alone=True).apply(Phase.DECODE, Split(50, 50))
    assert len(streams.sms()) == 64


def test_a_device_too_small_for_a_group(mps_cuda):
    with pytest.raises(DeviceError, match="cuDevSmResourceSplitByCount"):
        cuda = mps_cuda(num_sms=6)
        GreenBackend(cuda, [Phase.DECODE], Streams(cuda).use)


def test_a_fault_of_the_running_step_shows_at_the_switch(cuda):
    backend = GreenBackend(cuda, [Phase.DECODE], Streams(cuda).use)
    backend.apply(Phase.DECODE, Split(50, 50))
    cuda.base.sticky = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceFaultError, match="ILLEGAL_ADDRESS"):
        backend.apply(Phase.DECODE, Split(30, 70))
