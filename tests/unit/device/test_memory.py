import fcntl
import os

import pytest

from tandem.device.cpu import memory
from tandem.device.cpu.memory import F_SEAL_FUTURE_WRITE, MemfdExporter, MemfdImporter, MemfdSegment, available_bytes
from tandem.errors import DeviceError


def test_the_size_is_sealed_from_the_start():
    segment = MemfdExporter().create("kv", 4096)
    for size_bytes in (1024, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size_bytes)
    segment.seal()
    seals = fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS)
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
    assert seals == wanted
    segment.close()


def test_a_segment_needs_the_memory_that_is_there():
    exporter = MemfdExporter(available=lambda: 10 << 20)
    exporter.create("kv", 10 << 20).close()
    with pytest.raises(DeviceError, match="segment kv needs 11 MiB, 10 MiB are available"):
        exporter.create("kv", 11 << 20)


def test_a_truncated_file_is_refused():
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4096)
    with pytest.raises(DeviceError, match="has 4096 bytes, not the 8192"):
        MemfdImporter().map(MemfdSegment("short", fd, 8192), writable=False)
    os.close(fd)


def test_the_limit_of_the_control_group_counts(tmp_path, monkeypatch):
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    assert available_bytes() == 50 << 10
    limit.write_text("max\n")
    assert available_bytes() == 50 << 10
    limit.write_text("1024\n")
    assert available_bytes() == 1024
