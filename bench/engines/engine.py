"""What is measured by `tandem bench engines`: model execution alone, without a server around it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from bench.engines.cases import Case
from tandem.errors import ConfigError


class Engine(Protocol):
    """An engine that is ready. Implementations translate; what they time is said in bench/README.md."""

    def seconds(self, case: Case) -> float:
        """What the case took, once. NotReadyError when the engine fails."""
        ...


class EngineKind(StrEnum):
    """What may stand before an engine's colon."""

    TANDEM = "tandem"  # tandem:KEY=VALUE sets a flag of memd
    LLAMA_CPP = "llama.cpp"  # llama.cpp:GGUF
    VLLM = "vllm"  # vllm:FOLDER


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What the user named; `parameter` is what follows the colon."""

    kind: EngineKind
    parameter: str = ""

    @property
    def name(self) -> str:
        """Short: of a path its last part."""
        return f"{self.kind}:{Path(self.parameter).name}" if self.parameter else str(self.kind)


def parse_engine(text: str) -> EngineSpec:
    """``tandem``, ``tandem:KEY=VALUE``, ``llama.cpp:GGUF`` or ``vllm:FOLDER``. ConfigError."""
    name, _, parameter = text.partition(":")
    if name not in set(EngineKind):
        raise ConfigError("engine", f"{text!r} is none of {', '.join(EngineKind)}")
    spec = EngineSpec(EngineKind(name), parameter)
    if spec.kind is EngineKind.TANDEM:
        if parameter and not all(parameter.partition("=")):
            raise ConfigError("engine", f"{text!r} is not tandem:KEY=VALUE, a flag of memd")
    elif not Path(parameter).exists() or not parameter:
        raise ConfigError("engine", f"{text!r}: write {name}:PATH, the file or folder of its model")
    return spec
