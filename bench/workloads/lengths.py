"""How long prompts and answers are. Pure, given the generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from tandem.errors import ConfigError

FIT_PERCENTILE = 99.0


@dataclass(frozen=True, slots=True)
class RequestLength:
    """One request, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lengths of at least 1 whose logarithm is normal; `mean` is that of the lengths. `sigma` 0 is a constant."""

    mean: float
    sigma: float

    def sample(self, rng: np.random.Generator, count: int) -> list[int]:
        """`count` lengths."""
        median = self.mean * exp(-(self.sigma**2) / 2)
        drawn = rng.lognormal(log(median), self.sigma, size=count)
        return [max(1, round(length)) for length in drawn.tolist()]


@dataclass(frozen=True, slots=True)
class LengthMix:
    """Prompts and answers, drawn independently."""

    prompts: LogNormal
    outputs: LogNormal

    def sample(self, rng: np.random.Generator, count: int) -> list[RequestLength]:
        """`count` requests."""
        prompts, outputs = self.prompts.sample(rng, count), self.outputs.sample(rng, count)
        return [RequestLength(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


# Means: 251 tokens of input as in the semi-PD paper's ShareGPT runs; output and LongBench as in DistServe's table.
SHAREGPT = LengthMix(LogNormal(251, 1.1), LogNormal(200, 0.8))
LONGBENCH = LengthMix(LogNormal(1738, 0.6), LogNormal(91, 0.7))


def fixed(num_prompt_tokens: int, num_output_tokens: int) -> LengthMix:
    """Every request alike."""
    return LengthMix(LogNormal(num_prompt_tokens, 0.0), LogNormal(num_output_tokens, 0.0))


def fitting_scale(lengths: Sequence[RequestLength], max_context_tokens: int) -> float:
    """What lengths are multiplied with so that 99 of 100 requests fit the context whole; never above 1."""
    totals = [length.num_prompt_tokens + length.num_output_tokens for length in lengths]
    return min(1.0, max_context_tokens / float(np.percentile(totals, FIT_PERCENTILE)))


def scaled(length: RequestLength, scale: float, max_context_tokens: int) -> RequestLength:
    """Multiplied, then cut to the context, of which the answer has at most half. ConfigError: a context below 2."""
    if max_context_tokens < 2:
        raise ConfigError("max_context_tokens", f"{max_context_tokens} has no room for a prompt and an answer")
    output = min(max(1, round(length.num_output_tokens * scale)), max_context_tokens // 2)
    prompt = min(max(1, round(length.num_prompt_tokens * scale)), max_context_tokens - output)
    return RequestLength(prompt, output)
