"""Questions of MuSiQue (Trivedi et al. 2022), as CacheBlend's repository samples them."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from bench.approx.item import Text
from tandem.errors import ConfigError

INSTRUCTION = "Answer the question from the passages. Give only the answer.\n\n"
NUM_CHOICES = 4


def read_musique(path: Path, num_items: int, num_passages: int, seed: int) -> list[Text]:
    """Drawn questions, each with the passages that name its answer (half of them at most) and others, in drawn order.

    ConfigError: no such file, or another content.
    """
    try:
        questions = json.loads(path.read_bytes())
        usable = [entry for entry in questions if entry["ctxs"] and entry["answers"]]
    except OSError as error:
        raise ConfigError("musique", f"{path}: {error.strerror}; pass CacheBlend's musique JSON file") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError("musique", f"{path} is not a list of questions with ctxs and answers: {error}") from error
    random = Random(seed)  # noqa: S311 - a sample, not a secret
    drawn = random.sample(usable, min(num_items, len(usable)))
    return [_text(entry, usable, num_passages, random) for entry in drawn]


def _text(entry: dict[str, Any], others: Sequence[dict[str, Any]], num_passages: int, random: Random) -> Text:
    answer = entry["answers"][0]
    wrong = sorted({other["answers"][0] for other in others} - set(entry["answers"]))
    choices = [answer, *random.sample(wrong, min(NUM_CHOICES - 1, len(wrong)))]
    return Text(
        name=entry["question"],
        instruction=INSTRUCTION,
        documents=tuple(f"{text}\n\n" for text in _passages(entry, answer, num_passages, random)),
        question=f"Question: {entry['question']}\nAnswer:",
        choices=tuple(f" {choice}" for choice in choices),
    )


def _passages(entry: dict[str, Any], answer: str, num_passages: int, random: Random) -> list[str]:
    texts = [passage["text"] for passage in entry["ctxs"]]
    telling = [text for text in texts if answer.lower() in text.lower()][: max(1, num_passages // 2)]
    chosen = [*telling, *(text for text in texts if text not in telling)][:num_passages]
    random.shuffle(chosen)
    return chosen
