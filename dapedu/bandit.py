"""World 1, the bandit: n responses, π = softmax(θ), and a closed form to hold every curve against.

The setting is §5.4 of the IPO paper (arXiv:2310.12036). A dataset is a list of (winner, loser) indices.
Settings × seeds train together in one tensor, since one run is three numbers and a loop over runs would
spend its time in Python.
"""

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse.csgraph
import scipy.special
import torch
from torch import Tensor

from dapedu.losses import dpo_loss, ipo_loss, spin_loss

Pairs = Sequence[tuple[int, int]]

# §5.4's three datasets over the responses a, b, c = 0, 1, 2. The text's D3 cannot show what its figure
# shows (c is in no pair); "D3 as meant" is our reading: one response never wins, the other two are alike.
DATASETS: dict[str, list[tuple[int, int]]] = {
    "D1": [(0, 1), (1, 2), (0, 2)],
    "D2": [(0, 1), (1, 2), (2, 0)],
    "D3 as printed": [(0, 1), (1, 0)],
    "D3 as meant": [(0, 1), (2, 1)],
}


class BanditRun(NamedTuple):
    """What `train_bandit` returns."""

    probabilities: Tensor  # (strengths, seeds, records, n_responses)
    steps: Tensor  # (records,), the optimiser steps after which each record was taken


class WinGraph(NamedTuple):
    """What the directed graph winner → loser says about a dataset, see `win_graph`."""

    has_finite_optimum: bool  # every win lies on a directed cycle
    is_unique: bool  # strongly connected: one optimum, up to the constant that a softmax ignores
    groups: list[int]  # for each response the number of its strongly connected component
    undefeated: list[bool]  # for each response whether no other component beats its own


def train_bandit(
    pairs: Pairs,
    loss: Callable[..., Tensor],
    strengths: Sequence[float],
    *,
    n_responses: int,
    reference: Tensor | None = None,
    seeds: int = 10,
    steps: int = 18_000,
    lr: float = 0.01,
    batch_size: int | None = 9,
    record_every: int = 100,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> BanditRun:
    """Train softmax policies on comparisons with Adam, from the reference on, all settings × seeds at once.

    Every strength sees the same mini-batches, drawn with replacement. Defaults are §5.4's.

    Args:
        pairs: (winner, loser) indices; a pair that stands twice counts twice.
        loss: `dpo_loss`, `ipo_loss`, `spin_loss`, or any function of the same four keyword
            log-probabilities and one keyword for the strength, of whatever name.
        strengths: values of β or τ, > 0.
        n_responses: how many responses there are; they need not all be in a pair.
        reference: π_ref, also the starting point, shape (n_responses,); None is uniform.
        seeds: number of independent runs.
        steps: optimiser steps.
        lr: Adam's learning rate.
        batch_size: pairs in a mini-batch; None is the whole dataset, exactly.
        record_every: steps between two records; the start and the end are always recorded.
        seed: the first of the seeds.
        device: where to train; the results come back to the CPU. Unlike elsewhere in the package a GPU is not
            taken by itself: a step is a dozen operations on a few hundred numbers, which it would only wait for.

    Returns:
        `BanditRun`: float64 probabilities, shape (strengths, seeds, records, n_responses), and the steps.

    Raises:
        ValueError: an index, the reference, a strength or a count is out of range; the message names it.

    Source: arXiv:2310.12036, §5.4. Book: eq-ipo-bandit.
    """
    pairs = _checked_pairs("train_bandit", pairs, n_responses)
    values = list(strengths) if isinstance(strengths, Iterable) else []
    if not values or not all(0 < value < math.inf for value in values):
        raise ValueError(f"train_bandit: strengths is {strengths}, expected one or more finite numbers > 0")
    if not 0 < lr < math.inf:
        raise ValueError(f"train_bandit: lr is {lr}, expected a finite number > 0")
    for name, count in {"seeds": seeds, "steps": steps, "record_every": record_every}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"train_bandit: {name} is {count}, expected a whole number ≥ 1")
    log_reference = _log_reference("train_bandit", reference, n_responses).to(device)
    incidence = _incidence(pairs, n_responses).to(device)  # (pairs, n_responses)
    strength = torch.tensor(values, dtype=torch.float64, device=device)[:, None, None]
    batches = draw_batches(len(pairs), seeds=seeds, steps=steps, batch_size=batch_size, seed=seed).to(device)
    if loss in _SLOPES:
        gradient_of = _closed_form_gradient(_SLOPES[loss](strength), incidence)
    else:
        gradient_of = _autograd_gradient(loss, strength, pairs, log_reference)

    # d = log π/π_ref up to a constant; it starts at 0, where the policy is the reference.
    log_ratios = torch.zeros(len(values), seeds, n_responses, dtype=torch.float64, device=device)
    first, second = torch.zeros_like(log_ratios), torch.zeros_like(log_ratios)  # Adam's moments
    recorded_steps, records = [], []
    with torch.inference_mode(loss in _SLOPES):  # which autograd could not work in
        for step, shares in enumerate(batches.unbind()):
            if step % record_every == 0:
                recorded_steps.append(step)
                records.append(log_ratios.clone())
            gradient = gradient_of(log_ratios, shares)
            # Adam written out: torch.optim.Adam gives the same numbers (tested) at three times the time,
            # which on tensors this small is all overhead.
            first.lerp_(gradient, 1 - _BETA_1)
            second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
            scale = second.sqrt().div_((1 - _BETA_2 ** (step + 1)) ** 0.5).add_(_EPSILON)
            log_ratios.addcdiv_(first, scale, value=-lr / (1 - _BETA_1 ** (step + 1)))
    recorded_steps.append(steps)
    records.append(log_ratios)
    probabilities = torch.softmax(log_reference + torch.stack(records, dim=2), dim=-1)
    return BanditRun(probabilities.cpu(), torch.tensor(recorded_steps))


