"""Sphinx extension: from a docstring to the paper and to the book's equation.

A docstring says where its formula stands: `Source: arXiv:2305.18290, Eq. 7. Book: eq-dpo-loss.` On the API
page the arXiv number becomes a link to the paper and the label a link to the numbered equation; a label no
chapter defines is a Sphinx warning, hence a failed build. (Chapters link back with {py:func}.)
"""

import re
from collections.abc import Iterator

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import autodoc

ARXIV = re.compile(r"(?<![\w/`])arXiv:(\d{4}\.\d{4,5})")
BOOK = re.compile(r"\bBook: (eq-[\w-]+(?:, eq-[\w-]+)*)")


def prose(lines: list[str]) -> Iterator[int]:
    """Indices of the lines outside literal blocks (a line ending in `::` opens one, less indent closes it)."""
    opened = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if opened is not None and line.strip() and indent <= opened:
            opened = None
        if opened is None:
            yield i
            if line.rstrip().endswith("::"):
                opened = indent


def link_sources(app: Sphinx, what, name, obj, options, lines: list[str]) -> None:
    for i in prose(lines):
        # |y| is a length here, not reStructuredText's substitution.
        line = lines[i].replace("|", r"\|")
        line = ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", line)
        lines[i] = BOOK.sub(link_equations, line)


def link_equations(book: re.Match) -> str:
    return "Book: equation " + ", ".join(f":eq:`{label}`" for label in book[1].split(", "))


def keep_plain(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """Backticks in a docstring (default role py:obj) link where there is a target and are code elsewhere."""
    return contnode if node.get("reftype") == "obj" else None


def setup(app: Sphinx) -> dict:
    # A widget's signature is its __init__'s; autodoc would show the one that traitlets gives every widget.
    autodoc._CLASS_NEW_BLACKLIST.append("traitlets.traitlets.HasDescriptors.__new__")
    after_napoleon = 900
    app.connect("autodoc-process-docstring", link_sources, priority=after_napoleon)
    app.connect("missing-reference", keep_plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
