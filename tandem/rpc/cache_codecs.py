"""Between the protos of memd's cache and the values of `tandem.kv`; each pair of functions is the other's inverse."""

from tandem.errors import StorageError
from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.cached_runs import CachedRun
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared, CacheEvent
from tandem.rpc.stubs.common.v1 import common_pb2 as common_pb
from tandem.rpc.stubs.memd.v1 import cache_pb2 as pb
from tandem.types import ContentKind


def run_to_proto(run: CachedRun) -> pb.CachedRun:
    """See `CachedRun`."""
    return pb.CachedRun(
        namespace=run.namespace,
        key=run.key,
        first_ordinal=run.first_ordinal,
        num_blocks=run.num_blocks,
        num_leased_blocks=run.num_leased_blocks,
        num_hits=run.num_hits,
        pinned=run.pinned,
        idle_s=run.idle_s,
        kind=common_pb.ContentKind.ValueType(run.kind),
    )


def run_from_proto(message: pb.CachedRun) -> CachedRun:
    """See `CachedRun`."""
    return CachedRun(
        namespace=message.namespace,
        key=message.key,
        first_ordinal=message.first_ordinal,
        num_blocks=message.num_blocks,
        num_leased_blocks=message.num_leased_blocks,
        num_hits=message.num_hits,
        pinned=message.pinned,
        idle_s=message.idle_s,
        kind=ContentKind(message.kind),
    )


def position_to_proto(position: CachePosition) -> pb.CachePosition:
    """See `CachePosition`."""
    return pb.CachePosition(stream_id=position.stream_id, number=position.number)


def position_from_proto(message: pb.CachePosition) -> CachePosition:
    """See `CachePosition`."""
    return CachePosition(message.stream_id, message.number)


def news_to_proto(news: CacheNews) -> pb.WatchCacheResponse:
    """See `CacheNews`."""
    return pb.WatchCacheResponse(
        events=map(_event_to_proto, news.events),
        position=None if news.position is None else position_to_proto(news.position),
        block_size=news.block_size,
    )


def news_from_proto(message: pb.WatchCacheResponse) -> CacheNews:
    """See `CacheNews`. StorageError: an event of a kind that this program does not know."""
    position = position_from_proto(message.position) if message.HasField("position") else None
    return CacheNews(tuple(map(_event_from_proto, message.events)), position, message.block_size)


def _event_to_proto(event: CacheEvent) -> pb.CacheEvent:
    match event:
        case BlockStored():
            stored = pb.BlockStored(namespace=event.namespace, parent=event.parent, key=event.key)
            return pb.CacheEvent(stored=stored)
        case BlockRemoved():
            return pb.CacheEvent(removed=pb.BlockRemoved(key=event.key))
        case CacheCleared():
            return pb.CacheEvent(cleared=pb.CacheCleared())


def _event_from_proto(message: pb.CacheEvent) -> CacheEvent:
    match message.WhichOneof("event"):
        case "stored":
            return BlockStored(message.stored.namespace, message.stored.parent, message.stored.key)
        case "removed":
            return BlockRemoved(message.removed.key)
        case "cleared":
            return CacheCleared()
        case _:
            raise StorageError("memd tells of a change of its cache that this program does not know")
