"""What each method asks of a batch: which texts, which loss, which strengths, a reference or none."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dapedu.data import Record
from dapedu.losses import (
    bradley_terry_loss,
    click_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    plackett_luce_loss,
    robust_dpo_loss,
    rrhf_loss,
    simpo_loss,
    slic_hf_loss,
    spin_loss,
)


class Scores(NamedTuple):
    """A batch as the losses see it; k completions belong to each example.

    For pairs they are chosen, rejected and, where the method has a likelihood term on another text, its target.
    """

    policy_logps: Tensor  # summed log-probabilities, nats, (examples, k); a reward model's rewards
    lengths: Tensor  # tokens of each completion, (examples, k)
    reference_logps: Tensor | None = None  # of the frozen reference, (examples, k); None if the method has none
    rewards: Tensor | None = None  # what ranks the candidates, (examples, k); None for pairs
    mean_length: float = math.nan  # tokens a completion, over all the data that the batch is from


class Method(NamedTuple):
    """A row of `METHODS`."""

    loss: Callable[..., Tensor]  # (scores, **strengths) → loss per example, (examples,)
    strengths: Mapping[str, float]  # its hyperparameters, at the paper's values
    records: str  # "demonstrations", "preferences" or "rankings"
    needs_reference: bool
    summary: str
    has_target: bool = False  # whether a likelihood term asks for a text beside the pair


def _sft(scores: Scores) -> Tensor:
    # Per token of the data, not of the batch or the part, in which tokens of short completions would weigh more.
    return -scores.policy_logps[:, 0] / scores.mean_length


def _against_reference(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def of_scores(scores: Scores, **strengths: float) -> Tensor:
        assert scores.reference_logps is not None
        return loss(
            policy_chosen_logps=scores.policy_logps[:, 0],
            policy_rejected_logps=scores.policy_logps[:, 1],
            reference_chosen_logps=scores.reference_logps[:, 0],
            reference_rejected_logps=scores.reference_logps[:, 1],
            **strengths,
        )

    return of_scores


def _ipo_mean(scores: Scores, *, tau: float) -> Tensor:
    assert scores.reference_logps is not None
    means = scores._replace(
        policy_logps=scores.policy_logps / scores.lengths, reference_logps=scores.reference_logps / scores.lengths
    )
    return _against_reference(ipo_loss)(means, tau=tau)


def _slic_hf(scores: Scores, *, delta: float, sft_weight: float) -> Tensor:
    return slic_hf_loss(
        policy_chosen_logps=scores.policy_logps[:, 0],
        policy_rejected_logps=scores.policy_logps[:, 1],
        policy_target_logps=scores.policy_logps[:, _target(scores)],
        delta=delta,
        sft_weight=sft_weight,
    )


def _slic_hf_mean(scores: Scores, *, delta: float, sft_weight: float) -> Tensor:
    return _slic_hf(
        scores._replace(policy_logps=scores.policy_logps / scores.lengths), delta=delta, sft_weight=sft_weight
    )


def _click(scores: Scores, *, delta: float, contrast_weight: float) -> Tensor:
    target = _target(scores)
    return click_loss(
        policy_chosen_logps=scores.policy_logps[:, 0],
        policy_rejected_logps=scores.policy_logps[:, 1],
        target_mean_logps=scores.policy_logps[:, target] / scores.lengths[:, target],
        delta=delta,
        contrast_weight=contrast_weight,
    )


def _rrhf(scores: Scores, *, sft_weight: float) -> Tensor:
    assert scores.rewards is not None
    return rrhf_loss(
        candidate_logps=scores.policy_logps,
        candidate_lengths=scores.lengths,
        rewards=scores.rewards,
        sft_weight=sft_weight,
    )


def _rrhf_sum(scores: Scores, *, sft_weight: float) -> Tensor:
    return _rrhf(scores._replace(lengths=torch.ones_like(scores.lengths)), sft_weight=sft_weight)


def _kto(scores: Scores, *, beta: float, undesirable_weight: float) -> Tensor:
    """A pair as a desirable and an undesirable completion; the mean of their losses.

    z₀ is 0. The authors estimate it from the log-ratios of a batch's completions under each other's prompts, cut off
    at 0 from below: of completions that the policy did not write the mean log-ratio is as a rule negative.
    """
    assert scores.reference_logps is not None
    losses = kto_loss(
        policy_logps=scores.policy_logps,
        reference_logps=scores.reference_logps,
        is_desirable=torch.tensor([True, False], device=scores.policy_logps.device).expand_as(scores.policy_logps),
        reference_point=0.0,
        beta=beta,
        undesirable_weight=undesirable_weight,
    )
    return losses.mean(dim=1)


def _without_reference(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of the two means a token."""

    def of_scores(scores: Scores, **strengths: float) -> Tensor:
        means = scores.policy_logps / scores.lengths
        return loss(policy_chosen_mean_logps=means[:, 0], policy_rejected_mean_logps=means[:, 1], **strengths)

    return of_scores