def draw_batches(n_pairs: int, *, seeds: int, steps: int, batch_size: int | None = 9, seed: int = 0) -> Tensor:
    """The mini-batches of `train_bandit`: how much of each batch is which pair.

    Only these shares matter to a gradient, not the order within a batch.

    Args:
        n_pairs: size of the dataset.
        seeds, steps, batch_size, seed: as in `train_bandit`.

    Returns:
        Shares that sum to 1 over the pairs, shape (steps, seeds, n_pairs), float64, on the CPU.

    Raises:
        ValueError: batch_size is not positive.
    """
    if batch_size is None:
        return torch.full((1, 1, 1), 1 / n_pairs, dtype=torch.float64).expand(steps, seeds, n_pairs)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"draw_batches: batch_size is {batch_size}, expected a whole number ≥ 1, or None")
    shares = torch.empty(steps, seeds, n_pairs, dtype=torch.float64)
    for column in range(seeds):  # a generator a seed: seed 3 is the same run however many others run
        generator = torch.Generator().manual_seed(seed + column)
        drawn = torch.randint(n_pairs, (steps, batch_size), generator=generator)
        for pair in range(n_pairs):
            shares[:, column, pair] = (drawn == pair).sum(dim=1, dtype=torch.float64) / batch_size
    return shares


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
    pairs = _checked_pairs("ipo_optimum", pairs, n_responses)
    if not tau > 0:
        raise ValueError(f"ipo_optimum: tau is {tau}, expected > 0")
    targets = torch.full((len(pairs),), 1 / (2 * tau), dtype=torch.float64)
    log_ratios = torch.linalg.pinv(_incidence(pairs, n_responses)) @ targets
    return torch.softmax(_log_reference("ipo_optimum", reference, n_responses) + log_ratios, dim=0)


