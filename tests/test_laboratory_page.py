"""The three-response laboratory in the rendered page, by mouse, keyboard and touch-sized screen, with no network.

What every explorer must do is asked of the loss explorer too.
"""

import functools
import re

import pytest
from conftest import BOOK

pytestmark = pytest.mark.browser

each_scheme = pytest.mark.parametrize("scheme", ["http", "file"])


each_explorer = pytest.mark.parametrize(
    ("name", "last"), [("laboratory", "18,000"), ("one_view", "1,000")], ids=["laboratory", "losses"]
)


@pytest.fixture
def explorer(served, new_page):
    """Opens a chapter and waits until its explorer stands in it."""

    def open_page(name: str, scheme: str = "http", **settings):
        page = new_page(**settings)
        page.goto(f"{served if scheme == 'http' else BOOK.as_uri() + '/'}{name}.html")
        page.wait_for_selector(".laboratory .lab-spoken:not(:empty)", state="attached")
        return page

    return open_page


@pytest.fixture
def laboratory(explorer):
    return functools.partial(explorer, "laboratory")


def probabilities(page) -> list[list[float]]:
    """The table under the curves: DPO, its limit, IPO, its limit; None where the data leave a limit open."""
    rows = page.locator(".laboratory tbody tr").all()
    cells = [row.locator("td").all_inner_texts() for row in rows]
    return [[None if cell == "open" else float(cell) for cell in row] for row in cells]


def verdict(page, contains: str) -> None:
    page.locator(".lab-verdict", has_text=contains).wait_for()


@each_scheme
def test_it_recomputes_by_mouse(laboratory, scheme):
    """Oracle: the closed forms on D1 and on D1 with c ≻ a, as the page's own cell prints them."""
    page = laboratory(scheme)
    assert probabilities(page) == [[1, 0, 0], [1, 0, 0], [0.563, 0.289, 0.148], [0.563, 0.289, 0.148]]
    verdict(page, "none for DPO")
    drawn = page.locator(".lab-curves").inner_html()

    page.get_by_role("button", name="one more: c beats a").click()
    verdict(page, "every win lies on a cycle of wins. It is the only one.")
    assert probabilities(page)[0] == pytest.approx([0.618, 0.267, 0.115], abs=1e-3)
    assert page.locator(".lab-curves").inner_html() != drawn
    assert page.locator(".lab-arrow.lab-stray").count() == 0

    page.get_by_role("button", name="one less: c beats a").click()
    verdict(page, "none for DPO")
    assert page.locator(".lab-curves").inner_html() == drawn

    page.get_by_label("Start from").select_option("D3 as meant")
    verdict(page, "The level between {a} and {c} is left open")
    assert probabilities(page)[1] == [None, 0, None]
    assert page.complaints == []


