"""What the API does, in plain values: prompts become tokens, requests are checked and handed to the orchestrator."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.gateway.chat import ChatMessage, ChatTemplate
from services.gateway.quotas import TenantQuotas
from services.gateway.reception import Reception
from services.gateway.replicas import ReplicaSet
from services.gateway.reporting import DoorReporter
from services.gateway.requests import Arrival, Request, new_request
from services.gateway.resumption import NOTHING_CAME, Resume, check_answers, check_origin
from services.gateway.reuse import PromptReuse, ReuseFields, ReuseTerms, check_reuse, find_reuse, spans_of_texts
from services.gateway.tenants import TenantDirectory
from services.gateway.validation import (
    Limits,
    SamplingFields,
    check_cache_salt,
    check_prompt,
    check_request_id,
    resolve,
)
from tandem.clock import Clock
from tandem.config.settings import GatewayConfig
from tandem.errors import ConfigError, InvalidRequestError
from tandem.kv.contents import block_keys, segment_namespace, shared_namespace, sharing_domain
from tandem.model.metadata import ModelMetadata
from tandem.reuse.segments import SegmentRules

INLINE_CHARS = 16_384  # longer texts are tokenised on a thread, so that streams go on meanwhile
INLINE_TOKENS = INLINE_CHARS // 4  # likewise, of prompts in which segments are looked for


@dataclass(frozen=True, slots=True)
class Call:
    """What Generate and Chat have in common. An empty `request_id` is drawn."""

    request_id: str = ""
    sampling: SamplingFields = field(default_factory=SamplingFields)
    priority: int = 0
    cache_salt: str = ""
    tenant: str = ""
    remaining_s: float | None = None  # until the client's deadline
    resume: Resume | None = None  # of a request whose stream broke
    reuse: ReuseFields | None = None  # None: only what is there exactly


@dataclass(frozen=True, slots=True)
class Draws:
    """Where the random values come from."""

    seed: Callable[[], int]  # 64 bits
    request_id: Callable[[], str]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client may want to know of the model."""

    name: str
    architecture: str
    dtype: str
    vocab_size: int
    max_context_tokens: int
    max_output_tokens_default: int
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """Where memd keeps a prompt's KV, if it does."""

    namespace: bytes
    keys: tuple[bytes, ...]  # of its whole blocks


