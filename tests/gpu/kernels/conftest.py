"""Checks of the Triton kernels, for a GPU or for Triton's interpreter (tests/unit/kernels/gpu runs them under it).

Memory that a kernel should write is NaN, or the greatest integer, before.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.support.gpu import INTERPRETED, SKIP_REASON
from tests.support.paged_decoder import one_thread


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip(SKIP_REASON)
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty fills what it returns, in deterministic mode."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with one_thread():
        yield
    torch.use_deterministic_algorithms(before)
