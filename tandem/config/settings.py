"""The configuration of each service: frozen, checked, complete. `tandem.config.load` fills them.

A key is written ``[memd] block_size`` in the file, ``TANDEM_MEMD_BLOCK_SIZE`` in the environment and ``--block-size``
as a flag of the service. Keys of `CommonConfig` stand under ``[common]``, ``TANDEM_<KEY>`` and ``--<key>``.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Percent = Annotated[int, Field(ge=1, le=100)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def default_run_dir() -> Path:
    """Short, private to the user: unix socket paths end at 107 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"tandem-{os.getuid()}"


class CommonConfig(BaseModel):
    """What every service knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "default"  # default | a GGUF file | a Hugging Face folder | random:<path of a config.json>
    run_dir: Path = Field(default_factory=default_run_dir)  # sockets, logs; created 0700
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_timeout_s: Seconds = 20.0  # from SIGTERM until what is left is handed back

    def socket(self, service: str) -> str:
        """gRPC address of a service of this deployment."""
        return f"unix:{self.run_dir / service}.sock"


class MemdConfig(CommonConfig):
    """The memory daemon."""

    metrics_port: NotNegative = 0  # 0: no metrics endpoint
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    block_size: Positive = 16  # tokens
    kv_bytes: Positive = 1 << 30
    lease_ttl_s: Seconds = 30.0
    reserve_blocks: NotNegative = 16  # kept from prefill, so that running sequences can grow


class PhaseConfig(CommonConfig):
    """What prefill and decode have in common."""

    metrics_port: NotNegative = 0
    dtype: Literal["", "bfloat16", "float32"] = ""  # refuse storage of another dtype; empty: take what memd has
    max_sequences: Positive = 32  # worked on at once
    spare_blocks: Positive = 64  # leased ahead of need
    partition_backend: Literal["cpu-affinity"] = "cpu-affinity"


class PrefillConfig(PhaseConfig):
    """The prefill phase."""

    chunk_tokens: Positive = 512  # token budget of a step, over all its sequences


class DecodeConfig(PhaseConfig):
    """The decode phase."""


class ControllerConfig(CommonConfig):
    """The controller."""

    metrics_port: NotNegative = 0
    planner: Literal["static"] = "static"
    prefill_percent: Percent = 50
    decode_percent: Percent = 50
    window_requests: Positive = 400  # over which latencies are reported


class GatewayConfig(CommonConfig):
    """The gateway."""

    metrics_port: NotNegative = 0
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 50051  # 0: any free port
    max_waiting: Positive = 256  # requests in the queue; beyond it RESOURCE_EXHAUSTED
    max_running: Positive = 48  # sequences in the phases at once
    max_tokens_default: Positive = 512
    max_n: Positive = 16
    max_message_bytes: Positive = 4 << 20
    max_buffered_tokens: Positive = 4096  # unread by one client; beyond it the request is ended


SERVICES: dict[str, type[CommonConfig]] = {
    "memd": MemdConfig,
    "prefill": PrefillConfig,
    "decode": DecodeConfig,
    "controller": ControllerConfig,
    "gateway": GatewayConfig,
}
