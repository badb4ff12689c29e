"""What is claimed of RRHF on its own answers: that rounds hack the reward, how, and that they should be few.

Differences are taken laboratory by laboratory; a half is half of the 95 % interval of their mean.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more

_SOURCE = "the source, section on RRHF"
_PAPER = "arXiv:2304.05302, §5"


def _course(results: dict[str, Any], run: str, metric: str) -> Tensor:
    """A metric by round, the SFT model's first, (laboratories, rounds + 1)."""
    return torch.tensor(results["reviews_hacking"]["runs"][run][metric], dtype=torch.float64)


def _best_of_the_others(values: Tensor) -> Tensor:
    """The round that is best in the mean of all laboratories but one.

    Chosen so, it has nothing to do with the luck of the laboratory in which it is then used.

    Args:
        values: by round, shape (laboratories, rounds).

    Returns:
        One round for each laboratory, shape (laboratories,).
    """
    return ((values.sum(dim=0) - values) / (len(values) - 1)).argmax(dim=1)


def _at(values: Tensor, rounds: Tensor) -> Tensor:
    return values.gather(1, rounds[:, None]).squeeze(1)


def _hacking(results: dict[str, Any]) -> Numbers:
    """From the best round for gold to the last, the proxy's rise and gold's fall; the perplexity's rise in all."""
    proxy, gold, perplexity = (
        _course(results, "strong proxy", metric) for metric in ("strong proxy", "gold", "perplexity")
    )
    mild, stop = _course(results, "mild proxy", "gold"), _best_of_the_others(gold)
    return {
        **difference("rise", proxy[:, -1].tolist(), _at(proxy, stop).tolist()),
        **difference("fall", _at(gold, stop).tolist(), gold[:, -1].tolist()),
        **difference("drift", perplexity[:, -1].tolist(), perplexity[:, 0].tolist()),
        **difference("mild_fall", _at(mild, _best_of_the_others(mild)).tolist(), mild[:, -1].tolist()),
    }


def _thanking(texts: Sequence[str]) -> float:
    """Of the sentences of some texts, the share that thanks."""
    sentences = [sentence for text in texts for sentence in text.split(".") if sentence.strip()]
    return statistics.mean("thanks" in sentence.split() for sentence in sentences) if sentences else 0.0


def _politeness(results: dict[str, Any]) -> Numbers:
    """The share of thanks among the sentences of the stored texts, after less before; of malformed texts, after."""
    run = results["reviews_hacking"]["runs"]["strong proxy"]
    before, after = ([_thanking(texts[at]) for texts in run["texts"]] for at in (0, -1))
    malformed = _course(results, "strong proxy", "malformed")[:, -1].tolist()
    return difference("more", after, before) | estimate("malformed", malformed)


def _stopping(results: dict[str, Any]) -> Numbers:
    """What a number of rounds found in the other laboratories is worth, against all rounds and against one."""
    gold = _course(results, "strong proxy", "gold")
    stop, own = _best_of_the_others(gold), gold.argmax(dim=1)
    return {
        **difference("over_last", _at(gold, stop).tolist(), gold[:, -1].tolist()),
        **difference("over_first", _at(gold, stop).tolist(), gold[:, 1].tolist()),
        "earliest": own.min().item(),
        "latest": own.max().item(),
    }


def _held(results: dict[str, Any]) -> Numbers:
    """Gold's fall from its best round to the last, with KL terms of two sizes."""
    numbers: Numbers = {}
    for name, beta in (("small", "0.1"), ("middle", "0.3")):
        gold = _course(results, f"KL term, β = {beta}", "gold")
        numbers |= difference(name, _at(gold, _best_of_the_others(gold)).tolist(), gold[:, -1].tolist())
    return numbers


