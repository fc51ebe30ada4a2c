"""How soon a phase has memory that is there: a segment is exported here, and a process of its own maps it."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from tandem.cli.probes import Probe
from tandem.clock import Clock
from tandem.device.memory import MemoryExporter, SegmentKind
from tandem.phase.attach_probe import MAPPED

ATTACH_BYTES = 256 << 20
PROBE = (sys.executable, "-P", "-m", "tandem.phase.attach_probe")


@dataclass(frozen=True, slots=True)
class AttachReport:
    """Of one segment, which is gone."""

    kind: SegmentKind
    size_bytes: int
    process_s: float  # from the process's start to its first mapping, imports and context within
    map_s: float  # of a second mapping in it


def check_attach(
    exporter: MemoryExporter, environ: Mapping[str, str], clock: Clock, probe: Sequence[str] = PROBE
) -> AttachReport:
    """`environ`: what the phases are started with. DeviceError: no memory, or with what the probe said."""
    with closing(exporter.create("probe", ATTACH_BYTES)) as segment:
        command = [*probe, segment.kind, str(segment.fd), str(segment.size_bytes)]
        started_s = clock.now()
        with Probe("attach probe", command, environ, [segment.fd]) as running:
            running.wait_for(MAPPED)
            process_s = clock.now() - started_s
            map_s = float(running.answer()["map_s"])
        return AttachReport(segment.kind, segment.size_bytes, process_s, map_s)
