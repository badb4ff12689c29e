"""The loss explorer: its JavaScript against the package, its Python side, its colours and its bundle."""

import base64
import functools
import itertools
import json
import re
import subprocess
from collections.abc import Iterable
from importlib.resources import files

import numpy as np
import pytest
import torch
from conftest import NODE, ROOT
from torch import Tensor

from dapedu.bandit import fit_bradley_terry, fit_ipo
from dapedu.experiments.bandit import SHARED_FEATURES
from dapedu.explore import LossExplorer
from dapedu.explore.bundle import bundle
from dapedu.losses import click_loss, dpo_loss, ipo_loss, rrhf_loss, slic_hf_loss, spin_loss

double = functools.partial(torch.tensor, dtype=torch.float64)
METHODS = ("DPO", "IPO", "SLiC-HF", "RRHF", "CLICK", "SPIN")
WITH_LIKELIHOOD = ("SLiC-HF", "RRHF", "CLICK")
WORLDS = {"shared": SHARED_FEATURES, "free": torch.eye(3).tolist()}
REFERENCES = ([0.35, 0.60, 0.05], [0.60, 0.30, 0.10], [0.2, 0.2, 0.6])
START = {
    "features": WORLDS["shared"],
    "reference": REFERENCES[0],
    "lengths": [10, 10],
    "wins": 1.0,
    "beta": 1.0,
    "tau": 0.25,
    "delta": 1.0,
    "contrastWeight": 0.5,
    "sftWeight": 0.0,
}


