"""The enumerable world's experiments, in small, against what can be said of them by hand."""

import pytest
import torch

from dapedu.bandit import rlhf_optimum
from dapedu.enumerable import rlhf_optima
from dapedu.evaluate import kl_divergence
from dapedu.experiments import enumerable, units

SHAPE = {"n_symbols": 3, "length": 2, "n_prompts": 2}  # 9 completions
OPTIMUM = {"betas": (1.0,), "taus": (0.25,), "steps": 300, "lr": 4e-3, "sft_steps": 100, "shape": SHAPE}
FRONTIER = {
    "betas": (1.0,),
    "sampled_betas": (2.0, 0.5),
    "pairs": (50,),
    "best_of": (1, 2),
    "curve_betas": (2.0, 0.5),
    "steps": 60,
    "early": 0,
    "lr": 4e-3,
    "sft_steps": 100,
    "shape": SHAPE,
}


@pytest.fixture(scope="module")
def start():
    return enumerable.start_of(0, SHAPE, 100)


@pytest.fixture(scope="module")
def frontier_results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "RESULTS", tmp_path_factory.mktemp("results"))
        return enumerable.enumerable_frontier(**FRONTIER, seeds=2)


def test_expected_losses_reach_their_optima():
    """Oracle: the exact optima, which training does not see."""
    unit = enumerable.optimum_unit(seed=0, **OPTIMUM)
    assert list(unit["runs"]) == ["DPO 1", "IPO 0.25"]
    for run in unit["runs"].values():
        assert run["worst"] < 0.02
        assert run["reward"] == pytest.approx(run["optimum_reward"], abs=0.02)
        assert run["kl"] == pytest.approx(run["optimum_kl"], abs=0.02)


def test_what_is_stored_of_the_optima_by_hand(monkeypatch, tmp_path):
    """Oracle: largest, smallest and mean of two seeds' numbers, in the head."""

    def optimum_unit(*, seed, **settings):
        run = {"worst": 0.3 - 0.2 * seed, "mean": 0.1 * seed, "start": 0.4 + seed}
        return {
            "human_kl": 1.0,
            "runs": {"DPO 1": run | {"reward": seed, "optimum_reward": 2.0, "kl": 3.0, "optimum_kl": 4.0}},
        }

    monkeypatch.setattr(units, "RESULTS", tmp_path)
    monkeypatch.setattr(enumerable, "optimum_unit", optimum_unit)
    assert enumerable.enumerable_optimum(seeds=2)["DPO 1"] == {
        "total_variation_worst": 0.3,
        "total_variation_mean": 0.05,
        "total_variation_at_start_least": 0.4,
        "reward": 0.5,
        "optimum_reward": 2.0,
        "kl": 3.0,
        "optimum_kl": 4.0,
        "worst_by_seed": [0.3, 0.1],
    }


def test_the_start_is_the_smallest_over_prompts_and_the_distance_the_largest(start, monkeypatch):
    """Oracle: rlhf_optimum, prompt by prompt, for a policy that has not moved."""
    monkeypatch.setattr(enumerable, "minimise", lambda model, objective, world, steps, lr: objective(start.logps))
    run = enumerable.optimum_unit(seed=0, **OPTIMUM | {"steps": 1})["runs"]["DPO 1"]
    pairs = zip(start.world.rewards, start.reference, strict=True)
    distances = [0.5 * (rlhf_optimum(r, 1.0, reference=p) - p).abs().sum().item() for r, p in pairs]
    assert run["worst"] == pytest.approx(max(distances))
    assert run["mean"] == pytest.approx(sum(distances) / 2)
    assert run["start"] == pytest.approx(min(distances))
    assert run["kl"] == pytest.approx(0, abs=1e-9)


def test_a_path_starts_at_the_reference_and_is_not_changed_by_looking(start):
    """Oracle: the reference; the same run without the records on the way."""

    def objective(logps):
        return -(start.world.rewards * logps.exp()).sum()

    before, on_the_way, end = enumerable._path(start, objective, records=[0, 3, 10], lr=4e-3)
    torch.testing.assert_close(before, start.reference)
    assert not torch.equal(on_the_way, end)
    torch.testing.assert_close(enumerable._path(start, objective, records=[10], lr=4e-3)[0], end)


def test_points_of_policies_that_are_known(start):
    """Oracle: the reference wins half of the time, at no KL; an optimum lies on the frontier."""
    at_reference = enumerable.point_of(start, start.reference)
    assert at_reference["win_rate"] == pytest.approx(0.5)
    assert at_reference["kl"] == pytest.approx(0, abs=1e-12)
    assert at_reference["above_frontier"] == pytest.approx(0, abs=1e-4)
    optima = rlhf_optima(start.world.rewards, 0.7, reference=start.reference)
    at_optimum = enumerable.point_of(start, optima, optima)
    assert at_optimum["above_frontier"] == pytest.approx(0, abs=1e-9)
    assert at_optimum["total_variation"] == 0
    assert at_optimum["kl"] == pytest.approx(kl_divergence(optima, start.reference).mean().item())


def test_the_frontier_in_small(frontier_results):
    """Oracle: its shape, one number a seed; IPO's strengths are a quarter; best of one is the reference."""
    methods = frontier_results["methods"]
    assert {name: list(points) for name, points in methods.items()} == {
        "best of n": ["1", "2"],
        "DPO": ["1"],
        "IPO": ["0.25"],
        "DPO, 50 pairs, early": ["2", "0.5"],
        "DPO, 50 pairs": ["2", "0.5"],
        "IPO, 50 pairs, early": ["0.5", "0.125"],
        "IPO, 50 pairs": ["0.5", "0.125"],
    }
    for points in methods.values():
        assert all(len(values) == 2 for point in points.values() for values in point.values())
    assert methods["best of n"]["1"]["reward"] == frontier_results["reference_reward"]
    assert [len(curve) for curve in frontier_results["curve"]["kl"]] == [2, 2]


def test_nothing_crosses_and_the_largest_excess_is_the_largest(frontier_results):
    """Oracle: the theorem, to rounding; the maximum by hand."""
    values = [
        value
        for points in frontier_results["methods"].values()
        for point in points.values()
        for value in point["above_frontier"]
    ]
    assert frontier_results["above_frontier_most"] == max(values) < 1e-9
    assert min(values) < -0.01


def test_a_run_looked_at_before_its_first_step_is_the_reference(frontier_results):
    """Oracle: early = 0 is where every run starts; the end is elsewhere."""
    early, end = (frontier_results["methods"][f"DPO, 50 pairs{when}"]["0.5"] for when in (", early", ""))
    assert max(early["kl"]) < 1e-6 < min(end["kl"])
    assert early["reward"] == pytest.approx(frontier_results["reference_reward"], abs=1e-5)