@dataclass(frozen=True, slots=True)
class _Arrived:
    """When a call came in, and what it was to keep to then."""

    clock_s: float
    unix_ns: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Checked tokens, and what of them may be reused wherever it stood."""

    token_ids: Sequence[int]
    reuse: PromptReuse | None = None


class Frontend:
    """Everything between a client's fields and a running request."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        model: ModelMetadata,
        template: ChatTemplate,
        replicas: ReplicaSet,
        reception: Reception,
        reporter: DoorReporter,
        tenants: TenantDirectory,
        quotas: TenantQuotas,
        draws: Draws,
        clock: Clock,
        unix_ns: Callable[[], int],
    ) -> None:
        self._config = config
        self._model = model
        self._template = template
        self._replicas = replicas
        self._reception = reception
        self._reporter = reporter
        self._tenants = tenants
        self._quotas = quotas
        self._draws = draws
        self._clock = clock
        self._unix_ns = unix_ns
        self._segment_rules = SegmentRules(tuple((token_id,) for token_id in model.config.eos_token_ids))

    async def generate_text(self, call: Call, text: str) -> Request:
        """Answers a plain prompt; the model's own first token is put before it.

        InvalidRequestError, and what `Reception.admit` raises; so do the other two.
        """
        with self._reporter.refusals(call.request_id):
            arrived = self._arrive(call, "text")
            return self._admit(call, arrived, await self._read(call, text, "text", arrived.limits))

    async def generate_ids(self, call: Call, token_ids: Sequence[int]) -> Request:
        """Answers a prompt that is tokenised already."""
        with self._reporter.refusals(call.request_id):
            arrived = self._arrive(call, "token_ids")
            check_prompt(token_ids, "token_ids", arrived.limits)
            reuse = None if call.reuse is None else await self._find_reuse(call, call.reuse, token_ids)
            return self._admit(call, arrived, _Prompt(token_ids, reuse))

    async def chat(self, call: Call, messages: Sequence[ChatMessage]) -> Request:
        """Answers a conversation."""
        with self._reporter.refusals(call.request_id):
            arrived = self._arrive(call, "messages")
            text = self._template.render(messages, datetime.fromtimestamp(arrived.unix_ns / 1e9))
            return self._admit(call, arrived, await self._read(call, text, "messages", arrived.limits))

    def cancel(self, request: Request) -> None:
        """Its client has gone; nothing happens when it has ended."""
        self._reception.cancel(request)

    def caller(self, authorization: str | None, peer: str, tenant: str = "") -> str:
        """Whose call it is, by its metadata and where it comes from, or the `tenant` that an operator names.

        UnauthenticatedError, ConfigError.
        """
        with self._reporter.refusals(""):
            caller = self._tenants.authenticate(authorization, peer)
            return self._tenants.named(caller, tenant) if tenant else caller

    def abort(self, request_id: str, tenant: str = "") -> None:
        """NotFoundError when none of that tenant's is running under the name."""
        self._reception.abort(request_id, tenant)

    async def tokenize_text(self, text: str) -> list[int]:
        """As `generate_text` would."""
        return await self._tokenised(text, add_special_tokens=True)

    async def tokenize_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """As `chat` would now."""
        return await self._tokenised(self._template.render(messages), add_special_tokens=False)

    def cache_keys(self, token_ids: Sequence[int], call: Call) -> CacheKeys:
        """Of the blocks that hold a prompt's KV, for requests as `call`. ConfigError: none do. InvalidRequestError."""
        check_cache_salt(call.cache_salt)
        if token_ids:
            check_prompt(token_ids, "token_ids", self._limits())
        start = self._cache_namespace(call)
        if not start:
            problem = "is off, or the tenant shares nothing: nothing is kept of its prompts"
            raise ConfigError("gateway.prefix_cache", problem)
        return CacheKeys(start, block_keys(start, token_ids, self._replicas.pool.block_size))

    def model_info(self) -> ModelInfo:
        """NotReadyError before memd was there: the pool bounds the context."""
        limits = self._limits()
        return ModelInfo(
            name=self._model.name,
            architecture=self._model.config.family,
            dtype=self._replicas.pool.dtype,
            vocab_size=limits.vocab_size,
            max_context_tokens=limits.max_context_tokens,
            max_output_tokens_default=limits.max_tokens_default,
            eos_token_ids=limits.eos_token_ids,
            has_chat_template=self._template.usable,
        )

    def _arrive(self, call: Call, prompt_field: str) -> _Arrived:
        """Refuses what can be refused before the prompt is looked at."""
        check_request_id(call.request_id)
        check_cache_salt(call.cache_salt)
        if call.reuse is not None:
            least = self._tenants.quotas(call.tenant).min_recompute_ratio or 0.0
            check_reuse(call.reuse, max(least, self._config.min_recompute_ratio), prompt_field)
        limits = self._limits()
        self._reception.check_room(call.tenant, call.resume is not None, call.priority)
        self._quotas.rates.check(call.tenant)
        unix_ns = self._unix_ns()
        if call.resume is not None:
            check_origin(call.resume, self._model_digest)
            unix_ns = min(unix_ns, call.resume.arrival_unix_ns or unix_ns)
        return _Arrived(self._clock.now(), unix_ns, limits)

    def _admit(self, call: Call, arrived: _Arrived, prompt: _Prompt) -> Request:
        limits, token_ids = arrived.limits, prompt.token_ids
        resolved = resolve(call.sampling, len(token_ids), self._seed(call), limits)
        if call.resume is not None:
            check_answers(call.resume, resolved, limits)
        arrival = Arrival(
            request_id=call.request_id or self._draws.request_id(),
            prompt_token_ids=tuple(token_ids),
            resolved=resolved,
            priority=call.priority,
            cache_namespace=self._cache_namespace(call),
            tenant=call.tenant,
            clock_s=arrived.clock_s,
            unix_ns=arrived.unix_ns,
            model_digest=self._model_digest,
            resumed=call.resume is not None,
            reuse=prompt.reuse,
            domain=self._domain(call),
        )
        self._quotas.running.check(arrival)
        request = new_request(
            arrival, self._model.tokenizer, self._config.max_buffered_tokens, call.resume or NOTHING_CAME
        )
        spent_s = self._clock.now() - arrived.clock_s
        self._quotas.rates.check(call.tenant)  # again: others may have come while the prompt was read
        self._reception.admit(request, None if call.remaining_s is None else call.remaining_s - spent_s)
        self._quotas.rates.note_request(call.tenant, len(token_ids))
        return request

    @property
    def _model_digest(self) -> str:
        return self._replicas.pool.contents[0]

    def _seed(self, call: Call) -> int:
        """For a client that names none."""
        origin = call.resume.origin if call.resume else None
        return self._draws.seed() if origin is None else origin.seed

    def _cache_namespace(self, call: Call) -> bytes:
        """Empty when nothing is to be reused."""
        salt = self._tenants.salt(call.tenant)
        if salt is None or not self._config.prefix_cache:
            return b""
        return shared_namespace(self._replicas.pool.contents, call.cache_salt, salt)

    def _domain(self, call: Call) -> bytes:
        """Empty of a tenant that leaves nothing."""
        salt = self._tenants.salt(call.tenant)
        return b"" if salt is None else sharing_domain(salt)

    def _limits(self) -> Limits:
        config = self._model.config
        return Limits(
            vocab_size=config.vocab_size,
            max_context_tokens=min(config.max_position_embeddings, self._replicas.pool.max_tokens),
            max_tokens_default=self._config.max_tokens_default,
            max_n=self._config.max_n,
            eos_token_ids=config.eos_token_ids,
        )

    async def _tokenised(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokenizer = self._model.tokenizer
        if len(text) <= INLINE_CHARS:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def _read(self, call: Call, text: str, prompt_field: str, limits: Limits) -> _Prompt:
        """A rendered conversation has its special tokens already."""
        adds = prompt_field == "text"
        if call.reuse is None:
            token_ids = await self._tokenised(text, add_special_tokens=adds)
            check_prompt(token_ids, prompt_field, limits)
            return _Prompt(token_ids)
        terms, declared = self._terms(call, call.reuse), call.reuse.texts

        def read() -> _Prompt:
            placed = self._model.tokenizer.encode_placed(text, add_special_tokens=adds)
            check_prompt(placed.token_ids, prompt_field, limits)
            spans = spans_of_texts(declared, text, placed.places)
            return _Prompt(placed.token_ids, find_reuse(placed.token_ids, spans, terms))

        return read() if len(text) <= INLINE_CHARS else await asyncio.to_thread(read)

    async def _find_reuse(self, call: Call, fields: ReuseFields, token_ids: Sequence[int]) -> PromptReuse | None:
        terms = self._terms(call, fields)
        if len(token_ids) <= INLINE_TOKENS:
            return find_reuse(token_ids, fields.spans, terms)
        return await asyncio.to_thread(find_reuse, token_ids, fields.spans, terms)

    def _terms(self, call: Call, fields: ReuseFields) -> ReuseTerms:
        prompts = self._cache_namespace(call)
        return ReuseTerms(
            ratio=fields.resolved_ratio,
            namespace=segment_namespace(prompts) if prompts else b"",
            first_token_id=self._model.config.bos_token_id or 0,
            rules=self._segment_rules,
            max_segment_tokens=self._limits().max_context_tokens - 2,  # the first token and one of output beside it
        )


def no_prompt(field_path: str, choices: str) -> InvalidRequestError:
    """For a request in which none of several fields is set."""
    return InvalidRequestError(field_path, f"is missing; set {choices}")
