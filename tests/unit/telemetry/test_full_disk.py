"""A disk that is full costs log lines, and neither a service nor a request."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from services.memd.keeping import deposit, held_epoch, withdraw
from tandem.device.cpu.memory import MemfdExporter
from tandem.errors import NotFoundError
from tandem.rpc.segments import close_segments
from tandem.telemetry.logs import configure_logging
from tandem.types import FinishReason
from tests.support.gateway_fakes import Rig, read_all, tokens_of

ROOT = Path(__file__).parents[3]
FULL = Path("/dev/full")  # a write to it ends with ENOSPC


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """What logs go to."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with FULL.open("w", buffering=1) as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        configure_logging("gateway", "debug")
        yield stderr
        root.handlers, root.level = handlers, level
        with suppress(OSError):
            stderr.close()


async def test_a_request_is_answered_though_nothing_can_be_logged(full_disk):
    with pytest.raises(OSError, match="No space left"):
        os.write(full_disk.fileno(), b"x")
    rig = await Rig().up()
    request = await rig.request(max_tokens=2)
    rig.prefilled(97)
    rig.token(98, FinishReason.LENGTH)
    assert tokens_of(await read_all(request)) == [97, 98]
    await rig.assert_all_released()


def test_what_cannot_be_written_is_lost_and_the_next_line_is_whole(tmp_path, full_disk):
    structlog.get_logger().info("lost", text="x" * 100_000)
    with (tmp_path / "log").open("w", buffering=1) as room:
        os.dup2(room.fileno(), full_disk.fileno())
    structlog.get_logger().info("written")
    assert json.loads((tmp_path / "log").read_bytes().splitlines()[-1])["event"] == "written"


def test_an_error_that_is_none_of_the_disk_is_still_shown(capfd):
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging("gateway", "info")
    try:
        logging.getLogger("library").warning("%d", "no number")
    finally:
        root.handlers, root.level = handlers, level
    assert "TypeError" in capfd.readouterr().err


def test_a_service_with_a_full_disk_behind_it_goes_on():
    with tempfile.TemporaryDirectory(prefix="tdm") as folder, FULL.open("w") as full:
        path = Path(folder) / "keeper.sock"
        command = [sys.executable, "-m", "services.memd.keeper", "--socket", str(path), "--log-level", "debug"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=full, stderr=full)
        segment = MemfdExporter().create("kv", 4096)
        try:
            _until_it_answers(path, process)
            for epoch in range(1, 40):  # one event each
                deposit(path, epoch, [segment])
            held = withdraw(path)
            assert (held.epoch, list(held.segments)) == (39, ["kv"])
            close_segments(held.segments.values())
        finally:
            process.terminate()
            segment.close()
        assert process.wait() == 0


def _until_it_answers(path: Path, process: "subprocess.Popen[bytes]") -> None:
    while True:
        assert process.poll() is None
        with suppress(NotFoundError):
            held_epoch(path)
            return
        time.sleep(0.02)
