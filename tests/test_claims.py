"""The registry of claims: each verdict follows from its numbers, and from every one of them."""

import json
import math
import re
import string
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from dapedu import claims, experiments
from dapedu.claims import CLAIMS, Claim, Verdict, select
from dapedu.cli import main

BOOK = Path(__file__).parents[1] / "book"
TESTED = [claim for claim in CLAIMS.values() if claim.evidence]
NUMBERS = [(claim, name) for claim in TESTED for name in claim.stored_numbers()]

# The factual sentences of the source, section by section, as they were numbered when it was first read.
SENTENCES = {"intro": 3, "slic": 7, "dpo": 9, "ipo": 10, "rrhf": 11, "click": 1, "spin": 5, "end": 2}
SLIPS = {"slic-2", "slic-5", "ipo-2", "ipo-8", "rrhf-1", "rrhf-3", "rrhf-11", "click-1"}  # found in that reading


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf8"))["cells"]


def sources(notebook: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(notebook))


def shown_in() -> dict[str, list[str]]:
    """The claims' ids by notebook."""
    return {
        notebook.stem: [
            name
            for call in re.findall(r"claims\.select\((.*?)\)", sources(notebook), flags=re.DOTALL)
            for name in re.findall(r'"([\w-]+)"', call)
        ]
        for notebook in BOOK.glob("*.ipynb")
    }


@pytest.fixture(scope="module")
def page() -> BeautifulSoup:
    return BeautifulSoup(claims.page()._repr_html_(), "html.parser")


@pytest.mark.parametrize("claim", TESTED, ids=lambda claim: claim.id)
def test_evidence_exists_and_is_what_the_code_would_store(claim):
    for name in claim.evidence:
        stored, function = experiments.load(name), experiments.EXPERIMENTS[name]
        defaults = json.loads(json.dumps(experiments.settings_of(function)))
        assert stored["settings"] == defaults, f"data/results/{name}.json is of other settings: dapedu reproduce {name}"


@pytest.mark.parametrize(("claim", "name"), NUMBERS, ids=lambda part: getattr(part, "id", part))
def test_each_number_can_turn_the_verdict(claim, name):
    numbers = claim.stored_numbers()
    value = numbers[name]
    others = (0.0, 1.0, -value, 10 * value, value / 10, value + 1, value - 1, value + 0.5, value - 0.5)
    assert any(claim.judge(numbers | {name: other}) != claim.verdict for other in others)


@pytest.mark.parametrize("claim", TESTED, ids=lambda claim: claim.id)
def test_a_number_that_is_not_finite_supports_nothing(claim):
    for name, bad in ((name, bad) for name in claim.stored_numbers() for bad in (math.nan, math.inf)):
        assert claim.judge(claim.stored_numbers() | {name: bad}) is Verdict.FAILS


@pytest.mark.parametrize("claim", TESTED, ids=lambda claim: claim.id)
def test_the_sentence_reports_exactly_the_numbers_that_decide(claim):
    reported = {field for _, field, _, _ in string.Formatter().parse(claim.measured) if field}
    assert {field for field in reported if not field.startswith("settings[")} == set(claim.stored_numbers())


@pytest.mark.parametrize("claim", TESTED, ids=lambda claim: claim.id)
def test_missing_evidence_is_an_error_that_says_what_to_do(claim, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"dapedu reproduce {claim.evidence[0]}"):
        _ = claim.verdict


def test_a_claim_without_evidence_is_untested_and_says_why():
    for claim in CLAIMS.values():
        if not claim.evidence:
            assert claim.verdict is Verdict.UNTESTED
            assert claim.remark


def test_the_four_verdicts():
    claim = Claim(
        id="x",
        claimed_by="us",
        statement="n is large",
        remark="large is above 2; above 1 under conditions",
        evidence=("nothing",),
        holds=lambda n: n["n"] > 2,
        holds_if=lambda n: n["n"] > 1,
    )
    assert [claim.judge({"n": n}) for n in (3.0, 1.5, 0.5)] == [Verdict.HOLDS, Verdict.CONDITIONAL, Verdict.FAILS]


def test_every_claim_is_shown_in_one_chapter_and_every_chapter_shows_claims_that_exist():
    assert sorted(name for names in shown_in().values() for name in names) == sorted(CLAIMS)


