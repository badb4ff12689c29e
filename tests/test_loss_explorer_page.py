"""The loss explorer in the rendered page: what it answers to mouse and keyboard, and what it says.

What every explorer must do (motion, phones, no scripts, speed) stands in test_laboratory_page.py.
"""

import math

import pytest
from conftest import BOOK

pytestmark = pytest.mark.browser

each_scheme = pytest.mark.parametrize("scheme", ["http", "file"])
REFERENCE = [0.35, 0.60, 0.05]
ON_THE_ROAD = -math.log(0.35 / 0.60)  # δ − m_ref, for δ = 0
STARTS = {"DPO": "0.5", "IPO": "4", "SLiC-HF": "1", "RRHF": "1"}  # pushes


@pytest.fixture
def explorer(served, new_page):
    """Opens the page and waits until the explorer stands in it."""

    def open_page(scheme: str = "http", **settings):
        page = new_page(**settings)
        page.goto(f"{served if scheme == 'http' else BOOK.as_uri() + '/'}one_view.html")
        page.wait_for_selector(".loss-explorer .lab-spoken:not(:empty)", state="attached")
        return page

    return open_page


def rows(page) -> dict[str, list[str]]:
    """The table: for each method push at the start, where it stops, the three probabilities, whether on the road."""
    found = page.locator(".loss-explorer tbody tr").all()
    return {row.locator("th").inner_text().split(",")[0]: row.locator("td").all_inner_texts() for row in found}


def policy(row: list[str]) -> list[float]:
    return [float(cell) for cell in row[2:5]]


def road(h: float) -> list[float]:
    """eq-one-road in the world of shared features: c is 1, 0 and 3."""
    weights = [p * math.exp(h * c) for p, c in zip(REFERENCE, (1, 0, 3), strict=True)]
    return [weight / sum(weights) for weight in weights]


def tell(page, contains: str) -> None:
    page.locator(".lab-spoken", has_text=contains).wait_for()


def move(page, label: str, value: float) -> None:
    """Sets a slider as a hand does."""
    page.get_by_label(label).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


@each_scheme
def test_it_recomputes_by_mouse(explorer, scheme):
    """Oracle: the ends' formulas, and eq-one-road where they are."""
    page = explorer(scheme)
    table = rows(page)
    assert {name: row[0] for name, row in table.items()} == STARTS
    assert {name: row[1] for name, row in table.items()} == {
        "DPO": "–",
        "IPO": "2.00",
        "SLiC-HF": "1.54",
        "RRHF": "0.54",
    }
    for name, h in (("IPO", 2), ("SLiC-HF", 1 + ON_THE_ROAD), ("RRHF", ON_THE_ROAD)):
        assert policy(table[name]) == pytest.approx(road(h), abs=1e-3)
    assert {row[5] for row in table.values()} == {"yes"}
    drawn = page.locator(".loss-explorer svg").evaluate_all("(all) => all.map((one) => one.innerHTML)")

    page.get_by_role("checkbox", name="CLICK").check()
    tell(page, "CLICK, α = 0.5, δ = 1: pushes with 0.5 at the start")
    assert rows(page)["CLICK"][1:] == table["SLiC-HF"][1:]
    page.get_by_role("checkbox", name="CLICK").uncheck()
    page.wait_for_function("document.querySelectorAll('.loss-explorer tbody tr').length === 4")
    assert page.locator(".loss-explorer svg").evaluate_all("(all) => all.map((one) => one.innerHTML)") == drawn

    move(page, "Wins of the chosen answer", 90)
    tell(page, "DPO, β = 1: pushes with 0.4 at the start; it stops where the margin has grown by 2.20")
    close = rows(page)
    assert [close[name][1] for name in STARTS] == ["2.20", "1.60", "1.54", "0.54"]
    assert policy(close["DPO"]) == pytest.approx(road(math.log(9)), abs=1e-3)

    page.get_by_role("button", name="one more: tokens of the rejected").click()
    tell(page, "RRHF: pushes with 0.9 at the start; after 1,000 steps")
    assert [rows(page)[name][5] for name in STARTS] == ["yes", "yes", "yes", "no"]
    page.get_by_label("Answers", exact=True).select_option("a parameter each")
    tell(page, "On the road the chosen answer rises all the way.")
    assert page.complaints == []


