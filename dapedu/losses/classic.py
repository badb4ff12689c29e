"""The losses that the source surveys, and those of a reward model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dapedu.losses.guards import (
    Strength,
    log_ratio_margin,
    require_not_negative,
    require_positive,
    require_same_shape,
)


def bradley_terry_loss(*, chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Negative log-likelihood of a comparison under Bradley–Terry: the loss of a reward model.

    ::

        loss = −log σ(r(x, y_w) − r(x, y_l))

    Args:
        chosen_rewards, rejected_rewards: scalar rewards, shape (pairs,).

    Returns:
        Loss per pair in nats, shape (pairs,), not averaged.

    Raises:
        TypeError: an argument is not a tensor of floats.
        ValueError: shapes differ.

    Source: arXiv:2305.18290, Eq. 2. Book: eq-bradley-terry-loss.
    """
    require_same_shape("bradley_terry_loss", chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return -F.logsigmoid(chosen_rewards - rejected_rewards)


def plackett_luce_loss(*, ranked_rewards: Tensor) -> Tensor:
    """Negative log-likelihood of a ranking under Plackett–Luce: pick the best, then the best of the rest, ….

    ::

        loss = −Σ_{j=1}^{k−1} [r_j − log Σ_{i≥j} exp(r_i)],   best first

    With k = 2 this is `bradley_terry_loss`.

    Args:
        ranked_rewards: rewards of one prompt's completions in the order they were ranked, best first,
            shape (rankings, k), k ≥ 2.

    Returns:
        Loss per ranking in nats, shape (rankings,), not averaged.

    Raises:
        TypeError: ranked_rewards is not a tensor of floats.
        ValueError: it is not (rankings, k), or nothing is ranked (k < 2).

    Source: arXiv:2305.18290, appendix A.3, for rewards; Plackett (1975). Book: eq-plackett-luce-loss.
    """
    require_same_shape("plackett_luce_loss", ranked_rewards=ranked_rewards)
    if ranked_rewards.ndim != 2 or ranked_rewards.shape[1] < 2:
        raise ValueError(
            f"plackett_luce_loss: ranked_rewards has shape {tuple(ranked_rewards.shape)}, expected (rankings, k), k ≥ 2"
        )
    # Each choice is one against log Σ_{i>j} exp(r_i); in one piece, or a sure choice would round to a loss of 0.
    rest = ranked_rewards.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:]
    return -F.logsigmoid(ranked_rewards[:, :-1] - rest).sum(dim=1)


def slic_hf_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    policy_target_logps: Tensor,
    delta: Strength,
    sft_weight: Strength,
) -> Tensor:
    """Hinge on the policy's own log-probabilities plus a likelihood term (SLiC-HF).

    ::

        loss = max(0, δ − log π(y_w|x) + log π(y_l|x)) − λ log π(y_target|x)

    Args:
        policy_chosen_logps, policy_rejected_logps: summed log-probabilities, nats, shape (pairs,).
        policy_target_logps: the same of the text that regularises: the SFT target, or the best candidate.
        delta: the hinge's margin δ in nats, ≥ 0.
        sft_weight: weight λ of the likelihood term, ≥ 0.

    Returns:
        Loss per pair, shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, or delta or sft_weight is negative.

    Source: arXiv:2305.10425, Eq. 4. Book: eq-slic-hf-loss.
    """
    require_same_shape(
        "slic_hf_loss",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        policy_target_logps=policy_target_logps,
    )
    require_not_negative("slic_hf_loss", delta=delta, sft_weight=sft_weight)
    rank = F.relu(delta - policy_chosen_logps + policy_rejected_logps)
    return rank - sft_weight * policy_target_logps


