"""transformers' continuous batching behind OpenAI's completions API, as far as the load generator speaks it.

transformers' own server takes texts and chats; this one takes token ids and answers with them, so that every peer does
the same work. Run by the interpreter of an environment that has transformers; nothing of Tandem is imported here.
"""

import argparse
import importlib
import json
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NO_STOP_TOKEN = -1
MODEL = "model"


class Batching:
    """A model under transformers' manager, whose outputs go to whoever asked for them."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._waiting: dict[str, queue.SimpleQueue[Any]] = {}
        self._numbers = iter(range(1 << 62))
        manager.start()
        threading.Thread(target=self._deliver, name="deliver", daemon=True).start()

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """Greedy, exactly `max_tokens`, as they come. RuntimeError when the manager fails the request."""
        request_id = f"r{next(self._numbers)}"
        outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting[request_id] = outputs
        done = False
        try:
            self._manager.add_request(
                list(prompt),
                request_id,
                max_new_tokens=max_tokens,
                streaming=True,
                eos_token_id=NO_STOP_TOKEN,
            )
            num_told = 0
            while not done:
                output = outputs.get()
                if output.error:
                    raise RuntimeError(output.error)
                done = output.is_finished()
                yield output.generated_tokens[num_told:]  # they have all that came so far
                num_told = len(output.generated_tokens)
        finally:
            del self._waiting[request_id]
            if not done:
                self._manager.cancel_request(request_id)

    def _deliver(self) -> None:
        for output in self._manager:
            waiting = self._waiting.get(output.request_id)
            if waiting is not None:
                waiting.put(output)


class Handler(BaseHTTPRequestHandler):
    """One connection. `batching` is set on the class that a server is made with."""

    batching: Batching

    def do_GET(self) -> None:
        """``/health`` and ``/v1/models``."""
        known = {"/health": {"status": "ok"}, "/v1/models": {"data": [{"id": MODEL}]}}
        answer = known.get(self.path)
        self._begin(HTTPStatus.OK if answer else HTTPStatus.NOT_FOUND, "application/json")
        self.wfile.write(json.dumps(answer or {"error": self.path}).encode())

    def do_POST(self) -> None:
        """``/v1/completions``, streamed; whatever the path."""
        asked: Mapping[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._begin(HTTPStatus.OK, "text/event-stream")
        num_tokens = 0
        try:
            for token_ids in self.batching.tokens(asked["prompt"], asked["max_tokens"]):
                num_tokens += len(token_ids)
                self._event({"choices": [{"index": 0, "text": "", "token_ids": token_ids}]})
        except RuntimeError as error:
            self._event({"error": str(error)})
        self._event({"choices": [], "usage": {"completion_tokens": num_tokens}})
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing a request."""

    def _begin(self, status: HTTPStatus, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()

    def _event(self, event: Mapping[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())


class Server(ThreadingHTTPServer):
    """A thread a connection."""

    daemon_threads = True
    request_queue_size = 128


def new_manager(model: str, num_threads: int, num_sequences: int, context: int) -> Any:
    """transformers' defaults, but for a cache of the size that peers have too, and no reuse between requests."""
    import torch

    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(num_threads)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    page_tokens = transformers.ContinuousBatchingConfig.page_size
    config = transformers.ContinuousBatchingConfig(
        num_blocks=num_sequences * -(-context // page_tokens), max_requests_per_batch=num_sequences
    )
    greedy = transformers.GenerationConfig(do_sample=False, eos_token_id=NO_STOP_TOKEN, pad_token_id=0)
    return loaded.init_continuous_batching(generation_config=greedy, continuous_batching_config=config)


def main(arguments: Sequence[str]) -> int:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser()
    for name in ("--threads", "--max-sequences", "--max-context", "--port"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args(arguments)
    Handler.batching = Batching(new_manager(options.model, options.threads, options.max_sequences, options.max_context))
    with Server(("127.0.0.1", options.port), Handler) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