def ask(questions: Iterable[dict]) -> list[dict]:
    """What the module says under node, one answer a question."""
    asked = "\n".join(json.dumps(question) for question in questions)
    command = [str(NODE), str(ROOT / "tests" / "losses.mjs")]
    told = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def settings(**choices: Iterable) -> list[dict]:
    """Every combination of these, the rest as it starts."""
    return [START | dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def package_loss(name: str, logps: Tensor, start: Tensor, setting: dict) -> Tensor:
    """The package's loss of pairs that the chosen answer wins in a share; the winner is the likelihood term's target.

    logps, start: of chosen and rejected, (2, pairs); what varies over the pairs in setting: (pairs,).
    """
    share, weight = setting["wins"], setting["sftWeight"]
    lengths = torch.as_tensor(setting["lengths"], dtype=torch.float64).reshape(2, -1).expand(2, logps.shape[1])

    def one(order: list[int]) -> Tensor:
        (chosen, rejected), (reference_chosen, reference_rejected) = logps[order], start[order]
        pair = {"policy_chosen_logps": chosen, "policy_rejected_logps": rejected}
        four = pair | {"reference_chosen_logps": reference_chosen, "reference_rejected_logps": reference_rejected}
        if name == "SLiC-HF":
            return slic_hf_loss(**pair, policy_target_logps=chosen, delta=setting["delta"], sft_weight=weight)
        if name == "RRHF":
            ranked = torch.tensor([1.0, 0.0]).expand(logps.shape[1], 2)
            two = {"candidate_logps": logps[order].T, "candidate_lengths": lengths[order].T}
            return rrhf_loss(**two, rewards=ranked, sft_weight=weight)
        if name == "CLICK":
            target = weight * chosen / lengths[order[0]]
            strengths = {"delta": setting["delta"], "contrast_weight": setting["contrastWeight"]}
            return click_loss(**pair, target_mean_logps=target, **strengths)
        if name == "IPO":
            return ipo_loss(**four, tau=setting["tau"])
        return (spin_loss if name == "SPIN" else dpo_loss)(**four, beta=setting["beta"])

    return share * one([0, 1]) + (1 - share) * one([1, 0])


def package_margin(name: str, logps: Tensor, start: Tensor, setting: dict) -> Tensor:
    lengths = torch.as_tensor(setting["lengths"], dtype=torch.float64).reshape(2, -1)
    looked_at = {"RRHF": logps / lengths, "SLiC-HF": logps, "CLICK": logps}.get(name, logps - start)
    return looked_at[0] - looked_at[1]


@pytest.mark.parametrize("name", METHODS)
def test_values_and_pushes_are_the_packages(name):
    """Oracle: the package's losses, and autograd through them to the chosen log-probability."""
    rng = np.random.default_rng(0)
    logps, start = torch.tensor(rng.uniform(-30, -0.1, (2, 2, 60)))
    grid = settings(lengths=([10, 10], [7, 30]), wins=(1.0, 0.8, 0.5), beta=(0.1, 2.0))
    for number, setting in enumerate(grid):
        setting |= {"tau": (0.05, 0.8)[number % 2], "delta": (0.0, 3.0)[number % 2], "contrastWeight": 0.3}
    pairs = {"logps": logps.T.tolist(), "start": start.T.tolist()}
    told = ask({"ask": "functions", "name": name, "setting": setting, **pairs} for setting in grid)
    for setting, answer in zip(grid, told, strict=True):
        leaf = logps.clone().requires_grad_()
        expected = package_loss(name, leaf, start, setting)
        (slope,) = torch.autograd.grad(expected.sum(), leaf)
        per_margin = setting["lengths"][0] if name == "RRHF" else 1
        for found, oracle in (("values", expected.detach()), ("pushes", -slope[0] * per_margin)):
            torch.testing.assert_close(double(answer[found]), oracle, rtol=1e-12, atol=1e-12)


def test_the_road_and_its_peak():
    """Oracle: softmax(log π_ref + h c) with c by eq-one-road, and the largest π(chosen) on a fine grid."""
    gained = torch.linspace(0, 20, 20_001, dtype=torch.float64)
    grid = settings(features=WORLDS.values(), reference=(*REFERENCES, [0.3, 0.1, 0.6], [0.05, 0.94, 0.01]))
    for setting, answer in zip(
        grid, ask({"ask": "road", "setting": setting, "gained": gained.tolist()} for setting in grid), strict=True
    ):
        features, reference = (double(setting[key]) for key in ("features", "reference"))
        difference = features[0] - features[1]
        c = features @ difference / (difference @ difference)
        expected = torch.softmax(reference.log() + gained[:, None] * c, dim=-1)
        torch.testing.assert_close(double(answer["policies"]), expected, rtol=0, atol=1e-12)
        top = gained[expected[:, 0].argmax()].item()
        if answer["peak"] == "never":
            assert setting["features"] == WORLDS["free"]
        else:
            assert answer["peak"] == pytest.approx(top, abs=1e-3)
        assert (answer["peak"] == 0) == bool(c[0] <= reference @ c)


def test_ends_are_where_the_mean_loss_is_least():
    """Oracle: fit_bradley_terry and fit_ipo of one pair; for hinges the package's mean loss on a grid, and the start
    where a whole stretch of it is least."""
    grid = settings(reference=REFERENCES, wins=(0.5, 0.51, 0.9, 1.0), beta=(0.5, 2.0), delta=(0.0, 0.5, 3.0))
    told = iter(ask({"ask": "end", "name": name, "setting": setting} for setting in grid for name in METHODS))
    gained = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    for setting, (name, answer) in ((one, (name, next(told))) for one in grid for name in METHODS):
        q = setting["wins"]
        wins = double([[0, q], [1 - q, 0]])
        if name in {"DPO", "SPIN"} and q == 1:
            assert answer["end"] is None
        elif name in {"DPO", "SPIN", "IPO"}:
            fitted = fit_ipo(wins) / setting["tau"] if name == "IPO" else fit_bradley_terry(wins) / setting["beta"]
            assert answer["end"] == pytest.approx((fitted[0] - fitted[1]).item(), abs=1e-6)
        else:
            start = double(setting["reference"][:2]).log()[:, None].expand(2, len(gained))
            loss = package_loss(name, start + torch.stack([gained / 2, -gained / 2]), start, setting)
            least = gained[loss <= loss.min() + 1e-9]
            nearest = least[least.abs().argmin()].item()
            assert answer["end"] == pytest.approx(nearest, abs=1e-3), (name, setting)


def test_what_has_no_formula_has_no_end():
    """Oracle: the list in the docstring of `end`, read by hand."""
    with_likelihood = START | {"sftWeight": 1.0}
    unequal = START | {"lengths": [10, 30]}
    asked = [("SLiC-HF", with_likelihood), ("CLICK", with_likelihood), ("RRHF", with_likelihood), ("RRHF", unequal)]
    assert [one["end"] for one in ask({"ask": "end", "name": n, "setting": s} for n, s in asked)] == [None] * 4
    others = ask({"ask": "end", "name": name, "setting": unequal} for name in ("IPO", "SLiC-HF", "CLICK"))
    assert [one["end"] for one in others] == pytest.approx([2, *[1 - np.log(0.35 / 0.6)] * 2])


# ---- gradient descent ----

RECORDS = [0, 1, 10, 60, 300]
GRID = [
    (name, setting)
    for name in METHODS
    for setting in settings(
        features=WORLDS.values(),
        reference=REFERENCES,
        sftWeight=(0.0, 1.0),
        wins=(1.0, 0.9),
        lengths=([10, 10], [10, 30]),
    )
]


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return ask({"ask": "run", "name": name, "setting": setting, "records": RECORDS} for name, setting in GRID)


def package_run(name: str, grid: list[dict]) -> Tensor:
    """The same descent by autograd through the package's losses, all settings at once; (records, settings, 3)."""
    width = max(len(setting["features"][0]) for setting in grid)
    padded = [[row + [0.0] * (width - len(row)) for row in setting["features"]] for setting in grid]
    features, reference = (double(value) for value in (padded, [one["reference"] for one in grid]))
    start = reference.log()[:, :2].T
    setting = START | {
        "wins": double([one["wins"] for one in grid]),
        "sftWeight": double([one["sftWeight"] for one in grid]),
        "lengths": torch.tensor([one["lengths"] for one in grid]).T,
    }
    bare = setting | {"sftWeight": torch.zeros(len(grid))}
    kinks = torch.tensor({"RRHF": [0.0], "SLiC-HF": [1.0, -1.0], "CLICK": [1.0, -1.0]}.get(name, []))
    theta, recorded = torch.zeros(len(grid), width, dtype=torch.float64), []

    def gradients(value: Tensor, leaf: Tensor) -> Tensor:
        return torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0]

    def push_at(margin: Tensor) -> Tensor:
        """Minus the slope of the mean loss, where a margin is this one whatever it is measured from."""
        leaf = margin.clone().requires_grad_()
        one_token = bare | {"lengths": torch.ones(2, len(grid))}
        value = package_loss(name, torch.stack([leaf, 0 * leaf]), torch.zeros(2, len(grid)).double(), one_token)
        return -gradients(value, leaf)

    for step in range(RECORDS[-1] + 1):
        leaf = theta.clone().requires_grad_()
        logps = torch.log_softmax(reference.log() + torch.einsum("syk,sk->sy", features, leaf), dim=-1)
        if step in RECORDS:
            recorded.append(logps.detach().exp())
        pair = logps.T[:2]
        margin = package_margin(name, pair, start, setting)
        of_margin, of_loss = gradients(margin, leaf), -gradients(package_loss(name, pair, start, bare), leaf)
        of_target = -gradients(package_loss(name, pair, start, setting), leaf) - of_loss
        margin = margin.detach()
        away = torch.ones_like(margin, dtype=torch.bool)
        for kink in kinks:  # within rounding of a kink either side is as right
            near = (margin - kink).abs() < 1e-9
            margin, away = torch.where(near, kink, margin), away & ~near
        here = landing = push_at(margin)
        force = here[:, None] * of_margin + of_target
        torch.testing.assert_close((force - of_target)[away], of_loss[away], rtol=0, atol=1e-12)  # eq-one-gradient
        rate = torch.minimum(double(0.1), 0.05 / force.norm(dim=1).clamp(min=1e-300))
        change, per_push = (rate * (of_margin * other).sum(dim=1) for other in (force, of_margin))
        way = change.sign()
        for kink in kinks:  # no step crosses two
            crosses = (way != 0) & (way * (kink - margin) >= 0) & (way * (margin + change - kink) >= 0)
            beyond = push_at(kink + way * 1e-9)
            needed = here + (kink - margin - change) / per_push
            held = needed.clamp(torch.minimum(here, beyond), torch.maximum(here, beyond))
            landing = torch.where(crosses, held, landing)
        theta = theta + rate[:, None] * (force + (landing - here)[:, None] * of_margin)
    return torch.stack(recorded)


