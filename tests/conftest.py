"""What tests of several packages share: fixtures, and how hypothesis runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

from tandem.config.settings import default_cache_dir
from tandem.model.default_model import fetch_default_model

if TYPE_CHECKING:
    import transformers

hypothesis.settings.register_profile("untimed", deadline=None)  # an example may wait for a busy machine
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """No test inherits the log level of a command that another one ran in this process."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF, in the cache that `tandem up` uses as well."""
    return fetch_default_model(default_cache_dir())


@pytest.fixture(scope="session")
def default_reference_model(default_model_path: Path) -> "transformers.PreTrainedModel":
    """The default model as transformers imports it itself, in float32 (15 s, once a session)."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        default_model_path.parent, gguf_file=default_model_path.name, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes, once a session and family, a tiny random model's Hugging Face folder."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            from tests.support.tiny_models import save_tiny_model

            made[family] = save_tiny_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make