def rlhf_optimum(rewards: Tensor, beta: float, *, reference: Tensor | None = None) -> Tensor:
    """The policy that maximises E[r] − β KL(π‖π_ref): π* ∝ π_ref exp(r/β).

    Args:
        rewards: r, shape (..., n_responses); −∞ is allowed and gives probability 0.
        beta: KL weight β, > 0.
        reference: π_ref, shape (n_responses,); None is uniform.

    Returns:
        π*, shape (..., n_responses), float64.

    Raises:
        ValueError: the reference or beta is out of range.

    Source: arXiv:2305.18290, Eq. 4. Book: eq-gibbs.
    """
    if not beta > 0:
        raise ValueError(f"rlhf_optimum: beta is {beta}, expected > 0")
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    log_reference = _log_reference("rlhf_optimum", reference, rewards.shape[-1])
    return torch.softmax(log_reference + rewards / beta, dim=-1)


def bradley_terry_rewards(pairs: Pairs, *, n_responses: int) -> Tensor:
    """The maximum-likelihood rewards of Bradley–Terry; `rlhf_optimum` of them is DPO's optimum.

    Where no finite maximum exists (see `win_graph`) this is a limit of fits: a group of responses that
    another group beats without ever losing to it, directly or through others, gets −∞, and DPO tends to
    `rlhf_optimum` of that if one group is undefeated. The level between several undefeated groups is not
    decided by the likelihood (in training, by counts and optimiser): here each group's rewards have mean 0.

    Args:
        pairs: (winner, loser) indices.
        n_responses: how many responses there are.

    Returns:
        Rewards, shape (n_responses,), float64; some may be −∞.

    Raises:
        ValueError: an index is out of range.

    Source: arXiv:2305.18290, Eq. 2; existence: Ford (1957). Book: eq-win-graph.
    """
    pairs = _checked_pairs("bradley_terry_rewards", pairs, n_responses)
    graph = win_graph(pairs, n_responses=n_responses)
    inside = [pair for pair in pairs if graph.groups[pair[0]] == graph.groups[pair[1]]]
    rewards = np.zeros(n_responses)
    if inside:
        incidence = _incidence(inside, n_responses).numpy()

        def loss_and_gradient(rewards: np.ndarray) -> tuple[float, np.ndarray]:
            margins = incidence @ rewards
            return np.logaddexp(0, -margins).sum(), -incidence.T @ scipy.special.expit(-margins)

        def hessian(rewards: np.ndarray) -> np.ndarray:
            win = scipy.special.expit(incidence @ rewards)
            return (incidence.T * (win * (1 - win))) @ incidence

        rewards = scipy.optimize.minimize(
            loss_and_gradient, rewards, jac=True, hess=hessian, method="trust-exact", tol=1e-10
        ).x
        # The data leave each group's level open, and the solver drifts along it, to other policies.
        same_group = np.equal.outer(graph.groups, graph.groups).astype(float)
        rewards = rewards - same_group @ rewards / same_group.sum(axis=1)
    rewards[~np.array(graph.undefeated)] = -np.inf
    return torch.from_numpy(rewards)


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
    pairs = _checked_pairs("win_graph", pairs, n_responses)
    wins = np.zeros((n_responses, n_responses))
    for winner, loser in pairs:
        wins[winner, loser] = 1
    n_groups, groups = scipy.sparse.csgraph.connected_components(wins, directed=True, connection="strong")
    beaten_groups = {groups[loser] for winner, loser in pairs if groups[winner] != groups[loser]}
    return WinGraph(
        has_finite_optimum=not beaten_groups,
        is_unique=n_groups == 1,
        groups=groups.tolist(),
        undefeated=[group not in beaten_groups for group in groups],
    )


_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults, arXiv:1412.6980


def _logistic_slope(beta: Tensor) -> Callable[[Tensor], Tensor]:
    minus_beta = -beta
    return lambda margins: margins.mul_(minus_beta).sigmoid_().mul_(minus_beta)  # −β σ(−βh)


def _squared_slope(tau: Tensor) -> Callable[[Tensor], Tensor]:
    target = 1 / (2 * tau)
    return lambda margins: margins.sub_(target).mul_(2)  # 2(h − 1/(2τ))