def test_it_descends_as_autograd_does(runs):
    """Oracle: the same update in torch with the package's losses."""
    moved = []
    for name in METHODS:
        chosen = [index for index, (other, _) in enumerate(GRID) if other == name]
        expected = package_run(name, [GRID[index][1] for index in chosen])
        found = double([runs[index]["policies"] for index in chosen]).transpose(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        moved += (found[-1] - found[0]).abs().amax(dim=1).tolist()
    assert np.mean(np.array(moved) > 0.05) > 0.5  # so that equal does not mean idle


def test_losses_of_sums_keep_to_the_road_and_others_leave_it(runs):
    """Oracle: eq-one-road at the margin gained; eq-one-gradient says who leaves it."""
    left = {"likelihood": 0.0, "means": 0.0}
    for (name, setting), run in zip(GRID, runs, strict=True):
        off = (double(run["policies"]) - double(run["roads"])).abs().max().item()
        assert run["isOnRoad"] == (off < 1e-6)
        if name in WITH_LIKELIHOOD and setting["sftWeight"] > 0:
            left["likelihood"] = max(left["likelihood"], off)
        elif name == "RRHF" and setting["lengths"] == [10, 30]:
            left["means"] = max(left["means"], off)
        else:
            assert off < 1e-9
    assert min(left.values()) > 0.01


def test_hinges_come_to_rest_at_their_ends():
    """Oracle: the formula of the end."""
    grid = settings(features=WORLDS.values(), wins=(1.0, 0.9, 0.51), delta=(0.25, 1.0, 3.0))
    asked = [(name, setting) for setting in grid for name in WITH_LIKELIHOOD]
    ends = ask({"ask": "end", "name": name, "setting": setting} for name, setting in asked)
    stopped = ask({"ask": "run", "name": name, "setting": setting, "records": [0, 4000]} for name, setting in asked)
    assert [run["gained"][-1] for run in stopped] == pytest.approx([one["end"] for one in ends], abs=1e-9)


def test_the_likelihood_term_goes_on_when_the_hinge_is_silent():
    """Oracle: with three answers the chosen one is a corner of the features, so nothing holds it before 1."""
    grid = settings(features=WORLDS.values(), sftWeight=(0.5, 5.0), delta=(0.5, 3.0))
    for run in ask({"ask": "run", "name": "SLiC-HF", "setting": one, "records": [0, 1000, 4000]} for one in grid):
        early, late = (policy[0] for policy in run["policies"][1:])
        assert early < late
        assert "it goes on until the chosen answer has everything" in run["words"][1]


def test_the_words_say_what_the_runs_do():
    """Oracle: read by hand, beside the table and the picture."""
    cases = [
        ("SLiC-HF", {}, ["stops where the margin has grown by 1.54; chosen 22.4 %, rejected 8.2 %, third 69.4 %."]),
        ("SLiC-HF", {"reference": [0.6, 0.3, 0.1], "delta": 0.5}, ["δ = 0.5: silent at the start; it stays there"]),
        ("DPO", {}, ["DPO, β = 1: pushes with 0.5 at the start", "grown by 4.57, and it has no end"]),
        ("DPO", {"wins": 0.9, "beta": 0.0625}, ["after 1,000 steps", ", of 35.16;"]),
        (
            "IPO",
            {"tau": 0.5},
            ["IPO, τ = 0.5: pushes with 2 at the start; it stops where the margin has grown by 1.00"],
        ),
        ("RRHF", {"lengths": [10, 30]}, ["it is on its way to the tie per token", "It has left the road."]),
        ("CLICK", {"sftWeight": 1.0, "wins": 0.9}, ["CLICK, α = 0.5, δ = 1, λ = 1:", "no formula gives its end"]),
        ("SPIN", {}, ["SPIN is DPO's function; its pairs are people's text against the last iterate's own."]),
    ]
    records = [0, 1000]
    told = ask({"ask": "run", "name": n, "setting": START | values, "records": records} for n, values, _ in cases)
    for (_, _, expected), run in zip(cases, told, strict=True):
        assert all(part in run["words"][1] for part in expected), run["words"][1]
    assert told[0]["words"][0] == (
        "On the road the chosen answer is likeliest, with 41.4 %, where the margin has grown by 0.60."
    )


# ---- the Python side ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"losses": ["DPO", "PPO"]}, "losses is .*'PPO'.*, expected some of DPO, IPO, SLiC-HF, RRHF, CLICK, SPIN"),
        ({"beta": 0.0}, "beta is 0.0, expected a finite number > 0"),
        ({"tau": float("inf")}, "tau is inf, expected a finite number > 0"),
        ({"contrast_weight": -1.0}, "contrast_weight is -1.0, expected a finite number > 0"),
        ({"delta": -0.5}, "delta is -0.5, expected a finite number ≥ 0"),
        ({"sft_weight": float("nan")}, "sft_weight is nan, expected a finite number ≥ 0"),
        ({"wins": 0.4}, "wins is 0.4, expected from 0.5 to 1"),
        ({"reference": [0.5, 0.5, 0.5]}, "expected positive probabilities that sum to 1"),
        ({"lengths": [10, 0]}, r"lengths is \[10, 0\], expected two from 1 to 100"),
        ({"lengths": [10]}, r"lengths is \[10\], expected two from 1 to 100"),
        ({"features": "both"}, "features is 'both', expected shared or free"),
    ],
)
def test_the_explorer_refuses_what_makes_no_sense(values, message):
    """Oracle: the message names value and range, when made and when assigned."""
    message = f"^LossExplorer: .*{message}"
    with pytest.raises(ValueError, match=message):
        LossExplorer(**values)
    explorer = LossExplorer()
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=message):
        setattr(explorer, name, value)


