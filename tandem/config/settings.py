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
Port = Annotated[int, Field(ge=0, le=65535)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Promised = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Timeout = Annotated[float, Field(ge=0, allow_inf_nan=False)]
QueuePolicy = Literal["fcfs", "longest-prefix", "kvshare"]
RouterName = Literal["round-robin", "least-loaded", "cache-aware"]


Mode = Literal["semi-pd", "colocated"]

MODES: dict[Mode, tuple[str, ...]] = {
    "semi-pd": ("gateway", "prefill", "decode", "controller", "memd"),
    "colocated": ("gateway", "colocated", "controller", "memd"),
}
"""The services of a deployment, in the order in which they should end."""


def sockets_of(service: str) -> tuple[str, ...]:
    """On whose sockets a service answers: its own, but the colocated one on both phases'."""
    return ("prefill", "decode") if service == "colocated" else (service,)


KEEPER_SOCKET = "memd.keeper.sock"
"""In the run directory: where memd leaves its segments, and the next memd finds them."""


def default_run_dir() -> Path:
    """Short, private to the user: unix socket paths end at 107 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"tandem-{os.getuid()}"


def default_cache_dir() -> Path:
    """Where fetched models stay, shared by every deployment of the user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tandem"


class CommonConfig(BaseModel):
    """What every service knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field("semi-pd", description="one process for each phase, or both colocated in one")
    model: str = Field(
        "default", description="default, a GGUF file, a Hugging Face folder, or random:<path of a config.json>"
    )
    run_dir: Path = Field(default_factory=default_run_dir, description="sockets and logs; created 0700")
    cache_dir: Path = Field(default_factory=default_cache_dir, description="where the default model is kept")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="events below it are cut")
    drain_timeout_s: Seconds = Field(20.0, description="from SIGTERM until what is left is handed back")
    hang_timeout_s: Timeout = Field(
        20.0, description="a service that has served and does not answer for this long is started anew; 0: never"
    )
    metrics_host: str = Field("127.0.0.1", description="where the metrics endpoint listens")

    def socket(self, service: str) -> str:
        """gRPC address of a service of this deployment."""
        return f"unix:{self.run_dir / service}.sock"


class ReplicaConfig(CommonConfig):
    """What the services of a replica have in common: the gateway may be on another machine."""

    listen: str = Field(
        "", description="HOST:PORT to answer on beside the socket; the colocated phases have the next port too"
    )
    allow_plaintext: bool = Field(
        False, description="listen without TLS on an address that is not loopback: who reaches it may do anything"
    )
    tls_cert: str = Field("", description="PEM file of listen's certificate chain; empty: no TLS")
    tls_key: str = Field("", description="PEM file of its private key")
    tls_client_ca: str = Field("", description="PEM file: gateways show a certificate that one of these has signed")


class MemdConfig(ReplicaConfig):
    """The memory daemon."""

    metrics_port: Port = Field(0, description="0: no metrics endpoint")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="of weights and KV; auto: bfloat16 on a GPU, and where the processor or a native kernel has it",
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        "none", description="of the large weights, in groups of 32; KV keeps its dtype"
    )
    block_size: Positive = Field(16, description="tokens in a KV block")
    memory_backend: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where weights and KV lie; auto: on a GPU where there is one"
    )
    kv_bytes: NotNegative = Field(
        0, description="memory for KV blocks; 0: 1 GiB, or on a GPU 0.9 of what is free, less the weights"
    )
    touch_kv: bool = Field(
        True,
        description="make the KV blocks' memory in the background from the start, so that no prompt waits for it",
    )
    lease_ttl_s: Seconds = Field(30.0, description="a sequence lease that nobody renews ends after this")
    reserve_blocks: NotNegative = Field(16, description="kept from prefill, so that running sequences can grow")
    pin_fraction: Fraction = Field(
        0.0, description="part of the other blocks that may be pinned to registered prompts; no request can have it"
    )
    segment_fraction: Fraction = Field(
        0.25, description="part of all blocks that may hold computed segments, while no prompt needs it; 0: none"
    )
    wipe_between_tenants: bool = Field(
        True, description="zero a KV block before it is written for another sharing domain than it was before"
    )


class PhaseConfig(ReplicaConfig):
    """What prefill and decode have in common."""

    metrics_port: Port = Field(0, description="0: no metrics endpoint")
    dtype: Literal["", "bfloat16", "bfloat16+int8", "bfloat16+int4", "float32", "float32+int8", "float32+int4"] = Field(
        "", description="refuse weights of another dtype; empty: take what memd has"
    )
    max_sequences: Positive = Field(32, description="sequences worked on at once")
    spare_blocks: Positive = Field(64, description="KV blocks leased ahead of need")
    step_timeout_s: Timeout = Field(
        120.0, description="a step that shows no sign of life for this long ends its process; 0: never"
    )
    partition_backend: Literal["auto", "cpu-affinity", "cpu-cadence", "mps-green", "mps-percentage", "timeshare"] = (
        Field("auto", description="how a share of the device is applied; auto: by what the device can")
    )
    spare_timeout_s: Timeout = Field(
        120.0, description="a spare worker, started for another share, that does not serve by then is ended; 0: never"
    )


class PrefillConfig(PhaseConfig):
    """The prefill phase."""

    chunk_tokens: Positive = Field(512, description="token budget of a step, over all its sequences")


class DecodingConfig(PhaseConfig):
    """What decode has of its own, alone or in one process with prefill."""

    refresh_every: Annotated[int, Field(ge=0, le=128)] = Field(
        0, description="tokens of an answer after which approximate KV that they look at is computed anew; 0: never"
    )
    refresh_tokens: Positive = Field(16, description="prompt tokens that are computed anew at a time")


class DecodeConfig(DecodingConfig):
    """The decode phase."""


class ColocatedConfig(DecodingConfig):
    """Both phases in one process: chunked prefill mixed into decode batches, on the whole device."""

    step_tokens: Positive = Field(512, description="token budget of a step; decode's rows come first")


class ControllerConfig(ReplicaConfig):
    """The controller."""

    metrics_port: Port = Field(0, description="0: no metrics endpoint")
    planner: Literal["static", "semi-pd", "predictive"] = Field("predictive", description="what decides the split")
    step_times: str = Field(
        "", description="a file of tandem bench micro that predictions start from; empty: what is known of the backend"
    )
    prefill_percent: Percent = Field(50, description="prefill's share of the device at the start")
    decode_percent: Percent = Field(50, description="decode's share of the device at the start")
    window_requests: Positive = Field(400, description="newest requests over which latencies are reported")
    window_s: Seconds = Field(10.0, description="how far back the planner looks")
    decision_interval_s: Seconds = Field(1.0, description="the planner is asked no oftener")
    slo_ttft_ms: Milliseconds = Field(2000.0, description="TTFT that requests are promised")
    slo_tpot_ms: Milliseconds = Field(100.0, description="mean time a token that requests are promised")
    batch_slo_ttft_ms: Milliseconds = Field(20000.0, description="TTFT of requests with a priority below 0")
    batch_slo_tpot_ms: Milliseconds = Field(400.0, description="mean time a token of requests with a priority below 0")
    slo_margin: Fraction = Field(0.1, description="part of TPOT's SLO that the planner keeps in reserve")


class GatewayConfig(CommonConfig):
    """The gateway."""

    metrics_port: Port = Field(0, description="0: no metrics endpoint")
    host: str = Field("127.0.0.1", description="address that clients connect to")
    port: Port = Field(50051, description="0: any free port")
    allow_plaintext: bool = Field(
        False, description="listen without TLS on an address that is not loopback: whoever sits between reads along"
    )
    tls_cert: str = Field("", description="PEM file of the port's certificate chain; empty: no TLS")
    tls_key: str = Field("", description="PEM file of its private key")
    tls_client_ca: str = Field("", description="PEM file: clients show a certificate that one of these has signed")
    api_keys: str = Field("", description="TOML file of tenants and their keys' hashes; empty: nobody needs a key")
    max_waiting: Positive = Field(256, description="requests in the queue; beyond it RESOURCE_EXHAUSTED")
    max_waiting_tokens: Positive = Field(
        1 << 19, description="of the prompts in the queue, if there is more than one; beyond it RESOURCE_EXHAUSTED"
    )
    max_running: Positive = Field(48, description="sequences in the phases at once")
    admit_ttft_ms: Promised = Field(
        0.0, description="refuse at once what is expected to get its first token later; 0: nothing. Of priority 0 alone"
    )
    admit_tpot_ms: Promised = Field(
        0.0, description="keep so few sequences in the phases that each gets a token in this time; 0: max_running alone"
    )
    queue_policy: QueuePolicy = Field("kvshare", description="whose turn is next of those that wait")
    max_wait_s: Seconds = Field(30.0, description="of kvshare: what has waited longer goes first in its tenant's turn")
    refuse_after_s: Seconds = Field(
        120.0, description="of waiting for a first turn while turns are given; then RESOURCE_EXHAUSTED"
    )
    prefill_backlog_tokens: Positive = Field(
        1024, description="to compute in prefill's own line; twice its chunk_tokens keeps it busy"
    )
    max_tokens_default: Positive = Field(512, description="of a request that sets no max_tokens")
    max_n: Positive = Field(16, description="most answers to one prompt")
    max_message_bytes: Positive = Field(4 << 20, description="largest gRPC message accepted")
    prefix_cache: bool = Field(True, description="reuse the KV of prompts that were computed before")
    min_recompute_ratio: Share = Field(
        0.0, description="least ratio at which requests may reuse segments approximately; 1: exact reuse only"
    )
    max_buffered_tokens: Positive = Field(4096, description="unread by one client; beyond it the request is ended")
    replicas: str = Field(
        "",
        description="with commas between: run directories, HOST:PORT of memd (prefill, decode and controller on the "
        "next ports), dns:HOST:PORT for each address of the host; empty: the one of run_dir",
    )
    router: RouterName = Field("cache-aware", description="which replica a request goes to")
    replica_tls_ca: str = Field("", description="PEM file that signs replicas' certificates; empty: no TLS to them")
    replica_tls_cert: str = Field("", description="PEM file of the certificate that the gateway shows to replicas")
    replica_tls_key: str = Field("", description="PEM file of its private key")
    replica_dns_s: Seconds = Field(5.0, description="between two lookups of a dns:HOST:PORT")
    replica_lost_s: Seconds = Field(
        30.0, description="a replica unreachable for so long gives its requests to those that serve"
    )


SERVICES: dict[str, type[CommonConfig]] = {
    "memd": MemdConfig,
    "prefill": PrefillConfig,
    "decode": DecodeConfig,
    "colocated": ColocatedConfig,
    "controller": ControllerConfig,
    "gateway": GatewayConfig,
}
