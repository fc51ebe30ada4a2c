"""What a client may ask for. Pure: plain values in, resolved specs out, or an error that names field and remedy."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tandem.errors import InvalidRequestError
from tandem.types import SamplingSpec, StopSpec

MAX_REQUEST_ID_CHARS = 128
MAX_CACHE_SALT_CHARS = 256
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_TOP_LOGPROBS = 20
PENALTY_BOUND = 2.0
LOGIT_BIAS_BOUND = 100.0
MAX_SEED = 2**64 - 1
MAX_INT = 2**31 - 1
MIN_TEMPERATURE = 1e-3  # logits divided by less overflow float32; there the draw is the greedy one anyway
MIN_REPETITION_PENALTY = 1e-3  # likewise; there what has been said is all that is drawn anyway


@dataclass(frozen=True, slots=True)
class SamplingFields:
    """The client's sampling parameters as they came; None is unset."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    n: int | None = None
    seed: int | None = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model, the pool and the configuration allow."""

    vocab_size: int
    max_context_tokens: int  # prompt and answer together
    max_tokens_default: int
    max_n: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request that can be served. `sampling.seed` is answer 0's; `client_stop_ids` are those the client named."""

    sampling: SamplingSpec
    stop: StopSpec
    stop_strings: tuple[str, ...]
    client_stop_ids: frozenset[int]
    n: int


def check_request_id(request_id: str) -> None:
    """At most `MAX_REQUEST_ID_CHARS`, all of them printable: it goes into logs. Empty is unset."""
    if len(request_id) > MAX_REQUEST_ID_CHARS:
        raise InvalidRequestError("request_id", f"has {len(request_id)} characters; use at most {MAX_REQUEST_ID_CHARS}")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") for character in request_id):
        raise InvalidRequestError("request_id", "has control characters; use printable ones only")


def check_cache_salt(salt: str) -> None:
    """At most `MAX_CACHE_SALT_CHARS`."""
    if len(salt) > MAX_CACHE_SALT_CHARS:
        raise InvalidRequestError("cache_salt", f"has {len(salt)} characters; use at most {MAX_CACHE_SALT_CHARS}")


def check_prompt(token_ids: Sequence[int], prompt_field: str, limits: Limits) -> None:
    """Not empty, all in the vocabulary, and with room for one token of output."""
    if not token_ids:
        raise InvalidRequestError(prompt_field, "the prompt is empty; send at least one token")
    if max(token_ids) >= limits.vocab_size:
        bad = next(number for number, token_id in enumerate(token_ids) if token_id >= limits.vocab_size)
        raise _out_of_vocabulary(f"{prompt_field}[{bad}]", token_ids[bad], limits)
    if len(token_ids) >= limits.max_context_tokens:
        raise InvalidRequestError(
            prompt_field,
            f"the prompt has {len(token_ids)} tokens and the context holds {limits.max_context_tokens}, "
            f"answer included; shorten it to {limits.max_context_tokens - 1} or fewer",
        )


def resolve(fields: SamplingFields, num_prompt_tokens: int, drawn_seed: int, limits: Limits) -> ResolvedRequest:
    """Defaults filled in, every field checked. `drawn_seed` serves when the client names none."""
    max_tokens = _max_tokens(fields, num_prompt_tokens, limits)
    client_stop_ids = _stop_token_ids(fields, limits)
    eos_ids = () if fields.ignore_eos else limits.eos_token_ids
    return ResolvedRequest(
        sampling=_sampling(fields, drawn_seed, limits),
        stop=StopSpec(
            max_tokens=max_tokens,
            min_tokens=_min_tokens(fields, max_tokens),
            stop_token_ids=tuple(sorted(client_stop_ids.union(eos_ids))),
        ),
        stop_strings=_stop_strings(fields),
        client_stop_ids=client_stop_ids,
        n=_integer("n", fields.n, 1, 1, limits.max_n),
    )


def seed_of_answer(spec: SamplingSpec, index: int) -> SamplingSpec:
    """Answer 0 has the request's own seed; the others' follow from it alone (splitmix64: Steele et al., 2014)."""
    return spec if index == 0 else replace(spec, seed=_mixed(spec.seed + index * 0x9E3779B97F4A7C15))


def _mixed(value: int) -> int:
    value &= MAX_SEED
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MAX_SEED
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MAX_SEED
    return value ^ (value >> 31)


