"""What PPO and RLOO compute from a batch of completions: rewards for tokens, advantages, and the losses.

What belongs to tokens is a tensor of shape (completions, tokens): in column t stands what is known of a completion's
token t before it is drawn, and `mask` is false behind the completion's end. Nothing is discounted: a word is no worse
for standing late in a text.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_shaped_rewards(
    *, rewards: Tensor, policy_logps: Tensor, reference_logps: Tensor, mask: Tensor, beta: float | Tensor
) -> Tensor:
    """The reward of each token: its share of −β KL, and on a completion's last token the reward of the whole.

    ::

        r_t = −β (log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)) + [t is the last] r(x, y)

    Their sum over a completion is r − β log π/π_ref, of which the mean over samples of π is RLHF's objective.

    Args:
        rewards: r of each completion, shape (completions,).
        policy_logps: of the policy that wrote them, nats, shape (completions, tokens).
        reference_logps: the same shape.
        mask: true on the completions' tokens, the same shape.
        beta: KL weight β, ≥ 0.

    Returns:
        Shape (completions, tokens), zero outside the completions.

    Raises:
        ValueError: shapes differ.

    Source: arXiv:1909.08593, Eq. 2; arXiv:2203.02155, Eq. 2. Book: eq-ppo-token-reward.
    """
    _require_shapes("kl_shaped_rewards", policy_logps=policy_logps, reference_logps=reference_logps, mask=mask)
    if rewards.shape != mask.shape[:1]:
        raise ValueError(
            f"kl_shaped_rewards: rewards has shape {tuple(rewards.shape)}, expected {tuple(mask.shape[:1])}"
        )
    is_last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return mask * (is_last * rewards[:, None] - beta * (policy_logps - reference_logps))


def gae(*, rewards: Tensor, values: Tensor, mask: Tensor, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates of the tokens, without discount.

    ::

        Â_t = Σ_{s ≥ t} λ^(s − t) δ_s,    δ_t = r_t + V_{t+1} − V_t,    V = 0 behind the last token

    λ = 1 is the return less the value, without bias whatever V is; λ = 0 trusts V for everything after this token.

    Args:
        rewards: of the tokens, shape (completions, tokens).
        values: V before each token is drawn, the same shape.
        mask: true on the completions' tokens, the same shape.
        gae_lambda: λ, from 0 to 1.

    Returns:
        Shape (completions, tokens), zero outside the completions.

    Raises:
        ValueError: shapes differ, or λ is out of range.

    Source: arXiv:1506.02438, Eqs. 11–16 with γ = 1. Book: eq-ppo-gae.
    """
    _require_shapes("gae", rewards=rewards, values=values, mask=mask)
    if not 0 <= gae_lambda <= 1:
        raise ValueError(f"gae: gae_lambda is {gae_lambda}, expected from 0 to 1")
    values = values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    surprises = mask * (rewards + after - values)  # δ
    place = torch.arange(mask.shape[1], device=mask.device)
    later = place[:, None] - place  # s − t, by row s and column t
    powers = torch.full_like(later, gae_lambda, dtype=surprises.dtype) ** later.clamp(min=0)
    return mask * (surprises @ powers.where(later >= 0, 0.0))


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Each completion's reward less the mean reward of the others of its prompt: a baseline that needs no model.

    ::

        A_i = R_i − (1/(k − 1)) Σ_{j ≠ i} R_j

    Args:
        rewards: R of the k completions of each prompt, KL term included, shape (prompts, k), k ≥ 2.

    Returns:
        The same shape.

    Raises:
        ValueError: there are fewer than two completions a prompt.

    Source: arXiv:2402.14740, the RLOO estimator. Book: eq-rloo.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rloo_advantages: rewards has shape {tuple(rewards.shape)}, expected (prompts, k ≥ 2)")
    k = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (k / (k - 1))


