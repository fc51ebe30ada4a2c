"""What the families are built from: the parameter table and the forward pass of a pre-norm transformer.

Every tensor of a layer is a view of the weight segment; nothing here copies a weight. Packed parameters (query, key and
value; gate and up) are stacked along their first dimension by the table, so that each is one matrix product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from kernels.paged_attention import AttentionPlan, paged_attention, plan_attention
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rotary import RotaryTable, apply_rotary, inverse_frequencies, rotary_table, scale_llama3
from kernels.silu_mul import silu_mul
from kernels.store_kv import store_kv
from tandem.model.batch import ForwardBatch
from tandem.model.config import ModelConfig
from tandem.model.family import Decoder, Parameter

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
OUTPUT_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Traits:
    """In what the families of this shape differ."""

    qkv_bias: bool = False
    output_bias: bool = False  # on attention's output projection
    qk_norm: bool = False  # query and key heads are normalised before they are turned


@dataclass(frozen=True, slots=True)
class TransformerFamily:
    """A `Family` that is told by its traits."""

    traits_of: Callable[[ModelConfig], Traits]

    def parameters(self, config: ModelConfig) -> tuple[Parameter, ...]:
        """See `Family`."""
        return tuple(_parameters(config, self.traits_of(config)))

    def build(self, config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Decoder:
        """See `Family`."""
        return TransformerDecoder(config, self.traits_of(config), weights)


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight.T + bias``; `weight` is ``[out_width, in_width]``."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[num_tokens, in_width]`` to ``[num_tokens, out_width]``."""
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What all layers of a step share."""

    rotary: RotaryTable
    attention: AttentionPlan
    slot_mapping: torch.Tensor  # [num_tokens] int64


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention over the paged cache."""

    config: ModelConfig
    qkv: Linear
    output: Linear
    qk_norm_weight: torch.Tensor | None  # [num_heads + num_kv_heads, head_dim]

    def __call__(self, hidden: torch.Tensor, layer_kv: torch.Tensor, step: StepInputs) -> torch.Tensor:
        """`hidden`: ``[num_tokens, hidden_size]``, as is what it returns.

        `layer_kv`: ``[2, num_blocks, block_size, num_kv_heads, head_dim]``.
        """
        num_heads, head_dim = self.config.num_heads, self.config.head_dim
        num_turned = num_heads + self.config.num_kv_heads  # query and key heads
        heads = self.qkv(hidden).view(-1, num_turned + self.config.num_kv_heads, head_dim)
        turned = heads[:, :num_turned]
        if self.qk_norm_weight is not None:
            turned = rms_norm(turned, self.qk_norm_weight, self.config.rms_norm_eps)
        turned = apply_rotary(turned, step.rotary)
        query, key, value = turned[:, :num_heads], turned[:, num_heads:], heads[:, num_turned:]
        key_cache, value_cache = layer_kv.unbind()
        store_kv(key, value, key_cache, value_cache, step.slot_mapping)
        attended = paged_attention(query, key_cache, value_cache, step.attention, scale=head_dim**-0.5)
        return self.output(attended.flatten(1))


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """SwiGLU feed-forward."""

    gate_up: Linear
    down: Linear

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[num_tokens, hidden_size]`` to the same."""
        return self.down(silu_mul(self.gate_up(hidden)))


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One block of the stack."""

    attention_norm_weight: torch.Tensor
    attention: Attention
    mlp_norm_weight: torch.Tensor
    mlp: GatedMlp


