"""The noise chapter's and the objective chapter's experiments, in small, against what can be said of them by hand."""

import math
from functools import partial

import pytest
import torch

from dapedu.bandit import count_wins, rlhf_optimum
from dapedu.evaluate import expected_reward, kl_divergence
from dapedu.experiments import noise
from dapedu.experiments.noise import NoisyData, counted_policies, fitted_policies, noisy_data
from dapedu.experiments.objective import best_of_n_kl, frontier_reward
from dapedu.losses import dpo_loss, ipo_loss

A, B, C = 0, 1, 2
SMALL = {
    "n_responses": (3,),
    "comparisons_per_response": (1, 2, 4, 8, 16),
    "flips": (0.2,),
    "datasets": 50,
    "validation_datasets": 50,
}


def dataset(pairs, rewards) -> NoisyData:
    n = len(rewards)
    log_reference = torch.full((1, n), -math.log(n), dtype=torch.float64)
    return NoisyData(
        torch.tensor([rewards], dtype=torch.float64), log_reference, count_wins(pairs, n_responses=n)[None]
    )


def test_the_data_are_what_they_are_said_to_be():
    """Oracle: the mean of uniform rewards; the tilt of the reference; flips as often as asked; totals; the seed."""
    draw = partial(noisy_data, n_responses=4, comparisons=12, prior=4.0, datasets=4_000, seed=3)
    data = draw(flip=0.2, blur=0.0)
    assert data.rewards.mean().item() == pytest.approx(0.5, abs=0.01)
    slopes = (data.log_reference[:, 0] - data.log_reference[:, 1]) / (data.rewards[:, 0] - data.rewards[:, 1])
    torch.testing.assert_close(slopes, torch.full_like(slopes, 4.0))
    assert (data.wins.sum(dim=(1, 2)) == 12).all()
    wrong = data.wins * (data.rewards[:, :, None] < data.rewards[:, None, :])
    assert wrong.sum().item() / data.wins.sum().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(data.wins, draw(flip=0.2, blur=0.0).wins)
    blurred = draw(flip=None, blur=1.0)
    noise_added = blurred.log_reference - 4 * blurred.rewards
    assert (noise_added[:, 0] - noise_added[:, 1]).std().item() == pytest.approx(math.sqrt(2), abs=0.05)


def test_to_the_end_dpo_drops_what_never_beats_back_at_every_strength():
    """Oracle: the win graph of a ≻ b twice, b ≻ c, by hand: a alone is undefeated."""
    data = dataset([(A, B), (A, B), (B, C)], [1.0, 0.5, 0.0])
    policies = fitted_policies(data, ridges=[0.0], betas=[0.1, 16.0])
    assert policies["DPO"].squeeze().tolist() == [[1, 0, 0]] * 2
    assert (policies["IPO"][0, 1] > 0.25).all()


def test_an_open_level_is_settled_by_a_vanishing_ridge():
    """Oracle: both margins of {ab, ab, cb} as large as the ridge allows, so a stands above c, by about log 2."""
    policy = fitted_policies(dataset([(A, B), (A, B), (C, B)], [0.0] * 3), ridges=[0.0], betas=[1.0])["DPO"].squeeze()
    assert policy[B] == 0
    assert (policy[A] / policy[C]).log().item() == pytest.approx(math.log(2), abs=0.1)


def test_a_large_ridge_makes_a_count_of_both_losses():
    """Oracle: r̂ ≈ (wins − losses) / (2nρ), so β = 1/(2nρ c) counts with weight c."""
    data = noisy_data(n_responses=5, comparisons=20, flip=0.2, prior=4.0, blur=1.0, datasets=200, seed=0)
    ridge, weight = 1e4, 0.5
    policies = fitted_policies(data, ridges=[ridge], betas=[1 / (2 * 20 * ridge * weight)])
    counted = counted_policies(data, weights=[weight])
    for method in ("DPO", "IPO"):
        torch.testing.assert_close(policies[method][0], counted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("method", "loss"), [("DPO", dpo_loss), ("IPO", ipo_loss)])
