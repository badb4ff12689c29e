"""What is exact here: every optimum, Z(x), win rates, best-of-n, and the frontier of reward against KL.

A table has one row a prompt and one column a completion. The formulas are the bandit's, row by row.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from dapedu.bandit import best_of_n, rlhf_optimum
from dapedu.evaluate import expected_reward, kl_divergence


class Frontier(NamedTuple):
    """What `frontier` returns: points of the best trade-off, one for each β."""

    kl: Tensor  # KL(π*‖π_ref) in nats, mean over the prompts, (betas,)
    rewards: Tensor  # E[r] under π*, mean over the prompts, (betas,)


def probabilities(logps: Tensor) -> Tensor:
    """A model's table as probabilities in float64, rid of the rounding by which float32 misses a sum of 1.

    Args:
        logps: of `completion_logps`, shape (prompts, completions).

    Returns:
        The same shape, float64.
    """
    return torch.softmax(logps.detach().double(), dim=-1)


def gold_wins(rewards: Tensor, *, sharpness: float = math.inf) -> Tensor:
    """Who is preferred to whom: by Bradley–Terry on sharpened rewards, or by the rewards' order.

    Args:
        rewards: r, shape (prompts, completions).
        sharpness: p = σ(sharpness · Δr), > 0; ∞ is a judge without doubt, for whom a tie counts half.

    Returns:
        p(row is preferred to column), shape (prompts, completions, completions).

    Raises:
        ValueError: sharpness is not positive.
    """
    if not sharpness > 0:
        raise ValueError(f"gold_wins: sharpness is {sharpness}, expected > 0")
    gaps = rewards[:, :, None] - rewards[:, None, :]
    return (1 + gaps.sign()) / 2 if math.isinf(sharpness) else torch.sigmoid(sharpness * gaps)


def wins_over(opponent: Tensor, wins: Tensor) -> Tensor:
    """p(y ≻ μ): how often each completion is preferred to one drawn from μ.

    The expectation of it under a policy is the policy's win rate against μ.

    Args:
        opponent: μ, probabilities, shape (prompts, completions).
        wins: p(row is preferred to column), shape (prompts, completions, completions).

    Returns:
        Shape (prompts, completions), float64.

    Source: arXiv:2310.12036, §3.
    """
    return (wins.double() @ opponent.double()[:, :, None])[:, :, 0]


def log_partition(rewards: Tensor, beta: float, *, reference: Tensor) -> Tensor:
    """log Z(x), the normaliser of RLHF's optimum: log Σ_y π_ref(y|x) exp(r(x, y)/β).

    Args:
        rewards: r, shape (prompts, completions).
        beta: KL weight β, > 0.
        reference: π_ref, the same shape.

    Returns:
        Nats, shape (prompts,), float64. β times it is the objective's value at the optimum.

    Source: arXiv:2305.18290, Eq. 4.
    """
    return torch.logsumexp(reference.double().log() + rewards.double() / beta, dim=-1)


def rlhf_optima(rewards: Tensor, beta: float, *, reference: Tensor) -> Tensor:
    """`dapedu.bandit.rlhf_optimum` of every prompt: π* ∝ π_ref exp(r/β).

    Args:
        rewards: r, shape (prompts, completions).
        beta: KL weight β, > 0.
        reference: π_ref, the same shape.

    Returns:
        π*, shape (prompts, completions), float64.

    Raises:
        ValueError: as `rlhf_optimum`.

    Source: arXiv:2305.18290, Eq. 4.
    """
    return torch.stack([rlhf_optimum(r, beta, reference=p) for r, p in zip(rewards, reference, strict=True)])


def ipo_optima(wins: Tensor, tau: float, *, reference: Tensor) -> Tensor:
    """What IPO's expected loss leads to, if both completions of a pair are drawn from the reference.

    That is π ∝ π_ref exp(p(y ≻ π_ref)/τ): RLHF's optimum with a win rate for a reward.

    Args:
        wins: p(row is preferred to column), shape (prompts, completions, completions).
        tau: KL weight τ, > 0.
        reference: π_ref, shape (prompts, completions).

    Returns:
        π, shape (prompts, completions), float64.

    Raises:
        ValueError: as `rlhf_optimum`.

    Source: arXiv:2310.12036, Eq. 7 with Ψ = identity, and §5.1.
    """
    return rlhf_optima(wins_over(reference, wins), tau, reference=reference)


def best_of_n_policies(rewards: Tensor, n: int, *, reference: Tensor) -> Tensor:
    """`dapedu.bandit.best_of_n` of every prompt.

    Args:
        rewards: r, shape (prompts, completions).
        n: how many samples, ≥ 1.
        reference: π_ref, the same shape.

    Returns:
        Probabilities, shape (prompts, completions), float64.

    Raises:
        ValueError: as `best_of_n`.

    Source: arXiv:2009.01325, best-of-n as a policy.
    """
    return torch.stack([best_of_n(r, n, reference=p) for r, p in zip(rewards, reference, strict=True)])


def frontier(rewards: Tensor, betas: Sequence[float], *, reference: Tensor) -> Frontier:
    """The most reward for the least KL, both means over the prompts: RLHF's optima with one β for all prompts.

    One β, because the objective is a sum over the prompts, so a policy that maximises mean reward − β · mean KL
    does so on each; were the prices of a nat different, KL could be moved to where it earns more.

    Args:
        rewards: r, shape (prompts, completions).
        betas: KL weights β, > 0.
        reference: π_ref, the same shape.

    Returns:
        `Frontier`, float64.

    Raises:
        ValueError: as `rlhf_optimum`.

    Source: arXiv:2305.18290, Eqs. 3–4.
    """
    optima = torch.stack([rlhf_optima(rewards, beta, reference=reference) for beta in betas])
    return Frontier(
        kl_divergence(optima, reference.double()).mean(dim=1), expected_reward(optima, rewards.double()).mean(dim=1)
    )


def frontier_reward(rewards: Tensor, kl: float, *, reference: Tensor) -> float:
    """The most reward that a policy at this mean KL from the reference can earn.

    Whatever β, a policy has E[r] ≤ β KL + β log Z(x), since the objective's maximum is β log Z(x). The least of these
    bounds over β is reached, by the optimum whose KL it is.

    Args:
        rewards: r, shape (prompts, completions), on some prompt not all equal.
        kl: KL(π‖π_ref) in nats, mean over the prompts, ≥ 0.
        reference: π_ref, the same shape.

    Returns:
        Expected reward, mean over the prompts; beyond the largest KL there is on the frontier, the best reward.

    Raises:
        ValueError: kl is negative, or no prompt has different rewards.

    Source: arXiv:2305.18290, Eqs. 3–4.
    """
    if not kl >= 0:
        raise ValueError(f"frontier_reward: kl is {kl}, expected ≥ 0")
    spread = (rewards.amax(dim=1) - rewards.amin(dim=1)).max().item()
    if not spread > 0:
        raise ValueError("frontier_reward: every prompt's rewards are all equal, expected different ones")

    def bound(log_beta: float) -> float:
        beta = spread * math.exp(log_beta)
        return beta * (kl + log_partition(rewards, beta, reference=reference).mean().item())

    # Convex in β, so that a bounded search finds it: β from e⁻¹² to e¹² times the spread of the rewards.
    return float(minimize_scalar(bound, bounds=(-12, 12), method="bounded", options={"xatol": 1e-8}).fun)