class TransformerDecoder:
    """A pre-norm decoder with rotary positions; a `Decoder`."""

    def __init__(self, config: ModelConfig, traits: Traits, weights: Mapping[str, torch.Tensor]) -> None:
        self._config = config
        self._embedding = weights[EMBEDDING]
        self._layers = tuple(_build_layer(config, traits, weights, i) for i in range(config.num_layers))
        self._norm_weight = weights[FINAL_NORM]
        self._head = Linear(weights[EMBEDDING if config.tie_word_embeddings else OUTPUT_HEAD])
        self._frequencies = _frequencies(config)

    @torch.inference_mode()
    def hidden_states(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        eps = self._config.rms_norm_eps
        step = self._step_inputs(batch, block_size=kv_cache.shape[3])
        hidden = functional.embedding(batch.token_ids, self._embedding)
        residual = torch.zeros_like(hidden)
        for layer, layer_kv in zip(self._layers, kv_cache, strict=True):
            to_attention = add_rms_norm(hidden, residual, layer.attention_norm_weight, eps)
            attended = layer.attention(to_attention.normed, layer_kv, step)
            to_mlp = add_rms_norm(attended, to_attention.residual, layer.mlp_norm_weight, eps)
            hidden, residual = layer.mlp(to_mlp.normed), to_mlp.residual
        return add_rms_norm(hidden, residual, self._norm_weight, eps).normed

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._head(hidden).float()

    def _step_inputs(self, batch: ForwardBatch, block_size: int) -> StepInputs:
        plan = plan_attention(
            batch.block_tables,
            batch.query_start,
            batch.context_lens,
            block_size=block_size,
            num_kv_heads=self._config.num_kv_heads,
            sliding_window=self._config.sliding_window,
        )
        return StepInputs(rotary_table(self._frequencies, batch.positions), plan, batch.slot_mapping)


def _parameters(config: ModelConfig, traits: Traits) -> Iterator[Parameter]:
    yield _plain(EMBEDDING, config.vocab_size, config.hidden_size)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        yield _plain(f"{prefix}input_layernorm.weight", config.hidden_size)
        yield from _attention_parameters(f"{prefix}self_attn.", config, traits)
        yield _plain(f"{prefix}post_attention_layernorm.weight", config.hidden_size)
        yield from _mlp_parameters(f"{prefix}mlp.", config)
    yield _plain(FINAL_NORM, config.hidden_size)
    if not config.tie_word_embeddings:
        yield _plain(OUTPUT_HEAD, config.vocab_size, config.hidden_size)


def _attention_parameters(prefix: str, config: ModelConfig, traits: Traits) -> Iterator[Parameter]:
    query_width = config.num_heads * config.head_dim
    qkv_width = query_width + 2 * config.num_kv_heads * config.head_dim
    projections = ("q_proj", "k_proj", "v_proj")
    yield _packed(prefix, "qkv_proj.weight", projections, qkv_width, config.hidden_size)
    if traits.qkv_bias:
        yield _packed(prefix, "qkv_proj.bias", projections, qkv_width)
    if traits.qk_norm:
        yield _packed(prefix, "qk_norm.weight", ("q_norm", "k_norm"), 2 * config.head_dim)
    yield _plain(f"{prefix}o_proj.weight", config.hidden_size, query_width)
    if traits.output_bias:
        yield _plain(f"{prefix}o_proj.bias", config.hidden_size)


def _mlp_parameters(prefix: str, config: ModelConfig) -> Iterator[Parameter]:
    width = 2 * config.intermediate_size
    yield _packed(prefix, "gate_up_proj.weight", ("gate_proj", "up_proj"), width, config.hidden_size)
    yield _plain(f"{prefix}down_proj.weight", config.hidden_size, config.intermediate_size)


def _plain(name: str, *shape: int) -> Parameter:
    return Parameter(name, shape, (name,))


def _packed(prefix: str, name: str, modules: tuple[str, ...], *shape: int) -> Parameter:
    """`name` is ``<module>.<weight or bias>``; its parts have the same ending."""
    kind = name.rpartition(".")[2]
    return Parameter(f"{prefix}{name}", shape, tuple(f"{prefix}{module}.{kind}" for module in modules))


def _build_layer(config: ModelConfig, traits: Traits, weights: Mapping[str, torch.Tensor], index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}."
    attention = Attention(
        config,
        qkv=_linear(weights, f"{prefix}self_attn.qkv_proj", traits.qkv_bias),
        output=_linear(weights, f"{prefix}self_attn.o_proj", traits.output_bias),
        qk_norm_weight=_by_head(weights[f"{prefix}self_attn.qk_norm.weight"], config) if traits.qk_norm else None,
    )
    mlp = GatedMlp(
        gate_up=_linear(weights, f"{prefix}mlp.gate_up_proj", biased=False),
        down=_linear(weights, f"{prefix}mlp.down_proj", biased=False),
    )
    return DecoderLayer(
        attention_norm_weight=weights[f"{prefix}input_layernorm.weight"],
        attention=attention,
        mlp_norm_weight=weights[f"{prefix}post_attention_layernorm.weight"],
        mlp=mlp,
    )


def _linear(weights: Mapping[str, torch.Tensor], module: str, biased: bool) -> Linear:
    return Linear(weights[f"{module}.weight"], weights[f"{module}.bias"] if biased else None)


def _by_head(qk_norm_weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The query's and the key's norm weights, once for each head: ``[num_heads + num_kv_heads, head_dim]``."""
    query_weight, key_weight = qk_norm_weight.chunk(2)
    return torch.cat((query_weight.expand(config.num_heads, -1), key_weight.expand(config.num_kv_heads, -1)))


def _frequencies(config: ModelConfig) -> torch.Tensor:
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta)
    if config.rope_scaling is None:
        return frequencies
    return scale_llama3(
        frequencies,
        factor=config.rope_scaling.factor,
        low_freq_factor=config.rope_scaling.low_freq_factor,
        high_freq_factor=config.rope_scaling.high_freq_factor,
        original_max_positions=config.rope_scaling.original_max_position_embeddings,
    )