def test_training_goes_where_the_fits_say(method, loss):
    """Oracle: fitted_policies, on datasets in which every win lies on a cycle."""
    beta = torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None, None, None]
    bound = partial(loss, beta=beta) if method == "DPO" else partial(loss, tau=beta / 4)
    data = dataset([(A, B), (A, B), (B, C), (C, A), (B, A)], [1.0, 0.5, 0.0])
    make = partial(torch.optim.SGD, lr=0.4)
    (end,) = noise._train(data, bound, make, 2, steps=[4_000])
    torch.testing.assert_close(end, fitted_policies(data, ridges=[0.0], betas=[1.0, 2.0])[method][0], rtol=0, atol=1e-6)


def test_good_responses_that_never_won_are_counted_by_hand():
    """Oracle: by hand; b is good, met only a, and lost; a policy that keeps a tenth of it keeps a tenth."""
    data = dataset([(A, B), (A, C)], [1.0, 0.9, 0.0])
    other = dataset([(A, B), (B, C)], [1.0, 0.9, 0.0])
    both = NoisyData(*(torch.cat(pair) for pair in zip(data, other, strict=True)))
    kept = torch.tensor([[0.9, 1 / 30, 0.1], [0.5, 0.4, 0.1]], dtype=torch.float64)
    found = noise._never_won(both, {"DPO": kept})
    assert found["share"] == 0.5
    assert found["kept by DPO"] == pytest.approx(0.1)


def test_rewards_and_risks_are_compared_dataset_by_dataset():
    """Oracle: by hand, four datasets, three in which the first method wins and one in which it ends below."""
    rewards = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]], dtype=torch.float64)
    data = NoisyData(rewards, torch.full((4, 2), 0.5, dtype=torch.float64).log(), torch.zeros(4, 2, 2))
    sure, even = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64), torch.full((4, 2), 0.5, dtype=torch.float64)
    entry = noise._comparison(data, {"DPO": sure, "IPO": even})
    assert (entry["reward DPO"], entry["reward IPO"], entry["reward difference"]) == (0.75, 0.5, 0.25)
    assert (entry["worse DPO"], entry["worse IPO"]) == (0.25, 0.0)
    assert entry["total variation"] == 0.5


def test_the_map_in_small():
    """Oracle: its shape; strategies at the same β have the same DPO; the tuned ones lie on the grids."""
    results = noise.noise_map(**SMALL)["3"]
    assert list(results) == list(noise.REFERENCES)
    for strategies in results.values():
        assert strategies["same number"]["reward DPO"] == strategies["matched"]["reward DPO"]
        assert set(strategies["tuned"]["ridge IPO"]["0.2"]) == {0.0}
        for name, columns in strategies.items():
            assert all(len(column["0.2"]) == 5 for column in columns.values()), name
    assert results["uniform"]["tuned"]["reference"]["0.2"] == results["uniform"]["matched"]["reference"]["0.2"]


def test_the_frontier_is_rlhfs_optimum():
    """Oracle: rlhf_optimum at β = .7, asked for by its KL; the two ends."""
    rewards, reference = torch.tensor([1.0, 0.3, 0.0]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    optimum = rlhf_optimum(rewards, 0.7, reference=reference)
    found = frontier_reward(rewards, kl_divergence(optimum, reference).item(), reference=reference)
    assert found == pytest.approx(expected_reward(optimum, rewards).item(), abs=1e-9)
    assert frontier_reward(rewards, 0.0, reference=reference) == expected_reward(reference, rewards)
    assert frontier_reward(rewards, 9.0, reference=reference) == 1.0


@pytest.mark.parametrize(
    ("rewards", "kl", "message"),
    [([1.0, 0.0], -0.1, "kl is -0.1, expected ≥ 0"), ([1.0, 1.0], 0.1, "rewards are all 1.0, expected different")],
)
def test_the_frontier_says_what_it_cannot_do(rewards, kl, message):
    """Oracle: function, argument and value stand in the message."""
    with pytest.raises(ValueError, match=f"^frontier_reward: {message}"):
        frontier_reward(torch.tensor(rewards), kl, reference=torch.tensor([0.5, 0.5]))


def test_best_of_two_of_two():
    """Oracle: by hand. Of two draws from two equally likely responses the better is there three times in four."""
    entry = best_of_n_kl(counts=(2,), sizes=(2,))["2"]["best_of"]["2"]
    policy = torch.tensor([0.25, 0.75]).double()
    assert entry["kl"] == pytest.approx(kl_divergence(policy, torch.tensor([0.5, 0.5]).double()).item(), abs=1e-6)
    assert entry["formula"] == pytest.approx(math.log(2) - 0.5, abs=1e-6)
