"""How many requests may wait, and of whom."""

from collections import Counter

from services.gateway.load import Bounds
from services.gateway.prospects import Outlook
from services.gateway.rates import RateMeter, retry_delay_s
from services.gateway.requests import Arrival, Request
from tandem.errors import QueueFullError


class WaitingPlaces:
    """Requests of which no phase has had anything yet. When they, or their prompts' tokens, are too many, tenants with
    less than their part may still come, up to that part: who floods the queue shuts out nobody else."""

    def __init__(self, bounds: Bounds, completions: RateMeter, outlook: Outlook) -> None:
        self._bounds = bounds
        self._completions = completions
        self._outlook = outlook
        self._requests: set[Request] = set()
        self._num_by_tenant: Counter[str] = Counter()
        self._tokens_by_tenant: Counter[str] = Counter()  # of their prompts
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def check_room(self, tenant: str, resumed: bool, priority: int) -> None:
        """For one more of that tenant. QueueFullError says when to come back.

        What is resumed was taken on before: there is room for as much as a gateway that ended can have had. Of those
        with another priority than the usual some are in no hurry, and the others go first.
        """
        more = self._bounds.max_running * self._outlook.num_replicas if resumed else 0
        max_waiting, own = self._bounds.max_waiting + more, self._bounds.max_waiting_of(tenant)
        num_own = self._num_by_tenant[tenant]
        if own is not None and num_own >= own + more:
            raise self._full(f"quota max_waiting of tenant {tenant!r} is used up: {num_own} requests are waiting")
        if len(self) >= max_waiting and num_own >= self._part(tenant, max_waiting):
            raise self._full(f"{len(self)} requests are waiting")
        if not (resumed or priority) and self._is_too_late(tenant):
            raise self._full(f"with {len(self)} requests waiting the first token would come too late")

    def check_tokens(self, arrival: Arrival) -> None:
        """For its prompt, where others wait already. QueueFullError says when to come back."""
        if arrival.resumed or not self._requests:
            return
        num_prompt_tokens, most = len(arrival.prompt_token_ids), self._bounds.max_waiting_tokens
        num_own = self._tokens_by_tenant[arrival.tenant] + num_prompt_tokens
        if self._num_tokens + num_prompt_tokens > most and num_own > self._part(arrival.tenant, most):
            raise self._full(f"prompts of {self._num_tokens} tokens are waiting")

    def add(self, request: Request) -> None:
        """It waits from now on."""
        self._requests.add(request)
        self._num_by_tenant[request.arrival.tenant] += 1
        self._tokens_by_tenant[request.arrival.tenant] += len(request.arrival.prompt_token_ids)
        self._num_tokens += len(request.arrival.prompt_token_ids)

    def discard(self, request: Request) -> None:
        """It waits no longer; nothing happens when it did not."""
        if request not in self._requests:
            return
        self._requests.remove(request)
        self._num_tokens -= len(request.arrival.prompt_token_ids)
        tenant = request.arrival.tenant
        self._num_by_tenant[tenant] -= 1
        self._tokens_by_tenant[tenant] -= len(request.arrival.prompt_token_ids)
        if not self._num_by_tenant[tenant]:
            del self._num_by_tenant[tenant], self._tokens_by_tenant[tenant]

    def overdue(self) -> QueueFullError:
        """For one that has had no turn for too long."""
        return self._full(f"no turn came within {self._bounds.refuse_after_s:g} s")

    def _is_too_late(self, tenant: str) -> bool:
        """Tenants take turns, so before one's next request there is at most as much of each other as of its own."""
        if not self._bounds.promise.ttft_s:
            return False
        num_tenants = len(self._num_by_tenant.keys() | {tenant})
        num_tokens = min(self._num_tokens, num_tenants * self._tokens_by_tenant[tenant])
        num_requests = min(len(self), num_tenants * self._num_by_tenant[tenant])
        return self._outlook.is_too_late(num_tokens, num_requests, self._completions.per_second())

    def _full(self, what: str) -> QueueFullError:
        delay_s = retry_delay_s(len(self), self._completions.per_second())
        return QueueFullError(f"{what}; try again in {delay_s:.0f} s", delay_s)

    def _part(self, tenant: str, most: int) -> int:
        """Of n tenants at most `most` x (1 + 1/2 + ... + 1/n) wait: the k-th to come shares with k."""
        return most // len(self._num_by_tenant.keys() | {tenant})
