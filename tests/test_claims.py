"""The registry of claims: each verdict follows from its numbers, and from every one of them."""

import json
import math
import re
import string
from pathlib import Path

import pytest

from dapedu import experiments
from dapedu.claims import CLAIMS, Claim, Verdict, select

BOOK = Path(__file__).parents[1] / "book"
TESTED = [claim for claim in CLAIMS.values() if claim.evidence]
NUMBERS = [(claim, name) for claim in TESTED for name in claim.stored_numbers()]


def sources(notebook: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf8"))["cells"])


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
    shown: list[str] = []
    for notebook in BOOK.glob("*.ipynb"):
        for call in re.findall(r"claims\.select\((.*?)\)", sources(notebook), flags=re.DOTALL):
            shown += re.findall(r'"([\w-]+)"', call)
    assert sorted(shown) == sorted(CLAIMS)


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