# dL/dh, given the strength, for the losses that see the policy only through the margin h; overwrites h.
_SLOPES: dict[Callable[..., Tensor], Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    dpo_loss: _logistic_slope,
    spin_loss: _logistic_slope,
    ipo_loss: _squared_slope,
}

_LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")

_Gradient = Callable[[Tensor, Tensor], Tensor]  # log-ratios and shares of the batch → gradient


def _closed_form_gradient(slope: Callable[[Tensor], Tensor], incidence: Tensor) -> _Gradient:
    """Σ_pairs share · L′(h) (e_w − e_l): the softmax's normaliser cancels in h. Far faster than autograd."""
    to_margins = incidence.T.contiguous()

    def gradient(log_ratios: Tensor, shares: Tensor) -> Tensor:
        return slope(log_ratios @ to_margins).mul_(shares) @ incidence

    return gradient


def _autograd_gradient(loss: Callable[..., Tensor], strength: Tensor, pairs: Pairs, log_reference: Tensor) -> _Gradient:
    """The same for any loss, through its public signature."""
    names = list(inspect.signature(loss).parameters)
    strength_names = [name for name in names if name not in _LOGPS]
    if len(strength_names) != 1 or len(names) != 1 + len(_LOGPS):
        raise ValueError(f"train_bandit: loss takes {', '.join(names)}, expected {', '.join(_LOGPS)} and one strength")
    (strength_name,) = strength_names
    winners, losers = (list(side) for side in zip(*pairs, strict=True))

    def gradient(log_ratios: Tensor, shares: Tensor) -> Tensor:
        leaf = log_ratios.detach().requires_grad_()
        policy = torch.log_softmax(log_reference + leaf, dim=-1)
        reference = log_reference.expand_as(policy)
        losses = loss(
            policy_chosen_logps=policy[..., winners],
            policy_rejected_logps=policy[..., losers],
            reference_chosen_logps=reference[..., winners],
            reference_rejected_logps=reference[..., losers],
            **{strength_name: strength},
        )
        if losses.shape != policy[..., winners].shape:
            raise ValueError(
                f"train_bandit: loss returned shape {tuple(losses.shape)} for log-probabilities of shape "
                f"{tuple(policy[..., winners].shape)}, expected the same: one value per pair, not averaged"
            )
        return torch.autograd.grad((losses * shares).sum(), leaf)[0]

    return gradient


def _incidence(pairs: Pairs, n_responses: int) -> Tensor:
    """Row k is e_winner − e_loser of pair k, shape (pairs, n_responses)."""
    winners, losers = torch.tensor(pairs).T
    one_hot = torch.eye(n_responses, dtype=torch.float64)
    return one_hot[winners] - one_hot[losers]


def _log_reference(function: str, reference: Tensor | None, n_responses: int) -> Tensor:
    if reference is None:
        return torch.full((n_responses,), -np.log(n_responses), dtype=torch.float64)
    reference = torch.as_tensor(reference, dtype=torch.float64)
    if reference.shape != (n_responses,):
        raise ValueError(f"{function}: reference has shape {tuple(reference.shape)}, expected ({n_responses},)")
    if not (reference > 0).all() or abs(reference.sum().item() - 1) > 1e-6:
        raise ValueError(
            f"{function}: reference is {reference.tolist()}, expected positive probabilities that sum to 1"
        )
    return reference.log()


def _checked_pairs(function: str, pairs: Pairs, n_responses: int) -> list[tuple[int, int]]:
    if not len(pairs):
        raise ValueError(f"{function}: pairs is empty, expected at least one (winner, loser)")
    checked = []
    for number, pair in enumerate(pairs):
        try:
            winner, loser = map(operator.index, pair)
            is_pair = winner != loser and min(winner, loser) >= 0 and max(winner, loser) < n_responses
        except (TypeError, ValueError):  # not two whole numbers
            is_pair = False
        if not is_pair:
            raise ValueError(
                f"{function}: pair {number} is {pair!r}, expected two different indices from 0 to "
                f"{n_responses - 1} (n_responses is {n_responses})"
            )
        checked.append((winner, loser))
    return checked
