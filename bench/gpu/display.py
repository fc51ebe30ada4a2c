"""Results for people; pure."""

from collections.abc import Iterator, Mapping

from bench.gpu.record import Report, SectionResult, Value

WIDTH = 110


def result_lines(result: SectionResult) -> Iterator[str]:
    """A line for the section, one for each finding."""
    took = f"{result.seconds:6.1f} of {result.limit_s:.0f} s"
    yield f"{result.status.value:<9} {result.name:<16} {took}  {result.question}"
    if result.reason:
        yield f"          {result.reason[:WIDTH]}"
    for name, value in result.values.items():
        yield f"          {name}: {text_of(value)}"


def summary_lines(report: Report) -> Iterator[str]:
    """How many ended how."""
    if report.is_dry:
        yield "a dry run: what ran is the code; its figures say nothing"
    counts: dict[str, int] = {}
    for section in report.sections:
        counts[section.status.value] = counts.get(section.status.value, 0) + 1
    yield ", ".join(f"{count} {status}" for status, count in counts.items())


def text_of(value: Value) -> str:
    """On one line."""
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {text_of(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