def test_it_starts_where_the_tests_do():
    """Oracle: START, in the names that Python has."""
    explorer, names = LossExplorer(), {"contrastWeight": "contrast_weight", "sftWeight": "sft_weight"}
    assert {
        name: WORLDS["shared"] if name == "features" else getattr(explorer, names.get(name, name)) for name in START
    } == START
    assert (explorer.features, explorer.matrices) == ("shared", WORLDS)


# ---- the bundle and the colours ----


@pytest.mark.parametrize("name", ["laboratory", "losses"])
def test_a_bundle_is_one_module(name):
    """Oracle: node, which loads it from a data URL, where an import of a neighbour has nowhere to go."""
    url = "data:text/javascript;base64," + base64.b64encode(bundle(name).encode()).decode()
    program = f"const {{ default: widget }} = await import('{url}'); console.log(typeof widget.render);"
    run = subprocess.run([str(NODE), "--input-type=module"], input=program, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "function"


def test_a_bundle_leaves_no_import(tmp_path, monkeypatch):
    """Oracle: the two messages, for a module that imports nothing and for one that imports something else."""
    (tmp_path / "page.mjs").write_text("export const one = 1;\n")
    (tmp_path / "none.mjs").write_text("export default 1;\n")
    (tmp_path / "two.mjs").write_text('import { one } from "./page.mjs";\nimport fs from "node:fs";\n')
    monkeypatch.setattr("dapedu.explore.bundle.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=r"^bundle: none.mjs imports ./page.mjs 0 times, expected once$"):
        bundle("none")
    with pytest.raises(ValueError, match=r"^bundle: two.mjs or page.mjs has 'import' left"):
        bundle("two")


@pytest.mark.parametrize(("chapter", "name"), [("laboratory", "laboratory"), ("one_view", "losses")])
def test_a_chapter_stores_the_module_as_it_is_now(chapter, name):
    """Oracle: `bundle`; the page shows what the notebook was executed with."""
    notebook = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text(encoding="utf8"))
    stored = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    modules = [widget["state"]["_esm"] for widget in stored if "_esm" in widget["state"]]
    assert modules
    assert all(module == bundle(name) for module in modules), f"execute book/{chapter}.ipynb again"


def luminance(color: str) -> float:
    """WCAG 2.2's relative luminance of "#rrggbb"."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_line_stands_out_from_both_grounds():
    """Oracle: WCAG 2.2's contrast, at least 3, with the theme's background and surface, light and dark."""
    css = "".join(files("dapedu.explore").joinpath(f"{name}.css").read_text() for name in ("laboratory", "losses"))
    rule = re.compile(r"^(:is\(.*\) )?\.laboratory \.lab-([\w-]+) \{\s*--lab-color: (#\w{6});", re.MULTILINE)
    light, dark = (
        {name: color for is_dark, name, color in rule.findall(css) if bool(is_dark) == wanted}
        for wanted in (False, True)
    )
    assert set(light) == set(METHODS)
    for colors, grounds in ((light, ("#ffffff", "#f3f4f5")), (light | dark, ("#121212", "#29313d"))):
        for name, color in colors.items():
            for ground in grounds:
                low, high = sorted([luminance(color), luminance(ground)])
                assert (high + 0.05) / (low + 0.05) >= 3, (name, color, ground)