def _bradley_terry(scores: Scores) -> Tensor:
    return bradley_terry_loss(chosen_rewards=scores.policy_logps[:, 0], rejected_rewards=scores.policy_logps[:, 1])


def _plackett_luce(scores: Scores) -> Tensor:
    assert scores.rewards is not None
    # Equal rewards stay in the order in which they came, which is as good as another.
    best_first = scores.rewards.argsort(dim=1, descending=True, stable=True)
    return plackett_luce_loss(ranked_rewards=scores.policy_logps.gather(1, best_first))


def _target(scores: Scores) -> int:
    """The column of the likelihood term's text: the third, or the chosen one where the records have no other."""
    return 2 if scores.policy_logps.shape[1] > 2 else 0


METHODS = {
    "sft": Method(_sft, {}, "demonstrations", False, "imitate: the mean negative log-probability per token"),
    "dpo": Method(
        _against_reference(dpo_loss), {"beta": 0.1}, "preferences", True, "logistic loss on the log-ratio margin"
    ),
    "ipo": Method(
        _against_reference(ipo_loss), {"tau": 0.1}, "preferences", True, "squared distance of the margin from 1/(2τ)"
    ),
    "ipo-mean": Method(_ipo_mean, {"tau": 0.1}, "preferences", True, "IPO on mean log-probabilities, as TRL ships it"),
    "slic-hf": Method(
        _slic_hf,
        {"delta": 1.0, "sft_weight": 0.1},  # the paper does not give λ
        "preferences",
        False,
        "hinge on the policy's own log-probabilities plus a likelihood term",
        has_target=True,
    ),
    "slic-hf-mean": Method(
        _slic_hf_mean,
        {"delta": 0.1, "sft_weight": 0.1},
        "preferences",
        False,
        "SLiC-HF on mean log-probabilities a token",
        has_target=True,
    ),
    "rrhf": Method(_rrhf, {"sft_weight": 1.0}, "rankings", False, "every wrongly ordered pair of ranked completions"),
    "rrhf-sum": Method(
        _rrhf_sum,
        {"sft_weight": 1.0},
        "rankings",
        False,
        "RRHF on summed log-probabilities, as its authors' code has it",
    ),
    "click": Method(
        _click,
        {"delta": 15.0, "contrast_weight": 0.3},
        "preferences",
        False,
        "cross-entropy plus a hinge between own samples",
        has_target=True,
    ),
    "spin": Method(
        _against_reference(spin_loss),
        {"beta": 0.1},
        "preferences",
        True,
        "DPO's loss with a human completion as chosen, an own one as rejected",
    ),
    "kto": Method(
        _kto,
        {"beta": 0.1, "undesirable_weight": 1.0},
        "preferences",
        True,
        "every completion by itself, called good or bad, against the reference",
    ),
    "orpo": Method(
        _without_reference(orpo_loss),
        {"contrast_weight": 0.1},
        "preferences",
        False,
        "likelihood of the chosen plus the log of an odds ratio",
    ),
    "simpo": Method(
        _without_reference(simpo_loss),
        {"beta": 2.0, "gamma": 1.0},
        "preferences",
        False,
        "logistic loss on mean log-probabilities, less a target",
    ),
    "robust-dpo": Method(
        _against_reference(robust_dpo_loss),
        {"beta": 0.1, "flip": 0.1},
        "preferences",
        True,
        "DPO corrected for a known share of turned labels",
    ),
}

REWARD = "reward"  # the method of `train_reward`, which trains another model than those of `METHODS` and has two losses
_REWARD = {
    "preferences": Method(_bradley_terry, {}, "preferences", False, "likelihood of the pairs under Bradley–Terry"),
    "rankings": Method(_plackett_luce, {}, "rankings", False, "likelihood of the rankings under Plackett–Luce"),
}


def method_of(name: str, records: Sequence[Record]) -> Method:
    """A method by its name.

    Args:
        name: a key of `METHODS`, or `REWARD`.
        records: preferences or rankings, which decide how a reward model is trained.

    Returns:
        `Method`.
    """
    if name != REWARD:
        return METHODS[name]
    return _REWARD["rankings" if records and "completions" in records[0] else "preferences"]
