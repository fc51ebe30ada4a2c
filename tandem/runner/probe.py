"""Scores of reused tokens, from two short looks at a prompt whose reused KV is in place.

*Attention*: what is computed in any case runs through two thirds of the layers, and the question's rows say, in the
middle third, how much they look at each token. *Deviation*: everything behind the exact prefix runs through the first
two layers, apart from the cache; the second layer's values say how wrong the reused ones are (Yao et al. 2024,
"CacheBlend"). While an answer grows, its last rows are asked as the question's were, and nothing is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from kernels.attention_mass import attention_mass
from kernels.quantised import Weight
from kernels.rotary import RotaryTable
from kernels.rotate_and_store import HeadNorm
from kernels.table import Kernels, PagedAttention, RotateAndStore
from tandem.model.batch import SequenceRows, prepare_batch
from tandem.model.config import ModelConfig
from tandem.model.family import Decoder
from tandem.model.registry import get_family
from tandem.reuse.plan import ReusePlan, Score, Scores
from tandem.runner.selective import chosen_rows

NUM_EARLY_LAYERS = 2
MAX_QUERIES = 128  # the question's last rows are asked


def num_asking(plan: ReusePlan) -> int:
    """How many of `plan.fresh`, from its end, are asked what they look at."""
    return min(len(plan.suffix), MAX_QUERIES)


class Probe:
    """Reads a KV cache that it does not own; writes only rows that are computed again afterwards. For one thread."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Weight], kernels: Kernels, kv_cache: torch.Tensor
    ) -> None:
        """`kv_cache` is ``[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]``."""
        family, num_layers = get_family(config.family), config.num_layers
        end_layer = max(1, 2 * num_layers // 3)
        self._kv_cache = kv_cache
        self._num_early = min(NUM_EARLY_LAYERS, num_layers)
        self._watch = _Watch(kernels.paged_attention, num_layers // 3, config.sliding_window)
        watched = replace(kernels, fuse_layers=None, paged_attention=self._watch)
        self._watched = family.build(replace(config, num_layers=end_layer), weights, watched)
        looking = replace(watched, rotate_and_store=partial(_store_aside, kernels.rotate_and_store))
        self._looking = family.build(replace(config, num_layers=end_layer), weights, looking)
        self._early = family.build(replace(config, num_layers=self._num_early), weights, kernels)
        self._watched_kv = kv_cache[:end_layer]

    def scores(self, token_ids: Sequence[int], block_ids: Sequence[int], plan: ReusePlan, score: Score) -> Scores:
        """Of every position of the prompt; those of tokens that are computed in any case mean nothing."""
        found = torch.ones(plan.num_tokens, device=self._kv_cache.device)
        if score is not Score.DEVIATION:
            rows = chosen_rows(token_ids, plan.fresh, block_ids)
            found = found * self.attention(rows, num_asking(plan))
        if score is not Score.ATTENTION:
            found = found * self._deviation(token_ids, block_ids, plan)
        numbers: Scores = found.cpu().numpy()
        return numbers

    def attention(self, rows: SequenceRows, num_queries: int) -> torch.Tensor:
        """What the last `num_queries` rows, whose KV is stored on the way, look at: ``[context_len]`` float32.

        The mean over those rows; with none of them, zeros.
        """
        return self._mass(self._watched, rows, num_queries)

    def look(self, rows: SequenceRows) -> torch.Tensor:
        """`attention` of rows whose KV is in place already: it stays as it is."""
        return self._mass(self._looking, rows, len(rows.token_ids))

    @torch.inference_mode()
    def _mass(self, decoder: Decoder, rows: SequenceRows, num_queries: int) -> torch.Tensor:
        batch = prepare_batch([rows], self._kv_cache.shape[3], self._kv_cache.device)
        self._watch.begin(batch.block_tables[0], batch.positions, min(num_queries, MAX_QUERIES))
        decoder.hidden_states(batch, self._watched_kv)
        return self._watch.mass()

    @torch.inference_mode()
    def _deviation(self, token_ids: Sequence[int], block_ids: Sequence[int], plan: ReusePlan) -> torch.Tensor:
        """How far the second layer's values are from the reused ones, by position: ``[num_tokens]`` float32."""
        reused = self._kv_cache[: self._num_early, :, list(block_ids)]  # by position
        fresh = reused.clone()
        rows = SequenceRows(token_ids[plan.num_exact :], plan.num_exact, range(len(block_ids)))
        self._early.hidden_states(prepare_batch([rows], self._kv_cache.shape[3], self._kv_cache.device), fresh)
        difference = (fresh[-1, 1].float() - reused[-1, 1].float()).flatten(0, 1)[: plan.num_tokens]
        distance: torch.Tensor = torch.linalg.vector_norm(difference, dim=(1, 2))
        return distance


class _Watch:
    """A `PagedAttention` that also adds up what a sequence's last rows look at, from `first_layer` on."""

    def __init__(self, attend: PagedAttention, first_layer: int, sliding_window: int | None) -> None:
        self._attend = attend
        self._first_layer = first_layer
        self._sliding_window = sliding_window
        self._positions = self._total = torch.empty(0)
        self._block_ids = torch.empty(0, dtype=torch.int64)
        self._layer = 0

    def begin(self, block_ids: torch.Tensor, positions: torch.Tensor, num_queries: int) -> None:
        """One step follows, of one sequence, whose rows are at `positions`; the last `num_queries` are looked at."""
        self._block_ids, self._positions = block_ids, positions[len(positions) - num_queries :]
        self._total = torch.zeros(int(positions[-1]) + 1, device=positions.device)
        self._layer = 0

    def mass(self) -> torch.Tensor:
        """The mean over the layers watched: ``[context_len]``."""
        return self._total / (self._layer - self._first_layer)

    def __call__(
        self, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, plan: object, *, scale: float
    ) -> torch.Tensor:
        """See `kernels.paged_attention.paged_attention`."""
        if self._layer >= self._first_layer and len(self._positions):
            self._total += attention_mass(
                query[len(query) - len(self._positions) :],
                key_cache,
                self._key_slots(key_cache.shape[1]),
                self._positions,
                scale=scale,
                sliding_window=self._sliding_window,
            )
        self._layer += 1
        return self._attend(query, key_cache, value_cache, plan, scale=scale)

    def _key_slots(self, block_size: int) -> torch.Tensor:
        positions = torch.arange(len(self._total), device=self._block_ids.device)
        return self._block_ids[positions // block_size] * block_size + positions % block_size


def _store_aside(
    rotate_and_store: RotateAndStore,
    projected: torch.Tensor,
    table: RotaryTable,
    norm: HeadNorm | None,
    *,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """A `RotateAndStore` that leaves the caches as they are."""
    keys, values = key_cache.new_empty((2, 1, len(slot_mapping), *value_cache.shape[2:])).unbind()
    slots = torch.arange(len(slot_mapping), device=slot_mapping.device)
    return rotate_and_store(projected, table, norm, key_cache=keys, value_cache=values, slot_mapping=slots)
