"""`tandem bench soak`."""

import asyncio
from functools import partial

import click
from rich.progress import Progress

from bench.commands.options import model_limits
from bench.deployment.local import LocalServices, run_dir, running
from bench.display import new_console
from bench.reuse import soak as soaking
from bench.reuse.asking import asker
from bench.reuse.soak import SoakPlan, SoakResult, revive
from bench.workloads.tokens import ordinary_tokens
from tandem.clock import MonotonicClock
from tandem.config.settings import default_cache_dir
from tandem.kv.layout import KvLayout
from tandem.model.metadata import read_metadata
from tandem.rpc.gateway_client import GatewayClient
from tandem.rpc.memd_client import MemdClient

DTYPE = "float32"  # bfloat16 would let a batch's shape turn a near tie
BLOCK_SIZE = 16
RESERVE_BLOCKS = 4


@click.command()
@click.option("--model", default="default", show_default=True, help="As for tandem up.")
@click.option("--num-requests", default=500, show_default=True, type=click.IntRange(1))
@click.option("--at-once", default=24, show_default=True, type=click.IntRange(1), help="Users.")
@click.option("--kills", default=8, show_default=True, type=click.IntRange(0), help="Of prefill and decode in turns.")
@click.option("--pool-blocks", default=90, show_default=True, type=click.IntRange(24), help="KV blocks of 16 tokens.")
def soak(model: str, num_requests: int, at_once: int, kills: int, pool_blocks: int) -> None:
    """Answer requests that share beginnings under eviction and kills, and compare with each alone and cold.

    Exit status 1: an answer was another one.
    """
    console = new_console()
    plan = SoakPlan(num_requests, at_once, kills, ordinary_tokens(model_limits(model, None)))
    settings = {"memd": {"dtype": DTYPE, "kv-bytes": kv_bytes(model, pool_blocks), "reserve-blocks": RESERVE_BLOCKS}}
    with run_dir() as path, running(LocalServices(path, model, settings)) as services, Progress() as progress:
        task = progress.add_task("requests", total=2 * num_requests)
        client = GatewayClient(services.gateway)
        try:
            ask = asker(client, MonotonicClock())
            result = soaking.soak(plan, ask, partial(revive, services), lambda: progress.advance(task))
        finally:
            client.close()
        num_evictions = asyncio.run(evictions(services.socket("memd")))
    console.print(describe(result, kills, num_evictions))
    if result.num_other_answers:
        raise SystemExit(1)


def kv_bytes(model: str, num_blocks: int) -> int:
    """Of a pool of so many blocks."""
    config = read_metadata(model, default_cache_dir()).config
    layout = KvLayout(config.num_layers, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim, DTYPE)
    return layout.total_bytes


async def evictions(memd: str) -> int:
    """Blocks that memd gave up for others."""
    client = MemdClient(memd)
    try:
        return (await client.statistics()).num_evictions
    finally:
        await client.close()


def describe(result: SoakResult, num_kills: int, num_evictions: int) -> str:
    """One line."""
    percent = 100 * result.num_cached_tokens / result.num_prompt_tokens
    return (
        f"{result.num_requests} requests, {num_kills} kills, {num_evictions} blocks evicted: "
        f"{result.num_other_answers} other answers than alone; "
        f"{result.num_reusing_requests} reused something, {percent:.1f} % of all prompt tokens"
    )
