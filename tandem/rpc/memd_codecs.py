"""Between the protos of memd and the values of `tandem.kv.store`; each pair of functions is the other's inverse."""

from collections.abc import Iterable

from tandem.kv.store import (
    CopySource,
    HolderStatistics,
    KeyedBlock,
    PromptTokens,
    SequenceLease,
    SequenceUpdate,
    StorageStatistics,
)
from tandem.rpc.stubs.common.v1 import common_pb2 as common_pb
from tandem.rpc.stubs.memd.v1 import memd_pb2 as pb
from tandem.types import Block, ContentKind, Fingerprint


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
    return list(map(_block_to_proto, blocks))


def blocks_from_proto(messages: Iterable[pb.Block]) -> tuple[Block, ...]:
    """See `Block`."""
    return tuple(map(_block_from_proto, messages))


def lease_to_proto(lease: SequenceLease) -> pb.AcquireSequenceResponse:
    """See `SequenceLease`; its id is the request's."""
    return pb.AcquireSequenceResponse(
        blocks=blocks_to_proto(lease.blocks),
        num_sealed_tokens=lease.num_sealed_tokens,
        copy_source=None if lease.copy_source is None else _source_to_proto(lease.copy_source),
    )


def lease_from_proto(lease_id: int, message: pb.AcquireSequenceResponse) -> SequenceLease:
    """See `SequenceLease`."""
    source = _source_from_proto(message.copy_source) if message.HasField("copy_source") else None
    return SequenceLease(lease_id, blocks_from_proto(message.blocks), message.num_sealed_tokens, source)


def prompt_to_proto(prompt: PromptTokens) -> pb.PromptTokens:
    """See `PromptTokens`."""
    return pb.PromptTokens(namespace=prompt.namespace, token_ids=prompt.token_ids)


def prompt_from_proto(message: pb.PromptTokens) -> PromptTokens:
    """See `PromptTokens`."""
    return PromptTokens(message.namespace, tuple(message.token_ids))


def update_to_proto(update: SequenceUpdate) -> pb.SequenceUpdate:
    """See `SequenceUpdate`."""
    return pb.SequenceUpdate(
        lease_id=update.lease_id,
        add_blocks=blocks_to_proto(update.add_blocks),
        num_sealed_tokens=update.num_sealed_tokens,
        let_go=update.let_go,
        publish=[_keyed_to_proto(keyed) for keyed in update.publish],
        copied_from=map(_block_to_proto, update.copied_from),
    )


def update_from_proto(message: pb.SequenceUpdate) -> SequenceUpdate:
    """See `SequenceUpdate`."""
    return SequenceUpdate(
        message.lease_id,
        blocks_from_proto(message.add_blocks),
        message.num_sealed_tokens,
        publish=tuple(map(_keyed_from_proto, message.publish)),
        let_go=message.let_go,
        copied_from=tuple(map(_block_from_proto, message.copied_from)),
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
        num_asked_tokens=statistics.num_asked_tokens,
        num_claimed_tokens=statistics.num_claimed_tokens,
        num_evictions=statistics.num_evictions,
        num_pinned_blocks=statistics.num_pinned_blocks,
        num_pinnable_blocks=statistics.num_pinnable_blocks,
        num_segment_blocks=statistics.num_segment_blocks,
        max_segment_blocks=statistics.max_segment_blocks,
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
        num_asked_tokens=message.num_asked_tokens,
        num_claimed_tokens=message.num_claimed_tokens,
        num_evictions=message.num_evictions,
        num_pinned_blocks=message.num_pinned_blocks,
        num_pinnable_blocks=message.num_pinnable_blocks,
        num_segment_blocks=message.num_segment_blocks,
        max_segment_blocks=message.max_segment_blocks,
        num_reserve_blocks=message.num_reserve_blocks,
        lease_ttl_s=message.lease_ttl_s,
    )


def _block_to_proto(block: Block) -> pb.Block:
    return pb.Block(block_id=block.block_id, generation=block.generation, occupant=block.occupant)


def _block_from_proto(message: pb.Block) -> Block:
    return Block(message.block_id, message.generation, message.occupant)


def _source_to_proto(source: CopySource) -> pb.CopySource:
    return pb.CopySource(block=_block_to_proto(source.block), num_tokens=source.num_tokens)


def _source_from_proto(message: pb.CopySource) -> CopySource:
    return CopySource(_block_from_proto(message.block), message.num_tokens)


def _keyed_to_proto(keyed: KeyedBlock) -> pb.KeyedBlock:
    return pb.KeyedBlock(
        ordinal=keyed.ordinal,
        key=keyed.key,
        parent=keyed.parent,
        namespace=keyed.namespace,
        token_ids=keyed.token_ids,
        kind=common_pb.ContentKind.ValueType(keyed.kind),
    )


def _keyed_from_proto(message: pb.KeyedBlock) -> KeyedBlock:
    return KeyedBlock(
        ordinal=message.ordinal,
        key=message.key,
        parent=message.parent,
        namespace=message.namespace,
        token_ids=tuple(message.token_ids),
        kind=ContentKind(message.kind),
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
