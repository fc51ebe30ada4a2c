"""How long fuzz tests search: the same few examples each time, or as many new ones as are asked for.

``FUZZ_FACTOR=1000 pytest tests --timeout=0 -k fuzz`` draws a thousand times as many examples, others in each run. What
it finds belongs into the test's own list of examples, or into a test of its own.
"""

import os

import hypothesis
from hypothesis import HealthCheck, Phase

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))


def examples(number: int) -> hypothesis.settings:
    """Settings of a test that tries `number` examples, always the same, unless a long run is wanted."""
    return hypothesis.settings(
        max_examples=number * max(1, FACTOR),
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
