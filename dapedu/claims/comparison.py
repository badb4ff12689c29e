"""What is claimed of DPO against PPO: reward at equal KL, temperature, cost, stability.

Differences are taken laboratory by laboratory; a half is half of the 95 % interval of their mean.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more, ratio

_SOURCE = "the source, section on DPO"
_PAPER = "arXiv:2305.18290"
_AT = 1.0  # nats


def gold_at_kl(results: Mapping[str, Any], method: str, kl: float) -> list[float]:
    """The gold reward that a method has at a KL, on the line through the SFT model and its points.

    Args:
        results: of `dapedu.experiments.rlhf.reviews_dpo_against_ppo`.
        method: a key of its methods; their strengths are in the order of rising KL.
        kl: nats.

    Returns:
        One number a laboratory; NaN where no point of the method is as far from the SFT model.
    """
    points = results["methods"][method].values()
    return [
        float(
            np.interp(
                kl,
                [0.0, *(row["kl"][lab] for row in points)],
                [gold, *(row["gold"][lab] for row in points)],
                right=np.nan,
            )
        )
        for lab, gold in enumerate(results["sft"]["gold"])
    ]


def _leads(results: dict[str, Any]) -> Numbers:
    """How much more DPO earns than PPO at one nat."""
    against_ppo = results["reviews_dpo_against_ppo"]
    dpo = gold_at_kl(against_ppo, "DPO", _AT)
    numbers: Numbers = {}
    for name, method in (("learned", "PPO, learned reward"), ("gold", "PPO, gold reward")):
        numbers |= difference(name, dpo, gold_at_kl(against_ppo, method, _AT))
    return numbers


def _drops(results: dict[str, Any]) -> Numbers:
    """Win rate at temperature 0 less that at 1, and how much more of it PPO loses."""
    heated = results["reviews_dpo_against_ppo"]["temperatures"]
    lost = {
        method: [a - b for a, b in zip(by_heat["0"]["win rate"], by_heat["1"]["win rate"], strict=True)]
        for method, by_heat in heated.items()
    }
    return {
        **estimate("dpo", lost["DPO"]),
        **difference("more", lost["PPO, learned reward"], lost["DPO"]),
    }


def _wins(results: dict[str, Any]) -> Numbers:
    methods = results["reviews_dpo_against_ppo"]["methods"]
    dpo, ppo = (methods[method]["0.5"]["win rate"] for method in ("DPO", "PPO, learned reward"))
    return difference("learned", dpo, ppo)


def _cooled(results: dict[str, Any]) -> Numbers:
    """DPO's win rate less PPO's, at temperature 0 and with each at the temperature that is best for it on average."""
    heated = results["reviews_dpo_against_ppo"]["temperatures"]
    dpo, ppo = (
        {heat: row["win rate"] for heat, row in heated[method].items()} for method in ("DPO", "PPO, learned reward")
    )
    best = (max(rates.values(), key=sum) for rates in (dpo, ppo))
    return difference("zero", dpo["0"], ppo["0"]) | difference("best", *best)


def _shares(stability: dict[str, Any], method: str) -> list[float]:
    """In each laboratory, the share of learning rates at which a run has half of what the method gains when tuned."""
    points, floor = stability["methods"][method], stability["sft"]
    own = statistics.mean(a - b for a, b in zip(points["1"]["objective"], floor, strict=True))
    return [
        statistics.mean(row["objective"][lab] - start >= own / 2 for row in points.values())
        for lab, start in enumerate(floor)
    ]


def _below(stability: dict[str, Any], method: str) -> list[float]:
    """In each laboratory, the share of learning rates at which a run ends below the SFT model."""
    rows = stability["methods"][method].values()
    return [
        statistics.mean(row["objective"][lab] < start for row in rows) for lab, start in enumerate(stability["sft"])
    ]


def _memory(results: dict[str, Any]) -> Numbers:
    rows = list(results["cost_memory"].values())
    return {
        "ratio": rows[-1]["PPO"]["measured"] / rows[-1]["DPO"]["measured"],
        "small": rows[0]["PPO"]["measured"],
        "large": rows[-1]["PPO"]["measured"],
    }


def _lightness(results: dict[str, Any]) -> Numbers:
    """PPO's seconds and GiB over DPO's: from the SFT model to the end of training, the reward model included."""
    ppo, dpo = (
        [before + trained for before, trained in zip(row["before"], row["trained"], strict=True)]
        for row in (results["cost_seconds"][method] for method in ("PPO, learned reward", "DPO"))
    )
    return {**ratio("seconds", ppo, dpo), "memory": _memory(results)["ratio"]}


CLAIMS = (
    Claim(
        id="intro-1",
        claimed_by="the source, introduction",
        statement="Reinforcement learning is less stable than supervised learning and sensitive to hyperparameters.",
        remark=(
            "All that was turned is the learning rate, of PPO on the gold reward. At ten times the "
            "rate neither keeps anything, at a tenth DPO learns too little. What PPO explores costs it no more "
            "completions than DPO has judged."
        ),
        evidence=("reviews_stability",),
        numbers=lambda results: difference(
            "more",
            _shares(results["reviews_stability"], "DPO"),
            _shares(results["reviews_stability"], "PPO, gold reward"),
        ),
        measured=(
            "over learning rates from a tenth to ten times the tuned one, the share of runs that keep half of what "
            "their method gains when tuned, DPO's less PPO's, is {more:+.2f} ± {more_half:.2f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "more"),
    ),
    Claim(
        id="intro-2",
        claimed_by="the source, introduction",
        statement="PPO keeps four models, so that its cost in memory is high and grows with the model.",
        remark=(
            "Two of the four are trained: counted in single precision that is 40 bytes a parameter, where DPO with "
            "stored log-probabilities of the reference has 16, and RLOO 24. Adapters take most of the difference away."
        ),
        evidence=("cost_memory",),
        numbers=_memory,
        measured=(
            "the peak of PPO's process grows from {small:.2f} to {large:.2f} GiB from the smallest to the largest "
            "GPT-2, and is {ratio:.1f} times DPO's for the largest; one process each."
        ),
        holds=lambda n: n["ratio"] > 1.25 and n["large"] > 2 * n["small"],
    ),
    Claim(
        id="intro-3",
        claimed_by="the source, introduction",
        statement="Methods without reinforcement learning are more stable to train.",
        remark=(
            "Both ruin the model at ten times their rate, in every laboratory, and at no smaller one. How many runs "
            "do well, rather than no harm, is intro-1."
        ),
        evidence=("reviews_stability",),
        numbers=lambda results: difference(
            "harm",
            _below(results["reviews_stability"], "PPO, gold reward"),
            _below(results["reviews_stability"], "DPO"),
        ),
        measured=(
            "over learning rates from a tenth to ten times the tuned one, the share of runs that end below the SFT "
            "model, PPO's less DPO's, is {harm:+.2f} ± {harm_half:.2f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "harm"),
    ),
    Claim(
        id="dpo-6",
        claimed_by=f"{_SOURCE}; {_PAPER}, §6.1",
        statement="DPO earns more reward than PPO at equal KL, even when PPO is given the true reward.",
        remark=(
            "The other way round: little separates them at half a nat, and beyond it PPO's lead grows with the KL, "
            "most of it with no other labels than DPO has. The conditions are a small model, 4,096 labels and eight "
            "random trials a method; against most of PPO's untuned trials DPO's best would have won."
        ),
        evidence=("reviews_dpo_against_ppo",),
        numbers=_leads,
        measured=(
            "at one nat from the SFT model, DPO's gold reward less that of PPO on a reward model of the same labels is "
            "{learned:+.2f} ± {learned_half:.2f}, and less that of PPO on the gold reward {gold:+.2f} ± "
            "{gold_half:.2f}; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "learned") and is_more(n, "gold"),
        holds_if=lambda n: is_more(n, "learned") or is_more(n, "gold"),
    ),
    Claim(
        id="dpo-7",
        claimed_by=f"{_SOURCE}; {_PAPER}, §6.2",
        statement="DPO is insensitive to the sampling temperature, and PPO is not.",
        remark=(
            "All methods are best at a temperature of 0.25 and lose from there, the faster the warmer. Above 1 they "
            "fall alike, and PPO with the gold reward loses less than DPO."
        ),
        evidence=("reviews_dpo_against_ppo",),
        numbers=_drops,
        measured=(
            "from temperature 0 to 1, with β = .5, DPO loses {dpo:.2f} ± {dpo_half:.2f} of its win rate against the "
            "SFT model; what PPO on the learned reward loses, less that, is {more:+.2f} ± {more_half:.2f}; "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: is_less(n, "dpo", 0.05) and is_more(n, "more"),
        holds_if=lambda n: is_less(n, "dpo", 0.05) or is_more(n, "more"),
    ),
    Claim(
        id="dpo-8",
        claimed_by=f"{_SOURCE}; {_PAPER}, §6.4",
        statement="People prefer DPO's completions to PPO's.",
        remark=(
            "Nobody was asked. In the paper people took DPO's summaries at temperature 0.25 over PPO's at 0 in 58 % "
            "of the cases; what the gold reward prefers here is dpo-8b."
        ),
    ),
    Claim(
        id="dpo-8b",
        claimed_by=f"{_PAPER}, §6.2",
        statement="A judge of completions lets DPO win more often than PPO.",
        remark=(
            "At temperature 1. At 0.25 the two cannot be told apart, so that the temperature of a comparison "
            "decides as much as the method."
        ),
        evidence=("reviews_dpo_against_ppo",),
        numbers=_wins,
        measured=(
            "by the gold reward, with β = .5 and at temperature 1, DPO's win rate against the SFT model less that of "
            "PPO on a reward model of the same labels is {learned:+.2f} ± {learned_half:.2f}; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "learned"),
    ),
    Claim(
        id="dpo-10",
        claimed_by=f"{_PAPER}, abstract",
        statement="DPO is computationally lightweight beside RLHF with PPO.",
        remark=(
            "What the additional seconds buy is in dpo-6; the time that people need to label the pairs is in neither."
        ),
        evidence=("cost_seconds", "cost_memory"),
        numbers=_lightness,
        measured=(
            "from the SFT model to the end of training, drawing the pairs included, PPO with the reward model of the "
            "same labels takes {seconds:.2f} ± {seconds_half:.2f} times DPO's seconds, " + LABORATORIES + ", and for "
            "the largest GPT-2 {memory:.1f} times the memory, one process each."
        ),
        holds=lambda n: is_more(n, "seconds", 1.25) and n["memory"] > 1.25,
        holds_if=lambda n: is_more(n, "seconds", 1.25) or n["memory"] > 1.25,
    ),
    Claim(
        id="dpo-11",
        claimed_by=f"{_PAPER}, §6.2",
        statement="At temperature 0, the best for both, it wins 61 % against people's summaries, and PPO 57 %.",
        remark=(
            "The opponent is the SFT model at temperature 1, not people. Where both are best they cannot be told apart."
        ),
        evidence=("reviews_dpo_against_ppo",),
        numbers=_cooled,
        measured=(
            "with β = .5, DPO's win rate less that of PPO on a reward model of the same labels is {zero:+.3f} ± "
            "{zero_half:.3f} at temperature 0 and {best:+.3f} ± {best_half:.3f} at the best of seven temperatures for "
            "each; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "zero") and is_more(n, "best"),
        holds_if=lambda n: is_more(n, "zero") or is_more(n, "best"),
    ),
)
