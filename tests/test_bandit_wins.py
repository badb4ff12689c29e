"""Datasets as tables of wins: counted, sampled, taken apart and fitted, many at once; and the best of n."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from torch import Tensor

from dapedu.bandit import best_of_n, count_wins, fit_bradley_terry, fit_ipo, order_with_flips, sample_wins, win_groups

torch.set_num_threads(1)

LOPSIDED = 10_000  # wins for the one loss that decides a likelihood
each_size = pytest.mark.parametrize("n_responses", [2, 3, 5, 10])


def random_tables(n_responses: int, datasets: int = 40) -> Tensor:
    """Tables of every kind, from one entry to all of them; some counts are `LOPSIDED`."""
    generator = np.random.default_rng(n_responses)
    counts = generator.choice([1, 1, 2, 7, LOPSIDED], (datasets, n_responses, n_responses))
    density = np.linspace(0, 1, datasets)[:, None, None]
    kept = (generator.random(counts.shape) < density) & ~np.eye(n_responses, dtype=bool)
    kept[:, 0, 1] = True  # nothing can be fitted to no comparison at all
    return torch.from_numpy(np.where(kept, counts, 0)).double()


def cycle(n_responses: int, count: float = 1) -> Tensor:
    """0 beats 1 beats 2 … `count` times each, and the last beats 0 once."""
    wins = torch.zeros(n_responses, n_responses, dtype=torch.float64)
    wins[torch.arange(n_responses - 1), torch.arange(1, n_responses)] = count
    wins[-1, 0] = 1
    return wins


def incidence_and_counts(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row e_winner − e_loser for each entry of the table, and the entries."""
    winners, losers = np.nonzero(wins)
    return np.eye(len(wins))[winners] - np.eye(len(wins))[losers], wins[winners, losers]


def scipys_fit(wins: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """trust-exact on the mean of log(1 + e^{r_l − r_w}) plus ridge/2 Σ r²; without one, the first reward is 0."""
    incidence, counts = incidence_and_counts(wins)
    weights = counts / counts.sum()
    free = np.eye(len(wins))[:, int(not ridge) :]
    design = incidence @ free

    def hessian(x):
        return (design.T * (weights * expit(design @ x) * expit(-design @ x))) @ design + ridge * np.eye(len(x))

    found = scipy.optimize.minimize(
        lambda x: weights @ np.logaddexp(0, -design @ x) + ridge / 2 * x @ x,
        np.zeros(free.shape[1]),
        jac=lambda x: ridge * x - design.T @ (weights * expit(-design @ x)),
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-11, "maxiter": 1000},
    )
    return free @ found.x


# ---- counted and sampled ----


def test_count_wins_is_a_tally():
    """Oracle: `collections.Counter`; winners are rows, a pair counts as often as it stands, the last is in none."""
    pairs = [(0, 1), (2, 0), (0, 1), (1, 0), (0, 1), (1, 2)]
    wins, tally = count_wins(pairs, n_responses=4), Counter(pairs)
    assert wins.dtype == torch.float64
    assert wins.tolist() == [[tally[winner, loser] for loser in range(4)] for winner in range(4)]


@pytest.mark.parametrize("flip", [0, 0.1, 0.5])
def test_order_with_flips_by_hand(flip):
    """Oracle: the better response wins with 1 − ε, whatever the gap; equal ones, both −∞ too, with ½."""
    rewards = torch.tensor([[2, 1, 1], [-math.inf, 5, -math.inf]])
    sure = 1 - flip
    expected = [
        [[0.5, sure, sure], [flip, 0.5, 0.5], [flip, 0.5, 0.5]],
        [[0.5, flip, 0.5], [sure, 0.5, sure], [0.5, flip, 0.5]],
    ]
    torch.testing.assert_close(order_with_flips(rewards, flip), torch.tensor(expected, dtype=torch.float64))


ANNOTATORS = np.array(
    [[[0.5, 0.9, 0.3], [0.1, 0.5, 0.6], [0.7, 0.4, 0.5]], [[0.5, 0, 1], [1, 0.5, 0.8], [0, 0.2, 0.5]]]
)


