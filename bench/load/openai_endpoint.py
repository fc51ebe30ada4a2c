"""Servers with OpenAI's completions API over HTTP: llama.cpp's, vLLM's and others.

Prompts go as token ids, which all take. Where chunks bring token ids (vLLM's do when asked), these are the tokens. Else
a chunk counts as one, and what the usage in the stream's end has beyond the chunks is counted with the last.
"""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2

from bench.load.endpoint import Tokens
from tandem.errors import NotReadyError, SequenceFailedError, TandemError

CONNECT_TIMEOUT_S = 10.0
_DATA = "data:"
_DONE = "[DONE]"


class OpenAiEndpoint:
    """See `bench.load.endpoint.Endpoint`."""

    def __init__(self, address: str, model: str) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)  # a peer may close an idle one
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._client = httpx2.AsyncClient(base_url=address, limits=limits, timeout=timeout)
        self._model = model

    async def generate(self, prompt: Sequence[int], max_tokens: int) -> AsyncGenerator[Tokens, None]:
        """See `Endpoint`."""
        num_told = 0
        try:
            async with self._client.stream("POST", "/v1/completions", json=self._body(prompt, max_tokens)) as response:
                await _check(response)
                async for line in response.aiter_lines():
                    tokens = parse_line(line, num_told)
                    if tokens is not None:
                        num_told += tokens.num_tokens
                        yield tokens
        except httpx2.HTTPError as error:
            raise NotReadyError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """See `Endpoint`."""
        await self._client.aclose()

    def _body(self, prompt: Sequence[int], max_tokens: int) -> dict[str, object]:
        return {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def parse_line(line: str, num_told: int) -> Tokens | None:
    """One line of the event stream, after `num_told` tokens; None: it brings none. SequenceFailedError."""
    if not line.startswith(_DATA):
        return None
    text = line.removeprefix(_DATA).strip()
    if text == _DONE:
        return None
    event = _event(text)
    usage = event.get("usage") or {}
    choices = event.get("choices", ())
    token_ids = tuple(token_id for choice in choices for token_id in choice.get("token_ids") or ())
    num_chunk = len(token_ids) or int(any(choice.get("text") for choice in choices))
    missing = int(usage.get("completion_tokens", 0)) - num_told - num_chunk
    num_tokens = num_chunk + max(0, missing)
    return Tokens(num_tokens, token_ids, _cached(usage)) if num_tokens or usage else None


def _event(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError as error:
        raise SequenceFailedError(f"the server sent no JSON: {text[:200]}") from error
    if not isinstance(event, dict) or event.get("error"):
        raise SequenceFailedError(f"the server says: {text[:200]}")
    return event


def _cached(usage: dict[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return None if cached is None else int(cached)


async def _check(response: httpx2.Response) -> None:
    if response.status_code == httpx2.codes.OK:
        return
    text = (await response.aread()).decode(errors="replace")
    raise _status_error(response.status_code, text[:200])


def _status_error(status: int, text: str) -> TandemError:
    message = f"HTTP {status}: {text}"
    return NotReadyError(message) if status == httpx2.codes.SERVICE_UNAVAILABLE else SequenceFailedError(message)
