"""The bandit's closed forms: IPO's and RLHF's optimum, the win graph, Bradley–Terry's rewards."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch

from dapedu.bandit import (
    DATASETS,
    bradley_terry_rewards,
    ipo_optimum,
    rlhf_optimum,
    train_bandit,
    win_graph,
)
from dapedu.evaluate import kl_divergence
from dapedu.losses import ipo_loss

torch.set_num_threads(1)


def random_pairs(generator: np.random.Generator, n_responses: int, n_pairs: int) -> list[tuple[int, int]]:
    return [tuple(generator.choice(n_responses, 2, replace=False).tolist()) for _ in range(n_pairs)]


# ---- closed forms by hand ----


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(1.0, (0.448, 0.321, 0.230)), (0.5, (0.563, 0.289, 0.148)), (0.1, (0.964, 0.034, 0.001))],
)
def test_ipo_optimum_on_d1(tau, expected):
    """Oracle: gaps of 1/(3τ): h_ab + h_bc = h_ac and each as near to 1/(2τ) as that allows; papers.md."""
    policy = ipo_optimum(DATASETS["D1"], tau, n_responses=3)
    assert policy.tolist() == pytest.approx(expected, abs=6e-4)
    gaps = -policy.log().diff()
    assert gaps.tolist() == pytest.approx([1 / (3 * tau)] * 2, abs=1e-12)


def test_ipo_optimum_of_two_actions():
    """Oracle: §5.3.1: π(y₁) = σ(1/(2τ)); .6225 at τ = 1."""
    assert ipo_optimum([(0, 1)], 1.0, n_responses=2)[0].item() == pytest.approx(0.62245933, abs=1e-8)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_optimum_on_d3_as_meant(tau):
    """Oracle: a and c one target 1/(2τ) above b: π(b) = 1/(1 + 2e^{1/(2τ)})."""
    a, b, c = ipo_optimum(DATASETS["D3 as meant"], tau, n_responses=3).tolist()
    assert b == pytest.approx(1 / (1 + 2 * math.exp(1 / (2 * tau))), abs=1e-12)
    assert a == pytest.approx(c, abs=1e-12)


def test_ipo_optimum_counts_a_pair_as_often_as_it_stands():
    """Oracle: {ab, ab, ba} has mean target (2 − 1)/3 · 1/(2τ), so π(a) = σ(1/(6τ)), times the reference."""
    reference = torch.tensor([0.25, 0.75], dtype=torch.float64)
    policy = ipo_optimum([(0, 1), (0, 1), (1, 0)], 0.5, n_responses=2, reference=reference)
    log_odds = math.log(1 / 3) + 1 / 3
    assert policy[0].item() == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-12)


def test_ipo_optimum_of_a_disconnected_graph_is_the_nearest():
    """Oracle: ridge regression (AᵀA + λI)d = Aᵀt with λ → 0, in numpy: the solution of least norm.

    {ab} and {cd, ce} know nothing of each other, f is in no pair.
    """
    pairs, tau = [(0, 1), (2, 3), (2, 4)], 0.5
    difference = np.zeros((3, 6))
    for row, (winner, loser) in enumerate(pairs):
        difference[row, winner], difference[row, loser] = 1, -1
    ridge = difference.T @ difference + 1e-9 * np.eye(6)
    log_ratios = np.linalg.solve(ridge, difference.T @ np.full(3, 1 / (2 * tau)))
    expected = np.exp(log_ratios) / np.exp(log_ratios).sum()
    policy = ipo_optimum(pairs, tau, n_responses=6)
    np.testing.assert_allclose(policy.numpy(), expected, rtol=0, atol=1e-7)
    assert policy[5].log().item() == pytest.approx(policy[:2].log().mean().item(), abs=1e-12)


def test_adam_ends_at_an_optimum_of_a_disconnected_graph_but_not_at_the_nearest():
    """Oracle: every margin is 1/(2τ) = 1, IPO's loss 0; Adam's first steps all have one size, whoever moves.

    So c, who must rise above two, does not rise by more than they fall, and the level of {c, d, e} drifts.
    """
    pairs = [(0, 1), (2, 3), (2, 4)]
    run = train_bandit(pairs, ipo_loss, [0.5], n_responses=5, seeds=1, batch_size=None, steps=4000)
    end, nearest = run.probabilities[0, 0, -1].log(), ipo_optimum(pairs, 0.5, n_responses=5).log()
    for policy in (end, nearest):
        margins = [(policy[winner] - policy[loser]).item() for winner, loser in pairs]
        assert margins == pytest.approx([1, 1, 1], abs=1e-8)
    assert ((nearest[0] - nearest[2]) - (end[0] - end[2])).abs() > 0.1


def test_rlhf_optimum_by_hand():
    """Oracle: two responses: σ(logit π_ref + Δr/β); −∞ gives probability 0; every leading axis is kept."""
    rewards = torch.tensor([[2.0, 0.0], [0.0, -math.inf]], dtype=torch.float64)
    reference = torch.tensor([0.25, 0.75], dtype=torch.float64)
    policies = rlhf_optimum(rewards, 0.5, reference=reference)
    first = 1 / (1 + 3 * math.exp(-4))
    expected = torch.tensor([[first, 1 - first], [1, 0]], dtype=torch.float64)
    torch.testing.assert_close(policies, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_rlhf_optimum_maximises_reward_minus_kl(beta, seed):
    """Oracle: scipy's SLSQP on the simplex, in numpy: E[r] − β Σ π log(π/π_ref)."""
    generator = np.random.default_rng(seed)
    rewards, reference = generator.normal(size=4), generator.dirichlet(np.full(4, 3.0))

    def negative_objective(policy):
        return beta * np.sum(policy * np.log(policy / reference)) - policy @ rewards

    found = scipy.optimize.minimize(
        negative_objective,
        np.full(4, 0.25),
        jac=lambda policy: beta * (np.log(policy / reference) + 1) - rewards,
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda policy: policy.sum() - 1, "jac": lambda policy: np.ones(4)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    policy = rlhf_optimum(torch.from_numpy(rewards), beta, reference=torch.from_numpy(reference))
    np.testing.assert_allclose(policy.numpy(), found.x, rtol=0, atol=1e-5)
    assert negative_objective(policy.numpy()) <= found.fun + 1e-12


def test_rlhf_optimum_moves_to_the_reference_as_beta_grows():
    """Oracle: monotone KL, → 0 for β → ∞ and → log 1/π_ref of the best for β → 0."""
    rewards = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    betas = [1e-3, 0.1, 0.5, 1.0, 10.0, 1e4]
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    distances = torch.stack(
        [kl_divergence(rlhf_optimum(rewards, beta, reference=reference), reference) for beta in betas]
    )
    assert (distances.diff() < 0).all()
    assert distances[0].item() == pytest.approx(-math.log(0.2), abs=1e-9)
    assert distances[-1].item() == pytest.approx(0, abs=1e-8)


# ---- the win graph ----


class Brute(NamedTuple):
    finite: bool
    unique: bool
    mutual: list[list[bool]]  # whether i and j reach each other
    undefeated: list[bool]


def by_reachability(pairs, n_responses) -> Brute:
    """Warshall's closure in plain Python; no strongly connected components."""
    reach = [[i == j for j in range(n_responses)] for i in range(n_responses)]
    for winner, loser in pairs:
        reach[winner][loser] = True
    everyone = range(n_responses)
    for k in everyone:
        for i in everyone:
            for j in everyone:
                reach[i][j] = reach[i][j] or (reach[i][k] and reach[k][j])
    return Brute(
        finite=all(reach[loser][winner] for winner, loser in pairs),
        unique=all(all(row) for row in reach),
        mutual=[[reach[i][j] and reach[j][i] for j in everyone] for i in everyone],
        # Whoever beats i, at whatever remove, is also beaten by i.
        undefeated=[all(reach[i][j] for j in everyone if reach[j][i]) for i in everyone],
    )


def ridge_fit(incidence: np.ndarray, ridge: float, start: np.ndarray) -> np.ndarray:
    """Newton's method, halving steps, on Bradley–Terry's likelihood plus ridge/2 |r|²: always finite."""

    def objective(rewards):
        return np.logaddexp(0, -incidence @ rewards).sum() + ridge / 2 * rewards @ rewards

    rewards = start
    for _ in range(200):
        lost = 1 / (1 + np.exp(incidence @ rewards))
        gradient = ridge * rewards - incidence.T @ lost
        hessian = (incidence.T * (lost * (1 - lost))) @ incidence + ridge * np.eye(len(rewards))
        step = np.linalg.solve(hessian, gradient)
        if np.abs(step).max() < 1e-9:
            break
        while objective(rewards - step) > objective(rewards) + 1e-15:
            step = step / 2
            if np.abs(step).max() < 1e-12:
                break
        rewards = rewards - step
    return rewards


@pytest.fixture(scope="module")
def graphs():
    """600 random datasets of every kind: 3 to 5 responses, 1 to 12 pairs."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(600):
        n_responses = int(generator.integers(3, 6))
        drawn.append((random_pairs(generator, n_responses, int(generator.integers(1, 13))), n_responses))
    return drawn


def test_win_graph_is_that_of_brute_force(graphs):
    """Oracle: `by_reachability`; all three kinds of dataset are among the graphs."""
    kinds = set()
    for pairs, n_responses in graphs:
        graph, brute = win_graph(pairs, n_responses=n_responses), by_reachability(pairs, n_responses)
        kinds.add((brute.finite, brute.unique))
        assert (graph.has_finite_optimum, graph.is_unique) == (brute.finite, brute.unique), pairs
        assert graph.undefeated == brute.undefeated, pairs
        same_group = [[i == j for j in graph.groups] for i in graph.groups]
        assert same_group == brute.mutual, pairs
    assert kinds == {(False, False), (True, False), (True, True)}


def test_win_graph_tells_whether_the_likelihood_has_a_maximum(graphs):
    """Oracle: a ridge going from 1e-4 to 1e-8: the fit stays, or runs off by log 10⁴ ≈ 9 nats of margin.

    Unique: the likelihood is curved in every direction but the constant one.
    """
    for pairs, n_responses in graphs:
        incidence = np.zeros((len(pairs), n_responses))
        for row, (winner, loser) in enumerate(pairs):
            incidence[row, winner], incidence[row, loser] = 1, -1
        coarse = ridge_fit(incidence, 1e-4, np.zeros(n_responses))
        fine = ridge_fit(incidence, 1e-8, coarse)
        graph = win_graph(pairs, n_responses=n_responses)
        assert (np.abs(incidence @ (fine - coarse)).max() < 1) == graph.has_finite_optimum, pairs
        if graph.has_finite_optimum:
            won = 1 / (1 + np.exp(-incidence @ fine))
            curvature = np.linalg.eigvalsh((incidence.T * (won * (1 - won))) @ incidence)
            assert ((curvature > 1e-6).sum() == n_responses - 1) == graph.is_unique, pairs


@pytest.mark.parametrize(
    ("name", "finite", "unique", "undefeated"),
    [
        ("D1", False, False, [True, False, False]),
        ("D2", True, True, [True, True, True]),
        ("D3 as printed", True, False, [True, True, True]),
        ("D3 as meant", False, False, [True, False, True]),
    ],
)
def test_win_graph_of_the_papers_datasets(name, finite, unique, undefeated):
    """Oracle: read off the pairs: a chain, a cycle, a two-cycle beside c, and b beaten by both."""
    graph = win_graph(DATASETS[name], n_responses=3)
    assert (graph.has_finite_optimum, graph.is_unique, graph.undefeated) == (finite, unique, undefeated)


# ---- Bradley–Terry's rewards ----


def test_bradley_terry_rewards_are_stationary(graphs):
    """Oracle: the likelihood's own equations: in an undefeated group each response wins as often as expected.

    Wins are counted and probabilities computed in plain Python; each group's mean is 0, the rest is −∞.
    """
    for pairs, n_responses in graphs:
        rewards = bradley_terry_rewards(pairs, n_responses=n_responses).tolist()
        brute = by_reachability(pairs, n_responses)
        surplus = [0.0] * n_responses
        for winner, loser in pairs:
            if brute.undefeated[winner] and brute.mutual[winner][loser]:
                lost = 1 / (1 + math.exp(rewards[winner] - rewards[loser]))
                surplus[winner] += lost  # 1 observed − P expected
                surplus[loser] -= lost
        assert surplus == pytest.approx([0] * n_responses, abs=1e-6), pairs
        for i in range(n_responses):
            if brute.undefeated[i]:
                group = [rewards[j] for j in range(n_responses) if brute.mutual[i][j]]
                assert sum(group) == pytest.approx(0, abs=1e-6), pairs
            else:
                assert rewards[i] == -math.inf, pairs


def test_bradley_terry_rewards_by_hand():
    """Oracle: a beats b three times in four: r_a − r_b = log 3, and the mean is 0."""
    rewards = bradley_terry_rewards([(0, 1)] * 3 + [(1, 0)], n_responses=2)
    assert rewards.tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-8)


def test_bradley_terry_rewards_of_groups_that_never_met():
    """Oracle: {ab, ab, ba} and {cd, dc}: ±½ log 2 and 0, 0; by β = 1 the policy is ∝ (√2, 1/√2, 1, 1).

    The level between the two groups is nowhere in the data: a solver that drifts along it changes the policy.
    """
    pairs = [(0, 1), (0, 1), (1, 0), (2, 3), (3, 2)]
    rewards = bradley_terry_rewards(pairs, n_responses=4)
    assert rewards.tolist() == pytest.approx([math.log(2) / 2, -math.log(2) / 2, 0, 0], abs=1e-8)
    ratios = torch.tensor([2**0.5, 0.5**0.5, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(rlhf_optimum(rewards, 1.0), ratios / ratios.sum(), rtol=0, atol=1e-8)


def test_bradley_terry_rewards_recover_what_made_the_labels():
    """Oracle: 4,000 labels by known rewards; three standard errors of a win rate near ½ are .05 nats."""
    truth = torch.tensor([0.6, 0.1, -0.7], dtype=torch.float64)
    generator = np.random.default_rng(0)
    pairs = []
    for i, j in random_pairs(generator, 3, 4000):
        i_wins = generator.random() < 1 / (1 + math.exp(truth[j] - truth[i]))
        pairs.append((i, j) if i_wins else (j, i))
    torch.testing.assert_close(bradley_terry_rewards(pairs, n_responses=3), truth, rtol=0, atol=0.12)


def test_the_limit_of_dpo_gives_nothing_to_the_defeated():
    """Oracle: papers.md: D1 → a alone; D3 as meant → a and c share alike."""
    for name, expected in {"D1": [1, 0, 0], "D3 as meant": [0.5, 0, 0.5]}.items():
        limit = rlhf_optimum(bradley_terry_rewards(DATASETS[name], n_responses=3), 0.5)
        assert limit.tolist() == pytest.approx(expected, abs=1e-9)
