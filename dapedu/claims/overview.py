"""The claims page: all verdicts counted, every claim with its links and with what the page's filter asks for."""

from __future__ import annotations

import ast
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dapedu.claims.entry import Claim, ClaimList, Verdict, entry
from dapedu.experiments import EXPERIMENTS

BOOK = Path(__file__).parents[2] / "book"

_SOURCE, _ELSEWHERE = "source", "elsewhere"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Chapter:
    """A chapter of the book.

    Args:
        name: of its notebook, without the ending.
        title: its first heading.
    """

    name: str
    title: str


def chapters_of_claims(book: Path = BOOK) -> dict[str, Chapter]:
    """The chapter in which each claim is shown, read from the calls of `claims.select` in the notebooks.

    Args:
        book: the folder of the notebooks.

    Returns:
        Chapters by the claims' ids.
    """
    chapters: dict[str, Chapter] = {}
    for notebook in sorted(book.glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells]
        shown = [name for text in texts if "claims.select(" in text for name in _selected(text)]
        if shown:
            title = next(text for text in texts if text.startswith("# ")).splitlines()[0].removeprefix("# ")
            chapters |= dict.fromkeys(shown, Chapter(notebook.stem, title))
    return chapters


def _selected(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "select":
            yield from (str(ast.literal_eval(argument)) for argument in node.args)


def claimants(claim: Claim) -> list[str]:
    """Who makes a claim.

    Args:
        claim: which one.

    Returns:
        "source", the arXiv numbers of papers, or "elsewhere", as they are read from `claimed_by`.
    """
    source = [_SOURCE] if "the source" in claim.claimed_by else []
    return [*source, *_ARXIV.findall(claim.claimed_by)] or [_ELSEWHERE]


def paper_titles(book: Path = BOOK) -> dict[str, str]:
    """Short titles of the papers in the book's bibliography.

    Args:
        book: the folder with references.bib.

    Returns:
        Titles, up to a colon, by arXiv number.
    """
    entries = (book / "references.bib").read_text(encoding="utf8").split("\n@")
    titles = {}
    for text in entries:
        number, title = re.search(r"eprint\s*=\s*{(.+?)}", text), re.search(r"title\s*=\s*{(.+)}", text)
        if number and title:
            titles[number[1]] = re.sub("[{}]", "", title[1]).split(":")[0]
    return titles


class VerdictCounts(dict[Verdict, tuple[int, int]]):
    """How often each verdict was given: of the source's claims, and of those that only others make."""

    def __repr__(self) -> str:
        rows = [f"{'':28}source  others  all"]
        rows += [f"{name:28}{source:6}{others:8}{source + others:5}" for name, source, others in self._rows()]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = list(self._rows())
        most = max(source + others for _, source, others in rows[:-1])
        body = "".join(
            f'<tr><th scope="row">{name}</th><td>{source}</td><td>{others}</td><td>{source + others}</td>'
            f"<td>{self._bar(name, (source + others) / most)}</td></tr>"
            for name, source, others in rows
        )
        return (
            '<div class="claims"><table class="claim-counts"><thead><tr><th scope="col">Verdict</th>'
            '<th scope="col">of the source</th><th scope="col">of papers and others alone</th><th scope="col">all</th>'
            f'<th><span class="visually-hidden">as a bar</span></th></tr></thead><tbody>{body}</tbody></table></div>'
        )

    def _rows(self) -> Iterator[tuple[str, int, int]]:
        for verdict, (source, others) in self.items():
            yield str(verdict), source, others
        yield "all", sum(source for source, _ in self.values()), sum(others for _, others in self.values())

    @staticmethod
    def _bar(name: str, share: float) -> str:
        if name not in list(Verdict):
            return ""
        return f'<div data-verdict="{Verdict(name).name.lower()}" style="width: {share:.1%}"></div>'


def count(claims: Iterable[Claim]) -> VerdictCounts:
    """Count verdicts.

    Args:
        claims: whose.

    Returns:
        For each verdict, how many of the source's claims have it, and how many of the others.
    """
    found = Counter((claim.verdict, _SOURCE in claimants(claim)) for claim in claims)
    return VerdictCounts({verdict: (found[verdict, True], found[verdict, False]) for verdict in Verdict})


class ClaimPage(ClaimList):
    """Claims that a notebook shows with links to experiments, papers and chapters; the book's page filters them."""

    def _repr_html_(self) -> str:
        chapters, titles = chapters_of_claims(), paper_titles()
        said = {claim.id: claimants(claim) for claim in self}
        papers = sorted({name for names in said.values() for name in names} - {_SOURCE, _ELSEWHERE})
        labels = {
            _SOURCE: "the source",
            **{name: f"arXiv:{name}, {titles[name]}" if name in titles else f"arXiv:{name}" for name in papers},
            _ELSEWHERE: "others",
            **{chapter.name: chapter.title for claim in self if (chapter := chapters.get(claim.id))},
        }
        entries = [_linked(claim, said[claim.id], chapters.get(claim.id)) for claim in self]
        shown = html.escape(json.dumps(labels, ensure_ascii=False))
        return f'<div class="claims" data-claim-filter="{shown}">{"".join(entries)}</div>'


def _linked(claim: Claim, said: list[str], chapter: Chapter | None) -> str:
    """A claim with what the filter asks of it, and with its links."""
    attributes = f' data-said="{" ".join(said)}"' + (f' data-chapter="{chapter.name}"' if chapter else "")
    sentence = claim.report().partition(" (dapedu reproduce ")[0]
    experiments = " ".join(_experiment(name) for name in claim.evidence)
    where = f'<a href="{chapter.name}.html#claim-{claim.id}">{html.escape(chapter.title)}</a>' if chapter else ""
    papers = "".join(
        f' <a href="https://arxiv.org/abs/{name}">arXiv:{name}</a>' for name in said if _ARXIV.match(f"arXiv:{name}")
    )
    links = [
        f"Chapter: {where}." if where else "In no chapter.",
        f"Experiment: <code>dapedu reproduce {experiments}</code>." if experiments else "",
        f"Paper:{papers}." if papers else "",
    ]
    footer = f'<p class="claim-links">{" ".join(filter(None, links))}</p>'
    return entry(claim, attributes=attributes, measured=html.escape(sentence), footer=footer)


def _experiment(name: str) -> str:
    function = EXPERIMENTS[name]
    return f'<a href="api.html#{function.__module__}.{function.__qualname__}">{name}</a>'
