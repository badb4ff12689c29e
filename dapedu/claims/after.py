"""What the papers that came after claim: KTO, ORPO, SimPO, robust DPO, online DPO.

All is judged where every method has one budget and as many tries. A half is half of the 95 % interval of the mean over
laboratories.
"""

from typing import Any

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_more
from dapedu.claims.equal_budget import objectives

_EVIDENCE = ("reviews_comparison",)
_AS_GOOD = 0.05  # what may be lacking in win rate, or in gold reward, to count as a match


def _wins(results: dict[str, Any], name: str, method: str, opponent: str) -> Numbers:
    return estimate(name, results["reviews_comparison"]["win rates"][method][opponent])


def _ahead(results: dict[str, Any], method: str) -> Numbers:
    """Of DPO, in 4 gold − ½ KL."""
    return difference("ahead", objectives(results, method), objectives(results, "DPO"))


def _not_behind(numbers: Numbers) -> bool:
    return is_more(numbers, "ahead", -4 * _AS_GOOD)


def _turned(results: dict[str, Any]) -> Numbers:
    """Robust DPO against DPO where labels are turned, and how much less it has lost by that."""
    noisy = {method: results["reviews_comparison"]["noise"][method]["objective"] for method in ("robust DPO", "DPO")}
    lost = {
        method: [clean - after for clean, after in zip(objectives(results, method), values, strict=True)]
        for method, values in noisy.items()
    }
    ahead = difference("ahead", noisy["robust DPO"], noisy["DPO"])
    return ahead | difference("spared", lost["DPO"], lost["robust DPO"])


CLAIMS = (
    Claim(
        id="kto-1",
        claimed_by="arXiv:2402.01306, abstract",
        statement=(
            "Although it learns only from a binary signal of whether an output is desirable, KTO matches or exceeds "
            "the performance of methods that have preferences."
        ),
        remark=(
            "A match with DPO, on the same completions. It is a mild test of learning without pairs: good and bad ones "
            "are as many, and which is which was decided in a pair. The reference point is 0, to which the paper's own "
            "estimate of it is cut off here."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _wins(results, "wins", "KTO", "DPO") | _ahead(results, "KTO"),
        measured=(
            "KTO wins {wins:.3f} ± {wins_half:.3f} against DPO, and is {ahead:+.2f} ± {ahead_half:.2f} ahead in "
            "4 gold − ½ KL; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "wins", 0.5 - _AS_GOOD) and _not_behind(n),
    ),
    Claim(
        id="orpo-1",
        claimed_by="arXiv:2403.07691, abstract",
        statement=(
            "An odds ratio beside the likelihood of the chosen completions is enough: neither a reference model nor a "
            "phase of supervised fine-tuning before is needed."
        ),
        remark=(
            "It wins as often as it loses against DPO, and has gone more than half again as far for that. That "
            "fine-tuning before can be left out is not tested, since all start from the SFT model here."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _ahead(results, "ORPO"),
        measured=(
            "from the SFT model, ORPO is {ahead:+.2f} ± {ahead_half:.2f} ahead of DPO in 4 gold − ½ KL; "
            + LABORATORIES
            + "."
        ),
        holds_if=_not_behind,
    ),
    Claim(
        id="simpo-1",
        claimed_by="arXiv:2405.14734, abstract",
        statement=(
            "Without a reference model, SimPO consistently and significantly outperforms DPO, and does not "
            "substantially increase the length of the responses."
        ),
        remark=(
            "Its texts are not longer but a third shorter. The best of its tries has nearly the smallest learning rate "
            "of the range, and a smaller one might have held it better. Our judge has no liking for length; what the "
            "paper corrects for, a judge that has, does not arise."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _wins(results, "wins", "SimPO", "DPO"),
        measured="SimPO wins {wins:.3f} ± {wins_half:.3f} against DPO; " + LABORATORIES + ".",
        holds=lambda n: is_more(n, "wins", 0.5),
    ),
    Claim(
        id="robust-1",
        claimed_by="arXiv:2403.00409, abstract",
        statement="Robust DPO is robust to noise in preference labels, compared with DPO.",
        remark=(
            "The condition: that to be ahead is enough. Robust DPO is ahead of DPO on labels that nobody turned, too, "
            "and by nearly as much; the turning costs both the same. It was told the share exactly, and kept the other "
            "settings from its tries on labels as they are."
        ),
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
        remark=(
            "The condition: against offline DPO, and if reward alone counts. Against PPO the interval has room for a "
            "draw. And the reward is paid for with four times DPO's KL: in an objective that counts it, nothing is "
            "gained. The judge is a reward model fitted to DPO's pairs, in the place of the paper's language model."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _wins(results, "dpo", "online DPO", "DPO") | _wins(results, "ppo", "online DPO", "PPO"),
        measured=(
            "online DPO wins {dpo:.3f} ± {dpo_half:.3f} against DPO and {ppo:.3f} ± {ppo_half:.3f} against PPO; "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: is_more(n, "dpo", 0.5) and is_more(n, "ppo", 0.5),
        holds_if=lambda n: is_more(n, "dpo", 0.5),
    ),
)
