"""memd as a process of its own, with processes that attach to it as phases do."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tandem.errors import FingerprintMismatchError, NotFoundError
from tandem.rpc.memd_client import MemdClient
from tandem.types import Fingerprint
from tests.support.deployment import Deployment

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16384,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
WEIGHTS_MAPPING = "memfd:tandem-weights"


@pytest.fixture(scope="module")
def memd() -> Iterator[Deployment]:
    run_dir = Path(tempfile.mkdtemp(prefix="tdm"))
    (run_dir / "config.json").write_text(json.dumps(CONFIG))
    settings = {"memd": {"kv-bytes": 8 << 20, "reserve-blocks": 2, "dtype": "float32", "lease-ttl-s": 2.0}}
    system = Deployment(run_dir, f"random:{run_dir}/config.json", settings)
    try:
        system.start("memd")
        system.wait_serving("memd")
        yield system
    finally:
        system.close()
        shutil.rmtree(run_dir)


@pytest.fixture
async def client(memd):
    made = MemdClient(memd.socket("memd"))
    yield made
    await made.close()


@contextmanager
def phases(memd: Deployment, count: int, num_blocks: int = 6) -> Iterator[list[subprocess.Popen[str]]]:
    """Attached processes; what is left of them is killed."""
    command = [sys.executable, "-m", "tests.support.memd_client_process", memd.socket("memd"), "decode"]
    running = [subprocess.Popen([*command, str(num_blocks)], stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in running:
            assert int(process.stdout.readline()) > 0
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()


async def until(client: MemdClient, holds) -> object:
    """Statistics once `holds` of them; the test's own time limit bounds it."""
    while not holds(statistics := await client.statistics()):
        await asyncio.sleep(0.002)
    return statistics


def mapped_pss_bytes(pid: int, name: str) -> int:
    """Of the mappings of `name`, by the kernel's own account."""
    total = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = name in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) << 10
    return total


async def test_the_model_is_loaded_and_every_block_free(memd, client):
    statistics = await client.statistics()
    assert statistics.num_free_blocks == statistics.num_blocks == (8 << 20) // (2 * 2 * 2 * 64 * 4 * 16)
    assert statistics.weight_bytes >= 16384 * 256 * 4
    assert statistics.fingerprint.dtype == statistics.fingerprint.kv_dtype == "float32"
    assert memd.log("memd").count('"model.loaded"') == 1
    assert '"model.dtype_chosen"' in memd.log("memd")


def test_memd_has_no_torch_and_its_loader_is_gone(memd):
    process = psutil.Process(memd.processes["memd"].pid)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert process.children() == []


async def test_a_killed_phase_gives_its_spare_blocks_back_at_once(memd, client):
    with phases(memd, 2) as (one, _):
        before = await client.statistics()
        assert before.num_spare_blocks == 10
        assert {holder.service for holder in before.holders} == {"decode"}
        one.kill()
        after = await until(client, lambda statistics: len(statistics.holders) == 1)
        assert after.num_spare_blocks == 5
        assert after.num_sequences == after.num_leased_blocks == 2
        (left,) = after.holders
        with pytest.raises(NotFoundError):
            await client.lease_blocks(3 - left.holder_id, 1)
    await until(client, lambda statistics: statistics.num_free_blocks == statistics.num_blocks)
    assert '"lease.expired"' in memd.log("memd")


async def test_attached_processes_share_one_copy_of_the_weights(memd, client):
    size_bytes = (await client.statistics()).weight_bytes
    with phases(memd, 1) as (alone,):
        assert mapped_pss_bytes(alone.pid, WEIGHTS_MAPPING) == pytest.approx(size_bytes, rel=0.02)
    with phases(memd, 3) as running:
        shares = [mapped_pss_bytes(process.pid, WEIGHTS_MAPPING) for process in running]
        assert sum(shares) == pytest.approx(size_bytes, rel=0.02)
        assert max(shares) < size_bytes * 0.4
        assert mapped_pss_bytes(memd.processes["memd"].pid, WEIGHTS_MAPPING) == 0


async def test_a_phase_of_another_kind_is_refused(client):
    with pytest.raises(FingerprintMismatchError, match="dtype: prefill has 'bfloat16', memd has 'float32'"):
        await client.attach("prefill", 1, Fingerprint(dtype="bfloat16"))


def run_memd(*flags: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="tdm") as run_dir:
        command = [sys.executable, "-m", "services.memd.main", "--run-dir", run_dir, *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_that_is_not_there_ends_memd():
    ended = run_memd("--model", "/nowhere/model.gguf")
    assert ended.returncode == 1
    failed = json.loads(next(line for line in ended.stderr.splitlines() if "service.failed" in line))
    assert failed["error"] == "ModelNotFoundError"
    assert "/nowhere/model.gguf" in failed["message"]
    assert "Traceback" not in ended.stderr


def test_too_little_memory_for_kv_ends_memd(memd):
    ended = run_memd("--model", memd.model, "--kv-bytes", "1000")
    assert ended.returncode == 1
    assert "memd.kv_bytes" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_sigterm_ends_the_attachments_and_memd(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    status = await asyncio.to_thread(memd.terminate, "memd")
    await attachment.ended.wait()
    assert status == 0
    await attachment.detach()
    assert not (memd.run_dir / "memd.fd.sock").exists()
    assert '"service.stopped"' in memd.log("memd")
    assert "Traceback" not in memd.log("memd")
