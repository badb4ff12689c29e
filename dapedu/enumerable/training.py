"""Training on the whole world: no samples at all, or a few sampled pairs, beside each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dapedu.enumerable.world import World, completion_logps
from dapedu.evaluate import kl_divergence

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from dapedu.models import ScalarHead


class SampledPairs(NamedTuple):
    """What `sample_pairs` draws, one row a labelled pair: where prompt and completions stand in their tables."""

    prompts: Tensor  # (n,)
    chosen: Tensor  # (n,)
    rejected: Tensor  # (n,)


def fit_humans(model: GPT2LMHeadModel, world: World, *, steps: int = 300, lr: float = 3e-3) -> float:
    """Supervised fine-tuning without samples: cross-entropy to the human distribution, over all completions.

    Args:
        model: trained in place.
        world: of `make_world`.
        steps: of Adam, with a cosine schedule.
        lr: learning rate at the start.

    Returns:
        KL(human‖model) at the end, mean over the prompts, nats.

    Raises:
        ValueError: as `completion_logps`.
    """
    human = world.human_logps.exp().to(model.device)
    minimise(model, lambda logps: -(human * logps).sum(dim=1).mean(), world, steps=steps, lr=lr)
    with torch.no_grad():
        return kl_divergence(human, completion_logps(model, world).exp()).mean().item()


def minimise(
    model: GPT2LMHeadModel | ScalarHead,
    objective: Callable[[Tensor], Tensor],
    world: World,
    *,
    steps: int,
    lr: float,
    table: Callable[[Any, World], Tensor] = completion_logps,
) -> None:
    """Adam with a cosine schedule on an objective of the table of log-probabilities, or of rewards.

    Args:
        model: trained in place.
        objective: from the table, shape (prompts, completions), to a number.
        world: of `make_world`.
        steps: optimiser steps.
        lr: learning rate at the start.
        table: what the model says of every completion; `completion_rewards` for a head.

    Raises:
        ValueError: as table.
    """
    # The objective has no noise that squared gradients would have to be averaged over: a short memory is faster.
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 200)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(table(model, world)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def pair_weights(reference_logps: Tensor, wins: Tensor) -> Tensor:
    """How often each labelled pair comes up, if both completions are drawn from the reference and compared once.

    Args:
        reference_logps: log π_ref, shape (prompts, completions).
        wins: p(row is preferred to column), shape (prompts, completions, completions).

    Returns:
        Probabilities of (chosen, rejected), shape (prompts, completions, completions); they sum to 1 for each prompt.
        (A completion compared with itself is chosen and rejected at once, and tells nothing.)
    """
    proposal = reference_logps.exp()
    # The pair may have been drawn in either order.
    return 2 * proposal[:, :, None] * proposal[:, None, :] * wins


def expected_loss(
    logps: Tensor, reference_logps: Tensor, weights: Tensor, loss: Callable[..., Tensor], **strength: float
) -> Tensor:
    """A preference loss over all pairs there are and both labels: an expectation, nothing sampled.

    Args:
        logps: log π, shape (prompts, completions).
        reference_logps: log π_ref, the same shape.
        weights: of `pair_weights`.
        loss: `dpo_loss`, `ipo_loss`, or any function of the same four keyword log-probabilities.
        strength: its keyword for the strength, `beta=0.5`.

    Returns:
        The mean over prompts of E[loss], a scalar.

    Raises:
        ValueError: as the loss.
    """

    def of_pair(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
        return loss(
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            reference_chosen_logps=reference_chosen,
            reference_rejected_logps=reference_rejected,
            **strength,
        )

    # Mapped over rows and columns, so that a completion's log-ratio is taken once and not once for each pair; and
    # prompt by prompt, so that the tables of pairs that autograd keeps are small enough for the cache.
    of_row = torch.vmap(of_pair, in_dims=(None, 0, None, 0))
    of_table = torch.vmap(of_row, in_dims=(0, None, 0, None))
    by_prompt = [
        torch.dot(shares.flatten(), of_table(policy, policy, reference, reference).flatten())
        for policy, reference, shares in zip(logps, reference_logps, weights, strict=True)
    ]
    return torch.stack(by_prompt).mean()


def sample_pairs(reference_logps: Tensor, wins: Tensor, *, n: int, seed: int) -> SampledPairs:
    """Labelled pairs as one collects them: a prompt, two completions of the reference, one comparison.

    Args:
        reference_logps: log π_ref, shape (prompts, completions).
        wins: p(row is preferred to column), shape (prompts, completions, completions).
        n: how many pairs, at least 1; each prompt is as likely.
        seed: of all draws.

    Returns:
        `SampledPairs`; `pair_weights` says how likely each of them was.

    Raises:
        ValueError: n is less than 1.
    """
    if n < 1:
        raise ValueError(f"sample_pairs: n is {n}, expected at least 1")
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(len(reference_logps), (n,), generator=generator)
    drawn = torch.multinomial(reference_logps.exp()[prompts], 2, replacement=True, generator=generator)  # (n, 2)
    first, second = drawn.unbind(dim=1)
    first_wins = torch.rand(n, generator=generator) < wins[prompts, first, second]
    return SampledPairs(prompts, torch.where(first_wins, first, second), torch.where(first_wins, second, first))


def sampled_loss(
    logps: Tensor, reference_logps: Tensor, pairs: SampledPairs, loss: Callable[..., Tensor], **strength: float
) -> Tensor:
    """A preference loss over sampled pairs, of which `expected_loss` is the expectation.

    Args:
        logps: log π, shape (prompts, completions).
        reference_logps: log π_ref, the same shape.
        pairs: of `sample_pairs`.
        loss: as in `expected_loss`.
        strength: its keyword for the strength, `beta=0.5`.

    Returns:
        The mean over the pairs, a scalar.

    Raises:
        ValueError: as the loss.
    """
    return loss(
        policy_chosen_logps=logps[pairs.prompts, pairs.chosen],
        policy_rejected_logps=logps[pairs.prompts, pairs.rejected],
        reference_chosen_logps=reference_logps[pairs.prompts, pairs.chosen],
        reference_rejected_logps=reference_logps[pairs.prompts, pairs.rejected],
        **strength,
    ).mean()
