"""What is claimed of the reward model that RLHF fits first: how long it should be trained, and what comes of more."""

import statistics
from typing import Any

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, is_less, is_more

_SOURCE = "the source, section on IPO"
_EVIDENCE = ("reviews_reward_model",)
_SHORTEST, _LONGEST = 0, -1


def _stopped(results: dict[str, Any]) -> str:
    """The number of epochs with the least mean held-out loss."""
    rows = results["reviews_reward_model"]["reward models"]
    return min(rows, key=lambda epochs: statistics.mean(rows[epochs]["held-out loss"]))


def _lead(results: dict[str, Any], name: str, place: int, metric: str = "objective") -> Numbers:
    """By how much PPO does better on the reward model that was stopped in time than on the one in this place."""
    rows = results["reviews_reward_model"]["policies"]
    return difference(name, rows[_stopped(results)][metric], rows[list(rows)[place]][metric])


CLAIMS = (
    Claim(
        id="ipo-3a",
        claimed_by=f"{_SOURCE}; arXiv:2310.12036, §4.2",
        statement="A reward model that is a language model must be under-fitted.",
        remark=(
            "The condition: under-fitted must mean stopped where the loss on held-out pairs is least. A model that is "
            "stopped before has not learned the order, and its policy earns less; one that is trained on exaggerates, "
            "and what it has learned besides is wrong."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            **_lead(results, "early", _SHORTEST),
            **_lead(results, "late", _LONGEST),
        },
        measured=(
            "the objective of PPO on the reward model of least held-out loss, less that on one of "
            "{settings[reviews_reward_model][epochs][0]:g} epochs, is {early:+.2f} ± {early_half:.2f}; less that on "
            "one of {settings[reviews_reward_model][epochs][4]:g} epochs, {late:+.2f} ± {late_half:.2f}; reviews, "
            "β = {settings[reviews_reward_model][beta]:g}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_less(n, "early", 0) and is_more(n, "late"),
        holds_if=lambda n: is_more(n, "late"),
    ),
    Claim(
        id="ipo-3b",
        claimed_by=_SOURCE,
        statement="Trained for too long, a reward model makes reinforcement learning unstable.",
        remark=(
            "The condition: β is kept as it is. What over-training does first is to exaggerate, so that the same β is "
            "a weaker one: the policy goes much further, and pays more for it than it is worth. It does not collapse, "
            "and its gold reward alone is even higher."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            **_lead(results, "late", _LONGEST),
            **_lead(results, "gold", _LONGEST, "gold"),
        },
        measured=(
            "PPO on the reward model of least held-out loss, less PPO on the one of "
            "{settings[reviews_reward_model][epochs][4]:g} epochs: objective {late:+.2f} ± {late_half:.2f}, gold "
            "reward {gold:+.2f} ± {gold_half:.2f}; reviews, β = {settings[reviews_reward_model][beta]:g}, "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: is_more(n, "late") and is_more(n, "gold"),
        holds_if=lambda n: is_more(n, "late"),
    ),
)
