"""What the families are built from: the parameter table and the forward pass of a pre-norm transformer.

Every tensor of a layer is a view of the weight segment; nothing here copies a weight. Packed parameters (query, key and
value; gate and up) are stacked along their first dimension by the table, so that each is one matrix product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from kernels.layer_stack import LayerStack, LayerWeights, LinearWeight, RunLayers, StepInputs
from kernels.quantised import QuantisedWeight, Weight, embed
from kernels.rotary import inverse_frequencies, scale_llama3
from kernels.rotate_and_store import HeadNorm
from kernels.table import Kernels
from tandem.model.batch import ForwardBatch
from tandem.model.config import ModelConfig
from tandem.model.family import Decoder, Parameter
from tandem.model.quantisation import ParameterKind

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

    def build(self, config: ModelConfig, weights: Mapping[str, Weight], kernels: Kernels) -> Decoder:
        """See `Family`."""
        return TransformerDecoder(config, self.traits_of(config), weights, kernels)


@dataclass(frozen=True, slots=True)
class LayersOneByOne:
    """A `RunLayers` that composes the operators of a set of kernels."""

    stack: LayerStack
    kernels: Kernels

    def __call__(self, embedded: torch.Tensor, step: StepInputs, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `RunLayers`."""
        eps = self.stack.rms_norm_eps
        hidden, residual = embedded, torch.zeros_like(embedded)
        for layer, layer_kv in zip(self.stack.layers, kv_cache, strict=True):
            to_attention = self.kernels.add_rms_norm(hidden, residual, layer.attention_norm, eps)
            attended = self._attention(layer, to_attention.normed, layer_kv, step)
            to_mlp = self.kernels.add_rms_norm(attended, to_attention.residual, layer.mlp_norm, eps)
            hidden, residual = self._mlp(layer, to_mlp.normed), to_mlp.residual
            if step.pause:
                step.pause()
        return self.kernels.add_rms_norm(hidden, residual, self.stack.final_norm, eps).normed

    def _attention(
        self, layer: LayerWeights, hidden: torch.Tensor, layer_kv: torch.Tensor, step: StepInputs
    ) -> torch.Tensor:
        """Grouped-query attention; `layer_kv`: ``[2, num_blocks, block_size, num_kv_heads, head_dim]``."""
        key_cache, value_cache = layer_kv.unbind()
        norm = None if layer.head_norm is None else HeadNorm(layer.head_norm, self.stack.rms_norm_eps)
        projected = self._linear(hidden, layer.qkv).view(hidden.shape[0], -1, self.stack.head_dim)
        query = self.kernels.rotate_and_store(
            projected,
            step.rotary,
            norm,
            key_cache=key_cache,
            value_cache=value_cache,
            slot_mapping=step.slot_mapping,
        )
        attended = self.kernels.paged_attention(query, key_cache, value_cache, step.attention, scale=self.stack.scale)
        return self._linear(attended.flatten(1), layer.attention_output)

    def _mlp(self, layer: LayerWeights, hidden: torch.Tensor) -> torch.Tensor:
        """SwiGLU feed-forward."""
        return self._linear(self.kernels.silu_mul(self._linear(hidden, layer.gate_up)), layer.down)

    def _linear(self, x: torch.Tensor, linear: LinearWeight) -> torch.Tensor:
        return self.kernels.linear(x, linear.weight, linear.bias)


