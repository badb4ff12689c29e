"""The published results about RLHF's objective itself: what β does, and what best-of-n costs and earns."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from dapedu.bandit import best_of_n, rlhf_optimum
from dapedu.evaluate import expected_reward, kl_divergence


def best_of_n_kl(
    *, counts: Sequence[int] = (2, 4, 16, 64), sizes: Sequence[int] = (4, 16, 256, 4096)
) -> dict[str, Any]:
    """Best-of-n from uniform references: its KL beside the well-known formula, its reward beside the frontier's.

    The rewards are the quantiles of a standard normal distribution, so that the reference earns 0. For the KL only
    their order matters.
    """
    entries: dict[str, Any] = {}
    for size in sizes:
        rewards = torch.from_numpy(norm.ppf((np.arange(size) + 0.5) / size))
        reference = torch.full((size,), 1 / size, dtype=torch.float64)
        by_count = {}
        for n in counts:
            policy = best_of_n(rewards, n)
            kl = kl_divergence(policy, reference).item()
            by_count[str(n)] = {
                "kl": round(kl, 6),
                "formula": round(math.log(n) - (n - 1) / n, 6),
                "reward": round(expected_reward(policy, rewards).item(), 6),
                "frontier_reward": round(frontier_reward(rewards, kl, reference=reference), 6),
            }
        entries[str(size)] = {"best_of": by_count}
    return entries


def frontier_reward(rewards: Tensor, kl: float, *, reference: Tensor) -> float:
    """The most reward that a policy at this KL from the reference can earn.

    Args:
        rewards: r, shape (n_responses,), not all equal.
        kl: KL(π‖π_ref) in nats, ≥ 0.
        reference: π_ref, shape (n_responses,).

    Returns:
        Expected reward of RLHF's optimum at that KL; beyond the largest KL there is on the frontier, the best reward.

    Raises:
        ValueError: kl is negative, or the rewards are all equal.

    Source: arXiv:2305.18290, Eqs. 3–4. Book: eq-frontier-slope.
    """
    if not kl >= 0:
        raise ValueError(f"frontier_reward: kl is {kl}, expected ≥ 0")
    if kl == 0:
        return expected_reward(reference, rewards).item()

    spread = (rewards.max() - rewards.min()).item()
    if not spread > 0:
        raise ValueError(f"frontier_reward: rewards are all {rewards[0].item()}, expected different ones")

    def excess(log_beta: float) -> float:
        optimum = rlhf_optimum(rewards, spread * math.exp(log_beta), reference=reference)
        return kl_divergence(optimum, reference).item() - kl

    nearest, furthest = 12.0, -12.0  # β from e¹² to e⁻¹² times the spread of the rewards
    if excess(furthest) <= 0:
        return rewards.max().item()
    if excess(nearest) >= 0:
        return expected_reward(reference, rewards).item()
    beta = spread * math.exp(brentq(excess, furthest, nearest, xtol=1e-12))
    return expected_reward(rlhf_optimum(rewards, beta, reference=reference), rewards).item()


def beta_and_kl(
    *,
    betas: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
    problems: int = 200,
    n_responses: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """KL of RLHF's optimum by β, on random problems: standard normal rewards, Dirichlet(2) references."""
    rng = np.random.default_rng(seed)
    kl = torch.empty(problems, len(betas), dtype=torch.float64)
    for row in range(problems):
        rewards = torch.from_numpy(rng.normal(size=n_responses))
        reference = torch.from_numpy(rng.dirichlet(np.full(n_responses, 2.0)))
        optima = torch.stack([rlhf_optimum(rewards, beta, reference=reference) for beta in betas])
        kl[row] = kl_divergence(optima, reference)
    return {"kl_mean": [float(f"{value:.4g}") for value in kl.mean(dim=0)]}
