"""Which groups of SMs a phase has under a split: pure arithmetic, the same in both phases' processes.

The driver cuts the device into groups of equal size. Prefill takes them from the front, decode from the back, so that
the two have no group in common unless they must. Green contexts are made ahead of need; only a few numbers of groups
are to be had, the *levels*, and every level's complement is a level as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import DeviceError
from tandem.types import Phase, Split

NUM_LEVELS = 5
SMALLEST_LEVEL = 1 / 8  # of the groups; the largest is its complement


@dataclass(frozen=True, slots=True)
class SmGrain:
    """What a green context may have: at least `min_sms` SMs, in steps of `step_sms`."""

    min_sms: int
    step_sms: int

    @property
    def group_sms(self) -> int:
        """SMs of the smallest groups of which any number makes a valid green context."""
        return -(-self.min_sms // self.step_sms) * self.step_sms


@dataclass(frozen=True, slots=True)
class SmGroups:
    """A device as the driver has cut it; the SMs in no group are had by a phase that has the whole device."""

    num_sms: int
    group_sms: int
    num_groups: int


@dataclass(frozen=True, slots=True)
class SmShare:
    """Consecutive groups of a device: what a phase really has."""

    groups: range
    num_sms: int


def grain_of(compute_capability: tuple[int, int]) -> SmGrain:
    """Minimum and step of SMs by compute capability; source: CUDA C++ Programming Guide, green contexts."""
    major, _ = compute_capability
    if major >= 9:
        return SmGrain(min_sms=8, step_sms=8)
    return SmGrain(min_sms=4, step_sms=2) if major == 8 else SmGrain(min_sms=2, step_sms=2)


def levels(num_groups: int) -> tuple[int, ...]:
    """Numbers of groups, ascending, that a phase can have while the other has the rest; none when there is one group.

    Evenly spaced; at most `NUM_LEVELS`, and one more where the middle falls between two groups.
    """
    if num_groups < 2:
        return ()
    below_half = {max(1, round(num_groups * _fraction(index))) for index in range((NUM_LEVELS + 1) // 2)}
    return tuple(sorted(below_half | {num_groups - level for level in below_half}))


def plan_share(phase: Phase, split: Split, device: SmGroups) -> SmShare:
    """The phase's groups under the split, rounded to a level; all of the device for 100 percent.

    Shares that fit beside each other (together <= 100) are disjoint as long as there are two groups; above 100 they
    overlap in the middle. DeviceError without any group.
    """
    if device.num_groups < 1:
        raise DeviceError(f"the driver makes no group of {device.group_sms} of the device's {device.num_sms} SMs")
    if split.percent(phase) == 100 or device.num_groups == 1:
        return whole(device)
    return _share(phase, _num_groups(phase, split, device.num_groups), device)


def splits_of(device: SmGroups) -> tuple[Split, ...]:
    """A split for each level of prefill's, the rest being decode's."""
    percents = [round(100 * level / device.num_groups) for level in levels(device.num_groups)]
    return tuple(Split(percent, 100 - percent) for percent in percents)


def whole(device: SmGroups) -> SmShare:
    """Every SM, those in no group too."""
    return SmShare(range(device.num_groups), device.num_sms)


def shares_of(phase: Phase, device: SmGroups) -> tuple[SmShare, ...]:
    """Every share that `plan_share` may ever answer for a phase, each once: what is to be made ahead of need."""
    return (*(_share(phase, level, device) for level in levels(device.num_groups)), whole(device))


def describe(share: SmShare, device: SmGroups) -> str:
    """For logs and people: what is really had."""
    percent = 100 * share.num_sms / device.num_sms
    if share == whole(device):
        return f"SMs {share.num_sms} of {device.num_sms} ({percent:.1f} %), no partition"
    groups = f"groups {share.groups.start}-{share.groups.stop - 1} of {device.num_groups}"
    return f"SMs {share.num_sms} of {device.num_sms} ({percent:.1f} %), {groups}"


def _fraction(index: int) -> float:
    """Of the groups, for the levels up to the middle one."""
    return SMALLEST_LEVEL + index * (1 - 2 * SMALLEST_LEVEL) / (NUM_LEVELS - 1)


def _share(phase: Phase, num_groups: int, device: SmGroups) -> SmShare:
    first = 0 if phase is Phase.PREFILL else device.num_groups - num_groups
    return SmShare(range(first, first + num_groups), num_groups * device.group_sms)


def _num_groups(phase: Phase, split: Split, num_groups: int) -> int:
    to_be_had = levels(num_groups)
    num_prefill = _nearest(num_groups * split.prefill_percent / 100, to_be_had)
    if phase is Phase.PREFILL:
        return num_prefill
    if split.prefill_percent + split.decode_percent <= 100:
        to_be_had = tuple(level for level in to_be_had if level <= num_groups - num_prefill)
    return _nearest(num_groups * split.decode_percent / 100, to_be_had)


def _nearest(wanted: float, to_be_had: Sequence[int]) -> int:
    return min(to_be_had, key=lambda level: abs(level - wanted))
