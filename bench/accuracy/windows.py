"""What the models are asked to continue: windows of equally many tokens, read from a text or written by the model."""

from collections.abc import Callable, Sequence

import torch

from bench.accuracy.model import TextModel
from tandem.errors import ConfigError

Window = list[int]


def cut(token_ids: Sequence[int], num_windows: int, window_tokens: int) -> list[Window]:
    """Windows one after another from the start. ConfigError: the text is too short for one."""
    windows = [
        list(token_ids[start : start + window_tokens])
        for start in range(0, len(token_ids) - window_tokens + 1, window_tokens)
    ]
    if not windows:
        raise ConfigError("text", f"it has {len(token_ids)} tokens; a window has {window_tokens}")
    return windows[:num_windows]


def write(
    model: TextModel, first_token: int, num_windows: int, window_tokens: int, advance: Callable[[], None]
) -> list[Window]:
    """Drawn from the model's own distribution, all windows at once, from `first_token` on. The seed is fixed."""
    generator = torch.Generator().manual_seed(0)
    windows = [[first_token] for _ in range(num_windows)]
    for position in range(window_tokens - 1):
        logits = model.logits([window[-1:] for window in windows], position)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten().tolist()
        for window, token in zip(windows, drawn, strict=True):
            window.append(token)
        advance()
    return windows
