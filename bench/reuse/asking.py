"""One user who asks one question after another, and what came of each."""

from collections.abc import Callable
from dataclasses import dataclass

from tandem.clock import Clock
from tandem.errors import NotReadyError
from tandem.rpc.gateway_client import GatewayClient
from tandem.rpc.gateway_values import CallOptions, Reuse, SegmentUsage, Usage

MS = 1e3


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt; what was computed under another `salt` is not reused for it."""

    token_ids: tuple[int, ...]
    num_output_tokens: int
    salt: str = ""
    reuse: Reuse | None = None  # None: only what is there exactly


@dataclass(frozen=True, slots=True)
class Reply:
    """As the client saw it. `ttft_ms` counts from the sending; what was reused is the server's word."""

    ttft_ms: float
    token_ids: tuple[int, ...]
    num_cached_tokens: int
    num_approximate_tokens: int = 0
    segments: tuple[SegmentUsage, ...] = ()


Ask = Callable[[Question], Reply]


def asker(client: GatewayClient, clock: Clock) -> Ask:
    """Greedy, exactly as many tokens as the question says. It raises what the client raises, NotReadyError when the
    answer has another length."""

    def ask(question: Question) -> Reply:
        options = CallOptions(
            {"temperature": 0.0, "ignore_eos": True, "max_tokens": question.num_output_tokens},
            cache_salt=question.salt,
            reuse=question.reuse,
        )
        token_ids: list[int] = []
        usage = Usage(0, 0, 0)
        sent_s = first_s = clock.now()
        for piece in client.generate(question.token_ids, options):
            if piece.token_ids and not token_ids:
                first_s = clock.now()
            token_ids += piece.token_ids
            if piece.usage is not None:
                usage = piece.usage
        if len(token_ids) != question.num_output_tokens:
            raise NotReadyError(f"{len(token_ids)} tokens came instead of {question.num_output_tokens}")
        ttft_ms = (first_s - sent_s) * MS
        return Reply(ttft_ms, tuple(token_ids), usage.num_cached_tokens, usage.num_approximate_tokens, usage.segments)

    return ask
