"""KL over the share that is computed, and over what that gains."""

from pathlib import Path
from typing import Any

from bench.approx.cases import AT_EACH_RATIO, Method
from bench.approx.results import ApproxResult
from bench.approx.summary import CaseSummary, SetSummary
from bench.figures import DPI, new_figure


def plot_approx(result: ApproxResult, path: Path) -> Path:
    """Two panels a set of items: mean KL over the tokens computed, and over the speedup of TTFT."""
    figure = new_figure(2 * len(result.sets))
    panels = figure.subplots(1, 2 * len(result.sets), squeeze=False)[0]
    for index, each in enumerate(result.sets):
        _curves(panels[2 * index], each, is_speed=False)
        _curves(panels[2 * index + 1], each, is_speed=True)
    figure.savefig(path, dpi=DPI)
    return path


def _curves(axes: Any, result: SetSummary, *, is_speed: bool) -> None:
    by_method = {method: [case for case in result.cases if case.method is method] for method in Method}
    for method in (Method.POSITION, *AT_EACH_RATIO):
        cases = by_method[method]
        kl = [case.kl_mean for case in cases]
        errors = [[each.value - each.low for each in kl], [each.high - each.value for each in kl]]
        places = [_place(case, is_speed) for case in cases]
        axes.errorbar(places, [each.value for each in kl], yerr=errors, marker="o", capsize=3, label=str(method))
    for floor in by_method[Method.FLOOR]:
        axes.axhline(floor.kl_mean.value, linestyle="--", color="grey", label=str(Method.FLOOR))
    axes.set(xlabel="full TTFT over its" if is_speed else "tokens computed, %", ylabel="mean KL, nats", yscale="log")
    axes.set_title(result.name)
    axes.legend()


def _place(case: CaseSummary, is_speed: bool) -> float:
    return case.speedup.value if is_speed else 100 * case.computed_share
