"""Expected reward, divergences and intervals against hand values, torch.distributions and scipy."""

import math

import pytest
import scipy.stats
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl_divergence

from dapedu.evaluate import expected_reward, kl_divergence, mean_interval

torch.set_num_threads(1)


def random_policies(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


# ---- expected reward ----


def test_expected_reward_by_hand():
    """Oracle: .5 · 1 + .3 · .9 + .2 · 0 = .77, and a reward that is certain."""
    policies = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.9, 0.0], dtype=torch.float64)
    torch.testing.assert_close(expected_reward(policies, rewards), torch.tensor([0.77, 0.9], dtype=torch.float64))


def test_expected_reward_is_the_mean_over_samples():
    """Oracle: 200,000 draws, within five standard errors; every leading axis is kept."""
    policies = random_policies(2, 3, 4)
    rewards = torch.tensor([0.0, 1.0, -2.0, 5.0], dtype=torch.float64)
    exact = expected_reward(policies, rewards)
    torch.manual_seed(0)
    sampled = rewards[Categorical(policies).sample((200_000,))]
    assert exact.shape == (2, 3)
    assert ((sampled.mean(0) - exact).abs() < 5 * sampled.std(0) / 200_000**0.5).all()


def test_what_never_happens_costs_nothing():
    """Oracle: 0 · (−∞) = 0: `rlhf_optimum` gives an undefended response reward −∞ and probability 0.

    With any probability at all the expectation is −∞; a finite reward keeps its gradient at probability 0.
    """
    rewards = torch.tensor([1.0, 3.0, -math.inf], dtype=torch.float64)
    policies = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.9, 0.0, 0.1]], dtype=torch.float64)
    assert expected_reward(policies, rewards).tolist() == [2, 1, -math.inf]
    policy = policies[1, :2].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(expected_reward(policy, rewards[:2]), policy)
    assert slopes.tolist() == [1, 3]


def test_expected_reward_refuses_another_number_of_responses():
    """Oracle: three probabilities, two rewards."""
    with pytest.raises(ValueError, match="probabilities has 3 responses on its last axis, rewards has 2"):
        expected_reward(random_policies(5, 3), torch.zeros(2))


# ---- KL divergence ----


def test_kl_by_hand():
    """Oracle: (½, ½) against (¼, ¾): ½ log 2 + ½ log ⅔ = ½ log(4/3); the other way ¾ log 3 − log 2."""
    half, quarter = (
        torch.tensor(p, dtype=torch.float64)
        for p in (
            [0.5, 0.5],
            [0.25, 0.75],
        )
    )
    assert kl_divergence(half, quarter).item() == pytest.approx(math.log(4 / 3) / 2, abs=1e-15)
    assert kl_divergence(quarter, half).item() == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-15)


def test_kl_is_that_of_torch_distributions():
    """Oracle: torch 2.13's Categorical, on a batch and broadcast against one reference."""
    p, q, reference = random_policies(6, 4), random_policies(6, 4, seed=1), random_policies(4, seed=2)
    expected = torch_kl_divergence(Categorical(p), Categorical(q))
    torch.testing.assert_close(kl_divergence(p, q), expected)
    against_one = torch_kl_divergence(Categorical(p), Categorical(reference.expand(6, 4)))
    torch.testing.assert_close(kl_divergence(p, reference), against_one)


def test_kl_where_a_probability_is_zero():
    """Oracle: 0 log 0 = 0 in the first place, ∞ in the second, by the definition's limits."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    never = torch.tensor([0.625, 0.375, 0.0], dtype=torch.float64)  # the reference without c
    assert kl_divergence(never, reference).item() == pytest.approx(-math.log(0.8), abs=1e-15)
    assert kl_divergence(reference, never).item() == math.inf
    assert kl_divergence(never, never).item() == 0


def test_reverse_kl_stays_finite_when_the_rejected_response_dies():
    """Oracle: papers.md, "mistakes": → −log(1 − π_ref(y_l)) = .2231 here; only the forward KL diverges."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    left = torch.tensor([1e-2, 1e-4, 1e-8, 1e-300], dtype=torch.float64)[:, None]
    path = torch.cat([(1 - left) * 0.625, (1 - left) * 0.375, left], dim=1)
    reverse, forward = kl_divergence(path, reference), kl_divergence(reference, path)
    assert reverse.diff().min() > 0
    assert reverse[-1].item() == pytest.approx(-math.log(0.8), abs=1e-12)
    assert forward[-1] > 100
    assert forward.diff().min() > 0.5


