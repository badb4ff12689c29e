"""PPO and RLOO where the optimum is known, in small: they reach it, and what is stored of that by hand."""

import copy

import pytest
import torch

from dapedu.enumerable import frontier_reward, rlhf_optima
from dapedu.evaluate import expected_reward, kl_divergence
from dapedu.experiments import policy_gradient, units
from dapedu.experiments.enumerable import start_of

torch.set_num_threads(1)

SHAPE = {"n_symbols": 3, "length": 2, "n_prompts": 2}  # 9 completions
COMMON = {"batch_size": 64, "steps": 12, "evaluate_every": 6}
SMALL = {"betas": (0.5,), "ppo": COMMON | {"lr": 1e-3}, "rloo": COMMON | {"lr": 1e-3}, "sft_steps": 60, "shape": SHAPE}


@pytest.fixture(scope="module")
def unit():
    return policy_gradient.enumerable_unit(seed=0, **SMALL)


@pytest.fixture(scope="module")
def start():
    return start_of(0, SHAPE, 60)


def test_both_reach_the_optimum_of_three_responses():
    """Oracle: π ∝ exp(r/β), far from where they start; a reference that is uniform is at ½ Σ|π* − ⅓|."""
    run = {"batch_size": 64, "steps": 40}
    found = policy_gradient.bandit_unit(
        seed=0,
        rewards=(1.0, 0.5, 0.0),
        betas=(0.4,),
        ppo=run | policy_gradient.PPO_FAST,
        rloo=run | policy_gradient.RLOO_FAST,
    )
    optimum = torch.softmax(torch.tensor([1.0, 0.5, 0.0]) / 0.4, dim=0)
    assert list(found) == ["PPO 0.4", "RLOO 0.4"]
    for ends in found.values():
        assert ends["start"] == pytest.approx(((optimum - 1 / 3).abs().sum() / 2).item(), abs=0.01)
        assert ends["end"] < 0.02


def test_a_gain_by_hand(start):
    """Oracle: the optimum has all of what the frontier has; a mixture with the reference its share at the same KL."""
    optima = rlhf_optima(start.world.rewards, 0.5, reference=start.reference)
    mixture = (optima + start.reference) / 2
    rewards = start.world.rewards.double()
    at_reference, reached = (expected_reward(policy, rewards).mean() for policy in (start.reference, mixture))
    kl = kl_divergence(mixture, start.reference).mean().item()
    best = frontier_reward(start.world.rewards, kl, reference=start.reference)
    for policy, expected in ((optima, 1.0), (mixture, float((reached - at_reference) / (best - at_reference)))):
        point = policy_gradient.point_of(start, policy)
        assert policy_gradient._gain(start, point, at_reference.item()) == pytest.approx(expected)
    assert 0.5 < expected < 0.99


def test_the_enumerable_world_in_small(unit, start):
    """Oracle: its shape; the start is the experiment's own; nobody is above the frontier, everyone has gained."""
    expected = expected_reward(start.reference, start.world.rewards.double()).mean().item()
    assert unit["reference_reward"] == pytest.approx(expected)
    assert {name: list(points) for name, points in unit["methods"].items()} == {"PPO": ["0.5"], "RLOO": ["0.5"]}
    for points in unit["methods"].values():
        point = points["0.5"]
        assert len(point["gains"]) == 2
        assert point["gain"] == point["gains"][-1]
        assert point["above_frontier"] < 1e-9
        assert point["kl"] > 0.05
        assert point["reward"] > unit["reference_reward"] + 0.1
        assert 0.3 < point["gain"] < 1


def test_looking_does_not_change_a_run(unit):
    """Oracle: the run that is looked at in each step."""
    often = {name: SMALL[name] | {"evaluate_every": 1} for name in ("ppo", "rloo")}
    watched = policy_gradient.enumerable_unit(seed=0, **SMALL | often)
    for name, points in watched["methods"].items():
        gains = points["0.5"].pop("gains")
        before = copy.deepcopy(unit["methods"][name]["0.5"])
        assert [gains[5], gains[11]] == before.pop("gains")
        assert points["0.5"] == before
        assert len(gains) == 12


def test_every_run_starts_at_the_reference():
    """Oracle: a run that hardly learns stays there, whatever the one before it has learnt."""
    brief = {"batch_size": 32, "steps": 3}
    fast, slow = brief | {"lr": 1e-2}, brief | {"lr": 1e-6}
    bandit = policy_gradient.bandit_unit(seed=0, rewards=(1.0, 0.5, 0.0), betas=(0.4,), ppo=fast, rloo=slow)
    assert abs(bandit["PPO 0.4"]["end"] - bandit["PPO 0.4"]["start"]) > 0.05
    assert bandit["RLOO 0.4"]["end"] == pytest.approx(bandit["RLOO 0.4"]["start"], abs=1e-3)
    unit = policy_gradient.enumerable_unit(seed=0, **SMALL | {"ppo": fast, "rloo": slow})
    assert unit["methods"]["PPO"]["0.5"]["kl"] > 0.05
    assert unit["methods"]["RLOO"]["0.5"]["kl"] < 1e-4


def test_what_is_stored_by_hand(monkeypatch, tmp_path):
    """Oracle: two seeds' numbers in the head, five digits of each, a list over the seeds."""

    def bandit_unit(*, seed, betas, ppo, rloo, rewards):
        assert ppo["batch_size"] == rloo["batch_size"] == 32
        return {f"PPO {betas[0]:g}": {"start": 0.5, "end": 0.1234567 + seed}}

    def enumerable_unit(*, seed, shape, **settings):
        assert settings["ppo"]["evaluate_every"] == settings["rloo"]["evaluate_every"] == 15
        return {"reference_reward": 0.25 * seed, "methods": {"PPO": {"1": {"kl": 2.0 + seed, "gains": [0.1, 0.2]}}}}

    monkeypatch.setattr(units, "RESULTS", tmp_path)
    monkeypatch.setattr(policy_gradient, "bandit_unit", bandit_unit)
    monkeypatch.setattr(policy_gradient, "enumerable_unit", enumerable_unit)
    assert policy_gradient.bandit_policy_gradient(betas=(0.7,), batch_size=32, seeds=2) == {
        "PPO 0.7": {"total_variation": [0.12346, 1.1235], "total_variation_at_start": [0.5, 0.5]}
    }
    assert policy_gradient.enumerable_policy_gradient(batch_size=10, steps=30, every=15, seeds=2) == {
        "completions": [150, 300],
        "reference_reward": [0.0, 0.25],
        "methods": {"PPO": {"1": {"kl": [2.0, 3.0], "gains": [[0.1, 0.2], [0.1, 0.2]]}}},
    }