def _sampling(fields: SamplingFields, drawn_seed: int, limits: Limits) -> SamplingSpec:
    penalty = PENALTY_BOUND
    return SamplingSpec(
        temperature=_temperature(fields),
        top_p=_number("top_p", fields.top_p, 1.0, 0.0, 1.0, low_included=False),
        top_k=_integer("top_k", fields.top_k, 0, 0, MAX_INT),
        min_p=_number("min_p", fields.min_p, 0.0, 0.0, 1.0),
        repetition_penalty=_repetition_penalty(fields),
        presence_penalty=_number("presence_penalty", fields.presence_penalty, 0.0, -penalty, penalty),
        frequency_penalty=_number("frequency_penalty", fields.frequency_penalty, 0.0, -penalty, penalty),
        seed=_integer("seed", fields.seed, drawn_seed, 0, MAX_SEED),
        logit_bias=_logit_bias(fields, limits),
        logprobs=fields.logprobs is not None,
        num_top_logprobs=_integer("logprobs", fields.logprobs, 0, 0, min(MAX_TOP_LOGPROBS, limits.vocab_size)),
    )


def _temperature(fields: SamplingFields) -> float:
    temperature = _number("temperature", fields.temperature, 1.0, 0.0, math.inf)
    return temperature if temperature >= MIN_TEMPERATURE else 0.0


def _repetition_penalty(fields: SamplingFields) -> float:
    penalty = _number("repetition_penalty", fields.repetition_penalty, 1.0, 0.0, math.inf, low_included=False)
    return max(penalty, MIN_REPETITION_PENALTY)


def _number(
    name: str, value: float | None, default: float, low: float, high: float, *, low_included: bool = True
) -> float:
    if value is None:
        return default
    above = value >= low if low_included else value > low
    if math.isfinite(value) and above and value <= high:
        return value
    raise _out_of_range(name, value, _range_text(low, high, low_included))


def _integer(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if low <= value <= high:
        return value
    raise _out_of_range(name, value, f"an integer from {low} to {high}")


def _range_text(low: float, high: float, low_included: bool) -> str:
    relation = "at least" if low_included else "above"
    upper = "" if math.isinf(high) else f" and at most {high:g}"
    return f"a finite number {relation} {low:g}{upper}"


def _max_tokens(fields: SamplingFields, num_prompt_tokens: int, limits: Limits) -> int:
    room = limits.max_context_tokens - num_prompt_tokens
    max_tokens = _integer("max_tokens", fields.max_tokens, min(limits.max_tokens_default, room), 1, MAX_INT)
    if max_tokens > room:
        raise InvalidRequestError(
            "sampling.max_tokens",
            f"is {max_tokens}, with a prompt of {num_prompt_tokens} tokens, and the context holds "
            f"{limits.max_context_tokens}; use at most {room}, or leave it unset",
        )
    return max_tokens


def _min_tokens(fields: SamplingFields, max_tokens: int) -> int:
    min_tokens = _integer("min_tokens", fields.min_tokens, 0, 0, MAX_INT)
    if min_tokens > max_tokens:
        raise InvalidRequestError(
            "sampling.min_tokens", f"is {min_tokens}, above max_tokens, which is {max_tokens}; lower it"
        )
    return min_tokens


def _stop_strings(fields: SamplingFields) -> tuple[str, ...]:
    if len(fields.stop) > MAX_STOP_STRINGS:
        raise InvalidRequestError("sampling.stop", f"has {len(fields.stop)} strings; use at most {MAX_STOP_STRINGS}")
    for number, text in enumerate(fields.stop):
        if not text:
            raise InvalidRequestError(f"sampling.stop[{number}]", "is empty; leave it out")
        if len(text) > MAX_STOP_CHARS:
            raise InvalidRequestError(
                f"sampling.stop[{number}]", f"has {len(text)} characters; use at most {MAX_STOP_CHARS}"
            )
    return fields.stop


def _stop_token_ids(fields: SamplingFields, limits: Limits) -> frozenset[int]:
    if len(fields.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequestError(
            "sampling.stop_token_ids", f"has {len(fields.stop_token_ids)} ids; use at most {MAX_STOP_TOKEN_IDS}"
        )
    for number, token_id in enumerate(fields.stop_token_ids):
        if token_id >= limits.vocab_size:
            raise _out_of_vocabulary(f"sampling.stop_token_ids[{number}]", token_id, limits)
    return frozenset(fields.stop_token_ids)


def _logit_bias(fields: SamplingFields, limits: Limits) -> dict[int, float]:
    for token_id, bias in fields.logit_bias.items():
        if token_id >= limits.vocab_size:
            raise _out_of_vocabulary(f"sampling.logit_bias[{token_id}]", token_id, limits)
        _number(f"logit_bias[{token_id}]", bias, 0.0, -LOGIT_BIAS_BOUND, LOGIT_BIAS_BOUND)
    return dict(fields.logit_bias)


def _out_of_range(name: str, value: float, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(f"sampling.{name}", f"is {value:g}; use {remedy}")


def _out_of_vocabulary(field_path: str, token_id: int, limits: Limits) -> InvalidRequestError:
    return InvalidRequestError(field_path, f"is {token_id}; the model's vocabulary ends at {limits.vocab_size - 1}")