@pytest.mark.parametrize(
    "proposal", [None, [0.1, 0.2, 0.7], [[0.1, 0.2, 0.7], [3.0, 1.0, 1.0]]], ids=["uniform", "shared", "each its own"]
)
def test_sample_wins_has_the_moments_of_its_draws(proposal):
    """Oracle: comparisons are independent, so a count is binomial(N, q) with q = 2 μ_i μ_j p / (1 − Σ μ²).

    That is: given two different responses they are i and j, either first, and i wins. 6,000 datasets of each of
    two annotators; means within five standard errors.
    """
    copies, comparisons = 6000, 20
    own = np.ndim(proposal) == 2
    wins = sample_wins(
        torch.from_numpy(ANNOTATORS.repeat(copies, axis=0)),
        comparisons=comparisons,
        proposal=torch.tensor(proposal).repeat_interleave(copies, dim=0) if own else proposal,
    )
    assert wins.dtype == torch.float64
    assert (wins.sum(dim=(1, 2)) == comparisons).all()
    assert ((wins >= 0) & (wins == wins.round())).all()

    mu = np.broadcast_to(np.ones(3) if proposal is None else proposal, (2, 3))
    mu = mu / mu.sum(axis=1, keepdims=True)
    different = 1 - (mu**2).sum(axis=1)[:, None, None]
    q = 2 * mu[:, :, None] * mu[:, None, :] / different * ANNOTATORS * (1 - np.eye(3))
    variance = comparisons * q * (1 - q)
    counts = wins.numpy().reshape(2, copies, 3, 3)
    assert (np.abs(counts.mean(axis=1) - comparisons * q) <= 5 * np.sqrt(variance / copies)).all()
    np.testing.assert_allclose(counts.var(axis=1), variance, rtol=0.12, atol=0)


def test_sample_wins_repeats_by_its_seed():
    """Oracle: the same seed, the same datasets, also with the uniform proposal spelled out; another seed, others."""
    p = torch.from_numpy(ANNOTATORS)
    first = sample_wins(p, comparisons=50)
    assert torch.equal(first, sample_wins(p, comparisons=50, proposal=torch.ones(3), seed=0))
    assert not torch.equal(first, sample_wins(p, comparisons=50, seed=1))


# ---- taken apart ----


def strong_components(wins: np.ndarray) -> np.ndarray:
    return connected_components(wins, directed=True, connection="strong")[1]


@each_size
def test_win_groups_are_scipys_components(n_responses):
    """Oracle: `scipy.sparse.csgraph`; undefeated: nobody of another component beats anybody of this one.

    One-way cycles and chains are in it: to close one of ten, reachability must go nine arrows far.
    """
    chain = cycle(n_responses)
    chain[-1, 0] = 0
    tables = torch.cat([random_tables(n_responses), cycle(n_responses)[None], chain[None]])
    groups = win_groups(tables)
    for wins, same, undefeated in zip(tables.numpy(), groups.same, groups.undefeated, strict=True):
        labels = strong_components(wins)
        beaten = {labels[loser] for winner, loser in np.argwhere(wins) if labels[winner] != labels[loser]}
        assert same.tolist() == (labels[:, None] == labels[None, :]).tolist()
        assert undefeated.tolist() == [label not in beaten for label in labels]


# ---- fitted ----


@each_size
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1.0])
def test_fit_ipo_is_least_squares(n_responses, ridge):
    """Oracle: `numpy.linalg.lstsq`, a row √share (d_w − d_l) = √share/(2τ) an entry, at τ = .1; divided by τ.

    A ridge is a row √(ridge/2) d_i = 0 a response. Each connected part has mean 0, so who met nobody has 0.
    """
    tables, tau = random_tables(n_responses), 0.1
    for wins, log_ratios in zip(tables.numpy(), fit_ipo(tables, ridge=ridge).numpy(), strict=True):
        incidence, counts = incidence_and_counts(wins)
        root = np.sqrt(counts / counts.sum())
        design = np.vstack([root[:, None] * incidence, np.sqrt(ridge / 2) * np.eye(n_responses)])
        targets = np.concatenate([root / (2 * tau), np.zeros(n_responses)])
        expected = np.linalg.lstsq(design, targets, rcond=None)[0]
        np.testing.assert_allclose(log_ratios / tau, expected, rtol=0, atol=1e-8)
        _, parts = connected_components(wins, directed=False)
        np.testing.assert_allclose(np.bincount(parts, log_ratios), 0, rtol=0, atol=1e-9)


