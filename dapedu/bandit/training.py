"""Softmax policies trained on comparisons, all settings × seeds in one tensor."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dapedu.bandit.comparisons import Pairs, checked_pairs, incidence_of, log_reference_of
from dapedu.losses import dpo_loss, ipo_loss, spin_loss


class BanditRun(NamedTuple):
    """What `train_bandit` returns."""

    probabilities: Tensor  # (strengths, seeds, records, n_responses)
    steps: Tensor  # (records,), the optimiser steps after which each record was taken


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
    pairs = checked_pairs("train_bandit", pairs, n_responses)
    values = list(strengths) if isinstance(strengths, Iterable) else []
    if not values or not all(0 < value < math.inf for value in values):
        raise ValueError(f"train_bandit: strengths is {strengths}, expected one or more finite numbers > 0")
    if not 0 < lr < math.inf:
        raise ValueError(f"train_bandit: lr is {lr}, expected a finite number > 0")
    for name, count in {"seeds": seeds, "steps": steps, "record_every": record_every}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"train_bandit: {name} is {count}, expected a whole number ≥ 1")
    log_reference = log_reference_of("train_bandit", reference, n_responses).to(device)
    incidence = incidence_of(pairs, n_responses).to(device)  # (pairs, n_responses)
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
