"""What the gateway does for the phases, for tests that run both."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from services.decode.engine import DecodeEngine
from services.prefill.engine import PrefillEngine
from tandem.phase.session import Session
from tandem.types import (
    AbortSequence,
    DecodeResult,
    DropReason,
    FinishReason,
    Prefilled,
    PrefillResult,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    Submit,
    TokenLogprobs,
)
from tests.support.fake_store import FakeStore


@dataclass
class Request:
    """A request as the gateway keeps it."""

    spec: SequenceSpec
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.NONE
    drops: list[DropReason] = field(default_factory=list)
    prefilled: list[Prefilled] = field(default_factory=list)
    num_refreshed: int = 0

    @property
    def num_cached(self) -> list[int]:
        return [prefilled.num_cached_tokens for prefilled in self.prefilled]


class FakeGateway:
    """Carries requests from prefill to decode, releases what has ended, and sends again what was dropped."""

    def __init__(self, store: FakeStore, prefill: PrefillEngine, decode: DecodeEngine) -> None:
        self.requests: dict[int, Request] = {}  # by the lease they have now
        self.done: list[Request] = []
        self._store = store
        self._prefill, self._decode = prefill, decode
        self._prefill_session: Session[PrefillResult] = prefill.open_session()
        self._decode_session: Session[DecodeResult] = decode.open_session()
        self._next_lease_id = 1_000_000
        self._finished = asyncio.Event()

    def submit(self, spec: SequenceSpec) -> None:
        self.requests[spec.lease_id] = Request(spec)
        self._prefill.command(self._prefill_session, Submit(spec))

    def abort(self, lease_id: int) -> None:
        self._prefill.command(self._prefill_session, AbortSequence(lease_id))
        self._decode.command(self._decode_session, AbortSequence(lease_id))

    async def until_done(self, num_requests: int) -> None:
        async with asyncio.timeout(30):
            while len(self.done) < num_requests:
                self._finished.clear()
                await self._finished.wait()

    async def run_prefill(self) -> None:
        async with aclosing(self._prefill_session.results()) as results:
            async for result in results:
                for prefilled in result.prefilled:
                    self.requests[prefilled.output.lease_id].prefilled.append(prefilled)
                    await self._take(prefilled.output, hand_over=True)
                for dropped in result.dropped:
                    await self._send_again(dropped)

    async def run_decode(self) -> None:
        async with aclosing(self._decode_session.results()) as results:
            async for result in results:
                for output in result.outputs:
                    await self._take(output, hand_over=False)
                for dropped in result.dropped:
                    await self._send_again(dropped)

    async def _take(self, output: SequenceOutput, *, hand_over: bool) -> None:
        request = self.requests[output.lease_id]
        request.output.append(output.token_id)
        request.logprobs.append(output.logprobs)
        request.num_refreshed += output.num_refreshed
        if output.finish_reason is not FinishReason.NONE:
            request.finish_reason = output.finish_reason
            await self._end(output.lease_id)
        elif hand_over:
            last = request.prefilled[-1]
            spec = replace(
                self._with_output(request, output.lease_id),
                reuse=None,
                num_publishable_tokens=last.num_publishable_tokens,
                approximate=last.approximate,
            )
            self._decode.command(self._decode_session, Submit(spec))

    async def _send_again(self, dropped: SequenceDropped) -> None:
        request = self.requests[dropped.lease_id]
        request.drops.append(dropped.reason)
        if dropped.reason in (DropReason.ABORTED, DropReason.FAILED, DropReason.DRAINING):
            await self._end(dropped.lease_id)
            return
        del self.requests[dropped.lease_id]
        await self._store.release_sequences([dropped.lease_id])
        self._next_lease_id += 1
        self.requests[self._next_lease_id] = request
        spec = self._with_output(request, self._next_lease_id)
        self._prefill.command(self._prefill_session, Submit(spec))

    async def _end(self, lease_id: int) -> None:
        self.done.append(self.requests.pop(lease_id))
        await self._store.release_sequences([lease_id])
        self._finished.set()

    def _with_output(self, request: Request, lease_id: int) -> SequenceSpec:
        spec = request.spec
        prompt = spec.token_ids[: spec.num_prompt_tokens]
        return replace(spec, lease_id=lease_id, token_ids=(*prompt, *request.output))
