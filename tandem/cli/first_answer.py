"""What `tandem up` ends with: one real answer, how fast it came, and how to ask for more."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tandem.cli.deployment import Deployment
from tandem.client import Client, Piece
from tandem.config.settings import default_run_dir
from tandem.rpc.names import SERVICE_NAMES

QUESTION = "What is the capital of France? Answer in one sentence."
BEGINNING = "The capital of France is"
MAX_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Timing:
    """How an answer came. `tokens_per_s` counts those after the first and is 0 when there are none."""

    ttft_ms: float
    num_tokens: int
    tokens_per_s: float


def show_first_answer(deployment: Deployment, console: Console) -> None:
    """Streams one answer of the served model, and prints its timing and the ways to talk to it."""
    with Client(deployment.address("gateway")) as client:
        info = client.model_info()
        prompt = QUESTION if info.has_chat_template else BEGINNING
        console.print(f"\n{info.name} ({info.dtype}, context {info.max_context_tokens}) is asked: {prompt}\n")
        with closing(_ask(client, prompt, info.has_chat_template)) as pieces:
            timing = stream(pieces, lambda text: console.print(text, end=""), time.monotonic)
    speed = f", then {timing.tokens_per_s:.1f} tokens/s" if timing.tokens_per_s else ""
    console.print(f"\n\nfirst token after {timing.ttft_ms:.0f} ms{speed} ({timing.num_tokens} tokens)\n")
    console.print(how_to_talk(deployment))


def stream(pieces: Iterable[Piece], write: Callable[[str], None], now: Callable[[], float]) -> Timing:
    """Writes the pieces as they come and times them."""
    started_s = first_s = last_s = now()
    num_tokens = num_first = 0
    for piece in pieces:
        last_s = now()
        if not num_tokens:
            first_s, num_first = last_s, len(piece.token_ids)
        num_tokens += len(piece.token_ids)
        write(piece.text_delta)
    seconds = last_s - first_s
    rate = (num_tokens - num_first) / seconds if seconds > 0 else 0.0
    return Timing(1000 * (first_s - started_s), num_tokens, rate)


def how_to_talk(deployment: Deployment) -> str:
    """Commands and lines of Python that reach this deployment, as they can be pasted into this shell."""
    address = public_address(deployment)
    tandem = " ".join(_command("tandem") or (shlex.quote(sys.executable), "-m", "tandem.cli.main"))
    python = " ".join(_command("python") or (shlex.quote(sys.executable),))
    run_dir = deployment.run_dir
    where = "" if run_dir == default_run_dir() else f" --run-dir {shlex.quote(str(run_dir))}"
    return f"""\
{tandem} chat{where}
{tandem} status --watch{where}
{tandem} down{where}

grpcurl -plaintext -d '{{"text": "{BEGINNING}"}}' {address} {SERVICE_NAMES["gateway"]}/Generate

{python} - <<'END'
from tandem.client import Client
with Client("{address}") as client:
    for piece in client.generate("{BEGINNING}", max_tokens=32, temperature=0):
        print(piece.text_delta, end="", flush=True)
END
"""


def _command(name: str) -> tuple[str] | None:
    """How this environment's program is called from the present folder; None when it has none."""
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        return None
    if shutil.which(name) == str(program):
        return (name,)
    near = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return (shlex.quote(str(near)),)


def public_address(deployment: Deployment) -> str:
    """Where clients elsewhere reach the gateway; its unix socket when it was to take any free port, or when the port
    asks for more than an address."""
    gateway = deployment.gateway
    is_open = gateway.port and not gateway.tls_cert and not gateway.api_keys
    return f"{gateway.host}:{gateway.port}" if is_open else deployment.address("gateway")


def _ask(client: Client, prompt: str, as_chat: bool) -> Generator[Piece, None, None]:
    if as_chat:
        return client.chat([{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, temperature=0.0)
    return client.generate(prompt, max_tokens=MAX_TOKENS, temperature=0.0)