CLAIMS = (
    Claim(
        id="rrhf-7",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement=(
            "Iterating on the model's own answers, the reward rises while perplexity and win rate get worse: reward "
            "hacking."
        ),
        remark=(
            "With the strong proxy, which counts gold by half; with the mild one eight rounds do not settle it. The "
            "gold reward stands for the win rate. The perplexity of people's texts rises under the gold reward too: it "
            "says how far the policy has moved from them. In the paper it was sampling online that hacked the reward, "
            "not its two or three rounds, and its perplexity is that of the policy's texts under GPT-2."
        ),
        evidence=("reviews_hacking",),
        numbers=_hacking,
        measured=(
            "from the round that is best by gold in the other laboratories to round "
            "{settings[reviews_hacking][rounds]}, the strong proxy rises by {rise:.2f} ± {rise_half:.2f} and gold "
            "falls by {fall:.2f} ± {fall_half:.2f}, with people's perplexity {drift:.1f} ± {drift_half:.1f} above that "
            "of the SFT model; with the mild proxy gold falls by {mild_fall:.2f} ± {mild_fall_half:.2f}; "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: all(is_more(n, name) for name in ("rise", "fall", "drift", "mild_fall")),
        holds_if=lambda n: all(is_more(n, name) for name in ("rise", "fall", "drift")),
    ),
    Claim(
        id="rrhf-8",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement="Hacked answers are empty politeness, not wrong, and useless.",
        remark=(
            "That thanks are found is by construction: the proxy was built to like them. What is measured is what "
            "becomes of the rest, and most of it becomes wrong. The mild proxy leads to good reviews with needless "
            "thanks. What a reward model fitted to labels was hacked with in reviews_goodhart was another thing in "
            "each laboratory, and no politeness."
        ),
        evidence=("reviews_hacking",),
        numbers=_politeness,
        measured=(
            "after round {settings[reviews_hacking][rounds]} with the strong proxy the share of thanks among the "
            "sentences of the stored texts is {more:.2f} ± {more_half:.2f} above the SFT model's, "
            + LABORATORIES
            + "; the share of reviews with a malformed sentence is {malformed:.2f} ± {malformed_half:.2f}."
        ),
        holds=lambda n: is_more(n, "more") and is_less(n, "malformed", 0.25),
        holds_if=lambda n: is_more(n, "more"),
    ),
    Claim(
        id="rrhf-9",
        claimed_by=_SOURCE,
        statement="There is a right number of iterations, and it has to be found.",
        remark=(
            "Found by a judge that does not share the reward's flaw; the mild proxy, which does, would never have "
            "stopped. Where the reward is right there is no such number in eight rounds: gold rises to the last."
        ),
        evidence=("reviews_hacking",),
        numbers=_stopping,
        measured=(
            "with the strong proxy, to stop after the number of rounds that is best by gold in the other laboratories "
            "is worth {over_last:.2f} ± {over_last_half:.2f} of gold against going on to the end, and {over_first:.2f} "
            "± {over_first_half:.2f} against stopping after the first round, " + LABORATORIES + "; the laboratories' "
            "own best rounds are {earliest:.0f} to {latest:.0f}."
        ),
        holds=lambda n: is_more(n, "over_last") and is_more(n, "over_first") and n["latest"] - n["earliest"] <= 2,
        holds_if=lambda n: is_more(n, "over_last"),
    ),
    Claim(
        id="rrhf-15",
        claimed_by=_PAPER,
        statement=(
            "A KL term in the reward restrains it: sampling online, the reward is −0.86 and the perplexity 19.8, "
            "instead of +0.34 and 63.8."
        ),
        remark=(
            "The condition: β is right. With .1 gold falls all the same, and with 1 it hardly rises. The paper's "
            "weight, .01, belongs to another reward."
        ),
        evidence=("reviews_hacking",),
        numbers=_held,
        measured=(
            "in rounds on the strong proxy gold falls from its best round in the other laboratories to round "
            "{settings[reviews_hacking][rounds]} by {small:.2f} ± {small_half:.2f} with β = .1 and {middle:.2f} ± "
            "{middle_half:.2f} with β = .3, " + LABORATORIES + "."
        ),
        holds=lambda n: not is_more(n, "small") and not is_more(n, "middle"),
        holds_if=lambda n: not is_more(n, "middle"),
    ),
)