@each_size
def test_fit_bradley_terry_is_scipys_fit_of_each_undefeated_group(n_responses):
    """Oracle: `scipys_fit` of the group's own comparisons, shifted to mean 0; −∞ outside; a group of one has 0."""
    tables = random_tables(n_responses)
    sizes = set()
    for wins, rewards in zip(tables.numpy(), fit_bradley_terry(tables).numpy(), strict=True):
        labels = strong_components(wins)
        for label in set(labels.tolist()):
            group = labels == label
            if wins[~group][:, group].any():
                assert (rewards[group] == -np.inf).all()
                continue
            sizes.add(int(group.sum()))
            expected = scipys_fit(wins[group][:, group]) if group.sum() > 1 else np.zeros(1)
            np.testing.assert_allclose(rewards[group], expected - expected.mean(), rtol=0, atol=1e-6)
    assert {1, n_responses} <= sizes


@each_size
@pytest.mark.parametrize("ridge", [1e-4, 0.01, 1.0])
def test_fit_bradley_terry_with_a_ridge_is_scipys(n_responses, ridge):
    """Oracle: `scipys_fit` of the mean loss plus ridge/2 Σ r²: finite for every dataset, mean 0."""
    tables = random_tables(n_responses)
    for wins, rewards in zip(tables.numpy(), fit_bradley_terry(tables, ridge=ridge).numpy(), strict=True):
        np.testing.assert_allclose(rewards, scipys_fit(wins, ridge), rtol=0, atol=1e-6)


def test_a_ridge_that_vanishes_leaves_the_fit_without_one():
    """Oracle: the unridged fit, approached in proportion to the ridge, within undefeated groups; the rest runs off."""
    tables = random_tables(5).clamp(max=9)
    same, undefeated = win_groups(tables)
    limit, fits, distances = fit_bradley_terry(tables), [], []
    for ridge in (1e-4, 1e-6, 1e-8):
        fit = fit_bradley_terry(tables, ridge=ridge)
        centred = fit - (same.double() @ fit[..., None])[..., 0] / same.sum(dim=-1)
        fits.append(fit - fit.amax(dim=-1, keepdim=True))
        distances.append((centred - limit)[undefeated].abs().max().item())
    assert distances[0] > 20 * distances[1] > 400 * distances[2]
    assert distances[2] < 1e-4
    unique = same.all(dim=(-2, -1))
    assert unique.sum() > 5
    torch.testing.assert_close(fits[2][unique], (limit - limit.amax(dim=-1, keepdim=True))[unique], rtol=0, atol=1e-4)
    assert (fits[0][~undefeated] - fits[1][~undefeated] > 1).all()
    assert (fits[1][~undefeated] - fits[2][~undefeated] > 1).all()


def test_ten_responses_each_far_above_the_next():
    """Oracle: no loop, so each pair is fitted exactly: Bradley–Terry's gap is log 10,000, IPO's ½ (10,000 − 1)/10,001.

    In a ring all ten comparisons lose alike: the gap g solves 10,000 σ(−g) = σ(9g), by `scipy.optimize.brentq`.
    """
    ring = cycle(10, LOPSIDED)
    ladder = ring + (ring > 1).mT
    ladder[-1, 0] = 0
    ring_gap = scipy.optimize.brentq(lambda g: LOPSIDED * expit(-g) - expit(9 * g), 0, 20, xtol=1e-13)
    for wins, gap in [(ladder, math.log(LOPSIDED)), (ring, ring_gap)]:
        assert (-fit_bradley_terry(wins).diff()).tolist() == pytest.approx([gap] * 9, abs=1e-7)
    gap = 0.5 * (LOPSIDED - 1) / (LOPSIDED + 1)
    assert (-fit_ipo(ladder).diff()).tolist() == pytest.approx([gap] * 9, abs=1e-9)


