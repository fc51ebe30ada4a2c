"""JSON made to do harm: a value of a good document, at any depth, in place of which stands another."""

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

STRANGE = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**40, -(10**40), 0.5, 1e308, math.nan, -math.inf, "", "x", [], {}]
    ),
    st.sampled_from([[[]], [-1, 2**64], {"a": {}}, "0" * 5000, "\ud800", "../x", [0] * 3000]),
    st.integers(-(2**70), 2**70),
    st.text(max_size=8),
)


def places(document: Any, most: int = 40) -> Iterator[tuple[Any, Any]]:
    """Every container in the document with each of its keys; of a long one the first few."""
    keys = list(document)[:most] if isinstance(document, dict) else range(min(len(document), most))
    for key in keys:
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key], most)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with one or two of its values replaced, left out, or taken from another place."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(list(places(result)) or [(result, "x")]))
        match draw(st.sampled_from(["replace", "replace", "leave out", "move", "nest"])):
            case "replace":
                container[key] = copy.deepcopy(draw(STRANGE))
            case "leave out":
                container.pop(key, None) if isinstance(container, dict) else container.pop(key)
            case "move":
                other, other_key = draw(st.sampled_from(list(places(result)) or [(container, key)]))
                container[key] = copy.deepcopy(other.get(other_key) if isinstance(other, dict) else other[other_key])
            case "nest":
                container[key] = [container.get(key)] if isinstance(container, dict) else [container[key]]
    return result
