"""Whole deployments whose weights and KV are the device's memory, with random weights."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch

from bench.deployment.local import LocalServices, run_dir, running, serving
from bench.gpu.bench import Bench
from bench.gpu.record import Value
from bench.gpu.subject import MODELS, TINY
from tandem.client import Client
from tandem.model.config import ModelConfig
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family

SHAPE = replace(MODELS["llama-3-8b"], num_layers=8)  # whose random weights the loader draws within seconds
SMALLEST = replace(TINY, vocab_size=512)  # with room for one token a byte
KV_BYTES = 8 << 30
GIB = 1 << 30
PROMPT = "The quick brown fox jumps over the lazy dog. " * 10
TANDEM = (sys.executable, "-m", "tandem.cli.main")
TOLD = {"memory.chosen": "memory", "partition.chosen": "backend", "kernels.chosen": "kernels"}  # event: its field
LOOK_S = 0.05


def deployment(bench: Bench) -> None:
    """What `tandem doctor` says; then start, an answer, and one in the middle of which decode is killed."""
    with run_dir() as folder:
        bench.record("doctor", _doctor(folder))
        config, kv_bytes = (SMALLEST, 16 << 20) if bench.is_dry else (SHAPE, KV_BYTES)
        free_bytes, began_s = _free_bytes(bench), time.perf_counter()
        system = LocalServices(folder, random_model(folder, config), {"memd": {"kv-bytes": kv_bytes}})
        with running(system):
            bench.record("start_s", time.perf_counter() - began_s)
            bench.record("chosen", {each: _told(system.log(each)) for each in ("memd", "prefill", "decode")})
            if not bench.is_dry:
                taken_bytes = free_bytes - _free_bytes(bench)
                segments_bytes = _weight_bytes(config) + kv_bytes
                bench.record("segments_gib", segments_bytes / GIB)
                bench.record("taken_beside_them_gib", (taken_bytes - segments_bytes) / GIB)
            _ask(bench, system, bench.pick(600, 40))


def goodput(bench: Bench) -> None:
    """Both modes at once on the device, on kernels of one shape; the rates at which 90 % of requests meet both SLOs."""
    with run_dir() as folder:
        config, kv_bytes = (SMALLEST, 64 << 20) if bench.is_dry else (SHAPE, KV_BYTES)
        result = folder / "goodput.json"
        command = [
            *(*TANDEM, "bench", "goodput", "colocated", "semi-pd", "--model", random_model(folder, config)),
            *("--set", f"memd.kv-bytes={kv_bytes}", "--workload", "sharegpt", "--out", str(result)),
            *("--rate", "8" if not bench.is_dry else "1", "--probe-s", str(bench.pick(15, 1))),
            *("--max-probes", str(bench.pick(7, 1)), "--drain-s", "20"),
        ]
        subprocess.run(command, check=True)  # noqa: S603 - our own program
        found = json.loads(result.read_text())
    bench.record("slo", found["slo"])
    rates = {each["deployment"]: float(each["goodput"]["rate_per_s"]) for each in found["deployments"]}
    bench.record("requests_per_s", rates)
    if rates["colocated"]:
        bench.record("semi_pd_over_colocated", rates["semi-pd"] / rates["colocated"])


def random_model(folder: Path, config: ModelConfig) -> str:
    """As services name it."""
    path = folder / "config.json"
    fields = {
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
    }
    path.write_text(json.dumps(fields))
    return f"random:{path}"


@dataclass(slots=True)
class Heard:
    """An answer as it came: its tokens, and when each piece did."""

    token_ids: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    @property
    def gaps_s(self) -> list[float]:
        """Between pieces."""
        return [after - before for before, after in zip(self.at_s, self.at_s[1:], strict=False)]


def _ask(bench: Bench, system: LocalServices, num_tokens: int) -> None:
    began_s = time.perf_counter()
    whole = _hear(system, num_tokens, lambda _: None)
    bench.record("first_token_ms", (whole.at_s[0] - began_s) * 1e3)
    bench.record("ms_between_pieces", median(whole.gaps_s) * 1e3)

    def kill_decode(heard: Heard) -> None:
        if len(heard.token_ids) == num_tokens // 2:
            system.processes["decode"].kill()

    with _revived(system) as revivals:
        cut = _hear(system, num_tokens, kill_decode)
        while not all(serving(system.socket(service), service) for service in system.services):
            time.sleep(LOOK_S)  # who has just ended is started again meanwhile
    bench.record("ended_with_decode", dict(revivals))  # how each process ended
    bench.record("longest_gap_s", max(cut.gaps_s))
    same = [ours == theirs for ours, theirs in zip(cut.token_ids, whole.token_ids, strict=True)]
    bench.record("equal_tokens", [sum(same), num_tokens])


def _hear(system: LocalServices, num_tokens: int, at: Callable[[Heard], None]) -> Heard:
    heard = Heard()
    with Client(system.gateway) as client:
        for piece in client.generate(PROMPT, max_tokens=num_tokens, temperature=0.0, ignore_eos=True):
            for token_id in piece.token_ids:
                heard.token_ids.append(token_id)
                at(heard)
            heard.at_s.append(time.perf_counter())
    return heard


@contextmanager
def _revived(system: LocalServices) -> Iterator[Mapping[str, int]]:
    """What ends in the block is started again, as a supervisor does; the statuses with which it ended."""
    ended: dict[str, int] = {}
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            for service, process in list(system.processes.items()):
                status = process.poll()
                if status is not None:
                    ended[service] = status
                    system.start(service)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        is_over.set()
        thread.join()


def _doctor(folder: Path) -> list[str]:
    command = [*TANDEM, "doctor", "--run-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    return [" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines()]


def _told(log: str) -> dict[str, Value]:
    """What a service said that it chose, and why."""
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return {
        TOLD[event["event"]]: f"{event[TOLD[event['event']]]} ({event['reason']})"
        for event in events
        if event.get("event") in TOLD
    }


def _free_bytes(bench: Bench) -> int:
    """Of the device's memory; this process's own context is there when it has first been asked for."""
    return 0 if bench.is_dry else torch.cuda.mem_get_info(bench.device)[0]


def _weight_bytes(config: ModelConfig) -> int:
    return build_manifest(get_family(config.family).parameters(config), "bfloat16").total_bytes