@pytest.mark.parametrize("notebook", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_shows_what_the_registry_says_today(notebook):
    """Oracle: the cell, run again."""
    for cell in cells(notebook):
        code = "".join(cell["source"]).removeprefix("from dapedu import claims\n\n")
        if cell["cell_type"] == "code" and code.startswith(("claims.select(", "claims.counts(", "claims.page(")):
            (output,) = cell["outputs"]
            now = eval(code)
            assert "".join(output["data"]["text/html"]) == now._repr_html_(), f"run {notebook.name} again"
            assert "".join(output["data"]["text/plain"]) == repr(now)


@pytest.mark.parametrize("sentence", [f"{part}-{n + 1}" for part, most in SENTENCES.items() for n in range(most)])
def test_every_factual_sentence_of_the_source_has_a_claim(sentence):
    """Oracle: the list; a sentence may have been split (ipo-9a, ipo-9b), and each part says that it is the source's."""
    found = [claim for name, claim in CLAIMS.items() if re.fullmatch(rf"{sentence}[a-z]?", name)]
    assert found
    assert any("the source" in claim.claimed_by for claim in found)


def test_slips_are_marked_and_corrected():
    marked = {claim.id for claim in CLAIMS.values() if claim.slip}
    assert marked >= SLIPS
    for name in marked:
        claim = CLAIMS[name]
        assert claim.slip.endswith(".")
        assert f"  A slip. {claim.slip}" in str(claim)
        entry = BeautifulSoup(select(name)._repr_html_(), "html.parser")
        assert entry.select_one(".verdict > .slip")
        assert f"A slip. {claim.slip}" in entry.get_text()
    assert all("slip" not in claim.remark for claim in CLAIMS.values())


def test_the_page_has_every_claim_with_its_links(page):
    """Oracle: the notebooks, searched here; experiments' modules; arXiv numbers, searched here."""
    entries = {entry["aria-label"].removeprefix("Claim "): entry for entry in page.select(".claim")}
    assert list(entries) == list(CLAIMS)
    chapters = {name: chapter for chapter, names in shown_in().items() for name in names}
    for name, entry in entries.items():
        claim = CLAIMS[name]
        links = [link["href"] for link in entry.select(".claim-links a")]
        papers = re.findall(r"arXiv:([\d.]+\d)", claim.claimed_by)
        assert entry["id"] == f"claim-{name}"
        assert links[0] == f"{chapters[name]}.html#claim-{name}"
        assert links[1 : len(claim.evidence) + 1] == [
            f"api.html#{experiments.EXPERIMENTS[result].__module__}.{result}" for result in claim.evidence
        ]
        assert links[len(claim.evidence) + 1 :] == [f"https://arxiv.org/abs/{number}" for number in papers]
        said = (["source"] if "the source" in claim.claimed_by else []) + papers
        assert entry["data-said"].split() == (said or ["elsewhere"])
        assert claim.statement in entry.get_text()
        assert claim.remark in entry.get_text()


def test_the_counts_are_the_registrys(page):
    """Oracle: the entries of the page, counted; and the sums."""
    table = BeautifulSoup(claims.counts()._repr_html_(), "html.parser")
    rows = {
        row.th.get_text(): [int(cell.get_text()) for cell in row.select("td")[:3]] for row in table.select("tbody tr")
    }
    for verdict in Verdict:
        entries = [entry for entry in page.select(".claim") if entry.find(attrs={"data-verdict": verdict.name.lower()})]
        source = [entry for entry in entries if "source" in entry["data-said"]]
        assert rows[str(verdict)] == [len(source), len(entries) - len(source), len(entries)]
    assert rows["all"][2] == len(CLAIMS) >= 50
    assert repr(claims.counts()).splitlines()[-1].split() == ["all", *map(str, rows["all"])]


def test_every_paper_of_a_claim_is_in_the_bibliography():
    numbers = {n for claim in CLAIMS.values() for n in re.findall(r"arXiv:([\d.]+\d)", claim.claimed_by)}
    known = re.findall(r"eprint\s*=\s*{(.+?)}", (BOOK / "references.bib").read_text(encoding="utf8"))
    assert numbers - set(known) == set()


def test_the_command_shows_one_verdict(capsys):
    """Oracle: the verdicts, one by one."""
    for verdict in Verdict:
        assert main(["claims", "--verdict", verdict.name.lower()]) == 0
        shown = re.findall(r"^([\w-]+)  \[", capsys.readouterr().out, flags=re.MULTILINE)
        assert shown == [name for name, claim in CLAIMS.items() if claim.verdict is verdict]


def test_select_names_the_unknown_id_and_the_known_ones():
    with pytest.raises(ValueError, match=r"no claim 'dpo-99'; there are bon-1, .*dpo-1, "):
        select("dpo-1", "dpo-99")
    assert [claim.id for claim in select("ipo-2", "dpo-1")] == ["ipo-2", "dpo-1"]
    assert len(select()) == len(CLAIMS)


def test_shown_in_a_notebook_with_its_verdict_and_nothing_unescaped():
    page = select("ipo-2")._repr_html_()
    assert "does not hold here" in page
    assert 'data-verdict="fails"' in page
    assert not re.search(r"&(?!\w+;|#)", page)