def dpo_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Strength,
) -> Tensor:
    """Logistic loss on the log-ratio margin (DPO).

    ::

        loss = −log σ(β h)
           h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)

    Args:
        policy_chosen_logps, policy_rejected_logps: summed log-probabilities
            under the policy, nats, shape (pairs,).
        reference_chosen_logps, reference_rejected_logps: the same under the
            frozen reference.
        beta: KL weight β, > 0; a larger one keeps the policy nearer the
            reference.

    Returns:
        Loss per pair in nats, shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, or beta is not positive.

    Source: arXiv:2305.18290, Eq. 7. Book: eq-dpo-loss.
    """
    require_positive("dpo_loss", beta=beta)
    margin = log_ratio_margin(
        "dpo_loss",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return -F.logsigmoid(beta * margin)


def ipo_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    tau: Strength,
) -> Tensor:
    """Squared distance of the log-ratio margin from its target 1/(2τ) (IPO).

    ::

        loss = (h − 1/(2τ))²
           h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)

    Args:
        policy_chosen_logps, policy_rejected_logps: summed log-probabilities
            under the policy, nats, shape (pairs,). Mean log-probabilities
            (`dapedu.logps.mean_logps`) in all four places give the
            length-normalised variant that TRL ships.
        reference_chosen_logps, reference_rejected_logps: the same under the
            frozen reference.
        tau: KL weight τ, > 0; a larger one keeps the policy nearer the
            reference.

    Returns:
        Loss per pair in nats², shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, or tau is not positive.

    Source: arXiv:2310.12036, Eq. 17. Book: eq-ipo-loss.
    """
    require_positive("ipo_loss", tau=tau)
    margin = log_ratio_margin(
        "ipo_loss",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return (margin - 1 / (2 * tau)) ** 2


def rrhf_loss(*, candidate_logps: Tensor, candidate_lengths: Tensor, rewards: Tensor, sft_weight: Strength) -> Tensor:
    """Every wrongly ordered pair of ranked candidates, plus the likelihood of the best one (RRHF).

    ::

        p_i  = log π(y_i|x) / |y_i|
        loss = Σ_{r_i < r_j} max(0, p_i − p_j) − λ log π(y_i'|x),   i' = argmax_i r_i

    The ranking term compares means over tokens, the likelihood term is a sum; the paper has λ = 1.
    Of several best candidates the first is i'.

    Args:
        candidate_logps: summed log-probabilities of k candidates a prompt, nats, shape (prompts, k).
        candidate_lengths: their lengths in tokens, > 0, shape (prompts, k), integers or floats.
        rewards: what ranks them, shape (prompts, k), integers or floats.
        sft_weight: weight λ of the likelihood term, ≥ 0.

    Returns:
        Loss per prompt, shape (prompts,), not averaged.

    Raises:
        TypeError: candidate_logps is not a tensor of floats, another no tensor, or sft_weight no number.
        ValueError: shapes differ or are not (prompts, k), a length is ≤ 0, or sft_weight is negative.

    Source: arXiv:2304.05302, Eqs. 1–4 of §3.1. Book: eq-rrhf-loss.
    """
    require_same_shape(
        "rrhf_loss",
        candidate_logps=candidate_logps,
        candidate_lengths=candidate_lengths,
        rewards=rewards,
        floating={"candidate_logps"},
    )
    if candidate_logps.ndim != 2:
        raise ValueError(f"rrhf_loss: candidate_logps has shape {tuple(candidate_logps.shape)}, expected (prompts, k)")
    require_positive("rrhf_loss", candidate_lengths=candidate_lengths)
    require_not_negative("rrhf_loss", sft_weight=sft_weight)
    scores = candidate_logps / candidate_lengths
    is_worse = rewards[:, :, None] < rewards[:, None, :]  # (prompts, i, j): r_i < r_j
    violation = F.relu(scores[:, :, None] - scores[:, None, :])
    rank = torch.where(is_worse, violation, 0).sum(dim=(1, 2))  # not a product: ∞ · 0 is no number
    best_logps = candidate_logps.gather(1, rewards.argmax(dim=1, keepdim=True)).squeeze(1)
    return rank - sft_weight * best_logps


def click_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    target_mean_logps: Tensor,
    delta: Strength,
    contrast_weight: Strength,
) -> Tensor:
    """Cross-entropy plus a weighted hinge between the policy's own samples (CLICK).

    ::

        loss = −mean_t log π(y_t|x, y_<t) + α max(0, δ + log π(y_l|x) − log π(y_w|x))

    Args:
        policy_chosen_logps, policy_rejected_logps: summed log-probabilities of a positive and a negative
            sample, nats, shape (pairs,).
        target_mean_logps: mean log-probability per token of the training text y, shape (pairs,).
        delta: the hinge's margin δ in nats, ≥ 0.
        contrast_weight: weight α of the hinge, ≥ 0.

    Returns:
        Loss per pair, shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, or delta or contrast_weight is negative.

    Deviation: the authors average the cross-entropy over all tokens of a batch, so that long texts weigh
    more; a per-example loss averages over each text's own tokens.

    Source: arXiv:2306.03350, §3. Book: eq-click-loss.
    """
    require_same_shape(
        "click_loss",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        target_mean_logps=target_mean_logps,
    )
    require_not_negative("click_loss", delta=delta, contrast_weight=contrast_weight)
    contrast = F.relu(delta + policy_rejected_logps - policy_chosen_logps)
    return -target_mean_logps + contrast_weight * contrast


def spin_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: Strength,
) -> Tensor:
    """DPO's loss with a human completion as chosen and the last iterate's own as rejected (SPIN).

    ::

        loss = −log σ(λ h),   y' ~ π_t
           h = log π(y|x)/π_t(y|x) − log π(y'|x)/π_t(y'|x)

    Args:
        policy_chosen_logps, policy_rejected_logps: summed log-probabilities of the real and of the
            generated completion under the policy, nats, shape (pairs,).
        reference_chosen_logps, reference_rejected_logps: the same under the previous iterate π_t, which
            also generated the rejected completion.
        beta: the paper's λ, > 0; a larger one keeps the policy nearer the previous iterate.

    Returns:
        Loss per pair in nats, shape (pairs,), not averaged.

    Raises:
        TypeError: a log-probability is not a tensor of floats, or a hyperparameter not a number.
        ValueError: shapes differ, or beta is not positive.

    Source: arXiv:2401.01335, Eq. 4.7 with the logistic loss. Book: eq-spin-loss.
    """
    require_positive("spin_loss", beta=beta)
    margin = log_ratio_margin(
        "spin_loss",
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return -F.logsigmoid(beta * margin)
