"""Documents and files that somebody, or a disk, has changed."""

from __future__ import annotations

import copy

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([-(2**63), 2**31, 2**63, 2**70]),
    st.floats(),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw, document):
    """A JSON document with one to three changes at places drawn at random."""
    holder = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, holder, 0)
    return holder[0]


def _change(draw, parent, key):
    value = parent[key]
    keys = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(len(value)))
    if keys and draw(st.integers(0, 4)):  # most changes lie deep
        _change(draw, value, draw(st.sampled_from(keys)))
        return
    how = draw(st.sampled_from(["junk", "nudge", "remove", "copy"]))
    if how == "nudge" and type(value) is int:
        parent[key] = value + draw(st.sampled_from([-1, 1, 7]))
    elif how == "remove" and keys:
        del value[draw(st.sampled_from(keys))]
    elif how == "copy" and isinstance(value, list) and value:
        value.append(copy.deepcopy(value[0]))
    else:
        parent[key] = draw(JUNK)


@st.composite
def damaged(draw, data: bytes):
    """Bytes cut off, flipped, overwritten, or with others in between."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        if draw(st.booleans()):  # parquet keeps what decides at the end
            at = max(0, len(found) - 1 - at % 600)
        how = draw(st.sampled_from(["cut", "flip", "write", "insert", "drop"]))
        if how == "cut":
            del found[at:]
        elif how == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "write":
            text = draw(st.binary(min_size=1, max_size=8))
            found[at : at + len(text)] = text
        elif how == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            del found[at : at + draw(st.integers(1, 40))]
    return bytes(found)
