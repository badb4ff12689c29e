"""Losses that came after those of the source: other data, no reference, or labels that are sometimes wrong."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dapedu.losses.guards import (
    Strength,
    log_ratio_margin,
    require_not_negative,
    require_number,
    require_positive,
    require_same_shape,
)


def kto_loss(
    *,
    policy_logps: Tensor,
    reference_logps: Tensor,
    is_desirable: Tensor,
    reference_point: Strength,
    beta: Strength,
    undesirable_weight: Strength,
) -> Tensor:
    """Kahneman–Tversky loss of single completions, each only called good or bad (KTO).

    ::

        loss = 1 − σ(β (d − z₀))         where the completion is desirable
        loss = λ_U (1 − σ(β (z₀ − d)))   where it is not
           d = log π(y|x)/π_ref(y|x)

    Args:
        policy_logps, reference_logps: summed log-probabilities under the policy and the frozen reference, nats, shape
            (completions,).
        is_desirable: True where the completion is good, shape (completions,).
        reference_point: z₀ in nats, ≥ 0: an estimate of KL(π‖π_ref), held fixed.
        beta: β, > 0; a larger one keeps the policy nearer the reference.
        undesirable_weight: λ_U, ≥ 0, where a desirable completion weighs 1.

    Returns:
        Loss per completion, between 0 and 1 or λ_U, shape (completions,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, beta is not positive, or reference_point or undesirable_weight is negative.

    Source: arXiv:2402.01306, Eq. 8 (Eq. 7 in its first version). Book: eq-kto-loss.
    """
    require_same_shape(
        "kto_loss",
        policy_logps=policy_logps,
        reference_logps=reference_logps,
        is_desirable=is_desirable,
        floating={"policy_logps", "reference_logps"},
    )
    require_positive("kto_loss", beta=beta)
    require_not_negative("kto_loss", reference_point=reference_point, undesirable_weight=undesirable_weight)
    gain = beta * (policy_logps - reference_logps - reference_point)
    # 1 − σ(x) = σ(−x), which loses no digits where σ(x) is near 1.
    return torch.where(is_desirable.bool(), torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def orpo_loss(
    *, policy_chosen_mean_logps: Tensor, policy_rejected_mean_logps: Tensor, contrast_weight: Strength
) -> Tensor:
    """Likelihood of the chosen completion plus the log of an odds ratio, without a reference (ORPO).

    ::

        loss = −m_w − λ log σ(log odds_w − log odds_l)
        odds = p/(1 − p),   p = exp(m),   m = log π(y|x)/|y|

    Args:
        policy_chosen_mean_logps, policy_rejected_mean_logps: mean log-probability per token under the policy, nats,
            shape (pairs,).
        contrast_weight: weight λ of the odds ratio, ≥ 0.

    Returns:
        Loss per pair in nats, shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, or contrast_weight is negative.

    Deviation: a mean that rounds to 0 has no finite odds; it counts as the machine's ε below 0.

    Source: arXiv:2403.07691, Eqs. 3, 4, 6 and 7. Book: eq-orpo-loss.
    """
    require_same_shape(
        "orpo_loss",
        policy_chosen_mean_logps=policy_chosen_mean_logps,
        policy_rejected_mean_logps=policy_rejected_mean_logps,
    )
    require_not_negative("orpo_loss", contrast_weight=contrast_weight)
    ratio = _log_odds(policy_chosen_mean_logps) - _log_odds(policy_rejected_mean_logps)
    return -policy_chosen_mean_logps - contrast_weight * F.logsigmoid(ratio)


def simpo_loss(
    *, policy_chosen_mean_logps: Tensor, policy_rejected_mean_logps: Tensor, beta: Strength, gamma: Strength
) -> Tensor:
    """Logistic loss on the difference of mean log-probabilities, less a target, without a reference (SimPO).

    ::

        loss = −log σ(β (m_w − m_l) − γ),   m = log π(y|x)/|y|

    Args:
        policy_chosen_mean_logps, policy_rejected_mean_logps: mean log-probability per token under the policy, nats,
            shape (pairs,).
        beta: scale β of the reward β m, > 0.
        gamma: target γ of the reward's difference, ≥ 0.

    Returns:
        Loss per pair in nats, shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, beta is not positive, or gamma is negative.

    Source: arXiv:2405.14734, Eq. 6. Book: eq-simpo-loss.
    """
    require_same_shape(
        "simpo_loss",
        policy_chosen_mean_logps=policy_chosen_mean_logps,
        policy_rejected_mean_logps=policy_rejected_mean_logps,
    )
    require_positive("simpo_loss", beta=beta)
    require_not_negative("simpo_loss", gamma=gamma)
    return -F.logsigmoid(beta * (policy_chosen_mean_logps - policy_rejected_mean_logps) - gamma)


def robust_dpo_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Strength,
    flip: Strength,
) -> Tensor:
    """DPO's loss corrected for labels of which a known share is turned: its mean over turned labels is the clean one.

    ::

        loss = [(1 − ε) (−log σ(β h)) − ε (−log σ(−β h))] / (1 − 2ε)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta: as
            `dpo_loss`.
        flip: ε, the share of turned labels, from 0 to below ½.

    Returns:
        Loss per pair in nats, shape (pairs,), not averaged; unbounded below as h grows.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, beta is not positive, or flip is not from 0 to below ½.

    Source: arXiv:2403.00409, §3.1. Book: eq-robust-dpo-loss.
    """
    require_positive("robust_dpo_loss", beta=beta)
    require_number("robust_dpo_loss", "flip", flip)
    if not torch.as_tensor((flip >= 0) & (flip < 0.5)).all():
        raise ValueError(f"robust_dpo_loss: flip is {flip}, expected from 0 to below 0.5")
    reward_margin = beta * log_ratio_margin(
        "robust_dpo_loss",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    as_labelled, turned = -F.logsigmoid(reward_margin), -F.logsigmoid(-reward_margin)
    return ((1 - flip) * as_labelled - flip * turned) / (1 - 2 * flip)


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log p/(1 − p) of p = exp(mean_logps)."""
    below = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)
    return below - torch.log(-torch.expm1(below))
