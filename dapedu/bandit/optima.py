"""Where the losses lead on a dataset, in closed form or by Newton's method, and when that is finite."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dapedu.bandit.comparisons import Pairs, log_reference_of, rewards_of, table_of, whole_number


class WinGraph(NamedTuple):
    """What the directed graph winner → loser says about a dataset, see `win_graph`."""

    has_finite_optimum: bool  # every win lies on a directed cycle
    is_unique: bool  # strongly connected: one optimum, up to the constant that a softmax ignores
    groups: list[int]  # for each response the first member of its strongly connected component
    undefeated: list[bool]  # for each response whether no other component beats its own


class WinGroups(NamedTuple):
    """The strongly connected components of many win graphs, see `win_groups`."""

    same: Tensor  # (..., n_responses, n_responses), bool: row and column are in one component
    undefeated: Tensor  # (..., n_responses), bool: no other component beats this one's own


def rlhf_optimum(rewards: Tensor, beta: float, *, reference: Tensor | None = None) -> Tensor:
    """The policy that maximises E[r] − β KL(π‖π_ref): π* ∝ π_ref exp(r/β).

    Args:
        rewards: r, shape (..., n_responses); −∞ is allowed and gives probability 0.
        beta: KL weight β, > 0.
        reference: π_ref, shape (n_responses,); None is uniform.

    Returns:
        π*, shape (..., n_responses), float64.

    Raises:
        ValueError: the reference or beta is out of range, or a reward is no number.

    Source: arXiv:2305.18290, Eq. 4. Book: eq-gibbs.
    """
    if not beta > 0:
        raise ValueError(f"rlhf_optimum: beta is {beta}, expected > 0")
    rewards = rewards_of("rlhf_optimum", rewards)
    log_reference = log_reference_of("rlhf_optimum", reference, rewards.shape[-1])
    return torch.softmax(log_reference + rewards / beta, dim=-1)


def best_of_n(rewards: Tensor, n: int, *, reference: Tensor | None = None) -> Tensor:
    """The distribution of the best of n independent samples of the reference.

    Args:
        rewards: r, shape (..., n_responses); of equal rewards among the best, any may be returned: they share the
            probability as the reference does.
        n: how many samples, ≥ 1.
        reference: π_ref, shape (n_responses,); None is uniform.

    Returns:
        Probabilities, shape (..., n_responses), float64.

    Raises:
        ValueError: the reference or n is out of range, or a reward is no number.

    Source: arXiv:2009.01325, best-of-n as a policy. Book: eq-best-of-n.
    """
    whole_number("best_of_n", "n", n)
    rewards = rewards_of("best_of_n", rewards)
    probabilities = torch.softmax(log_reference_of("best_of_n", reference, rewards.shape[-1]), dim=-1)
    worse = (rewards[..., None, :] < rewards[..., :, None]).double() @ probabilities
    tied = (rewards[..., None, :] == rewards[..., :, None]).double() @ probabilities
    return ((worse + tied) ** n - worse**n) * probabilities / tied


def ipo_optimum(pairs: Pairs, tau: float, *, n_responses: int, reference: Tensor | None = None) -> Tensor:
    """The policy that minimises IPO's loss over the pairs: a least-squares problem with a closed form.

    Responses that no chain of comparisons connects leave the optimum open; the one nearest to the
    reference (the log-ratios of least norm) is returned, where a training run may end at another.

    Args:
        pairs: (winner, loser) indices.
        tau: KL weight τ, > 0.
        n_responses: how many responses there are.
        reference: π_ref, shape (n_responses,); None is uniform.

    Returns:
        π, shape (n_responses,), float64.

    Raises:
        ValueError: an index, the reference or tau is out of range.

    Source: arXiv:2310.12036, Eq. 17 and §5.4. Book: eq-ipo-optimum.
    """
    log_ratios = fit_ipo(table_of("ipo_optimum", pairs, n_responses))
    if not tau > 0:
        raise ValueError(f"ipo_optimum: tau is {tau}, expected > 0")
    return torch.softmax(log_reference_of("ipo_optimum", reference, n_responses) + log_ratios / tau, dim=0)


def fit_ipo(wins: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The log-ratios that minimise IPO's loss at τ = 1, for many datasets at once; at another τ, divide by it.

    Args:
        wins: counts as of `count_wins`, shape (..., n_responses, n_responses).
        ridge: weight of ½ Σ d² beside the mean loss of a comparison: 0, or from 1e-9 on.

    Returns:
        d = log π/π_ref up to a constant, of least norm, shape (..., n_responses), float64.

    Raises:
        ValueError: wins is no table of counts, or ridge is out of range.

    Source: arXiv:2310.12036, Eq. 17. Book: eq-ipo-optimum.
    """
    wins = _checked_wins("fit_ipo", wins)
    _require_ridge("fit_ipo", ridge)
    # The normal equations of Σ wins (d_w − d_l − ½)²: the graph's Laplacian against half the net wins.
    half_net_wins = (wins - wins.mT).sum(dim=-1, keepdim=True) / 2
    laplacian = _laplacian(wins + wins.mT)
    if ridge:
        return torch.linalg.solve(laplacian + ridge / 2 * _total_identity(wins), half_net_wins)[..., 0]
    return (torch.linalg.pinv(laplacian, hermitian=True) @ half_net_wins)[..., 0]


