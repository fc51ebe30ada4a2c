"""matplotlib, where there is one."""

from typing import Any

from tandem.errors import ConfigError

DPI = 130


def new_figure(num_panels: int) -> Any:
    """With room for panels side by side. ConfigError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("bench", "plots need matplotlib: pip install 'tandem-serve[bench]'") from error
    return Figure(figsize=(5.5 * num_panels, 4.0), layout="constrained")
