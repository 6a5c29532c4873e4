"""Rows that share beginnings: whatever the rows, each token is read after exactly what precedes it in its own row."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fate_gym.trainers.algorithms.shared_prefixes import IGNORED, SharedPrefixes, alphabetical

Row = tuple[list[int], list[int]]
TOKEN = st.integers(1, 3)  # Few, so that rows begin alike, are equal, or are the beginning of another.
ROW = st.tuples(st.lists(TOKEN, min_size=1, max_size=6), st.lists(TOKEN, max_size=6))


def as_trl_has_them(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, int]:
    before = max(len(prompt) for prompt, _ in rows)
    after = max(1, *(len(completion) for _, completion in rows))
    ids = [[0] * (before - len(p)) + p + c + [0] * (after - len(c)) for p, c in rows]
    return torch.tensor(ids), (torch.tensor(ids) > 0).long(), after


@given(st.lists(ROW, min_size=1, max_size=6), st.booleans())
@example([([1], []), ([1], [])], True)
@example([([1, 2], [3, 1]), ([1, 2, 3], [1]), ([1], [2, 3, 1, 1])], True)
def test_each_token_is_read_after_its_own_row(rows: list[Row], share: bool) -> None:
    ids, mask, after = as_trl_has_them(rows)
    order = alphabetical(ids, mask)
    ids, mask, rows = ids[order], mask[order], [rows[index] for index in order]
    shared = SharedPrefixes.of(ids, mask, after, share=share)
    trees, width = shared.ids.shape
    attends = shared.attends
    if attends is None:
        attends = torch.ones(width, width, dtype=torch.bool).tril().expand(trees, 1, width, width)
    assert attends.any(-1).all()
    wanted = set()
    for row, (prompt, completion) in enumerate(rows):
        whole = prompt + completion
        for place, target in enumerate(completion):
            tree, token = divmod(int(shared.places[row, place]), width)
            seen = attends[tree, 0, token].nonzero().squeeze(-1)
            known = len(prompt) + place
            assert shared.ids[tree, seen].tolist() == whole[:known]
            assert shared.positions[tree, seen].tolist() == list(range(known))
            assert shared.labels[tree, token] == target
            wanted.add((tree, token))
    assert {tuple(place) for place in (shared.labels != IGNORED).nonzero().tolist()} == wanted
    values = shared.unpack(shared.labels.float())
    assert torch.equal(values, ids[:, -after:].float())


def test_equal_rows_are_one_and_rows_that_part_share_their_beginning() -> None:
    beginning, ends = [1] * 20, ([2] * 5, [2] * 5, [3] * 4)
    ids, mask, after = as_trl_has_them([(beginning, end) for end in ends])
    shared = SharedPrefixes.of(ids, mask, after, share=True)
    # The last common token is there twice, once for each token that follows it; nothing follows a row's last token.
    assert shared.ids.shape == (1, 20 + 4 + 1 + 3)
    apart = SharedPrefixes.of(ids, mask, after, share=False)
    assert apart.ids.shape == (3, 24)
    assert apart.attends is None


def test_rows_with_little_in_common_are_read_apart() -> None:
    ids, mask, after = as_trl_has_them([([1, 1], [2] * 9), ([1, 1], [3] * 5)])
    shared = SharedPrefixes.of(ids, mask, after, share=True)
    assert shared.ids.shape == (2, 10)
    assert shared.attends is None
    # As plain rows have them, padding included: then transformers sees one sequence a row.
    assert shared.positions.tolist() == [list(range(10))] * 2
