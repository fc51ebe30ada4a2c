"""The families by name. A family's module is imported when it is asked for, and torch with it."""

from importlib import import_module
from typing import TYPE_CHECKING

from tandem.errors import UnsupportedModelError

if TYPE_CHECKING:
    from tandem.model.family import Family

MODULES = {
    "llama": "tandem.model.llama",
    "mistral": "tandem.model.mistral",
    "qwen2": "tandem.model.qwen2",
    "qwen3": "tandem.model.qwen3",
}


def get_family(name: str) -> "Family":
    """The family called `name` in `ModelConfig.family`. UnsupportedModelError, naming those that are built."""
    if name not in MODULES:
        raise UnsupportedModelError(f"model family {name!r} is not built; there are {', '.join(sorted(MODULES))}")
    family: Family = import_module(MODULES[name]).FAMILY
    return family