@each_scheme
def test_it_recomputes_by_keyboard(explorer, scheme):
    """Oracle: the formula of SLiC-HF's end for δ = 1.25; every control reached by Tab alone."""
    page = explorer(scheme)
    page.get_by_label("δ = 1 (SLiC-HF)").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("δ = 1.25 (SLiC-HF)").wait_for()
    assert rows(page)["SLiC-HF"][1] == "1.79"
    assert policy(rows(page)["SLiC-HF"]) == pytest.approx(road(1.25 + ON_THE_ROAD), abs=1e-3)
    page.get_by_label("λ = 0, likelihood of the winner").focus()
    page.keyboard.press("ArrowRight")
    tell(page, "SLiC-HF, δ = 1.25, λ = 0.1: pushes with 1 at the start; after 1,000 steps")
    assert [rows(page)[name][5] for name in STARTS] == ["yes", "yes", "no", "no"]
    page.get_by_label("tokens of the chosen", exact=True).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")  # a number counts once it is entered
    assert page.get_by_label("tokens of the chosen", exact=True).input_value() == "11"
    page.get_by_role("checkbox", name="IPO").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('.loss-explorer tbody tr').length === 3")
    assert not page.get_by_label("τ =").is_visible()

    page.get_by_label("Answers", exact=True).focus()
    reached = set()
    for _ in range(24):
        reached.add(page.evaluate("document.activeElement.id.replace(/^lab-\\d+-/, '') || document.activeElement.type"))
        page.keyboard.press("Tab")
    pair = {"features", "reference", "wins", "length0", "length1"}
    assert reached >= pair | {"checkbox", "beta", "delta", "sft_weight", "button", "step"}
    assert page.complaints == []


def test_the_slider_goes_along_the_way(explorer):
    """Oracle: at step 0 every policy is the reference."""
    page = explorer()
    page.get_by_role("slider", name="Step").focus()
    page.keyboard.press("Home")
    page.get_by_text("Probabilities at step 0,").wait_for()
    assert [policy(row) for row in rows(page).values()] == [REFERENCE] * 4
    page.keyboard.press("End")
    page.get_by_text("Probabilities at step 1,000,").wait_for()
    assert policy(rows(page)["IPO"]) == pytest.approx(road(2), abs=1e-3)


def test_a_screen_reader_is_told_what_the_runs_do(explorer):
    """Oracle: roles, names and live regions, read by hand."""
    page = explorer()
    images = page.locator(".loss-explorer svg").all()
    assert all(image.get_attribute("role") == "img" for image in images)
    loss, push, triangle = (image.get_attribute("aria-label") for image in images)
    assert "IPO 0 where the margin has grown by 2.00, SLiC-HF 0 where the margin has grown by 1.54" in loss
    assert push.startswith("Push, each on its own margin: DPO 0.0102 where the margin has grown by 4.57, IPO 0 where")
    assert triangle.startswith(
        "Triangle of policies: the reference at chosen 35.0 %, rejected 60.0 %, third 5.0 %, DPO"
    )
    spoken = page.locator(".lab-spoken[role=status]")
    assert "the chosen answer is likeliest, with 41.4 %, where the margin has grown by 0.60." in spoken.inner_text()
    page.get_by_label("Reference", exact=True).select_option("chosen likelier: .60, .30, .10")
    tell(page, "RRHF: silent at the start; it stays there; chosen 60.0 %, rejected 30.0 %, third 10.0 %.")
    assert page.get_by_label("Wins of the chosen answer").get_attribute("aria-valuetext") == "100 of 100"


def test_odd_input_leaves_it_whole(explorer):
    """Oracle: what a reader would expect: nothing lost by a slip of the finger, and words where there is no curve."""
    page = explorer()
    length = page.get_by_label("tokens of the chosen", exact=True)
    for typed, kept in (("e", "10"), ("999", "100"), ("-3", "1")):
        length.focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(typed)
        page.keyboard.press("Tab")
        assert length.input_value() == kept
    for box in page.locator(".loss-explorer input[type=checkbox]").all():
        box.uncheck()
    tell(page, "No loss is chosen: tick one.")
    assert not page.locator(".loss-explorer table").is_visible()
    assert page.locator(".loss-explorer input[type=range]:visible").count() == 1  # wins: no strength is left
    page.get_by_role("checkbox", name="SPIN").check()
    tell(page, "SPIN is DPO's function")
    assert page.complaints == []
