"""Between the protos of memd and the values of `tandem.kv.store`; each pair of functions is the other's inverse."""

from collections.abc import Iterable

from tandem.kv.store import HolderStatistics, KeyedBlock, SequenceLease, SequenceUpdate, StorageStatistics
from tandem.rpc.stubs.memd.v1 import memd_pb2 as pb
from tandem.types import Block, Fingerprint


def fingerprint_to_proto(fingerprint: Fingerprint) -> pb.Fingerprint:
    """See `Fingerprint`."""
    return pb.Fingerprint(
        model_digest=fingerprint.model_digest,
        dtype=fingerprint.dtype,
        kv_dtype=fingerprint.kv_dtype,
        layout=fingerprint.layout,
        block_size=fingerprint.block_size,
        num_blocks=fingerprint.num_blocks,
        version=fingerprint.version,
    )


def fingerprint_from_proto(message: pb.Fingerprint) -> Fingerprint:
    """See `Fingerprint`."""
    return Fingerprint(
        model_digest=message.model_digest,
        dtype=message.dtype,
        kv_dtype=message.kv_dtype,
        layout=message.layout,
        block_size=message.block_size,
        num_blocks=message.num_blocks,
        version=message.version,
    )


def blocks_to_proto(blocks: Iterable[Block]) -> list[pb.Block]:
    """See `Block`."""
    return [pb.Block(block_id=block.block_id, generation=block.generation) for block in blocks]


def blocks_from_proto(messages: Iterable[pb.Block]) -> tuple[Block, ...]:
    """See `Block`."""
    return tuple(Block(message.block_id, message.generation) for message in messages)


def lease_to_proto(lease: SequenceLease) -> pb.AcquireSequenceResponse:
    """See `SequenceLease`; its id is the request's."""
    return pb.AcquireSequenceResponse(blocks=blocks_to_proto(lease.blocks), num_sealed_tokens=lease.num_sealed_tokens)


def lease_from_proto(lease_id: int, message: pb.AcquireSequenceResponse) -> SequenceLease:
    """See `SequenceLease`."""
    return SequenceLease(lease_id, blocks_from_proto(message.blocks), message.num_sealed_tokens)


def update_to_proto(update: SequenceUpdate) -> pb.SequenceUpdate:
    """See `SequenceUpdate`."""
    return pb.SequenceUpdate(
        lease_id=update.lease_id,
        add_blocks=blocks_to_proto(update.add_blocks),
        num_sealed_tokens=update.num_sealed_tokens,
        let_go=update.let_go,
        publish=[pb.KeyedBlock(ordinal=keyed.ordinal, key=keyed.key) for keyed in update.publish],
    )


def update_from_proto(message: pb.SequenceUpdate) -> SequenceUpdate:
    """See `SequenceUpdate`."""
    publish = tuple(KeyedBlock(keyed.ordinal, keyed.key) for keyed in message.publish)
    return SequenceUpdate(
        message.lease_id, blocks_from_proto(message.add_blocks), message.num_sealed_tokens, publish, message.let_go
    )


def statistics_to_proto(statistics: StorageStatistics) -> pb.GetStatisticsResponse:
    """See `StorageStatistics`."""
    return pb.GetStatisticsResponse(
        fingerprint=fingerprint_to_proto(statistics.fingerprint),
        epoch=statistics.epoch,
        num_blocks=statistics.num_blocks,
        num_free_blocks=statistics.num_free_blocks,
        num_spare_blocks=statistics.num_spare_blocks,
        num_leased_blocks=statistics.num_leased_blocks,
        num_cached_blocks=statistics.num_cached_blocks,
        num_sequences=statistics.num_sequences,
        weight_bytes=statistics.weight_bytes,
        kv_bytes=statistics.kv_bytes,
        holders=[_holder_to_proto(holder) for holder in statistics.holders],
        num_asked_blocks=statistics.num_asked_blocks,
        num_claimed_blocks=statistics.num_claimed_blocks,
        num_reserve_blocks=statistics.num_reserve_blocks,
        lease_ttl_s=statistics.lease_ttl_s,
    )


def statistics_from_proto(message: pb.GetStatisticsResponse) -> StorageStatistics:
    """See `StorageStatistics`."""
    return StorageStatistics(
        fingerprint=fingerprint_from_proto(message.fingerprint),
        epoch=message.epoch,
        num_blocks=message.num_blocks,
        num_free_blocks=message.num_free_blocks,
        num_spare_blocks=message.num_spare_blocks,
        num_leased_blocks=message.num_leased_blocks,
        num_cached_blocks=message.num_cached_blocks,
        num_sequences=message.num_sequences,
        weight_bytes=message.weight_bytes,
        kv_bytes=message.kv_bytes,
        holders=tuple(_holder_from_proto(holder) for holder in message.holders),
        num_asked_blocks=message.num_asked_blocks,
        num_claimed_blocks=message.num_claimed_blocks,
        num_reserve_blocks=message.num_reserve_blocks,
        lease_ttl_s=message.lease_ttl_s,
    )


def _holder_to_proto(holder: HolderStatistics) -> pb.HolderStatistics:
    return pb.HolderStatistics(
        holder_id=holder.holder_id,
        service=holder.service,
        pid=holder.pid,
        num_spare_blocks=holder.num_spare_blocks,
        num_sequences=holder.num_sequences,
    )


def _holder_from_proto(message: pb.HolderStatistics) -> HolderStatistics:
    return HolderStatistics(
        holder_id=message.holder_id,
        service=message.service,
        pid=message.pid,
        num_spare_blocks=message.num_spare_blocks,
        num_sequences=message.num_sequences,
    )
