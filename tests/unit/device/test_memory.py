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


def test_what_the_control_group_has_left_counts(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_bytes() == 50 << 10
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\nfile 800\nshmem 400\ninactive_file 300\nactive_file 100\n")
    for limit, left in (("max", 50 << 10), ("1024", 1024 - (900 - 400)), ("100", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert available_bytes() == left