def test_who_was_compared_with_nobody_stays_where_it_was():
    """Oracle: a and b by hand, 3 : 1: ±½ log 3 and ±½ · ½ · (3 − 1)/4; c, of whom nothing is known, has 0."""
    wins = torch.tensor([[[0, 3, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 0]] * 3])  # and a dataset of nothing
    by_hand = {fit_bradley_terry: math.log(3) / 2, fit_ipo: 0.125}
    for fit, level in by_hand.items():
        expected = torch.tensor([[level, -level, 0], [0, 0, 0]], dtype=torch.float64)
        torch.testing.assert_close(fit(wins), expected, rtol=0, atol=1e-12)
        assert (fit(wins, ridge=0.1)[:, 2] == 0).all()
    assert win_groups(wins).undefeated.all()


# ---- the best of n ----

REWARDS = [[1, 3, 1, 3], [0, -math.inf, 2, -math.inf], [0.1, 0.4, 0.3, 0.2], [7, 7, 7, 7]]


@pytest.mark.parametrize("reference", [None, [0.4, 0.3, 0.2, 0.1]], ids=["uniform", "uneven"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_is_what_all_samples_give(n, reference):
    """Oracle: all 4ⁿ samples one by one, each with its probability; of the best, the one drawn first."""
    probabilities = reference or [0.25] * 4
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for row, rewards in enumerate(REWARDS):
        for sample in itertools.product(range(4), repeat=n):
            expected[row, max(sample, key=lambda i: rewards[i])] += math.prod(probabilities[i] for i in sample)
    given = None if reference is None else torch.tensor(reference, dtype=torch.float64)
    torch.testing.assert_close(best_of_n(torch.tensor(REWARDS), n, reference=given), expected, rtol=0, atol=1e-14)


def test_best_of_many_is_the_reference_among_the_best():
    """Oracle: (1 − π_ref(best))ⁿ is 0 in float64: only the best are left, in the reference's proportions."""
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    policies = best_of_n(torch.tensor(REWARDS), 10_000, reference=reference)
    expected = torch.tensor([[0, 0.75, 0, 0.25], [0, 0, 1, 0], [0, 1, 0, 0], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(policies, expected, rtol=0, atol=1e-10)


# ---- many at once ----


@pytest.mark.parametrize(
    "function",
    [
        fit_ipo,
        fit_bradley_terry,
        lambda wins: fit_ipo(wins, ridge=0.1),
        lambda wins: fit_bradley_terry(wins, ridge=0.1),
        lambda wins: win_groups(wins).same,
        lambda wins: win_groups(wins).undefeated,
        lambda wins: best_of_n(wins[..., 0], 3),
        lambda wins: order_with_flips(wins[..., 0], 0.1),
    ],
    ids=["ipo", "bradley_terry", "ipo, ridge", "bradley_terry, ridge", "same", "undefeated", "best_of_n", "order"],
)
def test_a_batch_is_its_members(function):
    """Oracle: each alone; one of them has so many wins that its tolerance would let the others stop at once.

    Whole numbers do as well as floats, any leading axes stay, the argument as it was.
    """
    tables = random_tables(4).reshape(2, 20, 4, 4)
    tables[0, 0] = 1e12 * (1 - torch.eye(4))
    before = tables.clone()
    together = function(tables)
    assert torch.equal(tables, before)
    assert together.shape[:2] == (2, 20)
    alone = torch.stack([function(wins.long()) for wins in tables.flatten(0, 1)])
    torch.testing.assert_close(together.flatten(0, 1), alone, rtol=0, atol=1e-8)
    assert function(tables[:0]).shape == (0, *together.shape[1:])
