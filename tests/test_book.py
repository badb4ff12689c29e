"""The rendered book, as a reader's browser meets it: with no network, in both themes, on a phone."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import BOOK, ROOT

pytestmark = pytest.mark.browser

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
PHONE = 390  # px


def toc_pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *chapters]


PAGES = toc_pages()
each_page = pytest.mark.parametrize("name", PAGES)
each_theme = pytest.mark.parametrize("theme", ["light", "dark"])
each_width = pytest.mark.parametrize("width", [1200, PHONE])


def visit(page, address: str) -> None:
    """Open a page and wait until its maths is typeset and book.js has run."""
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.evaluate("window.bookReady")


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


@each_page
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_page_loads_without_complaint_or_network(name, scheme, served, new_page):
    page = new_page()
    visit(page, f"{served if scheme == 'http' else BOOK.as_uri() + '/'}{name}.html")
    assert page.complaints == []
    formulas = len(soup(BOOK / f"{name}.html").select(".math"))
    assert page.locator("mjx-container").count() >= formulas
    # A macro MathJax does not know is not an error to it: it sets the name in red.
    assert page.locator("mjx-merror, mjx-mtext[style*='color: red']").count() == 0
    assert r"\(" not in page.locator("main").inner_text()


def test_some_page_has_maths():
    assert any(soup(BOOK / f"{name}.html").select(".math") for name in PAGES)


@each_width
@each_theme
@each_page
def test_page_is_accessible(name, theme, width, served, new_page):
    page = new_page(theme=theme, width=width)
    visit(page, f"{served}{name}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [
        f"{violation['id']}: {node['html'][:150]} ({node['failureSummary'][:200]})"
        for violation in found
        if violation["impact"] in {"serious", "critical"}
        for node in violation["nodes"]
    ]
    assert serious == []


@each_page
def test_phone_scrolls_only_down_and_wide_boxes_take_the_keyboard(name, served, new_page):
    page = new_page(width=PHONE)
    visit(page, f"{served}{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    unreachable = page.evaluate("""
        [...document.querySelectorAll("main *")].filter((box) =>
            box.scrollWidth > box.clientWidth + 1 && box.checkVisibility() &&
            ["auto", "scroll"].includes(getComputedStyle(box).overflowX) && box.tabIndex < 0
        ).map((box) => box.outerHTML.slice(0, 120))""")
    assert unreachable == []


@each_page
def test_figure_has_alt_text_and_caption(name):
    article = soup(BOOK / f"{name}.html").select_one("article")
    for image in article.select("img"):
        assert image.get("alt", "").strip(), f"{image.get('src')} has no alternative text"
        assert not image["alt"].endswith(".png"), f"{image.get('src')}: a file name is no alternative text"
        figure = image.find_parent("figure")
        assert figure, f"{image.get('src')} is not in a figure"
        assert figure.select_one("figcaption").get_text(strip=True), f"{image.get('src')} has no caption"


def test_search_finds_bradley(served, new_page):
    page = new_page()
    page.goto(f"{served}search.html?q=Bradley")
    page.wait_for_selector("#search-results a[href^='bibliography.html']")
    assert page.complaints == []


def test_dark_theme_is_remembered(served, new_page):
    page = new_page()
    visit(page, f"{served}intro.html")
    seen = set()
    for _ in range(3):  # auto → light → dark, from wherever it starts
        page.locator(".theme-switch-button").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.mode"))
    assert seen == {"auto", "light", "dark"}


def documented_equations() -> list[tuple[str, str]]:
    """(anchor of a function on the API page, address of its equation) for every `Book:` link."""
    api = soup(BOOK / "api.html")
    links = []
    for function in api.select("dt.sig[id]"):
        for link in function.find_next_sibling("dd").select("p a[href*='equation-']"):
            links.append((function["id"], link["href"]))
    return links


def test_api_links_to_equations():
    functions = {function for function, _ in documented_equations()}
    assert {"dapedu.losses.dpo_loss", "dapedu.losses.ipo_loss"} <= functions


def test_equation_and_code_lead_to_each_other(served, new_page):
    page = new_page()
    for function, equation in documented_equations():
        anchor = equation.partition("#")[2]
        page.goto(f"{served}api.html#{function}")
        page.locator(f"dt[id='{function}'] + dd a[href='{equation}']").first.click()
        page.wait_for_url(f"**/{equation}")
        assert page.locator(f"[id='{anchor}']").count() == 1
        page.locator(f"article a[href='api.html#{function}']").first.click()
        page.wait_for_url(f"**/api.html#{function}")
        page.locator(f"dt[id='{function}'] a:has(.viewcode-link)").click()
        page.wait_for_url("**/_modules/dapedu/**")
        assert function.rsplit(".", 1)[1] in page.locator("main").inner_text()


def test_arxiv_numbers_lead_to_abstracts():
    dpo = soup(BOOK / "api.html").find(id="dapedu.losses.dpo_loss").find_next_sibling("dd")
    assert dpo.select("a[href='https://arxiv.org/abs/2305.18290']")


def test_every_internal_link_and_anchor_resolves():
    broken = []
    for path in BOOK.rglob("*.html"):
        for link in soup(path).select("a[href]"):
            href = link["href"]
            if re.match(r"[a-z]+:", href) or href == "#":
                continue
            file, _, anchor = href.partition("#")
            target = (path.parent / file.split("?")[0]).resolve() if file else path
            is_page = target.suffix == ".html"
            if not target.exists() or (anchor and is_page and not soup(target).find(id=anchor)):
                broken.append(f"{path.name}: {href}")
    assert broken == []
