"""What a step of PPO or RLOO does with its completions; `learn` is the heart of both and meant to be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dapedu.logps import model_token_logps
from dapedu.models import ScalarHead
from dapedu.ppo.objective import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_loss,
    kl_shaped_rewards,
    normalised,
    rloo_advantages,
)
from dapedu.ppo.rollouts import Layout, Rollouts, token_values
from dapedu.ppo.settings import PPOSettings, RLOOSettings
from dapedu.train.loop import DivergedError


class Trained(nn.Module):
    """What changes in training and goes into a checkpoint: the policy, the value model, and β.

    Args:
        policy: a causal language model.
        value_model: or None.
        beta: where β starts.
    """

    kl_coef: Tensor

    def __init__(self, policy: nn.Module, value_model: ScalarHead | None, beta: float) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.register_buffer("kl_coef", torch.tensor(float(beta)))


def token_rewards_of(rollouts: Rollouts, kl_coef: Tensor, settings: RLOOSettings) -> Tensor:
    """The KL-shaped rewards of the tokens, or without the KL where the loss has it.

    Args:
        rollouts: of the step.
        kl_coef: β.
        settings: of the run.

    Returns:
        Shape (completions, tokens).
    """
    rewards = kl_shaped_rewards(
        rewards=rollouts.rewards,
        policy_logps=rollouts.old_logps,
        reference_logps=rollouts.reference_logps,
        mask=rollouts.mask,
        beta=kl_coef if settings.kl_in == "reward" else 0.0,
    )
    # The KL term is scaled with the reward: scaling one of the two would be another β.
    return rewards / (rewards.sum(dim=1).std() + 1e-8) if settings.normalise_rewards else rewards


def advantages_of(rollouts: Rollouts, token_rewards: Tensor, settings: RLOOSettings) -> Tensor:
    """Advantages by the value model, or by the other completions of the prompt where there is none.

    Args:
        rollouts: of the step.
        token_rewards: of `token_rewards_of`, shape (completions, tokens).
        settings: of the run.

    Returns:
        Shape (completions, tokens), not normalised.
    """
    if rollouts.old_values is not None and isinstance(settings, PPOSettings):
        return gae(
            rewards=token_rewards,
            values=rollouts.old_values,
            mask=rollouts.mask,
            gae_lambda=settings.gae_lambda,
        )
    by_prompt = token_rewards.sum(dim=1).view(-1, settings.samples_per_prompt)
    return rollouts.mask * rloo_advantages(by_prompt).view(-1, 1)


def learn(
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantages: Tensor,
    *,
    layout: Layout,
    settings: RLOOSettings,
    step: int,
) -> dict[str, float]:
    """Epochs of minibatches over a step's completions: the losses, and a step of the optimiser for each.

    Args:
        trained: policy and value model, changed in place.
        optimizer: of both, a group each.
        rollouts: the completions.
        advantages: of `advantages_of`, shape (completions, tokens).
        layout: how the models read.
        settings: of the run.
        step: its number, which with the seed decides the minibatches.

    Returns:
        Losses, share of clipped tokens and gradients' norms, means over the optimiser's steps.

    Raises:
        DivergedError: one of them is not finite; the weights are as they were before that step.

    Source: arXiv:1707.06347, Algorithm 1.
    """
    returns = advantages + rollouts.old_values if rollouts.old_values is not None else None
    if settings.normalise_advantages:
        advantages = normalised(advantages, rollouts.mask)
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003 * step)
    seen: list[dict[str, float]] = []
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(rollouts.samples), generator=generator).tensor_split(settings.minibatches):
            batch = layout(rollouts.samples.sequences.select(rows.tolist()), device=advantages.device)
            own = _tokens_of(rows, rollouts.mask)
            logps = model_token_logps(trained.policy, batch)  # type: ignore[arg-type]
            old_logps, reference_logps = own(rollouts.old_logps), own(rollouts.reference_logps)
            found = {
                "policy_loss": clipped_policy_loss(
                    policy_logps=logps,
                    old_logps=old_logps,
                    advantages=own(advantages),
                    clip_range=settings.clip_range,
                ).mean(),
                "clipped": (((logps - old_logps).exp() - 1).abs() > settings.clip_range).float().mean(),
            }
            loss = found["policy_loss"]
            if settings.kl_in == "loss":
                found["kl_loss"] = kl_loss(policy_logps=logps, reference_logps=reference_logps).mean()
                loss = loss + trained.kl_coef * found["kl_loss"]
            if returns is not None and isinstance(settings, PPOSettings):
                assert trained.value_model is not None
                assert rollouts.old_values is not None
                found["value_loss"] = clipped_value_loss(
                    values=token_values(trained.value_model, batch),
                    old_values=own(rollouts.old_values),
                    returns=own(returns),
                    clip_range=settings.value_clip_range,
                ).mean()
                loss = loss + found["value_loss"]  # of other parameters than the policy's
            optimizer.zero_grad()
            loss.backward()
            found |= _clip(optimizer, settings)
            numbers = {name: value.item() for name, value in found.items()}
            if not all(map(math.isfinite, numbers.values())):
                raise DivergedError(_advice(step, numbers, settings))
            optimizer.step()
            seen.append(numbers)
    return {name: sum(numbers[name] for numbers in seen) / len(seen) for name in seen[0]}


def _tokens_of(rows: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """From a tensor of all completions' tokens to those of some completions, in the order of `model_token_logps`."""
    inside = mask[rows.to(mask.device)]
    return lambda values: values[rows.to(mask.device)][inside]


def _clip(optimizer: torch.optim.Optimizer, settings: RLOOSettings) -> dict[str, Tensor]:
    """The two models' gradients are clipped apart: a large error of the value must not silence the policy."""
    names = ("policy_grad_norm", "value_grad_norm")
    return {
        name: nn.utils.clip_grad_norm_(group["params"], settings.clip)
        for name, group in zip(names, optimizer.param_groups, strict=False)
    }


def _advice(step: int, numbers: Mapping[str, float], settings: RLOOSettings) -> str:
    listed = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
    return (
        f"step {step}: {listed}; training stopped before they spoilt the weights. Try a smaller learning rate "
        f"(now {settings.lr:g}), fewer epochs (now {settings.epochs}) or a finite clip (now {settings.clip:g})"
    )
