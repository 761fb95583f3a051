"""The project's pages as its tests read them: sections, tables, examples, links, command lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Page", "slug", "source_files"]

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)(?: ([\w-]+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text()

    @cached_property
    def prose(self) -> str:
        """All of it without its code blocks."""
        return _FENCE.sub("", self.text)

    def examples(self) -> dict[str, str]:
        """Code blocks that have a name, without the line end in front of the closing fence."""
        return {name: code[:-1] for _, name, code in _FENCE.findall(self.text) if name}

    def blocks(self, language: str) -> list[str]:
        """Code blocks of a language that have no name."""
        return [code for found, name, code in _FENCE.findall(self.text) if found == language and not name]

    def headings(self) -> list[str]:
        """Headings, in order."""
        return [title for _, title in _HEADING.findall(self.prose)]

    def section(self, number: str) -> str:
        """Return a numbered section with all below it."""
        found = re.search(rf"^(#+) {re.escape(number)}\.? .*\n", self.text, re.MULTILINE)
        assert found is not None, f"{self} has no section {number}"
        rest = self.text[found.end() :]
        end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
        return rest if end is None else rest[: end.start()]

    def tables(self, *head: str, number: str | None = None) -> Iterator[list[list[str]]]:
        """Yield the tables whose head begins with these cells, row by row, in a section or in all of the page."""
        text = self.text if number is None else self.section(number)
        for found in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
            first, _, *rows = ([cell.strip() for cell in row[1:-1].split("|")] for row in found.splitlines())
            if first[: len(head)] == list(head):
                yield rows

    def table(self, *head: str, number: str | None = None) -> list[list[str]]:
        """Return the one such table."""
        tables = list(self.tables(*head, number=number))
        assert len(tables) == 1, f"{self} has {len(tables)} tables {head}"
        return tables[0]

    def links(self) -> list[str]:
        """Targets of its links."""
        return _LINK.findall(self.prose)


def slug(heading: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def source_files() -> Iterator[Path]:
    """Yield the program's sources."""
    yield from sorted((ROOT / "src").rglob("*.py"))


PAGES = [Page(path) for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])]