def clipped_policy_loss(*, policy_logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's loss of each token: no gain from moving its probability further than by a factor of 1 ± ε.

    ::

        loss_t = −min(ρ_t Â_t, clip(ρ_t, 1 − ε, 1 + ε) Â_t),    ρ_t = π(y_t | …) / π_old(y_t | …)

    Args:
        policy_logps: of the policy in training, nats, any shape.
        old_logps: of the policy that wrote the tokens, without gradient, the same shape.
        advantages: Â, the same shape.
        clip_range: ε, > 0; ∞ clips nothing.

    Returns:
        The same shape, not averaged.

    Raises:
        ValueError: shapes differ, or ε is not positive.

    Source: arXiv:1707.06347, Eq. 7. Book: eq-ppo-clip.
    """
    _require_shapes("clipped_policy_loss", policy_logps=policy_logps, old_logps=old_logps, advantages=advantages)
    _require_positive("clipped_policy_loss", clip_range)
    ratios = (policy_logps - old_logps).exp()
    return -torch.minimum(ratios * advantages, ratios.clamp(1 - clip_range, 1 + clip_range) * advantages)


def clipped_value_loss(*, values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """The value model's loss of each token: half the squared error, with no gain from moving further than ε.

    ::

        loss_t = ½ max((V_t − R_t)², (V_old,t + clip(V_t − V_old,t, −ε, ε) − R_t)²)

    Args:
        values: V of the model in training, any shape.
        old_values: V when the completions were written, without gradient, the same shape.
        returns: R, what V should have been, the same shape.
        clip_range: ε, > 0; ∞ clips nothing.

    Returns:
        The same shape, not averaged.

    Raises:
        ValueError: shapes differ, or ε is not positive.

    Source: the code of arXiv:1707.06347 (openai/baselines, ppo2); arXiv:2005.12729, §3. Book: eq-ppo-value.
    """
    _require_shapes("clipped_value_loss", values=values, old_values=old_values, returns=returns)
    _require_positive("clipped_value_loss", clip_range)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def kl_loss(*, policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The KL term as a loss of each token, as GRPO has it, instead of in the rewards.

    ::

        loss_t = exp(−d_t) − 1 + d_t,    d_t = log π(y_t | …) − log π_ref(y_t | …)

    Over samples of π its mean is KL(π‖π_ref) of the next token, its gradient that of the *other* direction,
    KL(π_ref‖π): the samples are held fixed when the gradient is taken.

    Args:
        policy_logps: of the policy in training, nats, any shape.
        reference_logps: the same shape.

    Returns:
        The same shape, ≥ 0, not averaged.

    Raises:
        ValueError: shapes differ.

    Source: arXiv:2402.03300, Eq. 4. Book: eq-ppo-kl-loss.
    """
    _require_shapes("kl_loss", policy_logps=policy_logps, reference_logps=reference_logps)
    log_ratios = policy_logps - reference_logps
    return torch.expm1(-log_ratios) + log_ratios


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the completions' tokens, each token the same weight.

    Args:
        values: shape (completions, tokens).
        mask: true on the completions' tokens, the same shape.

    Returns:
        A scalar.
    """
    return (values * mask).sum() / mask.sum()


def normalised(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the completions' tokens.

    Args:
        values: shape (completions, tokens).
        mask: true on the completions' tokens, the same shape.

    Returns:
        The same shape, zero outside the completions.
    """
    centred = values - masked_mean(values, mask)
    return mask * centred / (masked_mean(centred.square(), mask).sqrt() + 1e-8)


def adapted_kl_coef(kl_coef: Tensor, kl: Tensor, *, target_kl: float) -> Tensor:
    """A KL coefficient that grows while the KL is above its target, and shrinks below it.

    Args:
        kl_coef: β of this step.
        kl: KL(π‖π_ref) of this step's completions, nats.
        target_kl: nats.

    Returns:
        β of the next step, at most 2 % larger or smaller.

    Source: arXiv:1909.08593, §2.2, with its gain of 0.1 and its limit of ±0.2 on the error.
    """
    return kl_coef * (1 + 0.1 * (kl / target_kl - 1).clamp(-0.2, 0.2))


def _require_shapes(function: str, **tensors: Tensor) -> None:
    (first, expected), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{function}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)} as {first}"
            )


def _require_positive(function: str, clip_range: float) -> None:
    if not clip_range > 0:
        raise ValueError(f"{function}: clip_range is {clip_range}, expected > 0")
