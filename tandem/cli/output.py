"""Where commands print."""

from rich.console import Console


def new_console() -> Console:
    """Standard output; what is printed stands as it is, whatever brackets it holds, and is not cut or wrapped."""
    return Console(markup=False, highlight=False, soft_wrap=True)
