"""A whole deployment whose weights and KV are the device's memory: from files, and again after a kill."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench.deployment.local import LocalServices, run_dir, running, serving
from bench.gpu.bench import Bench
from bench.gpu.model_files import forget_pages, written_model
from bench.gpu.record import Value
from bench.gpu.subject import MODELS, SMALLEST
from bench.gpu.surroundings import NOWHERE
from tandem.client import Client
from tandem.device.cuda.look import free_bytes_from_child
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY
from tandem.model.config import ModelConfig
from tandem.model.hf_folder import WEIGHTS
from tandem.model.manifest import build_manifest
from tandem.model.registry import get_family

SHAPE = replace(MODELS["llama-3-8b"], num_layers=3, vocab_size=32_000)  # 1.7 GiB, to be written and read in seconds
KV_BYTES = 8 << 30
MIB, GIB = 1 << 20, 1 << 30
RESTART_S = 12.0  # of decode, and an answer, may well take
PROMPT = "The quick brown fox jumps over the lazy dog. " * 10
TANDEM = (sys.executable, "-m", "tandem.cli.main")
TOLD = {"memory.chosen": "memory", "partition.chosen": "backend", "kernels.chosen": "kernels"}  # event: its field
LOOK_S = 0.05


def deployment(bench: Bench) -> None:
    """What `tandem doctor` says; a cold start from files, an answer, and one during which decode is killed."""
    bench.expect(("doctor", "cold_first_token_s", "restarted_first_token_s"))
    config, kv_bytes = (SMALLEST, 16 << 20) if bench.is_dry else (SHAPE, KV_BYTES)
    with run_dir() as folder:
        with ThreadPoolExecutor(1) as pool:
            doctor = pool.submit(_doctor, folder)  # beside what nobody times
            model = written_model(folder / "model", config)
        bench.record("doctor", doctor.result())
        bench.record("file_mib", (model / WEIGHTS).stat().st_size / MIB)
        forget_pages(model / WEIGHTS)
        free_bytes, began_s = _free_bytes(bench), time.perf_counter()
        system = LocalServices(folder, str(model), {"memd": {"kv-bytes": kv_bytes}})
        with running(system):
            bench.record("start_s", time.perf_counter() - began_s)
            whole = _hear(system, bench.pick(600, 40), lambda _: None)
            bench.record("cold_first_token_s", whole.at_s[0] - began_s)
            _tell(bench, system, whole)
            if not bench.is_dry:
                _memory(bench, free_bytes, _weight_bytes(config) + kv_bytes)
            if bench.has_time(RESTART_S):
                _kill_decode(bench, system, whole, whole.at_s[0] - began_s)


def _tell(bench: Bench, system: LocalServices, whole: "Heard") -> None:
    bench.record("chosen", {each: _told(system.log(each)) for each in ("memd", "prefill", "decode")})
    bench.record("ms_between_pieces", median(whole.gaps_s) * 1e3)


def _memory(bench: Bench, free_bytes: int, segments_bytes: int) -> None:
    taken_bytes = free_bytes - _free_bytes(bench)
    bench.record("segments_gib", segments_bytes / GIB)
    bench.record("taken_beside_them_gib", (taken_bytes - segments_bytes) / GIB)


@dataclass(slots=True)
class Heard:
    """An answer as it came: its tokens, and when each piece did."""

    token_ids: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    @property
    def gaps_s(self) -> list[float]:
        """Between pieces."""
        return [after - before for before, after in pairwise(self.at_s)]

    def longest_wait_s(self, from_s: float) -> float:
        """For a piece, from then on: what was on its way may still have come."""
        later = [at_s for at_s in self.at_s if at_s > from_s]
        return max(after - before for before, after in pairwise([from_s, *later]))


def _kill_decode(bench: Bench, system: LocalServices, whole: Heard, cold_s: float) -> None:
    """In the middle of the same answer: the time to the next token beside the cold start's to its first."""
    num_tokens = len(whole.token_ids)
    killed_at_s: list[float] = []

    def kill(heard: Heard) -> None:
        if len(heard.token_ids) == num_tokens // 2:
            system.processes["decode"].kill()
            killed_at_s.append(time.perf_counter())

    with _revived(system) as revivals:
        cut = _hear(system, num_tokens, kill)
        while not all(serving(system.socket(service), service) for service in system.services):
            time.sleep(LOOK_S)  # who has just ended is started again meanwhile
    restarted_s = cut.longest_wait_s(killed_at_s[0])
    bench.record("restarted_first_token_s", restarted_s)
    bench.record("cold_over_restarted", cold_s / restarted_s)
    bench.record("ended_with_decode", dict(revivals))  # how each process ended
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
    """Of the device's memory, as a process that is no client of MPS sees it. Nor is this one: after the kill a daemon
    serves nobody new as long as any client from before lives.
    """
    return 0 if bench.is_dry else free_bytes_from_child({**os.environ, ENV_PIPE_DIRECTORY: NOWHERE})


def _weight_bytes(config: ModelConfig) -> int:
    return build_manifest(get_family(config.family).parameters(config), "bfloat16").total_bytes