@each_scheme
def test_it_recomputes_by_keyboard(laboratory, scheme):
    """Oracle: as above; IPO on D1 at τ = 2^(1/4)/2 from its closed form; every control reached by Tab alone."""
    page = laboratory(scheme)
    page.get_by_label("c beats a", exact=True).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")  # a number counts once it is entered
    verdict(page, "every win lies on a cycle of wins. It is the only one.")
    page.get_by_label("c beats a", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    verdict(page, "none for DPO")

    strength = page.get_by_label("Strength: β = 0.5, τ = 0.5")
    strength.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Strength: β = 0.59, τ = 0.59").wait_for()
    assert probabilities(page)[2] == pytest.approx([0.527, 0.301, 0.172], abs=1e-3)
    page.get_by_label("IPO's strength").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_text("Strength: β = 0.59, τ = 0.15").wait_for()
    page.get_by_role("checkbox", name="IPO").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('.laboratory tbody tr').length === 2")

    page.get_by_label("Start from").focus()
    reached = set()
    for _ in range(30):
        reached.add(page.evaluate("document.activeElement.id.replace(/^lab-\\d+-/, '') || document.activeElement.type"))
        page.keyboard.press("Tab")
    controls = {"preset", "01", "10", "12", "21", "02", "20", "checkbox", "strength", "matched", "reference", "button"}
    assert reached >= controls | {"step"}
    assert page.complaints == []


def test_the_slider_goes_through_the_training(laboratory):
    """Oracle: at step 0 every policy is the reference."""
    page = laboratory()
    step = page.get_by_role("slider", name="Step")
    step.focus()
    page.keyboard.press("Home")
    page.get_by_text("Probabilities at step 0", exact=True).wait_for()
    assert probabilities(page)[::2] == [[0.333] * 3] * 2
    page.keyboard.press("End")
    page.get_by_text("Probabilities at step 18,000").wait_for()
    assert probabilities(page)[0] == [1, 0, 0]


@each_explorer
def test_play_runs_the_curves_and_reduced_motion_does_not(explorer, name, last):
    """Oracle: with motion the table passes through steps in between; without it never leaves the last one."""
    shown = """() => new Promise((resolve) => {
        const shown = () => document.querySelector(".laboratory caption").textContent;
        const seen = [], caption = () => shown().match(/step ([0-9,]*[0-9])/)[1];
        const watch = setInterval(() => seen.at(-1) !== caption() && seen.push(caption()), 10);
        document.querySelector(".lab-play").click();
        const isDone = () => document.querySelector(".lab-play").textContent === "Play";
        const end = setInterval(() => {
            if (isDone()) { clearInterval(watch); clearInterval(end); resolve([...seen, caption()]); }
        }, 100);
    })"""
    moving = explorer(name, motion=True).evaluate(shown)
    assert len(set(moving)) > 10
    assert moving[-1] == last
    assert set(explorer(name, motion=False).evaluate(shown)) == {last}


def test_a_screen_reader_is_told_what_the_curves_do(laboratory):
    """Oracle: roles, names and live regions, read by hand."""
    page = laboratory()
    pictures = [image.get_attribute("aria-label") for image in page.locator(".laboratory svg").all()]
    assert pictures[0] == "Win graph: a beats b once, a beats c once and b beats c once."
    assert pictures[2] == "DPO: a 100.0 %, b under 0.1 %, c under 0.1 % at step 18,000."
    assert all(image.get_attribute("role") == "img" for image in page.locator(".laboratory svg").all())
    spoken = page.locator(".lab-spoken[role=status]")
    assert "IPO, τ = 0.5: a rises, b falls, c falls" in spoken.inner_text()
    page.get_by_role("button", name="one more: b beats a").click()
    page.locator(".lab-spoken[role=status]", has_text=re.compile("IPO.*a 4")).wait_for()


@pytest.mark.parametrize(
    ("name", "figure", "shows"),
    [
        ("laboratory", "#fig-laboratory", "DPO's path runs to the corner"),
        ("one_view", "#fig-loss-explorer", "IPO is a parabola with its lowest point at 2"),
    ],
)
def test_the_still_picture_stands_in_only_where_scripts_are_off(explorer, served, new_page, name, figure, shows):
    assert not explorer(name).locator(figure).is_visible()
    still = new_page(scripts=False)
    still.goto(f"{served}{name}.html")
    picture = still.locator(f"{figure} img")
    assert picture.is_visible()
    assert shows in picture.get_attribute("alt")
    assert still.locator(".laboratory").count() == 0


@each_explorer
def test_it_fits_a_phone_and_fingers(explorer, name, last):
    """Oracle: no sideways scrolling; buttons at least 24 px wide and high, what WCAG 2.2 asks for."""
    page = explorer(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator(".laboratory button").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24


@pytest.mark.parametrize(
    ("name", "slider", "values"),
    [("laboratory", "strength", [-4, 2, 0.5]), ("one_view", "delta", [0, 5, 0.5])],
)
def test_an_answer_takes_less_than_200_ms(explorer, name, slider, values):
    """Oracle: a clock. On two idle cores a change takes some 20 ms."""
    page = explorer(name)
    for box in page.locator(".laboratory input[type=checkbox]").all():
        box.check()
    seconds = page.evaluate(
        """async ([name, [first, last, by]]) => {
        const slider = document.querySelector(`.laboratory input[id$=${name}]`), times = [];
        for (let value = first; value <= last; value += by) {
            const start = performance.now();
            slider.value = value;
            slider.dispatchEvent(new Event("input", {bubbles: true}));
            await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[Math.floor(times.length / 2)] / 1000;
    }""",
        [slider, values],
    )
    print(f"{name}: {1000 * seconds:.0f} ms from input to picture")
    assert seconds < 0.2


def test_odd_input_leaves_it_whole(laboratory):
    """Oracle: what a reader would expect: nothing lost by a slip of the finger, and words where there is no curve."""
    page = laboratory()
    field = page.get_by_label("a beats b", exact=True)
    field.focus()
    page.keyboard.type("e")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('.laboratory input[type=number]').value === '1'")
    field.fill("99")
    page.keyboard.press("Tab")
    page.locator("svg[aria-label*='a beats b 20 times']").wait_for()
    for name in ("DPO", "IPO"):
        page.get_by_role("checkbox", name=name).uncheck()
    page.locator(".lab-spoken", has_text="No loss is chosen: tick DPO or IPO.").wait_for()
    assert not page.locator(".laboratory table").is_visible()
    page.get_by_role("checkbox", name="DPO").check()
    for field in page.locator(".laboratory input[type=number]").all():
        field.fill("0")
        page.keyboard.press("Tab")
    verdict(page, "No comparisons: nothing to learn")
    assert probabilities(page) == [[0.333] * 3] * 2
    assert page.complaints == []


def test_a_drag_while_it_plays_goes_where_the_hand_goes(laboratory):
    """Oracle: the step under the hand; the run stops there."""
    page = laboratory(motion=True)
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.wait_for_function("Number(document.querySelector('.laboratory input[id$=step]').value) > 5")
    page.get_by_role("slider", name="Step").focus()
    page.keyboard.press("Home")
    page.get_by_text("Probabilities at step 0", exact=True).wait_for()
    page.wait_for_timeout(300)
    assert page.get_by_text("Probabilities at step 0", exact=True).is_visible()
    assert page.get_by_role("button", name="Play").is_visible()
