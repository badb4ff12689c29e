"""The claims page in a browser: its filter by mouse, keyboard and address, on a phone, and without scripts."""

import re

import pytest
from bs4 import BeautifulSoup
from conftest import BOOK

pytestmark = pytest.mark.browser

each_scheme = pytest.mark.parametrize("scheme", ["http", "file"])
LIST = "[data-claim-filter]"


@pytest.fixture(scope="module")
def entries() -> list:
    """The page's entries as they stand in its file: the oracle of what a choice should leave."""
    text = (BOOK / "claims.html").read_text(encoding="utf8")
    return BeautifulSoup(text, "html.parser").select(f"{LIST} .claim")


@pytest.fixture
def claims_page(served, new_page):
    """Opens the page, at an address if one is given, and waits for the filter."""

    def open_page(scheme: str = "http", address: str = "", **settings):
        page = new_page(**settings)
        page.goto(f"{served if scheme == 'http' else BOOK.as_uri() + '/'}claims.html{address}")
        page.wait_for_selector(".claim-filter")
        return page

    return open_page


def shown(page) -> list[str]:
    visible = f"[...document.querySelectorAll('{LIST} .claim')].filter((claim) => claim.checkVisibility())"
    return page.evaluate(f"{visible}.map((claim) => claim.id)")


def wanted(entries, test) -> list[str]:
    found = [entry["id"] for entry in entries if test(entry)]
    assert 0 < len(found) < len(entries)
    return found


def has_verdict(entry, *names: str) -> bool:
    return entry.select_one("[data-verdict]")["data-verdict"] in names


def status(page) -> str:
    return page.locator(".claim-filter [role=status]").inner_text()


@each_scheme
def test_it_filters_by_mouse(claims_page, entries, scheme):
    page = claims_page(scheme)
    everything = [entry["id"] for entry in entries]
    assert shown(page) == everything
    assert status(page) == f"{len(entries)} of {len(entries)} claims shown"

    failing = wanted(entries, lambda entry: has_verdict(entry, "fails"))
    page.get_by_role("checkbox", name=f"does not hold here ({len(failing)})").check()
    assert shown(page) == failing
    page.get_by_role("checkbox", name=re.compile(r"cannot be tested here \(\d+\)")).check()
    assert shown(page) == wanted(entries, lambda entry: has_verdict(entry, "fails", "untested"))

    page.get_by_label("Said by").select_option("source")
    both = wanted(entries, lambda entry: has_verdict(entry, "fails", "untested") and "source" in entry["data-said"])
    assert shown(page) == both
    assert status(page) == f"{len(both)} of {len(entries)} claims shown"

    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("location.hash === ''")
    assert shown(page) == everything
    page.get_by_role("checkbox", name=re.compile("slips only")).check()
    assert shown(page) == wanted(entries, lambda entry: entry.select_one(".slip"))
    assert page.complaints == []


def test_it_filters_by_chapter_paper_and_words(claims_page, entries):
    page = claims_page()
    page.get_by_label("Chapter").select_option("rrhf")
    assert shown(page) == wanted(entries, lambda entry: entry.get("data-chapter") == "rrhf")
    page.get_by_label("Said by").select_option("2304.05302")
    rrhf = wanted(entries, lambda entry: "2304.05302" in entry["data-said"] and entry.get("data-chapter") == "rrhf")
    assert shown(page) == rrhf
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("location.hash === ''")
    page.get_by_label("Words").fill("  TEMPERATURE win")
    text = {entry["id"]: entry.get_text().lower() for entry in entries}
    assert shown(page) == wanted(entries, lambda e: "temperature" in text[e["id"]] and "win" in text[e["id"]])
    page.get_by_label("Words").fill("no claim says this")
    assert shown(page) == []
    assert status(page) == f"0 of {len(entries)} claims shown"


def test_it_filters_by_keyboard(claims_page, entries):
    """Oracle: every control is reached by Tab in its order, and works with the keys that belong to it."""
    page = claims_page()
    page.get_by_role("checkbox", name=re.compile(r"^holds \(")).focus()
    reached = []
    for _ in range(9):
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.type"))
        page.keyboard.press("Tab")
    assert reached == [*["verdict"] * 4, "said", "chapter", "words", "slips", "reset"]

    page.get_by_role("checkbox", name=re.compile(r"^holds \(")).focus()
    page.keyboard.press("Space")
    assert shown(page) == wanted(entries, lambda entry: has_verdict(entry, "holds"))
    page.get_by_label("Said by").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("location.hash.includes('said=source')")
    assert shown(page) == wanted(entries, lambda e: has_verdict(e, "holds") and "source" in e["data-said"])
    page.get_by_label("Words").focus()
    page.keyboard.type("optimum")
    page.keyboard.press("Enter")  # submits nothing
    assert "words=optimum" in page.evaluate("location.hash")
    assert shown(page) == wanted(
        entries,
        lambda e: has_verdict(e, "holds") and "source" in e["data-said"] and "optimum" in e.get_text().lower(),
    )


@each_scheme
def test_the_address_keeps_what_is_chosen(claims_page, entries, scheme):
    """Oracle: the addresses that the page's text gives as examples; another page opened at what one has written."""
    page = claims_page(scheme, "#verdict=fails")
    failing = wanted(entries, lambda entry: has_verdict(entry, "fails"))
    assert shown(page) == failing
    assert page.get_by_role("checkbox", name="does not hold here").is_checked()
    page.get_by_label("Words").fill("π(c) 95 %")
    again = claims_page(scheme, page.evaluate("location.hash"))
    assert again.get_by_label("Words").input_value() == "π(c) 95 %"
    assert shown(again) == wanted(
        entries, lambda e: has_verdict(e, "fails") and all(word in e.get_text().lower() for word in ("π(c)", "95", "%"))
    )

    page.evaluate("location.hash = 'said=source&slips=only'")
    page.wait_for_function("document.querySelector('[name=slips]').checked")
    assert shown(page) == wanted(entries, lambda e: "source" in e["data-said"] and e.select_one(".slip"))

    page.evaluate("location.hash = 'claim-rrhf-5'")
    page.wait_for_function("!document.querySelector('[name=slips]').checked")
    assert len(shown(page)) == len(entries)
    assert page.locator("#claim-rrhf-5").bounding_box()["y"] < 900
    assert page.complaints == []


def test_a_link_leads_to_the_claim_in_its_chapter(claims_page):
    page = claims_page()
    page.locator("#claim-rrhf-5 .claim-links a").first.click()
    page.wait_for_url("**/rrhf.html#claim-rrhf-5")
    assert page.locator("#claim-rrhf-5 .verdict").is_visible()


def test_everything_is_shown_where_scripts_are_off(served, new_page, entries):
    page = new_page(scripts=False)
    page.goto(f"{served}claims.html#verdict=fails")
    assert page.locator(".claim-filter").count() == 0
    assert all(page.locator(f"#{entry['id']}").is_visible() for entry in entries)
    assert page.locator(".claim-counts tbody tr").count() == 5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_fingers(claims_page, theme):
    """Oracle: no sideways scrolling; controls at least 24 px high, what WCAG 2.2 asks for, a box's by its label."""
    page = claims_page(width=390, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in page.locator(".claim-filter :is(label:has([type=checkbox]), select, [type=search], button)").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24
        assert box["x"] + box["width"] <= 390
