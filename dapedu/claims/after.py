"""What the papers that came after claim: KTO, ORPO, SimPO, robust DPO, online DPO.

All is judged where every method has one budget and as many tries. The runs of a laboratory share its SFT model: they
are averaged first, and a half is half of the 95 % interval over laboratories.
"""

from collections.abc import Sequence
from typing import Any

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more

_EVIDENCE = ("reviews_comparison",)
_BETA = 0.5  # of the objective by which the settings were chosen
_AS_GOOD = 0.05  # what may be lacking in win rate, or in gold reward, to count as a match
_LONGER = 0.1  # a share of the length


def _by_laboratory(results: dict[str, Any], values: Sequence[float]) -> list[float]:
    """The mean over its runs, which come one after another, for each laboratory."""
    laboratories = len(results["reviews_comparison"]["sft"]["gold"])
    runs = [values[start : start + laboratories] for start in range(0, len(values), laboratories)]
    return [sum(of_one) / len(runs) for of_one in zip(*runs, strict=True)]


def _metric(results: dict[str, Any], method: str, name: str) -> list[float]:
    return _by_laboratory(results, results["reviews_comparison"]["methods"][method][name])


def _objective(results: dict[str, Any], method: str) -> list[float]:
    """4 gold − β KL."""
    gold, kl = _metric(results, method, "gold"), _metric(results, method, "kl")
    return [4 * reward - _BETA * nats for reward, nats in zip(gold, kl, strict=True)]


def _against(results: dict[str, Any], method: str, opponent: str = "DPO") -> Numbers:
    """The win rate, and what is ahead in the objective."""
    duels = results["reviews_comparison"]["win rates"][method][opponent]
    return {
        **estimate("wins", _by_laboratory(results, duels)),
        **difference("ahead", _objective(results, method), _objective(results, opponent)),
    }


def _as_good(numbers: Numbers) -> bool:
    return is_more(numbers, "wins", 0.5 - _AS_GOOD) and is_more(numbers, "ahead", -4 * _AS_GOOD)


def _better(numbers: Numbers) -> bool:
    return is_more(numbers, "wins", 0.5) and is_more(numbers, "ahead")


def _simpo(results: dict[str, Any]) -> Numbers:
    own, other = _metric(results, "SimPO", "length"), _metric(results, "DPO", "length")
    return _against(results, "SimPO") | estimate("longer", [a / b - 1 for a, b in zip(own, other, strict=True)])


def _turned(results: dict[str, Any]) -> Numbers:
    """Robust DPO against DPO where labels are turned, and how much less it loses by that."""
    noisy = results["reviews_comparison"]["noise"]
    robust, dpo = (noisy[method]["objective"] for method in ("robust DPO", "DPO"))
    lost = {
        method: [a - b for a, b in zip(_objective(results, method), noisy[method]["objective"], strict=True)]
        for method in ("robust DPO", "DPO")
    }
    return difference("ahead", robust, dpo) | difference("spared", lost["DPO"], lost["robust DPO"])


def _online(results: dict[str, Any]) -> Numbers:
    return _against(results, "online DPO") | difference(
        "ppo", _objective(results, "online DPO"), _objective(results, "PPO")
    )


CLAIMS = (
    Claim(
        id="kto-1",
        claimed_by="arXiv:2402.01306, abstract",
        statement=(
            "Although it learns only from a binary signal of whether an output is desirable, KTO matches or exceeds "
            "the performance of methods that have preferences."
        ),
        remark="REMARK",
        evidence=_EVIDENCE,
        numbers=lambda results: _against(results, "KTO"),
        measured=(
            "KTO wins {wins:.3f} ± {wins_half:.3f} against DPO, and is {ahead:+.2f} ± {ahead_half:.2f} ahead in "
            "4 gold − ½ KL; " + LABORATORIES + "."
        ),
        holds=_as_good,
        holds_if=lambda n: is_more(n, "wins", 0.5 - _AS_GOOD) or is_more(n, "ahead", -4 * _AS_GOOD),
    ),
    Claim(
        id="orpo-1",
        claimed_by="arXiv:2403.07691, abstract",
        statement=(
            "An odds ratio beside the likelihood of the chosen completions is enough: neither a reference model nor a "
            "phase of supervised fine-tuning before is needed."
        ),
        remark="REMARK",
        evidence=_EVIDENCE,
        numbers=lambda results: _against(results, "ORPO"),
        measured=(
            "from the SFT model, ORPO wins {wins:.3f} ± {wins_half:.3f} against DPO, and is {ahead:+.2f} ± "
            "{ahead_half:.2f} ahead in 4 gold − ½ KL; " + LABORATORIES + "."
        ),
        holds_if=_as_good,
    ),
    Claim(
        id="simpo-1",
        claimed_by="arXiv:2405.14734, abstract",
        statement=(
            "Without a reference model, SimPO consistently and significantly outperforms DPO, and does not "
            "substantially increase the length of the responses."
        ),
        remark="REMARK",
        evidence=_EVIDENCE,
        numbers=_simpo,
        measured=(
            "SimPO wins {wins:.3f} ± {wins_half:.3f} against DPO, is {ahead:+.2f} ± {ahead_half:.2f} ahead in "
            "4 gold − ½ KL, and writes texts that are longer by {longer:+.0%} ± {longer_half:.0%}; "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: _better(n) and is_less(n, "longer", _LONGER),
        holds_if=lambda n: (is_more(n, "wins", 0.5) or is_more(n, "ahead")) and is_less(n, "longer", _LONGER),
    ),
    Claim(
        id="robust-1",
        claimed_by="arXiv:2403.00409, abstract",
        statement="Where labels are turned at a known rate, robust DPO is better than DPO, and is spared what DPO loses.",
        remark="REMARK",
        evidence=_EVIDENCE,
        numbers=_turned,
        measured=(
            "with {settings[reviews_comparison][flip]:.0%} of the labels turned, robust DPO is {ahead:+.2f} ± "
            "{ahead_half:.2f} ahead of DPO in 4 gold − ½ KL, and has lost {spared:+.2f} ± {spared_half:.2f} less than "
            "DPO by the turning; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "ahead") and is_more(n, "spared"),
        holds_if=lambda n: is_more(n, "ahead") or is_more(n, "spared"),
    ),
    Claim(
        id="online-1",
        claimed_by="arXiv:2402.04792, abstract",
        statement="With feedback on fresh samples of the present model, DPO outperforms both offline DPO and RLHF.",
        remark="REMARK",
        evidence=_EVIDENCE,
        numbers=_online,
        measured=(
            "online DPO wins {wins:.3f} ± {wins_half:.3f} against DPO, and is ahead in 4 gold − ½ KL of DPO by "
            "{ahead:+.2f} ± {ahead_half:.2f} and of PPO by {ppo:+.2f} ± {ppo_half:.2f}; " + LABORATORIES + "."
        ),
        holds=lambda n: _better(n) and is_more(n, "ppo"),
        holds_if=_better,
    ),
)
