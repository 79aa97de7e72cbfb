"""What went wrong, for the person at the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

EXCERPT_WIDTH = 400
"""Characters of a log's line that are shown: some programs print their whole configuration into one."""


class Problem(Exception):
    """Ends a command with an explanation instead of a traceback, and status 1.

    Args:
        headline: What is wrong, in one sentence.
        details: More lines, one fact each.
        advice: What to do about it; may be empty.
        excerpt: Lines of a log, shown as they are.
    """

    def __init__(
        self, headline: str, details: Sequence[str] = (), advice: str = "", excerpt: Sequence[str] = ()
    ) -> None:
        super().__init__(headline)
        self.headline = headline
        self.details = tuple(details)
        self.advice = advice
        self.excerpt = tuple(excerpt)

    def show(self, console: Console) -> None:
        """Prints it."""
        console.print(Text.assemble(("✗ ", "bold red"), (self.headline, "bold")), soft_wrap=True)
        for detail in self.details:
            console.print(Text(f"  {detail}"), soft_wrap=True)
        for line in self.excerpt:
            shown = line if len(line) <= EXCERPT_WIDTH else line[:EXCERPT_WIDTH] + "…"
            console.print(Text(f"  │ {shown}", style="bright_black"), soft_wrap=True)
        if self.advice:
            console.print(Text(f"  {self.advice}", style="cyan"), soft_wrap=True)
