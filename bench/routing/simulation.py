"""Simulated replicas behind one router: each a machine with a queue, phases and a cache of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from bench.policies.deployment import FOREVER_S, PolicyDeployment, Setting
from bench.policies.sequences import SharingSequence
from bench.simulate.events import EventQueue
from tandem.config.settings import RouterName
from tandem.routing.fleet import Fleet
from tandem.routing.membership import ReplicaState
from tandem.routing.prompt import Prompt
from tandem.routing.router import Prospect
from tandem.routing.routers import make_router


@dataclass(frozen=True, slots=True)
class FleetSetting:
    """Equal replicas. At `change_s` the first one leaves, to end what it has, and another joins with nothing cached."""

    replica: Setting
    num_replicas: int
    router: RouterName
    change_s: float | None = None  # None: the same ones serve all the time


@dataclass(frozen=True, slots=True)
class Routed:
    """A sequence, and what the router expected when it sent it."""

    sequence: SharingSequence
    prospect: Prospect


@dataclass(slots=True)
class Stay:
    """One replica's time in the fleet, and what was routed to it."""

    joined_s: float
    left_s: float | None = None  # None: it stayed
    routed: list[Routed] = field(default_factory=list)


def simulate_fleet(setting: FleetSetting, seed: int, arrivals: Sequence[SharingSequence]) -> tuple[Stay, ...]:
    """Notes in the arrivals what becomes of them, of each to its end. The same arguments give the same outcome."""
    simulation = FleetSimulation(setting, seed)
    for sequence in arrivals:
        simulation.events.after(sequence.arrived_s, partial(simulation.arrive, sequence))
    if setting.change_s is not None:
        simulation.events.after(setting.change_s, simulation.change)
    simulation.events.run(FOREVER_S)
    return tuple(simulation.stays.values())


class FleetSimulation:
    """The fleet that serves, over simulated replicas, which tell it what becomes of sequences."""

    def __init__(self, setting: FleetSetting, seed: int) -> None:
        self.events = EventQueue()
        self.fleet: Fleet[SharingSequence] = Fleet(make_router(setting.router, seed), self.events)
        self._setting = setting
        self._seed = seed
        self.stays: dict[str, Stay] = {}  # of all that ever joined
        self._replicas: dict[str, PolicyDeployment] = {}  # likewise
        for _ in range(setting.num_replicas):
            self._join()

    def arrive(self, sequence: SharingSequence) -> None:
        """It is routed now, and is in its replica's queue."""
        prompt = Prompt(sequence.num_tokens, self._setting.replica.system.limits.block_size, sequence.keys)
        chosen = self.fleet.route(sequence, prompt)
        self.stays[chosen.replica_id].routed.append(Routed(sequence, chosen))
        self._replicas[chosen.replica_id].arrive(sequence)

    def change(self) -> None:
        """One leaves, one joins."""
        leaving = self.fleet.membership.serving[0]
        self.stays[leaving].left_s = self.events.now_s
        self.fleet.leave(leaving)
        self._join()

    def prefilled(self, sequence: SharingSequence) -> None:
        """See `Onlooker`."""
        self.fleet.prefilled(sequence, sequence.num_computed - sequence.num_cached_tokens)

    def ended(self, sequence: SharingSequence) -> None:
        """See `Onlooker`. Who leaves and has nothing more is gone."""
        self.fleet.end(sequence)
        for replica_id, state in self.fleet.membership.states.items():
            if state is ReplicaState.LEAVING and not self.fleet.items(replica_id):
                self.fleet.lose(replica_id)

    def _join(self) -> None:
        replica_id = f"replica-{len(self._replicas)}"
        seed = self._seed * self._setting.num_replicas + len(self._replicas)
        replica = PolicyDeployment(self._setting.replica, seed, self.events, self)
        self.fleet.join(replica_id, lambda: replica.pool.num_blocks, replica.published)
        self._replicas[replica_id] = replica
        self.stays[replica_id] = Stay(self.events.now_s)
