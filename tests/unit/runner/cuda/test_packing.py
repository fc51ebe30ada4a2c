import torch

from tandem.runner.cuda.packing import Field, Packing

FIELDS = (
    Field("odd", torch.int32, (3,)),
    Field("wide", torch.float64, (2, 2)),
    Field("none", torch.int32, (2, 0)),
    Field("last", torch.int64, (1,)),
)


def test_fields_lie_one_after_another_and_do_not_touch() -> None:
    packing = Packing(FIELDS)
    buffer = torch.zeros(packing.num_bytes, dtype=torch.uint8)
    views = packing.views(buffer)
    for number, field in enumerate(FIELDS, 1):
        assert (views[field.name].dtype, tuple(views[field.name].shape)) == (field.dtype, field.shape)
        views[field.name].fill_(number)
    assert [view.unique().tolist() for view in views.values()] == [[1], [2], [], [4]]
    assert packing.num_bytes == 16 + 32 + 0 + 16
    assert all((view.data_ptr() - buffer.data_ptr()) % 16 == 0 for view in views.values())


def test_one_copy_takes_all() -> None:
    packing = Packing(FIELDS)
    here, there = (torch.zeros(packing.num_bytes, dtype=torch.uint8) for _ in range(2))
    packing.views(here)["wide"].copy_(torch.tensor([[1.5, 2.5], [3.5, 4.5]]))
    there.copy_(here)
    assert packing.views(there)["wide"].tolist() == [[1.5, 2.5], [3.5, 4.5]]
