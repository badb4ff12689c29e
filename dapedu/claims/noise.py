"""What is claimed of noisy labels: by the source, on what IPO is good for (ids ipo-3 and ipo-9…)."""

from typing import Any

from dapedu.claims.entry import Claim, Numbers

_SOURCE = "the source, section on IPO"
_EVIDENCE = ("noise_map",)
_TEN = "With ten responses and 20 % of the labels flipped"


def _at(
    results: dict[str, Any], reference: str, strategy: str, name: str, *, flip: str = "0.2", comparisons: int = 1
) -> float:
    """A number of `noise_map` for ten responses, at 1, 2, 4, 8 or 16 comparisons a response."""
    column = (1, 2, 4, 8, 16).index(comparisons)
    return results["noise_map"]["10"][reference][strategy][name][flip][column]


def _best_and_end(results: dict[str, Any], reference: str) -> tuple[float, float]:
    """DPO's reward at β = 0.5 with the best ridge, and with the one that only stands for none."""
    rewards = results["noise_stopping"][reference]["DPO 0.5 by ridge"]["reward"]
    return max(rewards), rewards[-1]


def _reward_model_numbers(results: dict[str, Any]) -> Numbers:
    best, end = _best_and_end(results, "informative")
    uniform_best, uniform_end = _best_and_end(results, "uniform")
    return {"gain": best - end, "uniform_gain": uniform_best - uniform_end + 1e-4}  # stored to four decimals


def _least_lead_elsewhere(results: dict[str, Any]) -> float:
    """IPO's lead in reward from a uniform reference at matched strength, or where both are tuned with a ridge."""
    return min(
        -_at(results, "uniform", "matched 0.5", "reward difference", comparisons=4),
        -_at(results, "informative", "tuned with ridge", "reward difference", comparisons=4),
    )


CLAIMS = (
    Claim(
        id="ipo-3",
        claimed_by=_SOURCE,
        statement="Hence a reward model must be under-fitted.",
        remark=(
            "The condition: noisy labels, and a reference that is good already. With a uniform reference fitting to "
            "the end costs nothing. (The source adds that over-training it destabilises reinforcement learning. "
            "Here RLHF's optimum is a formula, so that half waits for PPO.)"
        ),
        evidence=("noise_stopping",),
        numbers=_reward_model_numbers,
        measured=(
            "at RLHF's optimum, β = .5, for a Bradley–Terry reward fitted with the best ridge rather than none, the "
            "true reward is higher by {gain:.3f} with the informative reference and by less than {uniform_gain:.4f} "
            "with the uniform one ({settings[noise_stopping][datasets]:,} datasets)."
        ),
        holds=lambda n: n["gain"] > 0.02 and n["uniform_gain"] > 0.02,
        holds_if=lambda n: n["gain"] > 0.02,
    ),
    Claim(
        id="ipo-9a",
        claimed_by=_SOURCE,
        statement="Annotation errors quite often leave good answers that never win, and DPO gives those probability 0.",
        remark=(
            "The condition: few comparisons for each response. The chance falls exponentially with their number. "
            "The 0 is DPO trained to the end."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            "few": _at(results, "uniform", "good but never won", "share"),
            "more": _at(results, "uniform", "good but never won", "share", comparisons=4),
            "kept": _at(results, "uniform", "good but never won", "kept by DPO"),
        },
        measured=(
            f"{_TEN}, {{few:.0%}} of the datasets have such a response at one comparison a response and {{more:.0%}} "
            "at four; DPO leaves it {kept:.4f} of its probability."
        ),
        holds=lambda n: n["few"] > 0.05 and n["more"] > 0.05 and n["kept"] < 0.001,
        holds_if=lambda n: n["few"] > 0.05 and n["kept"] < 0.001,
    ),
    Claim(
        id="ipo-9b",
        claimed_by=_SOURCE,
        statement="IPO guarantees such an answer some probability.",
        remark=(
            "Always more than none. The condition for it to be much: a strength far more cautious than DPO's. Matched "
            "for close calls, IPO keeps little."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            "same": _at(results, "uniform", "good but never won", "kept by IPO same number"),
            "matched": _at(results, "uniform", "good but never won", "kept by IPO matched"),
        },
        measured=(
            f"{_TEN}, one comparison a response, it keeps {{same:.3f}} of its probability under the reference at "
            "τ = .5 and {matched:.3f} at τ = .125."
        ),
        holds=lambda n: n["same"] > 0.1 and n["matched"] > 0.1,
        holds_if=lambda n: n["same"] > 0.1 and n["matched"] > 0,
    ),
    Claim(
        id="ipo-9c",
        claimed_by=f"{_SOURCE}, its practical conclusion",
        statement="So over-fitting to annotation errors is solved by using IPO.",
        remark=(
            "The conditions: training to the end, and a reference that is good already; there IPO has the higher "
            "reward, tuned or not. With a uniform reference DPO has it. And with a ridge, both tuned alike, neither is "
            "ahead: the regularisation decides, not the loss."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            "informative": -_at(results, "informative", "matched 0.5", "reward difference", comparisons=4),
            "tuned": -_at(results, "informative", "tuned", "reward difference", comparisons=4),
            "elsewhere": _least_lead_elsewhere(results),
        },
        measured=(
            f"{_TEN}, four comparisons a response, IPO's reward less DPO's is, from the informative reference, "
            "{informative:+.3f} at matched strength and {tuned:+.3f} with each at its best strength; from the uniform "
            "one at matched strength, or from the informative one with both tuned with a ridge, at least "
            "{elsewhere:+.3f}."
        ),
        holds=lambda n: min(n["informative"], n["tuned"], n["elsewhere"]) > 0.005,
        holds_if=lambda n: min(n["informative"], n["tuned"]) > 0.005,
    ),
)
