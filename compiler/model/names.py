"""Names that nothing has yet."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """The names that are taken. Where two sets of names count together, the second begins with the first's `counts`."""

    def __init__(self, taken: Iterable[str] = (), counts: dict[str, int] | None = None) -> None:
        self._taken = set(taken)
        self.counts: dict[str, int] = {} if counts is None else counts

    def __contains__(self, name: str) -> bool:
        return name in self._taken

    def add(self, name: str) -> None:
        """Take a name, whether or not something has it."""
        self._taken.add(name)

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet, `hint` itself where it is free; then it is taken."""
        name, count = hint, self.counts.get(hint, 1)
        while name in self._taken:
            name, count = f"{hint}_{count}", count + 1
        self.counts[hint] = count  # the next search starts here, or many names of one hint would take quadratic time
        self._taken.add(name)
        return name
