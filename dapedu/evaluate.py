"""What a policy is worth and how sure we are: expected reward, divergences, intervals."""

import scipy.stats
import torch
from torch import Tensor


def expected_reward(probabilities: Tensor, rewards: Tensor) -> Tensor:
    """E_{y~π}[r(y)] where π can be written down.

    Args:
        probabilities: π, shape (..., n_responses).
        rewards: r, shape (n_responses,), or (..., n_responses) that broadcasts with π.

    Returns:
        Shape (...), in the reward's unit.

    Raises:
        ValueError: the numbers of responses differ.

    Source: arXiv:2305.18290, Eq. 3, first term.
    """
    _require_same_responses("expected_reward", probabilities=probabilities, rewards=rewards)
    never = (probabilities == 0) & rewards.isinf()  # 0 · (−∞) = 0: what never happens costs nothing
    return (probabilities * torch.where(never, 0, rewards)).sum(dim=-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p log(p/q), with 0 log 0 = 0. Not symmetric.

    KL(π‖π_ref), the one that RLHF penalises, is called the reverse KL; KL(π_ref‖π) the forward one.

    Args:
        p, q: probabilities, shapes that broadcast, responses on the last axis.

    Returns:
        Nats, shape (...); ∞ where q is 0 and p is not.

    Raises:
        ValueError: the numbers of responses differ.

    Source: arXiv:2305.18290, Eq. 3, second term.
    """
    _require_same_responses("kl_divergence", p=p, q=q)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation ½ Σ |p − q|: the largest difference in the probability of any event.

    Args:
        p, q: probabilities, shapes that broadcast, responses on the last axis.

    Returns:
        Shape (...), from 0 to 1.

    Raises:
        ValueError: the numbers of responses differ.
    """
    _require_same_responses("total_variation", p=p, q=q)
    return 0.5 * (p - q).abs().sum(dim=-1)


def mean_interval(values: Tensor, *, dim: int = 0, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Mean over seeds and the half-width of Student's interval for it.

    Args:
        values: one value a seed along `dim`.
        dim: the axis of the seeds, at least 2 of them.
        level: coverage of the interval, between 0 and 1.

    Returns:
        Mean and half-width, each of values' shape without `dim`.

    Raises:
        ValueError: fewer than two seeds, of which no spread can be told, or level is not between 0 and 1.
    """
    n = values.shape[dim]
    if n < 2:
        raise ValueError(f"mean_interval: values has {n} along axis {dim}, expected at least 2 seeds")
    if not 0 < level < 1:
        raise ValueError(f"mean_interval: level is {level}, expected between 0 and 1")
    quantile = scipy.stats.t.ppf(0.5 + level / 2, df=n - 1)
    return values.mean(dim=dim), quantile * values.std(dim=dim) / n**0.5


def _require_same_responses(function: str, **tensors: Tensor) -> None:
    (first, left), (second, right) = tensors.items()
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(
            f"{function}: {first} has {left.shape[-1]} responses on its last axis, {second} has {right.shape[-1]}"
        )
