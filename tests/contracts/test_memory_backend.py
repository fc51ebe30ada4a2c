"""What every pair of MemoryExporter and MemoryImporter does."""

import subprocess
import sys
import warnings

import pytest
import torch

from tandem.device.cpu.memory import MemfdExporter, MemfdImporter
from tandem.device.memory import MemoryExporter, MemoryImporter
from tandem.errors import DeviceError

SIZE_BYTES = 1 << 16
BACKENDS = {"memfd": (MemfdExporter, MemfdImporter)}


@pytest.fixture(params=BACKENDS)
def backend(request) -> tuple[MemoryExporter, MemoryImporter]:
    exporter, importer = BACKENDS[request.param]
    return exporter(), importer()


@pytest.fixture
def exporter(backend) -> MemoryExporter:
    return backend[0]


@pytest.fixture
def importer(backend) -> MemoryImporter:
    return backend[1]


@pytest.fixture
def segment(exporter):
    made = exporter.create("test", SIZE_BYTES)
    yield made
    made.close()


def test_a_segment_is_zeroed_and_of_its_size(segment, importer):
    mapped = importer.map(segment.fd, SIZE_BYTES, writable=False)
    assert (segment.name, segment.size_bytes, mapped.size_bytes) == ("test", SIZE_BYTES, SIZE_BYTES)
    assert not mapped.tensor("uint8", (SIZE_BYTES,)).any()
    mapped.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_one_mapping_writes_the_others_read(segment, importer, dtype):
    writer = importer.map(segment.fd, SIZE_BYTES, writable=True)
    reader = importer.map(segment.fd, SIZE_BYTES, writable=False)
    values = torch.arange(24, dtype=getattr(torch, dtype)).view(2, 3, 4)
    writer.tensor(dtype, (2, 3, 4), 128).copy_(values)
    assert torch.equal(reader.tensor(dtype, (2, 3, 4), 128), values)
    writer.close()
    reader.close()


def test_views_are_the_memory_itself(segment, importer):
    mapped = importer.map(segment.fd, SIZE_BYTES, writable=True)
    one, two = mapped.tensor("float32", (4, 4)), mapped.tensor("float32", (4,), 16)
    one[1, 0] = 5.0
    assert two[0] == 5.0
    assert one.data_ptr() + 16 == two.data_ptr()
    mapped.close()


def test_the_whole_segment_is_one_view_without_warnings(segment, importer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = importer.map(segment.fd, SIZE_BYTES, writable=False)
        assert mapped.tensor("float32", (SIZE_BYTES // 4,)).sum() == 0
    mapped.close()


@pytest.mark.parametrize(("shape", "offset"), [((SIZE_BYTES // 4 + 1,), 0), ((1,), SIZE_BYTES), ((1,), -4), ((1,), 2)])
def test_a_view_stays_inside(segment, importer, shape, offset):
    mapped = importer.map(segment.fd, SIZE_BYTES, writable=False)
    with pytest.raises(ValueError, match="does not lie in"):
        mapped.tensor("float32", shape, offset)
    mapped.close()


def test_a_sealed_segment_is_mapped_read_only(segment, importer):
    writer = importer.map(segment.fd, SIZE_BYTES, writable=True)
    writer.tensor("float32", (1,))[0] = 3.0
    segment.seal()
    with pytest.raises(DeviceError, match="sealed"):
        importer.map(segment.fd, SIZE_BYTES, writable=True)
    reader = importer.map(segment.fd, SIZE_BYTES, writable=False)
    assert reader.tensor("float32", (1,))[0] == 3.0


def test_a_segment_of_another_size_is_refused(segment, importer):
    for size_bytes in (SIZE_BYTES * 2, SIZE_BYTES // 2):
        with pytest.raises(DeviceError, match=f"has {SIZE_BYTES} bytes, not the {size_bytes} announced"):
            importer.map(segment.fd, size_bytes, writable=False)


def test_mappings_outlive_the_exporters_descriptor(exporter, importer):
    segment = exporter.create("test", SIZE_BYTES)
    mapped = importer.map(segment.fd, SIZE_BYTES, writable=True)
    segment.close()
    mapped.tensor("float32", (1,))[0] = 2.0
    assert mapped.tensor("float32", (1,))[0] == 2.0
    mapped.close()


def test_more_than_there_is_is_refused_with_sizes_and_remedy(exporter):
    with pytest.raises(DeviceError, match=r"needs 1073741824 MiB.*lower memd\.kv_bytes"):
        exporter.create("kv", 1 << 50)


WRITER = """
import sys
from tandem.device.cpu.memory import MemfdImporter
mapped = MemfdImporter().map(int(sys.argv[1]), int(sys.argv[2]), writable=sys.argv[3] == "writable")
mapped.tensor("float32", (4,))[:] = 7.0
"""


def write_from_another_process(fd: int, how: str) -> int:
    command = [sys.executable, "-c", WRITER, str(fd), str(SIZE_BYTES), how]
    return subprocess.run(command, pass_fds=[fd], check=False, capture_output=True).returncode


def test_another_process_writes_and_a_read_only_one_cannot(segment, importer):
    assert write_from_another_process(segment.fd, "writable") == 0
    mapped = importer.map(segment.fd, SIZE_BYTES, writable=True)
    assert mapped.tensor("float32", (5,)).tolist() == [7.0, 7.0, 7.0, 7.0, 0.0]
    mapped.tensor("float32", (4,)).zero_()
    assert write_from_another_process(segment.fd, "read-only") == -11
    assert mapped.tensor("float32", (4,)).tolist() == [0.0] * 4
