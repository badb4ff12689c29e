"""What is claimed of the reward model that RLHF fits first: how long it should be trained, and what comes of more."""

import statistics
from typing import Any

from dapedu.claims.entry import Claim

_SOURCE = "the source, section on IPO"
_EVIDENCE = ("reviews_reward_model",)
_SHORTEST, _LONGEST = 0, -1


def _stopped(results: dict[str, Any]) -> str:
    """The number of epochs with the least mean held-out loss."""
    rows = results["reviews_reward_model"]["reward models"]
    return min(rows, key=lambda epochs: statistics.mean(rows[epochs]["held-out loss"]))


def _objectives(results: dict[str, Any], place: int | None = None) -> list[float]:
    """PPO's objective by laboratory, on the reward model in this place, or on the one that was stopped in time."""
    rows = results["reviews_reward_model"]["policies"]
    return rows[_stopped(results) if place is None else list(rows)[place]]["objective"]


def _leads(results: dict[str, Any], place: int) -> list[float]:
    """By how much it is better, by laboratory, to have stopped in time."""
    return [a - b for a, b in zip(_objectives(results), _objectives(results, place), strict=True)]


def _gold(results: dict[str, Any], place: int) -> float:
    """Mean gold reward of PPO on the reward model in this place, less that on the one that was stopped in time."""
    rows = results["reviews_reward_model"]["policies"]
    stopped = statistics.mean(rows[_stopped(results)]["gold"])
    return statistics.mean(rows[list(rows)[place]]["gold"]) - stopped


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
            "early": statistics.mean(_leads(results, _SHORTEST)),
            "late": statistics.mean(_leads(results, _LONGEST)),
        },
        measured=(
            "the objective of PPO on the reward model of least held-out loss, less that on one of "
            "{settings[reviews_reward_model][epochs][0]:g} epochs, is {early:+.2f}; less that on one of "
            "{settings[reviews_reward_model][epochs][4]:g} epochs, {late:+.2f} (reviews, five laboratories, "
            "β = {settings[reviews_reward_model][beta]:g})."
        ),
        holds=lambda n: n["early"] < 0 < n["late"],
        holds_if=lambda n: n["late"] > 0,
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
            "least": min(_leads(results, _LONGEST)),
            "gold": _gold(results, _LONGEST),
        },
        measured=(
            "PPO on the reward model of {settings[reviews_reward_model][epochs][4]:g} epochs ends, in each of five "
            "laboratories, with an objective that is lower than on the one of least held-out loss, by {least:.2f} at "
            "least; its gold reward differs by {gold:+.2f} (reviews, β = {settings[reviews_reward_model][beta]:g})."
        ),
        holds=lambda n: n["least"] > 0 > n["gold"],
        holds_if=lambda n: n["least"] > 0,
    ),
)