def test_reverse_kl_is_bounded_by_the_rarest_response():
    """Oracle: KL(π‖π_ref) ≤ max −log π_ref, reached by the policy that is certain of the rarest response."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    bound = -math.log(0.2)
    assert kl_divergence(random_policies(500, 3), reference).max() <= bound
    certain = kl_divergence(torch.eye(3, dtype=torch.float64), reference)
    torch.testing.assert_close(certain, -reference.log())
    assert certain.max().item() == pytest.approx(bound, abs=1e-15)


def test_kl_is_positive_and_not_symmetric():
    """Oracle: Gibbs' inequality, zero exactly for equals."""
    p, q = random_policies(200, 4), random_policies(200, 4, seed=1)
    forward, backward = kl_divergence(p, q), kl_divergence(q, p)
    assert (forward > 0).all()
    assert ((forward - backward).abs() > 1e-3).float().mean() > 0.9
    assert (kl_divergence(p, p) == 0).all()


@pytest.mark.parametrize("n", [4, 1])
def test_kl_refuses_another_number_of_responses(n):
    """Oracle: three responses against four, or against one, which would broadcast to a negative KL."""
    with pytest.raises(ValueError, match=f"kl_divergence: p has .* responses on its last axis, q has {n}"):
        kl_divergence(torch.full((3,), 1 / 3), torch.ones(n) / n)


# ---- Student's interval ----


def test_interval_by_hand():
    """Oracle: (1, 2, 3): mean 2, s = 1, and with two degrees of freedom t_p = (2p − 1)/√(2p(1 − p)) = 4.3027."""
    mean, half_width = mean_interval(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert mean.item() == 2
    assert half_width.item() == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3), abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_interval_is_scipys(level, dim):
    """Oracle: scipy.stats.t.interval with its own standard error, along any axis."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    mean, half_width = mean_interval(values, dim=dim, level=level)
    numbers = values.numpy()
    low, high = scipy.stats.t.interval(
        level,
        df=numbers.shape[dim] - 1,
        loc=numbers.mean(axis=dim),
        scale=scipy.stats.sem(numbers, axis=dim),
    )
    torch.testing.assert_close(mean - half_width, torch.from_numpy(low))
    torch.testing.assert_close(mean + half_width, torch.from_numpy(high))


@pytest.mark.parametrize("n", [2, 5, 10])
def test_interval_covers_what_it_promises(n):
    """Oracle: 40,000 simulated experiments. 1.96 in place of Student's t covers .70, .88, .92 of them."""
    generator = torch.Generator().manual_seed(n)
    values = 7 + 3 * torch.randn(n, 40_000, generator=generator, dtype=torch.float64)
    mean, half_width = mean_interval(values)
    coverage = ((mean - 7).abs() < half_width).double().mean().item()
    assert coverage == pytest.approx(0.95, abs=0.005)  # 4.6 standard errors


def test_one_seed_has_no_interval():
    """Oracle: the message says which argument, how many and along which axis."""
    with pytest.raises(ValueError, match="values") as error:
        mean_interval(torch.zeros(4, 1), dim=1)
    assert str(error.value) == "mean_interval: values has 1 along axis 1, expected at least 2 seeds"


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_a_level_is_between_0_and_1(level):
    """Oracle: 95 for .95 gives NaN, 1 gives ∞, a negative one an interval turned inside out."""
    with pytest.raises(ValueError, match="level") as error:
        mean_interval(torch.zeros(5), level=level)
    assert str(error.value) == f"mean_interval: level is {level}, expected between 0 and 1"
