"""Names that nothing has yet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.model.names import Names

HINTS = st.lists(st.sampled_from(["a", "a_1", "a_1_1", "b"]), max_size=30)


@given(HINTS, HINTS)
def test_no_name_comes_twice(taken: list[str], hints: list[str]) -> None:
    names = Names(taken)
    found = [names.fresh(hint) for hint in hints]
    assert len({*taken, *found}) == len(set(taken)) + len(hints)
    assert all(name in names and name.startswith(hint) for name, hint in zip(found, hints, strict=True))


def test_two_sets_may_count_together() -> None:
    one = Names(["x"])
    two = Names(["x"], one.counts)
    assert [one.fresh("x"), two.fresh("x"), two.fresh("y"), one.fresh("x")] == ["x_1", "x_2", "y", "x_3"]