class TransformerDecoder:
    """A pre-norm decoder with rotary positions; a `Decoder`."""

    def __init__(self, config: ModelConfig, traits: Traits, weights: Mapping[str, Weight], kernels: Kernels) -> None:
        self._config = config
        self._kernels = kernels
        self._embedding = weights[EMBEDDING]
        self._head_weight = weights[EMBEDDING if config.tie_word_embeddings else OUTPUT_HEAD]
        stack = _stack(config, traits, weights)
        self._frequencies = rotary_frequencies(config).to(stack.final_norm.device)
        self._dtype = stack.final_norm.dtype
        self._run_layers = _run_layers(stack, kernels)

    @torch.inference_mode()
    def hidden_states(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        step = self._step_inputs(batch, block_size=kv_cache.shape[3])
        return self._run_layers(embed(batch.token_ids, self._embedding, self._dtype), step, kv_cache)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Decoder`."""
        return self._kernels.linear_float32(hidden, self._head_weight)

    def _step_inputs(self, batch: ForwardBatch, block_size: int) -> StepInputs:
        plan = self._kernels.plan_attention(
            batch.block_tables,
            batch.query_start,
            batch.context_lens,
            block_size=block_size,
            num_kv_heads=self._config.num_kv_heads,
            sliding_window=self._config.sliding_window,
            positions=batch.positions if batch.has_chosen_rows else None,
        )
        rotary = self._kernels.rotary_table(self._frequencies, batch.positions)
        return StepInputs(rotary, plan, batch.slot_mapping, self._kernels.pause)


def _run_layers(stack: LayerStack, kernels: Kernels) -> RunLayers:
    """All layers in one call where the kernels can."""
    return kernels.fuse_layers(stack) if kernels.fuse_layers else LayersOneByOne(stack, kernels)


def _parameters(config: ModelConfig, traits: Traits) -> Iterator[Parameter]:
    yield _vocabulary(EMBEDDING, config)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        yield _small(f"{prefix}input_layernorm.weight", config.hidden_size)
        yield from _attention_parameters(f"{prefix}self_attn.", config, traits)
        yield _small(f"{prefix}post_attention_layernorm.weight", config.hidden_size)
        yield from _mlp_parameters(f"{prefix}mlp.", config)
    yield _small(FINAL_NORM, config.hidden_size)
    if not config.tie_word_embeddings:
        yield _vocabulary(OUTPUT_HEAD, config)


def _attention_parameters(prefix: str, config: ModelConfig, traits: Traits) -> Iterator[Parameter]:
    query_width = config.num_heads * config.head_dim
    qkv_width = query_width + 2 * config.num_kv_heads * config.head_dim
    projections = ("q_proj", "k_proj", "v_proj")
    yield _packed(prefix, "qkv_proj.weight", projections, qkv_width, config.hidden_size)
    if traits.qkv_bias:
        yield _packed(prefix, "qkv_proj.bias", projections, qkv_width)
    if traits.qk_norm:
        yield _packed(prefix, "qk_norm.weight", ("q_norm", "k_norm"), 2 * config.head_dim)
    yield _linear_weight(f"{prefix}o_proj.weight", config.hidden_size, query_width)
    if traits.output_bias:
        yield _small(f"{prefix}o_proj.bias", config.hidden_size)


def _mlp_parameters(prefix: str, config: ModelConfig) -> Iterator[Parameter]:
    width = 2 * config.intermediate_size
    yield _packed(prefix, "gate_up_proj.weight", ("gate_proj", "up_proj"), width, config.hidden_size)
    yield _linear_weight(f"{prefix}down_proj.weight", config.hidden_size, config.intermediate_size)


def _small(name: str, width: int) -> Parameter:
    return Parameter(name, (width,), (name,))


def _linear_weight(name: str, out_width: int, in_width: int) -> Parameter:
    return Parameter(name, (out_width, in_width), (name,), ParameterKind.LINEAR)


def _vocabulary(name: str, config: ModelConfig) -> Parameter:
    return Parameter(name, (config.vocab_size, config.hidden_size), (name,), ParameterKind.VOCABULARY)


def _packed(prefix: str, name: str, modules: tuple[str, ...], *shape: int) -> Parameter:
    """`name` is ``<module>.<weight or bias>``; its parts have the same ending."""
    ending = name.rpartition(".")[2]
    sources = tuple(f"{prefix}{module}.{ending}" for module in modules)
    return Parameter(f"{prefix}{name}", shape, sources, ParameterKind.LINEAR if len(shape) > 1 else ParameterKind.SMALL)


def _stack(config: ModelConfig, traits: Traits, weights: Mapping[str, Weight]) -> LayerStack:
    return LayerStack(
        layers=tuple(_layer(config, traits, weights, index) for index in range(config.num_layers)),
        final_norm=_tensor(weights, FINAL_NORM),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
    )


def _layer(config: ModelConfig, traits: Traits, weights: Mapping[str, Weight], index: int) -> LayerWeights:
    prefix = f"model.layers.{index}."
    return LayerWeights(
        attention_norm=_tensor(weights, f"{prefix}input_layernorm.weight"),
        qkv=_linear(weights, f"{prefix}self_attn.qkv_proj", traits.qkv_bias),
        head_norm=_by_head(_tensor(weights, f"{prefix}self_attn.qk_norm.weight"), config) if traits.qk_norm else None,
        attention_output=_linear(weights, f"{prefix}self_attn.o_proj", traits.output_bias),
        mlp_norm=_tensor(weights, f"{prefix}post_attention_layernorm.weight"),
        gate_up=_linear(weights, f"{prefix}mlp.gate_up_proj", biased=False),
        down=_linear(weights, f"{prefix}mlp.down_proj", biased=False),
    )


def _linear(weights: Mapping[str, Weight], module: str, biased: bool) -> LinearWeight:
    return LinearWeight(weights[f"{module}.weight"], _tensor(weights, f"{module}.bias") if biased else None)


def _tensor(weights: Mapping[str, Weight], name: str) -> torch.Tensor:
    """A parameter of kind `SMALL`."""
    weight = weights[name]
    if isinstance(weight, QuantisedWeight):
        raise TypeError(f"{name} is quantised, and must be plain")
    return weight


def _by_head(qk_norm_weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The query's and the key's norm weights, once for each head: ``[num_heads + num_kv_heads, head_dim]``."""
    query_weight, key_weight = qk_norm_weight.chunk(2)
    return torch.cat((query_weight.expand(config.num_heads, -1), key_weight.expand(config.num_kv_heads, -1)))


def rotary_frequencies(config: ModelConfig) -> torch.Tensor:
    """Radians a position for each pair of dimensions: ``[head_dim / 2]`` float32."""
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
