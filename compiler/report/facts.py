"""Labeled facts and listings on the terminal: text wraps under itself and leaves no trailing blanks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_INDENT: Final = 2
_NARROWEST: Final = 24  # columns that text gets even where the terminal is absurdly narrow


class Facts:
    """Prints rows of a label and its lines, all labels in one column.

    Everything is given as `Text`, never as markup: a tensor named `[red]` shows as that.
    """

    def __init__(self, console: Console, *, label: int = 13) -> None:
        self.console = console
        self._label = label

    def row(self, label: str, *lines: Text | str, style: str = "dim", wrap: bool = True) -> None:
        """A label and the lines beside it; a line that starts with blanks keeps them as its hanging indent."""
        from rich.text import Text

        head = Text(label.ljust(self._label), style=style)
        for line in lines:
            content = Text(line) if isinstance(line, str) else line
            depth = len(content.plain) - len(content.plain.lstrip(" "))
            width = max(self.console.width - _INDENT - self._label - depth, _NARROWEST)
            body = content[depth:]
            for part in body.wrap(self.console, width, overflow="fold") if wrap else [body]:
                part.rstrip()
                start = Text(" " * _INDENT) + head + Text(" " * depth)
                self.console.print(start + part, soft_wrap=True)
                head = Text(" " * self._label)


@dataclass(frozen=True)
class Column:
    """A column of a listing: its title, and whether it holds numbers."""

    title: str
    numeric: bool = False


def listing(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Text | str]],
    *,
    apart: bool = False,
) -> None:
    """Print rows under dim titles. All columns but the last are as wide as they need; the last wraps under itself.

    A cell of the last column may have several lines: what follows the first newline is printed dim. `apart` puts a
    blank line between rows.
    """
    from rich.cells import cell_len
    from rich.text import Text

    head = [Text(column.title, style="dim") for column in columns]
    table = [head, *([Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)]
    widths = [max(cell_len(row[index].plain) for row in table) for index in range(len(columns) - 1)]
    left = _INDENT + sum(widths) + 2 * len(widths)
    for number, row in enumerate(table):
        if apart and number > 1:
            console.print()
        line = Text(" " * _INDENT)
        for cell, width, column in zip(row, widths, columns, strict=False):
            blank = Text(" " * (width - cell_len(cell.plain)))
            line += (blank + cell if column.numeric else cell + blank) + Text("  ")
        first, *more = row[-1].split("\n") or [Text("")]
        for part in more:
            part.stylize("dim")
        for text in (first, *more):
            for part in text.wrap(console, max(console.width - left, _NARROWEST), overflow="fold"):
                line += part
                line.rstrip()
                console.print(line, soft_wrap=True)
                line = Text(" " * left)
