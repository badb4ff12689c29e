"""A step's completions with all that is known of them before the policy learns from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dapedu.logps import model_token_logps
from dapedu.models import ScalarHead, evaluating
from dapedu.packing import Packed, hidden_states
from dapedu.ppo.settings import RLOOSettings
from dapedu.sampling import Samples, sample
from dapedu.train.loop import DivergedError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reward = Callable[[Samples], Tensor | Sequence[float]]
Layout = Callable[..., Packed | tuple[Tensor, Tensor]]  # `pack` or `collate`


class Rollouts(NamedTuple):
    """Completions of a batch of prompts; tensors of tokens are as `dapedu.ppo.objective` has them."""

    samples: Samples
    mask: Tensor  # true on the completions' tokens, (completions, tokens)
    rewards: Tensor  # of each completion, without a KL term, (completions,)
    old_logps: Tensor  # of the policy that wrote them, nats, (completions, tokens)
    reference_logps: Tensor  # nats, (completions, tokens)
    old_values: Tensor | None  # of the value model as it was then, (completions, tokens); None if there is none

    @property
    def kl(self) -> Tensor:
        """log π − log π_ref of each completion, whose mean estimates KL(π‖π_ref), (completions,)."""
        return (self.old_logps - self.reference_logps).sum(dim=1)


def collect(
    policy: PreTrainedModel | PeftModel,
    reference: PreTrainedModel | PeftModel,
    value_model: ScalarHead | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    *,
    layout: Layout,
    settings: RLOOSettings,
    step: int,
) -> Rollouts:
    """Draw prompts, let the policy complete them, and have the other models read what it wrote.

    Args:
        policy, reference, value_model, tokenizer: on one device; RLOO has no value model.
        prompts: to draw from; within a step all of them before one comes again.
        reward: from the samples to one number each.
        layout: how the models read, see `dapedu.logps.layout_of`.
        settings: of the run.
        step: its number; with the seed it decides all that is drawn.

    Returns:
        `Rollouts`, on the policy's device, without gradient.

    Raises:
        ValueError: as `sample`.
        DivergedError: the reward gives another shape, or a number that is not finite.
    """
    seed = settings.seed + 1_000_003 * step  # no step repeats another seed's
    drawn = _draw(prompts, settings.batch_size // settings.samples_per_prompt, seed)
    samples = sample(
        policy,
        tokenizer,
        [prompt for prompt in drawn for _ in range(settings.samples_per_prompt)],
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
        batch_size=settings.batch_size,
        # As the policy is, so that the probabilities below are those that it drew with.
        every_token=True,
    )
    lengths = samples.sequences.lengths
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(policy.device)
    old_logps, reference_logps = torch.zeros(2, *mask.shape, device=policy.device)
    old_values = torch.zeros_like(old_logps) if value_model is not None else None
    with evaluating(policy):
        # In groups as large as a minibatch: what fits in memory with a gradient fits without.
        for rows in torch.arange(len(samples)).tensor_split(settings.minibatches):
            batch = layout(samples.sequences.select(rows.tolist()), device=policy.device)
            inside = _where(mask, rows)
            old_logps[inside] = model_token_logps(policy, batch)
            reference_logps[inside] = model_token_logps(reference, batch)
            if old_values is not None and value_model is not None:
                old_values[inside] = token_values(value_model, batch)
    try:
        rewards = checked_rewards(reward, samples).to(policy.device)
    except ValueError as problem:  # which a trial before the run did not show
        raise DivergedError(f"step {step}: {problem}; the run stopped before it was learnt from") from None
    return Rollouts(samples, mask, rewards, old_logps, reference_logps, old_values)


def token_values(value_model: ScalarHead, batch: Packed | tuple[Tensor, Tensor]) -> Tensor:
    """The value before each token of the completions is drawn, with a gradient.

    Args:
        value_model: reads as the policy does.
        batch: as `dapedu.logps.model_token_logps` takes it.

    Returns:
        Shape (tokens,), in the order of `model_token_logps`.
    """
    if isinstance(batch, Packed):
        states = hidden_states(value_model.transformer, batch).index_select(0, batch.predictors)
        return value_model.linear(states.float()).squeeze(-1)
    input_ids, completion_mask = batch
    return value_model(input_ids)[:, :-1][completion_mask[:, 1:]]


def checked_rewards(reward: Reward, samples: Samples) -> Tensor:
    """One finite number a sample, or an error that says what came instead.

    Args:
        reward: a function of samples.
        samples: at least one.

    Returns:
        Float32, shape (samples,).

    Raises:
        ValueError: the function gives another shape, or a number that is not finite.
    """
    rewards = torch.as_tensor(reward(samples), dtype=torch.float32).detach()
    if rewards.shape != (len(samples),):
        raise ValueError(f"reward gives shape {tuple(rewards.shape)}, expected {(len(samples),)}, one number a sample")
    if not rewards.isfinite().all():
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(f"reward gives {rewards[row]} for {samples.completions[row]!r}, expected a finite number")
    return rewards


def _draw(prompts: Sequence[str], n: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[int] = []
    while len(rows) < n:
        rows += torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[row] for row in rows[:n]]


def _where(mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the tokens of some completions, in the order of `model_token_logps`."""
    places = mask[rows].nonzero()
    return rows.to(mask.device)[places[:, 0]], places[:, 1]
