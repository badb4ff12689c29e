"""What the tests of the losses go through: how to draw each loss's arguments, and its formula by another route.

The table `CASES` says once, a loss at a time, how to draw its arguments and what a plain Python derivation of
the paper's formula and of its gradient gives for one example.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

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

Row = dict[str, float | list[float]]  # one example: what a row of each tensor holds


class Case(NamedTuple):
    loss: Callable[..., Tensor]
    floats: tuple[str, ...]  # tensor arguments that are differentiated
    strengths: dict[str, float]
    value: Callable[..., float]  # plain Python, one example
    slopes: Callable[..., Row]  # plain Python, one example: d loss / d argument


# ---- the papers' formulas once more, one example at a time, by another route than the package's ----


def bradley_terry_value(chosen_rewards, rejected_rewards):
    return -math.log(math.exp(chosen_rewards) / (math.exp(chosen_rewards) + math.exp(rejected_rewards)))


def bradley_terry_slopes(chosen_rewards, rejected_rewards):
    lost = 1 / (1 + math.exp(chosen_rewards - rejected_rewards))  # probability of the other outcome
    return {"chosen_rewards": -lost, "rejected_rewards": lost}


def plackett_luce_value(ranked_rewards):
    weights = [math.exp(reward) for reward in ranked_rewards]
    return -math.log(math.prod(weight / sum(weights[place:]) for place, weight in enumerate(weights)))


def plackett_luce_slopes(ranked_rewards):
    weights = [math.exp(reward) for reward in ranked_rewards]
    slopes = [0.0] * len(weights)
    for place in range(len(weights) - 1):  # who is picked of those left, against who was expected
        slopes[place] -= 1
        for left in range(place, len(weights)):
            slopes[left] += weights[left] / sum(weights[place:])
    return {"ranked_rewards": slopes}


def slic_hf_value(policy_chosen_logps, policy_rejected_logps, policy_target_logps, delta, sft_weight):
    gap = policy_chosen_logps - policy_rejected_logps
    return (delta - gap if gap < delta else 0) - sft_weight * policy_target_logps


def slic_hf_slopes(policy_chosen_logps, policy_rejected_logps, policy_target_logps, delta, sft_weight):
    active = float(policy_chosen_logps - policy_rejected_logps < delta)
    return {
        "policy_chosen_logps": -active,
        "policy_rejected_logps": active,
        "policy_target_logps": -sft_weight,
    }


def dpo_value(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    chosen_ratio = math.exp(policy_chosen_logps) / math.exp(reference_chosen_logps)
    rejected_ratio = math.exp(policy_rejected_logps) / math.exp(reference_rejected_logps)
    return math.log(1 + (rejected_ratio / chosen_ratio) ** beta)


def dpo_slopes(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    policy_gap = policy_chosen_logps - policy_rejected_logps
    reference_gap = reference_chosen_logps - reference_rejected_logps
    slope = -beta / (1 + math.exp(beta * (policy_gap - reference_gap)))  # −β σ(−βh)
    return four_slopes(slope)


def ipo_value(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, tau):
    policy_gap = policy_chosen_logps - policy_rejected_logps
    reference_gap = reference_chosen_logps - reference_rejected_logps
    return ((2 * tau * (policy_gap - reference_gap) - 1) / (2 * tau)) ** 2


def ipo_slopes(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, tau):
    policy_gap = policy_chosen_logps - policy_rejected_logps
    reference_gap = reference_chosen_logps - reference_rejected_logps
    return four_slopes(2 * (policy_gap - reference_gap) - 1 / tau)


def four_slopes(slope):
    """dL/dh handed on to the four log-probabilities in h."""
    return {
        "policy_chosen_logps": slope,
        "policy_rejected_logps": -slope,
        "reference_chosen_logps": -slope,
        "reference_rejected_logps": slope,
    }


def rrhf_value(candidate_logps, candidate_lengths, rewards, sft_weight):
    means = [logp / length for logp, length in zip(candidate_logps, candidate_lengths, strict=True)]
    rank = 0.0
    for i in range(len(means)):
        for j in range(len(means)):
            if rewards[j] > rewards[i] and means[i] > means[j]:
                rank += means[i] - means[j]
    return rank - sft_weight * candidate_logps[rewards.index(max(rewards))]


def rrhf_slopes(candidate_logps, candidate_lengths, rewards, sft_weight):
    means = [logp / length for logp, length in zip(candidate_logps, candidate_lengths, strict=True)]
    slopes = [0.0] * len(means)
    for i in range(len(means)):
        for j in range(len(means)):
            if rewards[j] > rewards[i] and means[i] > means[j]:
                slopes[i] += 1 / candidate_lengths[i]
                slopes[j] -= 1 / candidate_lengths[j]
    slopes[rewards.index(max(rewards))] -= sft_weight
    return {"candidate_logps": slopes}


def click_value(policy_chosen_logps, policy_rejected_logps, target_mean_logps, delta, contrast_weight):
    gap = policy_chosen_logps - policy_rejected_logps
    return contrast_weight * (delta - gap if gap < delta else 0) - target_mean_logps


def click_slopes(policy_chosen_logps, policy_rejected_logps, target_mean_logps, delta, contrast_weight):
    pull = contrast_weight * (policy_chosen_logps - policy_rejected_logps < delta)
    return {"policy_chosen_logps": -pull, "policy_rejected_logps": pull, "target_mean_logps": -1.0}


def kto_value(policy_logps, reference_logps, is_desirable, beta, reference_point, undesirable_weight):
    ratio = math.exp(policy_logps) / math.exp(reference_logps + reference_point)
    likes = ratio**beta / (1 + ratio**beta)
    return 1 - likes if is_desirable else undesirable_weight * likes


def kto_slopes(policy_logps, reference_logps, is_desirable, beta, reference_point, undesirable_weight):
    likes = 1 / (1 + math.exp(-beta * (policy_logps - reference_logps - reference_point)))
    slope = beta * likes * (1 - likes) * (-1 if is_desirable else undesirable_weight)
    return {"policy_logps": slope, "reference_logps": -slope}


def orpo_value(policy_chosen_mean_logps, policy_rejected_mean_logps, contrast_weight):
    chosen, rejected = math.exp(policy_chosen_mean_logps), math.exp(policy_rejected_mean_logps)
    ratio = chosen * (1 - rejected) / (rejected * (1 - chosen))
    return -math.log(chosen) + contrast_weight * math.log(1 + 1 / ratio)


def orpo_slopes(policy_chosen_mean_logps, policy_rejected_mean_logps, contrast_weight):
    chosen, rejected = math.exp(policy_chosen_mean_logps), math.exp(policy_rejected_mean_logps)
    ratio = chosen * (1 - rejected) / (rejected * (1 - chosen))
    pull = contrast_weight / (1 + ratio)
    return {
        "policy_chosen_mean_logps": -1 - pull / (1 - chosen),
        "policy_rejected_mean_logps": pull / (1 - rejected),
    }


def simpo_value(policy_chosen_mean_logps, policy_rejected_mean_logps, beta, gamma):
    ratio = math.exp(policy_chosen_mean_logps) / math.exp(policy_rejected_mean_logps)
    return math.log(1 + math.exp(gamma) / ratio**beta)


def simpo_slopes(policy_chosen_mean_logps, policy_rejected_mean_logps, beta, gamma):
    pull = beta / (1 + math.exp(beta * (policy_chosen_mean_logps - policy_rejected_mean_logps) - gamma))
    return {"policy_chosen_mean_logps": -pull, "policy_rejected_mean_logps": pull}


def robust_dpo_value(*, flip, beta, **four):
    """The unbiased estimate of the clean loss: what solves (1 − ε) L(pair) + ε L(turned pair) = DPO for both orders."""
    kept, other = dpo_value(**four, beta=beta), dpo_value(**swap(four), beta=beta)
    return kept + flip * (kept - other) / (1 - 2 * flip)


def robust_dpo_slopes(*, flip, beta, **four):
    own = dpo_slopes(**four, beta=beta)["policy_chosen_logps"]
    # The turned pair's is −β − own by σ(−x) = 1 − σ(x), and h stands in it with the other sign.
    return four_slopes(own - flip * beta / (1 - 2 * flip))


REWARDS = ("chosen_rewards", "rejected_rewards")
FOUR = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)
SLIC = ("policy_chosen_logps", "policy_rejected_logps", "policy_target_logps")
CLICK = ("policy_chosen_logps", "policy_rejected_logps", "target_mean_logps")
MEANS = ("policy_chosen_mean_logps", "policy_rejected_mean_logps")
KTO = {"beta": 0.4, "reference_point": 0.7, "undesirable_weight": 1.3}
RRHF = ("candidate_logps", "candidate_lengths", "rewards")

CASES = {
    "bradley_terry": Case(bradley_terry_loss, REWARDS, {}, bradley_terry_value, bradley_terry_slopes),
    "plackett_luce": Case(plackett_luce_loss, ("ranked_rewards",), {}, plackett_luce_value, plackett_luce_slopes),
    "slic_hf": Case(slic_hf_loss, SLIC, {"delta": 1.5, "sft_weight": 0.3}, slic_hf_value, slic_hf_slopes),
    "dpo": Case(dpo_loss, FOUR, {"beta": 0.4}, dpo_value, dpo_slopes),
    "ipo": Case(ipo_loss, FOUR, {"tau": 0.3}, ipo_value, ipo_slopes),
    "rrhf": Case(rrhf_loss, ("candidate_logps",), {"sft_weight": 0.7}, rrhf_value, rrhf_slopes),
    "click": Case(click_loss, CLICK, {"delta": 1.5, "contrast_weight": 0.6}, click_value, click_slopes),
    "spin": Case(spin_loss, FOUR, {"beta": 0.4}, dpo_value, dpo_slopes),
    "kto": Case(kto_loss, ("policy_logps", "reference_logps"), KTO, kto_value, kto_slopes),
    "orpo": Case(orpo_loss, MEANS, {"contrast_weight": 0.6}, orpo_value, orpo_slopes),
    "simpo": Case(simpo_loss, MEANS, {"beta": 0.4, "gamma": 0.7}, simpo_value, simpo_slopes),
    "robust_dpo": Case(robust_dpo_loss, FOUR, {"beta": 0.4, "flip": 0.2}, robust_dpo_value, robust_dpo_slopes),
}
each_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(case: Case, n: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A batch in which about half of the hinges are active and some rewards tie."""
    generator = torch.Generator().manual_seed(seed)
    if case.loss is rrhf_loss:
        return {
            "candidate_logps": 6 * torch.randn(n, 4, generator=generator, dtype=dtype) - 20,
            "candidate_lengths": torch.randint(1, 9, (n, 4), generator=generator),
            "rewards": torch.randint(0, 4, (n, 4), generator=generator).to(dtype),
        }
    if case.loss is plackett_luce_loss:
        return {"ranked_rewards": 3 * torch.randn(n, 4, generator=generator, dtype=dtype) - 4}
    batch = {name: 3 * torch.randn(n, generator=generator, dtype=dtype) - 4 for name in case.floats}
    if case.floats == MEANS:  # of probabilities, which are below 1
        batch = {name: -values.abs() - 1e-3 for name, values in batch.items()}
    if case.loss is kto_loss:
        batch["is_desirable"] = torch.rand(n, generator=generator) < 0.5
    return batch


def rows(tensors: dict[str, Tensor]) -> list[Row]:
    n = len(next(iter(tensors.values())))
    return [{name: tensor[i].tolist() for name, tensor in tensors.items()} for i in range(n)]


def margin_arguments(h: Tensor) -> dict[str, Tensor]:
    """The four log-probabilities of pairs whose log-ratio margin is h, all four different from 0."""
    return {
        "policy_chosen_logps": h / 2 - 3,
        "policy_rejected_logps": -5 - h / 4,
        "reference_chosen_logps": -2 - h / 8,
        "reference_rejected_logps": h / 8 - 4,
    }


def swap(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pairs with winner and loser exchanged."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    flipped = {}
    for name, tensor in arguments.items():
        model, role, unit = name.split("_")
        flipped[f"{model}_{other[role]}_{unit}"] = tensor
    return flipped
