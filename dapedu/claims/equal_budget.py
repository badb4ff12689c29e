"""What is claimed of several methods at once, judged where all have one budget and as many tries.

A half is half of the 95 % interval of the mean over laboratories.
"""

import statistics
from typing import Any

from dapedu.claims.entry import Claim, Numbers, difference, is_more


def objectives(results: dict[str, Any], method: str) -> list[float]:
    """4 gold − ½ KL of a method on test prompts.

    Args:
        results: by name, with `reviews_comparison`.
        method: an entry of it.

    Returns:
        One number a laboratory.
    """
    row = results["reviews_comparison"]["methods"][method]
    return [4 * gold - 0.5 * kl for gold, kl in zip(row["gold"], row["kl"], strict=True)]


def _leads(results: dict[str, Any], *pairs: tuple[str, str, str]) -> Numbers:
    found: Numbers = {}
    for name, first, second in pairs:
        found |= difference(name, objectives(results, first), objectives(results, second))
    return found


def _untuned(results: dict[str, Any]) -> float:
    """DPO's mean over its random tries, less PPO's."""
    means = {
        method: statistics.mean(row["objective"] for row in results["reviews_comparison"]["tuning"][method])
        for method in ("DPO", "PPO")
    }
    return means["DPO"] - means["PPO"]


CLAIMS = (
    Claim(
        id="compare-1",
        claimed_by="arXiv:2305.18290, §6",
        statement="With almost no tuning of hyperparameters, DPO does as well as RLHF with PPO, or better.",
        evidence=("reviews_comparison",),
        numbers=lambda results: {"untuned": _untuned(results)} | _leads(results, ("tuned", "DPO", "PPO")),
        measured=(
            "4 gold − ½ KL of DPO less that of PPO: {untuned:+.2f} for a random setting (mean of the tries, validation "
            "prompts of one laboratory), {tuned:+.2f} ± {tuned_half:.2f} for the best of "
            "{settings[reviews_comparison][trials]} (five laboratories, mean ± 95 % interval)"
        ),
        holds=lambda n: n["untuned"] > 0 and n["tuned"] > -n["tuned_half"],
        holds_if=lambda n: n["untuned"] > 0 or n["tuned"] > -n["tuned_half"],
        remark=(
            "Here it is PPO that needs little tuning: all of its random settings end above the SFT model, while DPO "
            "with a large learning rate ends far from it, where its loss does not call it back. Most of DPO's are "
            "harmless, so a small learning rate is the better part of its tuning. PPO has a reward model fitted to the "
            "same pairs, and samples as many completions again."
        ),
    ),
    Claim(
        id="compare-2",
        claimed_by="arXiv:2402.14740, abstract",
        statement="REINFORCE-style methods outperform PPO, and methods without RL: DPO, and imitation of the best.",
        evidence=("reviews_comparison",),
        numbers=lambda results: _leads(
            results, ("ppo", "RLOO", "PPO"), ("dpo", "RLOO", "DPO"), ("best", "RLOO", "best of n")
        ),
        measured=(
            "4 gold − ½ KL of RLOO less that of PPO {ppo:+.2f} ± {ppo_half:.2f}, of DPO {dpo:+.2f} ± {dpo_half:.2f}, "
            "of the imitation of the best of n {best:+.2f} ± {best_half:.2f} (five laboratories, mean ± 95 % interval)"
        ),
        holds=lambda n: all(is_more(n, name) for name in ("ppo", "dpo", "best")),
        holds_if=lambda n: all(is_more(n, name) for name in ("dpo", "best")),
        remark=(
            "Ahead of DPO and of imitation, yes; ahead of PPO, no, when both have as many updates, samples and tries. "
            "RLOO earns a little more reward than PPO and goes farther from the SFT model for it. It has no value "
            "model, and so fewer settings to try and less to keep in memory."
        ),
    ),
)
