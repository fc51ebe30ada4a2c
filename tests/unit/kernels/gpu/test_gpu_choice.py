"""Which kernels a process on a GPU gets; none of this needs one."""

import builtins
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
import torch

from kernels.choice import choose_kernels
from tandem.errors import DeviceError, UnsupportedModelError

CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_gpu_has_the_triton_kernels(dtype: torch.dtype) -> None:
    choice = choose_kernels(dtype, CUDA, num_sms=40)
    assert (choice.kernels.name, choice.reason) == ("triton", "")
    assert choice.kernels.paged_attention.num_sms == 40  # type: ignore[attr-defined]


def test_another_dtype_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"dtype: .*float32.*bfloat16"):
        choose_kernels(torch.float32, CUDA, num_sms=40)


def test_a_missing_triton_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_triton(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return original(name, globals, locals, fromlist, level)

    for module in [name for name in sys.modules if name.startswith("kernels.gpu")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_triton)
    with pytest.raises(DeviceError, match="triton is not installed"):
        choose_kernels(torch.bfloat16, CUDA, num_sms=40)


def test_a_process_without_a_gpu_does_not_import_triton() -> None:
    program = (
        "import sys, torch; from kernels.choice import choose_kernels;"
        "choose_kernels(torch.bfloat16); choose_kernels(torch.float32);"
        "print([name for name in sys.modules if name.startswith(('triton', 'kernels.gpu'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
