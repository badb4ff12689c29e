"""World 2, the enumerable: a real, tiny GPT-2 whose every completion can be listed, so that nothing is estimated.

A prompt is two symbols of a small alphabet, a completion a few symbols more. Z(x), the RLHF optimum, both KLs,
expected rewards and win rates are sums over all completions, and a loss can be taken over all pairs there are.
Responses are completions here, one table of log-probabilities a prompt, so `dapedu.evaluate` works unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dapedu.evaluate import kl_divergence

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class World(NamedTuple):
    """What `make_world` returns: prompts, all their completions, how people write, and what they like."""

    prompts: Tensor  # token ids, (prompts, 2)
    completions: Tensor  # token ids, (completions, length): every one there is
    human_logps: Tensor  # log-probability of each completion under the human distribution, (prompts, completions)
    rewards: Tensor  # gold reward, (prompts, completions)
    n_symbols: int

    @property
    def n_positions(self) -> int:
        """Length of prompt and completion together, in tokens."""
        return self.prompts.shape[1] + self.completions.shape[1]


def make_world(*, n_symbols: int = 6, length: int = 4, n_prompts: int = 4, seed: int = 0) -> World:
    """A world in which people write Markov chains and like one symbol of the prompt, not repetitions.

    The human distribution is a chain over symbols that starts at the prompt's last one; its rates are drawn once.
    The gold reward counts the prompt's first symbol in the completion, less the symbols that repeat the one before,
    so that each prompt has a reward, and a Z(x), of its own.

    Args:
        n_symbols: size of the alphabet, at least 2.
        length: symbols in a completion; there are n_symbols ** length completions.
        n_prompts: prompts, different pairs of symbols.
        seed: of the chain and the prompts.

    Returns:
        `World`, log-probabilities and rewards in float32.

    Raises:
        ValueError: a count is out of range.
    """
    if n_symbols < 2 or length < 1:
        raise ValueError(f"make_world: n_symbols is {n_symbols} and length {length}, expected at least 2 and 1")
    if not 1 <= n_prompts <= n_symbols**2:
        raise ValueError(f"make_world: n_prompts is {n_prompts}, expected from 1 to {n_symbols**2}, n_symbols squared")
    generator = torch.Generator().manual_seed(seed)
    chain = torch.log_softmax(1.5 * torch.randn(n_symbols, n_symbols, generator=generator), dim=-1)
    pairs = torch.tensor(list(itertools.product(range(n_symbols), repeat=2)))
    prompts = pairs[torch.randperm(len(pairs), generator=generator)[:n_prompts]]
    completions = torch.tensor(list(itertools.product(range(n_symbols), repeat=length)))
    start = chain[prompts[:, 1]][:, completions[:, 0]]
    human_logps = start + chain[completions[:, :-1], completions[:, 1:]].sum(dim=1)
    liked = (completions == prompts[:, :1, None]).sum(dim=2)
    repeated = (completions[:, 1:] == completions[:, :-1]).sum(dim=1)
    return World(prompts, completions, human_logps, (liked - repeated).float(), n_symbols)


def completion_logps(model: GPT2LMHeadModel, world: World) -> Tensor:
    """Log-probability of every completion of every prompt.

    Completions share their beginnings, so the model reads each beginning once: a sixth of the work, with six
    symbols, of reading each completion.

    Args:
        model: a causal language model whose vocabulary is the world's symbols.
        world: of `make_world`.

    Returns:
        Nats, shape (prompts, completions); differentiable. They sum to 1 as probabilities, for each prompt.

    Raises:
        ValueError: the model's vocabulary is another.
    """
    if model.config.vocab_size != world.n_symbols:
        raise ValueError(
            f"completion_logps: model has a vocabulary of {model.config.vocab_size}, expected {world.n_symbols} symbols"
        )
    n, length = world.n_symbols, world.completions.shape[1]
    n_prompts, prompt_length = world.prompts.shape
    beginnings = world.completions[::n, :-1].to(model.device)  # all of length − 1, in the completions' order
    prompts = world.prompts.to(model.device)[:, None].expand(-1, len(beginnings), -1)
    input_ids = torch.cat([prompts, beginnings.expand(n_prompts, -1, -1)], dim=2)  # (prompts, beginnings, tokens)
    logits = model(input_ids=input_ids.flatten(0, 1)).logits[:, prompt_length - 1 :].float()
    choices = torch.log_softmax(logits, dim=-1).view(n_prompts, len(beginnings), length, n)
    logps = torch.zeros(n_prompts, 1, device=model.device)
    for position in range(length):
        # The distribution after a beginning of `position` symbols stands in every row that begins so.
        after = choices[:, :: n ** (length - 1 - position), position]
        logps = (logps[:, :, None] + after).flatten(1)
    return logps


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
    model: GPT2LMHeadModel, objective: Callable[[Tensor], Tensor], world: World, *, steps: int, lr: float
) -> None:
    """Adam with a cosine schedule on an objective of the table of log-probabilities.

    Args:
        model: trained in place.
        objective: from log π, shape (prompts, completions), to a number.
        world: of `make_world`.
        steps: optimiser steps.
        lr: learning rate at the start.

    Raises:
        ValueError: as `completion_logps`.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 200)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(completion_logps(model, world)).backward()
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
    losses = loss(
        policy_chosen_logps=logps[:, :, None].expand_as(weights),
        policy_rejected_logps=logps[:, None, :].expand_as(weights),
        reference_chosen_logps=reference_logps[:, :, None].expand_as(weights),
        reference_rejected_logps=reference_logps[:, None, :].expand_as(weights),
        **strength,
    )
    return (weights * losses).sum(dim=(1, 2)).mean()
