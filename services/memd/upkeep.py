"""What memd does as time passes: ends leases, and tells its metrics."""

import asyncio

from services.memd.store import LocalStore
from tandem.kv.store import StorageStatistics
from tandem.telemetry.metrics import MemdMetrics

MAX_INTERVAL_S = 1.0
ROUNDS_PER_TTL = 4


async def keep_up(store: LocalStore, metrics: MemdMetrics) -> None:
    """For ever, several times in every time to live of a lease."""
    fingerprint = store.facts.fingerprint
    metrics.cache_config_info.labels(str(fingerprint.block_size), str(fingerprint.num_blocks)).set(1)
    while True:
        metrics.expired_leases.inc(store.expire())
        publish(store.current_statistics(), metrics)
        await asyncio.sleep(min(MAX_INTERVAL_S, store.facts.lease_ttl_s / ROUNDS_PER_TTL))


def publish(statistics: StorageStatistics, metrics: MemdMetrics) -> None:
    """Sets the gauges."""
    metrics.kv_cache_usage_perc.set(statistics.num_leased_blocks / statistics.num_blocks)
    metrics.num_blocks.labels("free").set(statistics.num_free_blocks)
    metrics.num_blocks.labels("spare").set(statistics.num_spare_blocks)
    metrics.num_blocks.labels("leased").set(statistics.num_leased_blocks)
    metrics.num_blocks.labels("cached").set(statistics.num_cached_blocks)
    metrics.num_sequences.set(statistics.num_sequences)
    metrics.num_holders.set(len(statistics.holders))
