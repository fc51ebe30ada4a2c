"""The memory of a deployment: its segments against their formulas, and what its processes hold."""

import os
from collections.abc import Mapping
from math import prod

import psutil

from bench.micro.processes import memory
from bench.micro.table import SegmentSize, ServiceMemory
from tandem.kv.layout import DTYPE_BYTES, KvLayout
from tandem.model.config import ModelConfig
from tandem.model.registry import get_family
from tandem.phase.storage import KV, WEIGHTS
from tandem.rpc.memd_client import MemdClient
from tandem.types import Fingerprint, Phase


async def measure_segments(memd: str) -> tuple[SegmentSize, ...]:
    """Of a running memd, as a phase gets them."""
    client = MemdClient(memd)
    try:
        attachment = await client.attach(Phase.DECODE, os.getpid(), Fingerprint())
        try:
            sizes = {name: handle.size_bytes for name, handle in attachment.segments.items()}
            formulas = {
                WEIGHTS: weight_bytes(attachment.model_config, attachment.manifest.dtype),
                KV: kv_bytes(attachment.model_config, attachment.kv_layout),
            }
            return tuple(SegmentSize(name, sizes[name], formula) for name, formula in formulas.items())
        finally:
            await attachment.detach()
    finally:
        await client.close()


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Every parameter's elements, none of them quantised; alignment left out."""
    return sum(prod(parameter.shape) for parameter in get_family(config.family).parameters(config)) * DTYPE_BYTES[dtype]


def kv_bytes(config: ModelConfig, layout: KvLayout) -> int:
    """A key and a value of every head, layer and token of the pool."""
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * DTYPE_BYTES[layout.dtype]
    return token * layout.block_size * layout.num_blocks


def measure_services(pids: Mapping[str, int]) -> tuple[ServiceMemory, ...]:
    """Now."""
    return tuple(_service(name, pid) for name, pid in pids.items())


def _service(name: str, pid: int) -> ServiceMemory:
    children = psutil.Process(pid).children(recursive=True)
    parts = [memory(each) for each in (pid, *(child.pid for child in children))]
    return ServiceMemory(
        service=name,
        pss_bytes=sum(part.pss_bytes for part in parts),
        pss_anonymous_bytes=sum(part.pss_anonymous_bytes for part in parts),
        pss_shared_bytes=sum(part.pss_shared_bytes for part in parts),
        rss_bytes=sum(part.rss_bytes for part in parts),
    )
