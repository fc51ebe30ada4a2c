"""What latencies are promised, to the deployment and to a class of requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem.types import RequestClass, RequestObservation


@dataclass(frozen=True, slots=True)
class Slo:
    """A request meets it when its TTFT and its mean time a token are both within."""

    ttft_ms: float
    tpot_ms: float

    def is_met_by(self, request: RequestObservation) -> bool:
        """A failed request meets nothing; one token alone has no time between tokens."""
        has_tpot = request.num_output_tokens <= 1 or request.tpot_ms <= self.tpot_ms
        return request.ok and request.ttft_ms <= self.ttft_ms and has_tpot


@dataclass(frozen=True, slots=True)
class SloPolicy:
    """The deployment's, and those of the classes that have one of their own."""

    deployment: Slo
    by_class: Mapping[RequestClass, Slo] = field(default_factory=dict)

    def of(self, request_class: RequestClass) -> Slo:
        """What a request of that class is promised."""
        return self.by_class.get(request_class, self.deployment)

    def ttft_weight(self, request_class: RequestClass) -> float:
        """What a TTFT of that class counts among the deployment's: half of it under a promise twice as wide."""
        own = self.of(request_class).ttft_ms
        return 1.0 if own == self.deployment.ttft_ms else self.deployment.ttft_ms / own

    def tpot_weight(self, request_class: RequestClass) -> float:
        """As `ttft_weight`."""
        own = self.of(request_class).tpot_ms
        return 1.0 if own == self.deployment.tpot_ms else self.deployment.tpot_ms / own


NOTHING_PROMISED = SloPolicy(Slo(math.inf, math.inf))
