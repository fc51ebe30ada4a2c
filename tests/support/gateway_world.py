"""What is around a gateway, without processes: phases that answer when told to, a store that counts leases, timers on a
clock that stands, a model of bytes.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from services.gateway.ports import ObservationSink
from tandem.clock import ManualClock
from tandem.errors import LeaseError, NotFoundError, NotReadyError
from tandem.kv.cache_store import CacheStore
from tandem.kv.store import MemoryStore, StorageStatistics
from tandem.model.config import ModelConfig
from tandem.model.metadata import ModelMetadata
from tandem.model.tokenizer import PlacedTokens
from tandem.types import Fingerprint, Phase, RequestObservation, SequenceSpec

EOS = 257
VOCAB_SIZE = 260
BLOCK_SIZE = 16


class ByteTokenizer:
    """Token n is byte n; 256 and up are special and add no text."""

    vocab_size = VOCAB_SIZE
    bos_token: str | None = "<bos>"
    eos_token: str | None = "<eos>"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def encode_placed(self, text: str, *, add_special_tokens: bool = True) -> PlacedTokens:
        places = [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()]
        return PlacedTokens(self.encode(text), places)

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""


def byte_model(max_position_embeddings: int = 512, chat_template: str | None = None) -> ModelMetadata:
    config = ModelConfig(
        family="llama",
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        eos_token_ids=(EOS,),
    )
    return ModelMetadata("bytes", config, cast("Any", ByteTokenizer()), chat_template)


class FakeStore:
    """The part of `MemoryStore` that the gateway calls, over a set of leases."""

    def __init__(self, num_blocks: int = 100, num_reserve_blocks: int = 4) -> None:
        self.leases: set[int] = set()
        self.model_digest = ""
        self.away = False
        self.renewed: list[frozenset[int]] = []
        self.num_release_calls = 0
        self.abandoned: set[int] = set()
        self.forks: list[tuple[int, int, int]] = []  # parent, child, number of tokens
        self.num_blocks = num_blocks
        self._num_reserve_blocks = num_reserve_blocks

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        self._check_there()
        if parent_lease_id not in self.leases:
            raise NotFoundError(f"no lease {parent_lease_id}")
        if child_lease_id in self.leases:
            raise LeaseError(f"lease {child_lease_id} exists")
        self.leases.add(child_lease_id)
        self.forks.append((parent_lease_id, child_lease_id, num_tokens))
        return num_tokens // BLOCK_SIZE * BLOCK_SIZE

    async def renew_sequences(self, lease_ids: Sequence[int]) -> frozenset[int]:
        self._check_there()
        self.renewed.append(frozenset(lease_ids))
        return frozenset(lease_ids) - self.leases

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        self._check_there()
        self.num_release_calls += 1
        known = self.leases.intersection(lease_ids)
        self.leases -= known
        return len(known)

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        self._check_there()
        self.abandoned.update(lease_ids)
        self.leases -= set(lease_ids)

    async def statistics(self) -> StorageStatistics:
        self._check_there()
        return StorageStatistics(
            fingerprint=Fingerprint(self.model_digest, "float32", block_size=BLOCK_SIZE, num_blocks=self.num_blocks),
            epoch=1,
            num_blocks=self.num_blocks,
            num_free_blocks=self.num_blocks,
            num_spare_blocks=0,
            num_leased_blocks=0,
            num_cached_blocks=0,
            num_sequences=len(self.leases),
            weight_bytes=0,
            kv_bytes=0,
            holders=(),
            num_reserve_blocks=self._num_reserve_blocks,
            lease_ttl_s=30.0,
        )

    def _check_there(self) -> None:
        if self.away:
            raise NotReadyError("memd is away")


class FakePhase:
    """Keeps what it was told; holds the leases that it has not given an end of."""

    def __init__(self, store: FakeStore) -> None:
        self.connected = False
        self.submitted: list[SequenceSpec] = []
        self.aborted: list[int] = []
        self.held: dict[int, SequenceSpec] = {}
        self._store = store

    def submit(self, sequence: SequenceSpec) -> None:
        assert self.connected, "submitted to a phase that is away"
        assert sequence.lease_id not in self.held
        self.submitted.append(sequence)
        self.held[sequence.lease_id] = sequence
        self._store.leases.add(sequence.lease_id)

    def abort(self, lease_id: int) -> None:
        if self.connected:
            self.aborted.append(lease_id)


@dataclass(frozen=True)
class FakeLinks:
    """`Links` to fakes."""

    phases: Mapping[Phase, FakePhase]
    store: MemoryStore
    cache: CacheStore
    observations: ObservationSink


@dataclass
class _Timer:
    due_s: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTimers:
    """Timers on a `ManualClock`, run by `advance`."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._timers: list[_Timer] = []

    @property
    def num_pending(self) -> int:
        return sum(not timer.cancelled for timer in self._timers)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> asyncio.TimerHandle:
        timer = _Timer(self._clock.now() + delay, lambda: callback(*args))
        self._timers.append(timer)
        return cast("asyncio.TimerHandle", timer)

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)
        due = [timer for timer in self._timers if timer.due_s <= self._clock.now()]
        self._timers = [timer for timer in self._timers if timer not in due]
        for timer in due:
            if not timer.cancelled:
                timer.callback()


class Observations:
    """Keeps the controller's observations."""

    def __init__(self) -> None:
        self.seen: list[RequestObservation] = []

    def observe(self, observation: RequestObservation) -> None:
        self.seen.append(observation)
