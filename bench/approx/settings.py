"""What a run of `tandem bench approx` has in common for all its items."""

from dataclasses import dataclass, field

from tandem.reuse.refresh import RefreshPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """`answer_tokens` of the continuation are compared; full recompute goes by chunks, as phases do."""

    ratios: tuple[float, ...] = (0.0, 0.05, 0.15, 0.3, 1.0)
    answer_tokens: int = 32
    chunk_tokens: int = 512
    refresh: RefreshPolicy = field(default_factory=RefreshPolicy)
    num_refreshes: int = 2
    stage_ratio: float = 0.15  # at which the decode stage is looked at

    @property
    def continuation_tokens(self) -> int:
        """What full recompute is asked for."""
        return max(self.answer_tokens, self.refresh.every_tokens * (self.num_refreshes + 1))
