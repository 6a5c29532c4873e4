"""Bytes made from well-formed ones, for hypothesis: values of a JSON tree replaced, pieces of text cut and doubled."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

TOKENS = (
    b"null", b"true", b"NaN", b"1e999", b"-0", b"1" + b"0" * 400, b"0x" + b"f" * 5000, b'"', b"{", b"}", b"[", b"]",
    b"\0", b"\n", b"\xff", b"\xed\xa0\x80", b'"\\ud800"', b"[" * 3000, b'{"a":' * 300, b"<think>", b"</think>", b"pass",
    b"Answer: Yes", b"!!python/name:os.system", b"!!binary x", b"!!int ''", b"&a [*a]", b"*a", b"<<: *a", b"\x80\x05.",
    b"\x1b[31m", b"\xe2\x80\xae", b"<tool_call>", b"</text>", b"..",
)  # fmt: skip

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.sampled_from([10**400, -1, 2**63, 1e308, 5e-324, float("nan"), float("inf"), 0.1]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["", "\ud800", "ok", "assistant", "tool", "../x", "x" * 3000, "1.0", "__class__", "\x1b[2J", "null"]
    ),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def changed(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that are nearly one of these, or nothing like them."""
    return st.one_of(st.sampled_from(seeds).flatmap(_cut), st.sampled_from(seeds).flatmap(_regrown), st.binary())


@st.composite
def _cut(draw: st.DrawFn, seed: bytes) -> bytes:
    """Edits of bytes."""
    data = seed
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(st.sampled_from([b"", data[start:end] * 2, *TOKENS]) | st.binary(max_size=6))
        data = data[:start] + piece + data[end:]
    return data


@st.composite
def _regrown(draw: st.DrawFn, seed: bytes) -> bytes:
    """Edits of values, in JSON of one value or of one a line; other seeds are cut."""
    # A letter or word may stand before each value, as in server-sent events.
    lines = [(line[: line.find(b"{")], line[line.find(b"{") :]) for line in seed.splitlines() if b"{" in line]
    try:
        value: Any = [json.loads(text) for _, text in lines]
    except ValueError:
        value = []
    if not value:
        return draw(_cut(seed))
    heads = [head for head, _ in lines]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "remove", "double", "add"))):
            case "replace":
                holder[key] = draw(_TREES)
            case "remove":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _ if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = draw(_TREES)
    heads += [heads[-1]] * (len(value) - len(heads))
    end = b"\n\n" if heads[0].endswith(b"data: ") else b"\n"
    return b"".join(head + json.dumps(line).encode() + end for head, line in zip(heads, value, strict=False))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree, as (container, key)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
