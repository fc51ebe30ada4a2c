import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.memd.upkeep import keep_up
from tandem.kv.store import SequenceUpdate
from tandem.telemetry.metrics import MemdMetrics
from tests.support.memd import FINGERPRINT, TTL_S, local_memd


async def test_time_ends_leases_and_metrics_tell():
    registry = CollectorRegistry()
    async with local_memd() as memd:
        attachment = memd.store.attach("decode", 1, FINGERPRINT)
        holder = attachment.holder_id
        blocks = await memd.store.lease_blocks(holder, 8)
        await memd.store.acquire_sequence(holder, 1, "r", create=True)
        await memd.store.update_sequences(holder, [SequenceUpdate(1, blocks[:4], 16)])
        await run_once(memd.store, MemdMetrics.create(registry))
        assert value(registry, "kv_cache_usage_perc") == pytest.approx(0.25)
        assert {state: value(registry, "num_blocks", state=state) for state in ("free", "spare", "leased")} == {
            "free": 8,
            "spare": 4,
            "leased": 4,
        }
        assert (value(registry, "num_sequences"), value(registry, "num_holders")) == (1, 1)
        assert value(registry, "cache_config_info", block_size="4", num_gpu_blocks="16") == 1
        memd.store.detach(attachment)
        memd.clock.advance(TTL_S + 1)
        fresh = CollectorRegistry()
        await run_once(memd.store, MemdMetrics.create(fresh))
        assert value(fresh, "expired_leases_total") == 1
        assert value(fresh, "kv_cache_usage_perc") == 0
        assert value(fresh, "num_sequences") == 0


async def run_once(store, metrics) -> None:
    task = asyncio.create_task(keep_up(store, metrics))
    await asyncio.sleep(0)
    task.cancel()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"tandem:{name}", labels)
