"""memd, prefill and decode as processes with a tiny random model; the test is their gateway."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from bench.deployment.local import serving
from tandem.kv.store import StorageStatistics
from tandem.phase.lifecycle import EXIT_START_AGAIN
from tandem.rpc.codecs import (
    command_to_decode,
    command_to_prefill,
    decode_result_from_proto,
    prefill_result_from_proto,
)
from tandem.rpc.memd_client import MemdClient
from tandem.rpc.stubs.decode.v1.decode_pb2_grpc import DecodeServiceStub
from tandem.rpc.stubs.prefill.v1.prefill_pb2_grpc import PrefillServiceStub
from tandem.types import (
    AbortSequence,
    DropReason,
    FinishReason,
    SamplingSpec,
    SequenceDropped,
    SequenceOutput,
    SequenceSpec,
    StopSpec,
    Submit,
)
from tests.support.deployment import Deployment
from tests.support.tiny_models import tiny_model

PROMPTS = {1: [5, 9, 200, 31], 2: list(range(40, 103)), 3: [17] * 33}
NUM_TOKENS = 24
PHASES = ("prefill", "decode")


SETTINGS: dict[str, dict[str, object]] = {
    "memd": {"kv-bytes": 2 << 20, "dtype": "float32"},
    "prefill": {"chunk-tokens": 16, "spare-blocks": 8},
    "decode": {"spare-blocks": 8},
}


@pytest.fixture(scope="module")
def processes(tiny_model_dir: Callable[[str], Path]) -> Iterator[Deployment]:
    """memd and the phases, which were started before it and said that they wait."""
    run_dir = Path(tempfile.mkdtemp(prefix="tdm"))
    deployment = Deployment(run_dir, str(tiny_model_dir("llama")), SETTINGS)
    try:
        deployment.start(*PHASES)
        for phase in PHASES:
            wait_for_log(deployment, phase, '"memd.waiting"')
            assert not serving(deployment.socket(phase), phase)
        deployment.start("memd")
        yield deployment
    finally:
        deployment.close()
        shutil.rmtree(run_dir, ignore_errors=True)


@pytest.fixture
def system(processes: Deployment) -> Deployment:
    """Everything is running, whatever the test before has ended."""
    processes.settings = SETTINGS
    processes.revive()
    return processes


def wait_for_log(deployment: Deployment, service: str, event: str) -> None:
    deadline = time.monotonic() + 60
    while event not in deployment.log(service):
        assert time.monotonic() < deadline, f"{service} has not logged {event}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def expected() -> dict[int, list[int]]:
    """What transformers says after each prompt, greedily."""
    torch.set_num_threads(1)
    model: Any = tiny_model("llama")
    answers = {}
    for number, prompt in PROMPTS.items():
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
        )
        answers[number] = output[0, len(prompt) :].tolist()
    return answers


@dataclass
class Client:
    """Both streams, open, and a connection to memd; collects what the phases say."""

    prefill: Any
    decode: Any
    memd: MemdClient
    tokens: dict[int, list[int]] = field(default_factory=dict)
    num_cached: dict[int, int] = field(default_factory=dict)
    finished: dict[int, FinishReason] = field(default_factory=dict)
    dropped: dict[int, SequenceDropped] = field(default_factory=dict)
    specs: dict[int, SequenceSpec] = field(default_factory=dict)

    async def submit(self, lease_id: int, prompt: list[int], max_tokens: int = NUM_TOKENS) -> None:
        sampling = SamplingSpec(temperature=0.0, seed=1)
        spec = SequenceSpec(
            lease_id, f"r{lease_id}", tuple(prompt), len(prompt), sampling, StopSpec(max_tokens), 0, lease_id
        )
        self.specs[lease_id] = spec
        await self.prefill.write(command_to_prefill(Submit(spec)))

    async def read_prefill(self) -> None:
        message = await self.prefill.read()
        assert message is not grpc.aio.EOF
        result = prefill_result_from_proto(message)
        for prefilled in result.prefilled:
            self.num_cached[prefilled.output.lease_id] = prefilled.num_cached_tokens
            await self._take(prefilled.output)
            if prefilled.output.finish_reason is FinishReason.NONE:
                await self._hand_over(prefilled.output)
        await self._note(result.dropped)

    async def read_decode(self) -> None:
        message = await self.decode.read()
        assert message is not grpc.aio.EOF
        result = decode_result_from_proto(message)
        for output in result.outputs:
            await self._take(output)
        await self._note(result.dropped)

    async def run(self, *lease_ids: int) -> None:
        """Reads both streams until all the sequences named have ended."""
        async with asyncio.timeout(60):
            while not all(lease_id in self.tokens for lease_id in lease_ids):
                await self.read_prefill()
            while not set(lease_ids) <= self.finished.keys() | self.dropped.keys():
                await self.read_decode()

    async def _hand_over(self, output: SequenceOutput) -> None:
        spec = self.specs[output.lease_id]
        longer = SequenceSpec(
            spec.lease_id,
            spec.request_id,
            (*spec.token_ids, output.token_id),
            spec.num_prompt_tokens,
            spec.sampling,
            spec.stop,
            spec.priority,
            spec.arrival_unix_ns,
        )
        await self.decode.write(command_to_decode(Submit(longer)))

    async def _take(self, output: SequenceOutput) -> None:
        self.tokens.setdefault(output.lease_id, []).append(output.token_id)
        if output.finish_reason is not FinishReason.NONE:
            self.finished[output.lease_id] = output.finish_reason
            await self.memd.release_sequences([output.lease_id])

    async def _note(self, dropped: tuple[SequenceDropped, ...]) -> None:
        for each in dropped:
            self.dropped[each.lease_id] = each
            await self.memd.release_sequences([each.lease_id])


@asynccontextmanager
async def connected(system: Deployment) -> AsyncIterator[Client]:
    memd = MemdClient(system.socket("memd"))
    async with (
        grpc.aio.insecure_channel(system.socket("prefill")) as prefill,
        grpc.aio.insecure_channel(system.socket("decode")) as decode,
    ):
        streams: tuple[Any, Any] = PrefillServiceStub(prefill).Run(), DecodeServiceStub(decode).Run()
        try:
            yield Client(*streams, memd)
        finally:
            for stream in streams:
                stream.cancel()
            await memd.close()


async def settled(memd: MemdClient) -> StorageStatistics:
    """The pool when nobody holds a sequence any more."""
    for _ in range(1000):
        statistics = await memd.statistics()
        if statistics.num_sequences == 0:
            return statistics
        await asyncio.sleep(0.02)
    raise AssertionError(f"leases are left: {statistics}")


async def test_phases_that_waited_for_memd_answer_as_transformers_does(
    system: Deployment, expected: dict[int, list[int]]
) -> None:
    async with connected(system) as client:
        for number, prompt in PROMPTS.items():
            await client.submit(number, prompt)
        await client.run(*PROMPTS)
        assert client.tokens == expected
        assert set(client.finished.values()) == {FinishReason.LENGTH}
        statistics = await settled(client.memd)
    in_pool = statistics.num_free_blocks + statistics.num_spare_blocks + statistics.num_cached_blocks
    assert in_pool == statistics.num_blocks


async def test_a_fork_reuses_the_prompts_blocks(system: Deployment, expected: dict[int, list[int]]) -> None:
    async with connected(system) as client:
        await client.submit(2, PROMPTS[2])
        await client.read_prefill()
        num_shared = await client.memd.fork_sequence(2, 20, "r2", len(PROMPTS[2]) - 1)
        assert num_shared == 48
        await client.submit(20, PROMPTS[2])
        await client.run(2, 20)
        assert client.num_cached == {2: 0, 20: 48}
        assert client.tokens == {2: expected[2], 20: expected[2]}
        await settled(client.memd)


async def test_a_killed_decode_is_back_without_loading_weights(
    system: Deployment, expected: dict[int, list[int]]
) -> None:
    for attempt in range(2):
        async with connected(system) as client:
            await client.submit(1, PROMPTS[1])
            await client.run(1)
            assert client.tokens == {1: expected[1]}
        if attempt == 0:
            system.kill("decode")
            system.start("decode")
            system.wait_serving("decode")
    assert system.log("memd").count('"model.loaded"') == 1


async def test_an_abort_ends_a_sequence_in_decode_and_its_blocks_are_free(system: Deployment) -> None:
    async with connected(system) as client:
        await client.submit(1, PROMPTS[1], max_tokens=400)
        await client.read_prefill()
        await client.read_decode()
        await client.decode.write(command_to_decode(AbortSequence(1)))
        await client.run(1)
        assert client.dropped[1].reason is DropReason.ABORTED
        await settled(client.memd)


async def test_a_draining_decode_hands_back_what_it_cannot_finish(system: Deployment) -> None:
    system.settings = {**SETTINGS, "decode": {"drain-timeout-s": 0.05}}
    system.terminate("decode")
    system.start("decode")
    system.wait_serving("decode")
    async with connected(system) as client:
        await client.submit(1, PROMPTS[1], max_tokens=480)
        await client.read_prefill()
        await client.read_decode()
        terminating = asyncio.get_running_loop().run_in_executor(None, system.terminate, "decode")
        await client.run(1)
        assert client.dropped[1].reason is DropReason.DRAINING
        assert await client.decode.read() is grpc.aio.EOF
        assert await terminating == 0


async def test_a_wrong_dtype_is_refused_and_the_end_of_memd_and_its_keeper_ends_a_phase(system: Deployment) -> None:
    system.settings = {**SETTINGS, "decode": {"dtype": "bfloat16"}}
    system.kill("decode")
    system.start("decode")
    assert system.processes["decode"].wait(60) == 1
    assert "bfloat16" in system.log("decode")
    assert "FingerprintMismatchError" in system.log("decode")
    assert system.keeper is not None
    system.keeper.kill()
    system.kill("memd")
    system.start("memd")
    assert system.processes["prefill"].wait(60) == EXIT_START_AGAIN
    assert "memd has begun anew" in system.log("prefill")
