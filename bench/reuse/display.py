"""What reuse saves and what it hits, as tables."""

from statistics import median

from rich.table import Table

from bench.engines.display import spread
from bench.reuse.results import HitsResult, ReuseResult, SegmentsResult, hit_rate
from bench.reuse.summary import Comparison, Series
from bench.reuse.trace import Replay

PERCENT = 100.0


def ttft_table(result: ReuseResult) -> Table:
    """A row a length and warmth: median (lowest to highest) of the rounds."""
    savings = result.savings
    speedups = {(each.length, each.warmth): _compared(each, 2) for each in savings.speedups}
    marginal = {(each.length, each.warmth): _compared(each, 1) for each in savings.marginal_ms}
    table = Table("prompt tokens", "", "reused", "TTFT, ms", "cold over it", "beyond one token, ms")
    for entry in savings.series:
        place = (entry.length, entry.warmth)
        table.add_row(
            str(entry.length),
            str(entry.warmth),
            _reused(entry),
            spread(entry.ttft_ms, 1),
            speedups.get(place, ""),
            marginal.get(place, ""),
        )
    return table


def answer_table(result: ReuseResult) -> Table:
    """A row a warmth: how TTFT grows with the prompt, and which answers are not the cold ones."""
    table = Table("", "TTFT over prompt tokens", "other first tokens", f"other in {result.num_output_tokens} tokens")
    agreements = {each.warmth: each for each in result.savings.agreements}
    growth = {each.warmth: each for each in result.savings.growth}
    for warmth in dict.fromkeys((*growth, *agreements)):
        line = growth.get(warmth)
        agreement = agreements.get(warmth)
        table.add_row(
            str(warmth),
            f"{line.at_zero_ms:.1f} ms + {line.ms_per_1000_tokens:.1f} ms / 1,000" if line else "",
            f"{agreement.num_other_first_tokens} of {agreement.num_answers}" if agreement else "",
            f"{agreement.num_other_answers} of {agreement.num_answers}" if agreement else "",
        )
    return table


def segments_table(result: SegmentsResult) -> Table:
    """A row a deployment and case; tokens are medians over the rounds, as are the times, with their range."""
    title = f"{result.num_documents} documents a prompt, {result.source}"
    columns = ("deployment", "", "TTFT, ms", "exact over it", "reused exactly", "approximately", "computed")
    table = Table(*columns, title=title)
    for each in result.series:
        gain = each.gain
        table.add_row(
            each.deployment,
            each.case.name,
            spread(each.ttft_ms, 1),
            f"{gain.median:.2f} ({gain.lowest:.2f} to {gain.highest:.2f})",
            *(f"{median(counts):,.0f}" for counts in (each.num_exact, each.num_approximate, each.num_computed)),
        )
    return table


def hits_table(result: HitsResult) -> Table:
    """The system, and what replays of the same order say is attainable."""
    title = f"{len(result.num_prompt_tokens)} requests, {sum(result.num_prompt_tokens):,} prompt tokens"
    table = Table("", "blocks", "prompt tokens reused", "of all", "requests in which the system differs", title=title)
    measured = sum(result.num_cached_tokens)
    rate = hit_rate(result.num_cached_tokens, result.num_prompt_tokens)
    table.add_row(result.deployment, f"{result.num_blocks:,}", f"{measured:,}", f"{rate * PERCENT:.2f} %", "")
    for each in result.replays:
        size = "" if each.num_blocks is None else f"{each.num_blocks:,}"
        rate = hit_rate(each.num_cached_tokens, result.num_prompt_tokens)
        hits = f"{sum(each.num_cached_tokens):,}"
        table.add_row(f"replay, {each.name}", size, hits, f"{rate * PERCENT:.2f} %", _difference(result, each))
    return table


def _difference(result: HitsResult, other: Replay) -> str:
    pairs = list(zip(result.num_cached_tokens, other.num_cached_tokens, strict=True))
    num_less, num_more = sum(ours < theirs for ours, theirs in pairs), sum(ours > theirs for ours, theirs in pairs)
    return f"less in {num_less}, more in {num_more}"


def _compared(comparison: Comparison, num_digits: int) -> str:
    middle, lowest, highest = (
        f"{value:.{num_digits}f}" for value in (comparison.median, comparison.lowest, comparison.highest)
    )
    return f"{middle} ({lowest} to {highest})"


def _reused(series: Series) -> str:
    """One number, or from which to which."""
    lowest, highest = min(series.num_cached_tokens), max(series.num_cached_tokens)
    return str(lowest) if lowest == highest else f"{lowest} to {highest}"
