"""Labeled facts on the terminal: a dim label, then text that wraps under itself and leaves no trailing blanks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_NARROWEST: Final = 24  # columns that text gets even where the terminal is absurdly narrow


class Facts:
    """Prints rows of a label and its lines, all labels in one column.

    Everything is given as `Text`, never as markup: a tensor named `[red]` shows as that.
    """

    def __init__(self, console: Console, *, indent: int = 2, label: int = 13) -> None:
        self.console = console
        self._indent = indent
        self._label = label

    def row(self, label: str, *lines: Text | str, style: str = "dim", wrap: bool = True) -> None:
        """A label and the lines beside it; a line that starts with blanks keeps them as its hanging indent."""
        from rich.text import Text

        head = Text(label.ljust(self._label), style=style)
        for line in lines:
            content = Text(line) if isinstance(line, str) else line
            depth = len(content.plain) - len(content.plain.lstrip(" "))
            width = max(self.console.width - self._indent - self._label - depth, _NARROWEST)
            body = content[depth:]
            for part in body.wrap(self.console, width, overflow="fold") if wrap else [body]:
                part.rstrip()
                start = Text(" " * self._indent) + head + Text(" " * depth)
                self.console.print(start + part, soft_wrap=True)
                head = Text(" " * self._label)
