"""What is claimed of SPIN: that it goes on improving where imitation does not, and that it converges to people.

Differences are taken laboratory by laboratory; a half is half of the 95 % interval of their mean.
"""

from typing import Any

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, is_less, is_more

_SOURCE = "the source, section on SPIN"
_PAPER = "arXiv:2401.01335"
_STARTS = {"early": "under-trained", "late": "converged"}


def _last(row: dict[str, Any], metric: str) -> list[float]:
    """Of each laboratory, after the last iteration; of a start there is one number."""
    return [values[-1] if isinstance(values, list) else values for values in row[metric]]


def _gold_above(results: dict[str, Any], other: str) -> Numbers:
    """SPIN's gold reward less another policy's, from either start."""
    found: Numbers = {}
    for name, start in _STARTS.items():
        row = results["reviews_spin"][start]
        found |= difference(name, _last(row["SPIN"], "gold"), _last(row[other], "gold"))
    return found


def _negatives(results: dict[str, Any]) -> Numbers:
    """What the negatives add: nats by which SPIN is farther from people than imitation, and gold reward.

    Without old data SPIN reads the very texts that imitation does.
    """
    row = results["reviews_spin"]["converged"]
    spin, sft = row["variants"]["no old data"], row["more SFT"]
    return {
        **difference("farther", _last(spin, "people"), _last(sft, "people")),
        **difference("gold", _last(spin, "gold"), _last(sft, "gold")),
    }


def _by_iteration(results: dict[str, Any]) -> Numbers:
    """Gold reward that iteration 0 gains, and that iterations 1 to 3 gain on it; from the converged start."""
    row = results["reviews_spin"]["converged"]
    first, last = ([path[place] for path in row["SPIN"]["gold"]] for place in (0, -1))
    return difference("first", first, row["start"]["gold"]) | difference("later", last, first)


def _factors(results: dict[str, Any]) -> Numbers:
    """The largest factor of an error, in size, over worlds and λ above one half; the smallest over those below."""
    sizes = {
        float(key): [abs(factor) for factor in row["factor"]]
        for key, row in results["enumerable_spin"]["exact"].items()
    }
    return {
        "above": max(max(row) for key, row in sizes.items() if key > 0.5),
        "below": min(min(row) for key, row in sizes.items() if key < 0.5),
    }


_FROM_EITHER = (
    "{early:+.2f} ± {early_half:.2f} from the under-trained start and {late:+.2f} ± {late_half:.2f} from the "
    "converged one, " + LABORATORIES + "."
)


