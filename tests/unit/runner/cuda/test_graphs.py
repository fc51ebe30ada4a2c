import pytest

from tandem.runner.cuda import graphs
from tandem.runner.cuda.graphs import StepStream


def test_a_stream_s_sms_are_remembered_once_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, int]] = []

    def use(handle: int, num_sms: int) -> None:
        if handle == 13:
            raise RuntimeError("no such stream")
        used.append((handle, num_sms))

    monkeypatch.setattr(graphs, "use_torch_stream", use)
    stream = StepStream()
    assert stream.num_sms is None
    stream.use(5, 40)
    assert (used, stream.num_sms) == ([(5, 40)], 40)
    with pytest.raises(RuntimeError):
        stream.use(13, 88)
    assert stream.num_sms == 40
