"""Questions whose answer needs what two documents say together, made from a seed.

*alias*: one document says under which number a ship is entered, another what that number carries. *override*: one says
where a council meets, a later one that this place has been replaced by another. *order*: the documents say where a
traveller was, their order says where last.
"""

from collections.abc import Callable, Mapping
from random import Random

from bench.approx.item import Text

INSTRUCTION = "These are the records of an archive. Read them, then answer the question.\n\n"
NUM_DOCUMENTS = 5
NUM_CHOICES = 4
NUM_FILLERS = 8  # sentences of a document that have nothing to do with the question
SHIPS = ("Marigold", "Falcon", "Aurora", "Heron", "Juniper", "Swallow", "Comet", "Harvest")
NUMBERS = ("two", "three", "five", "six", "seven", "nine", "ten", "twelve")
CARGOES = ("copper", "salt", "wool", "timber", "sugar", "glass", "coal", "wheat")
COUNCILS = ("Velden", "Marlow", "Aston", "Corby", "Denham", "Eastry", "Farley", "Garston")
PLACES = ("red hall", "stone house", "old mill", "green room", "north tower", "harbour inn", "market", "chapel")
TOWNS = ("Oslo", "Lisbon", "Vienna", "Cairo", "Prague", "Dublin", "Athens", "Warsaw")
TRADES = ("weavers", "printers", "bakers", "clockmakers", "farmers", "masons", "sailors", "teachers")

Facts = tuple[dict[int, str], str, tuple[str, ...]]
"""By document: its sentence; the question; the choices, the right one first."""


def synthetic(num_items: int, seed: int) -> list[Text]:
    """The kinds in turn."""
    random = Random(seed)  # noqa: S311 - a sample, not a secret
    kinds = list(_KINDS.items())
    return [_text(f"{kinds[n % len(kinds)][0]} {n}", kinds[n % len(kinds)][1], random) for n in range(num_items)]


def _text(name: str, facts: Callable[[Random], Facts], random: Random) -> Text:
    sentences, question, choices = facts(random)
    documents = tuple(_document(number, sentences.get(number), random) for number in range(NUM_DOCUMENTS))
    return Text(name, INSTRUCTION, documents, question, tuple(f" {choice}" for choice in choices))


def _document(number: int, sentence: str | None, random: Random) -> str:
    lines = [_filler(random) for _ in range(NUM_FILLERS)]
    if sentence is not None:
        lines.insert(random.randrange(2, NUM_FILLERS), sentence)
    return f"Record {number + 1}.\n{' '.join(lines)}\n\n"


def _filler(random: Random) -> str:
    year, count = random.randrange(1700, 1950), random.randrange(11, 400)
    trade = random.choice(TRADES)
    return random.choice(
        (
            f"In {year} the {trade} of the province sent {count} letters to the governor about the price of bread.",
            f"The library bought {count} books from the {trade} after the flood of {year}.",
            f"A painting of the {trade}, made in {year}, was lent to the museum for {count} days.",
            f"The {trade} opened a school with {count} pupils in the winter of {year}.",
        )
    )


def _alias(random: Random) -> Facts:
    ships, numbers, cargoes = (random.sample(names, NUM_CHOICES) for names in (SHIPS, NUMBERS, CARGOES))
    names, loads = random.sample(range(NUM_DOCUMENTS), 2)
    entered = " ".join(f"The ship {ship} is entered as vessel {n}." for ship, n in zip(ships, numbers, strict=True))
    pairs = random.sample(list(zip(numbers, cargoes, strict=True)), NUM_CHOICES)
    carried = " ".join(f"Vessel {number} carries {cargo}." for number, cargo in pairs)
    asked = random.randrange(NUM_CHOICES)
    question = f"Question: What does the ship {ships[asked]} carry?\nAnswer: The ship {ships[asked]} carries"
    return {names: entered, loads: carried}, question, _first(cargoes, asked)


def _override(random: Random) -> Facts:
    council, places = random.choice(COUNCILS), random.sample(PLACES, NUM_CHOICES)
    said, replaced = sorted(random.sample(range(NUM_DOCUMENTS), 2))
    facts = {
        said: f"The council of {council} meets in the {places[1]}, not in the {places[2]} nor in the {places[3]}.",
        replaced: f"Correction: whoever met in the {places[1]} meets in the {places[0]} from now on.",
    }
    question = f"Question: Where does the council of {council} meet now?\nAnswer: It now meets in the"
    return facts, question, tuple(places)


def _order(random: Random) -> Facts:
    towns, numbers = random.sample(TOWNS, NUM_CHOICES), sorted(random.sample(range(NUM_DOCUMENTS), NUM_CHOICES))
    facts = {number: f"Then the traveller came to {town}." for number, town in zip(numbers, towns, strict=True)}
    question = "Question: Which town did the traveller come to last?\nAnswer: The last town was"
    return facts, question, _first(towns, NUM_CHOICES - 1)


def _first(names: list[str], index: int) -> tuple[str, ...]:
    return (names[index], *(name for number, name in enumerate(names) if number != index))


_KINDS: Mapping[str, Callable[[Random], Facts]] = {"alias": _alias, "override": _override, "order": _order}