CLAIMS = (
    Claim(
        id="spin-1",
        claimed_by=_SOURCE,
        statement="DPO repeated with the SFT answers as winners and one's own as losers goes on improving the model.",
        remark=(
            "Four iterations, settings chosen among eight by this very reward. What SPIN brings down is the distance "
            "to people's texts, its own goal, by a tenth of a nat or two; imitation does that better."
        ),
        evidence=("reviews_spin",),
        numbers=lambda results: _gold_above(results, "start"),
        measured=("SPIN's gold reward after iteration 3 less that of its start is " + _FROM_EITHER),
        holds=lambda n: is_more(n, "early") and is_more(n, "late"),
        holds_if=lambda n: is_more(n, "early") or is_more(n, "late"),
    ),
    Claim(
        id="spin-2",
        claimed_by=_SOURCE,
        statement="No human preferences have to be tagged; SFT data are enough, and of these there are plenty.",
        remark=(
            "True by construction, so there is nothing to measure: the loss takes people's texts and the model's own "
            "samples. The price is as many samples as texts in every iteration. How plentiful open SFT data are we did "
            "not count."
        ),
    ),
    Claim(
        id="spin-3",
        claimed_by=_SOURCE,
        statement="More SFT on the same data does not improve the model, SPIN on them does.",
        remark=(
            "From the converged start neither of the two improves it. From the under-trained one more SFT does and "
            "SPIN does not. As many steps on the same texts, eight trials each, of the learning rate and of SPIN's λ."
        ),
        evidence=("reviews_spin",),
        numbers=lambda results: _gold_above(results, "more SFT"),
        measured=("SPIN's gold reward less that of more SFT is " + _FROM_EITHER),
        holds=lambda n: is_more(n, "early") and is_more(n, "late"),
        holds_if=lambda n: is_more(n, "early") or is_more(n, "late"),
    ),
    Claim(
        id="spin-4",
        claimed_by=_SOURCE,
        statement="So it matters to see negatives as well, and to learn how the positives differ from them.",
        remark=(
            "Both read the same texts once, in as many steps and with the same learning rate: the negatives, and the "
            "weights that they bring, are all the difference. At the first step they cancel on average, whatever the "
            "model, and add noise."
        ),
        evidence=("reviews_spin",),
        numbers=_negatives,
        measured=(
            "from the converged start, with negatives less without: −log π of people's held-out reviews "
            "{farther:+.3f} ± {farther_half:.3f} nats, gold reward {gold:+.3f} ± {gold_half:.3f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_less(n, "farther", 0.0) and is_more(n, "gold"),
        holds_if=lambda n: is_less(n, "farther", 0.0) or is_more(n, "gold"),
    ),
    Claim(
        id="spin-5",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement="It is better than DPO, which needs preference labels.",
        remark=(
            "By the reward that the labels are made of, and with 4,096 labels on samples of the very model that is "
            "trained. The paper's DPO had 62,000 pairs of other models' completions. What SPIN keeps is the "
            "nearness to people's texts, which DPO gives up."
        ),
        evidence=("reviews_spin",),
        numbers=lambda results: _gold_above(results, "DPO"),
        measured=("SPIN's gold reward less DPO's is " + _FROM_EITHER),
        holds=lambda n: is_more(n, "early") and is_more(n, "late"),
        holds_if=lambda n: is_more(n, "early") or is_more(n, "late"),
    ),
    Claim(
        id="spin-6",
        claimed_by=f"{_PAPER}, headline",
        statement=(
            "The SFT model's average on the Open LLM leaderboard, 58.14, is 60.80, 62.12, 62.97 and 63.16 after "
            "iterations 0 to 3; after another epoch of SFT it is 57.23, after DPO on 62,000 labelled pairs 61.31."
        ),
        remark=(
            "The two parts of the rise, with a reward and a model of ours. A leaderboard asks for knowledge and "
            "reasoning, and the paper's model has seven billion parameters: what happens there, no run of this size "
            "can say."
        ),
        evidence=("reviews_spin",),
        numbers=_by_iteration,
        measured=(
            "from the converged start iteration 0 changes the gold reward by {first:+.3f} ± {first_half:.3f}, and "
            "iterations 1 to 3 by {later:+.3f} ± {later_half:.3f} more, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "first") and is_more(n, "later"),
        holds_if=lambda n: is_more(n, "first") or is_more(n, "later"),
    ),
    Claim(
        id="spin-7",
        claimed_by=f"{_PAPER}, Remark 5.5",
        statement="By the update of Theorem 5.4 the process naturally converges to people's distribution.",
        remark=(
            "The condition is λ > ½: an iteration that is carried to its minimum multiplies all differences of log "
            "p_data/π by 1 − 1/λ. The paper's λ = 0.1 is on the other side. Its runs stop near the beginning of an "
            "iteration, about which the theorem says nothing."
        ),
        evidence=("enumerable_spin",),
        numbers=_factors,
        measured=(
            "a GPT-2 that minimises the expected loss multiplies its error by at most {above:.2f} in size for the λ "
            "above ½ and by at least {below:.2f} for those below, among "
            "{settings[enumerable_spin][betas]} and in {settings[enumerable_spin][seeds]} worlds."
        ),
        holds=lambda n: max(n["above"], n["below"]) < 1,
        holds_if=lambda n: n["above"] < 1 < n["below"],
    ),
)