def bradley_terry_rewards(pairs: Pairs, *, n_responses: int) -> Tensor:
    """The maximum-likelihood rewards of Bradley–Terry; `rlhf_optimum` of them is DPO's optimum.

    Where no finite maximum exists this is a limit of fits, as `fit_bradley_terry` says.

    Args:
        pairs: (winner, loser) indices.
        n_responses: how many responses there are.

    Returns:
        Rewards, shape (n_responses,), float64; some may be −∞.

    Raises:
        ValueError: an index is out of range.

    Source: arXiv:2305.18290, Eq. 2; existence: Ford (1957). Book: eq-win-graph.
    """
    return fit_bradley_terry(table_of("bradley_terry_rewards", pairs, n_responses))


def fit_bradley_terry(wins: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Bradley–Terry's rewards for many datasets at once, by maximum likelihood or with a ridge.

    Without a ridge a finite maximum need not exist (see `win_graph`), and this is a limit of fits: a group of
    responses that another group beats without ever losing to it, directly or through others, gets −∞, and DPO
    tends to `rlhf_optimum` of that if one group is undefeated. The level between several undefeated groups is not
    decided by the likelihood (in training, by counts and optimiser): here each group's rewards have mean 0.

    Args:
        wins: counts as of `count_wins`, shape (..., n_responses, n_responses).
        ridge: weight of ½ Σ r² beside the mean loss of a comparison: 0, or from 1e-9 on, which makes the optimum
            finite and unique.

    Returns:
        Rewards, shape (..., n_responses), float64; some may be −∞ without a ridge.

    Raises:
        ValueError: wins is no table of counts, or ridge is out of range.
        RuntimeError: Newton's method did not converge.

    Source: arXiv:2305.18290, Eq. 2; existence: Ford (1957). Book: eq-win-graph.
    """
    wins = _checked_wins("fit_bradley_terry", wins)
    _require_ridge("fit_bradley_terry", ridge)
    if ridge:
        quadratic = ridge * _total_identity(wins)
        return _newton(wins, quadratic=quadratic, anchor=torch.zeros_like(wins))
    same, undefeated = win_groups(wins)
    # The likelihood leaves each group's level open; the anchor makes the Hessian regular there, and keeps the
    # mean of a group where it starts, at 0.
    rewards = _newton(wins * same, quadratic=torch.zeros_like(wins), anchor=same.double())
    return torch.where(undefeated, rewards, -torch.inf)


def win_graph(pairs: Pairs, *, n_responses: int) -> WinGraph:
    """Whether Bradley–Terry's likelihood, and with it DPO's loss, has a finite and a unique optimum.

    Finite exactly when every win lies on a directed cycle winner → loser → … → winner; unique exactly when
    the graph is strongly connected.

    Args:
        pairs: (winner, loser) indices.
        n_responses: how many responses there are.

    Returns:
        `WinGraph`.

    Raises:
        ValueError: an index is out of range.

    Source: Ford (1957). Book: eq-win-graph.
    """
    same, undefeated = win_groups(table_of("win_graph", pairs, n_responses))
    return WinGraph(
        has_finite_optimum=bool(undefeated.all()),
        is_unique=bool(same.all()),
        groups=same.int().argmax(dim=-1).tolist(),
        undefeated=undefeated.tolist(),
    )


def win_groups(wins: Tensor) -> WinGroups:
    """The strongly connected components of many win graphs at once, and which of them are undefeated.

    Args:
        wins: counts as of `count_wins`, shape (..., n_responses, n_responses).

    Returns:
        `WinGroups`. A finite optimum exists exactly where all are undefeated.

    Raises:
        ValueError: wins is no table of counts.

    Source: Ford (1957). Book: eq-win-graph.
    """
    wins = _checked_wins("win_groups", wins)
    n = wins.shape[-1]
    reaches = (wins > 0) | torch.eye(n, dtype=torch.bool)
    for _ in range((n - 1).bit_length()):  # paths of 2, 4, 8, … arrows
        reaches = (reaches.double() @ reaches.double()) > 0
    return WinGroups(same=reaches & reaches.mT, undefeated=~(reaches & ~reaches.mT).any(dim=-2))


def _newton(wins: Tensor, *, quadratic: Tensor, anchor: Tensor) -> Tensor:
    """Minimise Σ wins · −log σ(r_w − r_l) + ½ rᵀ quadratic r, from 0; `anchor` spans what the gradient leaves open."""
    rewards = torch.zeros(wins.shape[:-1], dtype=torch.float64)
    met = wins + wins.mT
    for _ in range(200):
        win = torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])
        gradient = (met * win - wins).sum(dim=-1) + (quadratic @ rewards[..., None])[..., 0]
        hessian = _laplacian(met * win * (1 - win)) + quadratic
        try:
            step = torch.linalg.solve(hessian + anchor, gradient[..., None])[..., 0]
        except torch.linalg.LinAlgError:  # counts too lopsided for float64
            break
        rewards = rewards - step * (2 / step.abs().amax(dim=-1, keepdim=True).clamp(min=2))  # at most 2 nats
        if (step.abs() <= 1e-6).all():  # convergence is quadratic: what is left is of the order of its square
            return rewards
    raise RuntimeError("fit_bradley_terry: Newton's method did not converge; are the counts extremely lopsided?")


def _total_identity(wins: Tensor) -> Tensor:
    """The number of comparisons times the identity: a ridge beside a mean, as one beside a sum."""
    total = wins.sum(dim=(-2, -1), keepdim=True)
    return torch.where(total > 0, total, 1) * torch.eye(wins.shape[-1], dtype=torch.float64)


def _laplacian(weights: Tensor) -> Tensor:
    return torch.diag_embed(weights.sum(dim=-1)) - weights


def _checked_wins(function: str, wins: Tensor) -> Tensor:
    wins = torch.as_tensor(wins, dtype=torch.float64)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise ValueError(f"{function}: wins has shape {tuple(wins.shape)}, expected (..., n_responses, n_responses)")
    counts = (wins >= 0) & wins.isfinite() & ~(torch.eye(wins.shape[-1], dtype=torch.bool) & (wins != 0))
    if not counts.all():
        place = tuple((~counts).nonzero()[0].tolist())
        raise ValueError(
            f"{function}: wins[{', '.join(map(str, place))}] is {wins[place]}, "
            "expected finite numbers ≥ 0, and 0 on the diagonal"
        )
    return wins


def _require_ridge(function: str, ridge: float) -> None:
    if not (ridge == 0 or 1e-9 <= ridge < math.inf):  # below, float64 cannot tell the optimum from others
        raise ValueError(f"{function}: ridge is {ridge}, expected 0 or a finite number from 1e-9 on")
