"""What is claimed of CLICK: its kinship to RRHF, the price of detoxifying, and how to choose the pairs.

Differences are taken laboratory by laboratory; a half is half of the 95 % interval of their mean.
"""

from typing import Any

import torch

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more, ratio

_PAPER = "arXiv:2306.03350"
_EVIDENCE = ("reviews_click",)
_ATTRIBUTES = ("rude", "repetitive")
_MARGIN = "15"  # the paper's, and the experiment's where it is not varied


def _row(results: dict[str, Any], attribute: str, kind: str, case: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = results["reviews_click"]["attributes"][attribute][kind][case]
    return found


def _without_margin(results: dict[str, Any]) -> Numbers:
    """Which share of the rude texts goes, with RRHF's margin and with CLICK's."""
    before = _row(results, "rude", "alone", "SFT model")["rude"]
    numbers: Numbers = {}
    for name, delta in (("without", "0"), ("with", _MARGIN)):
        after = _row(results, "rude", "delta", delta)["rude"]
        numbers |= estimate(f"{name}_margin", [1 - a / b for a, b in zip(after, before, strict=True)])
    return numbers


def _price(results: dict[str, Any]) -> Numbers:
    """The share of rude texts that is left, and by how much both perplexities grow."""
    before, after = _row(results, "rude", "alone", "SFT model"), _row(results, "rude", "pairing", "below")
    numbers: Numbers = {}
    for name, metric in (("left", "rude"), ("own", "own perplexity"), ("people", "perplexity")):
        numbers |= ratio(name, after[metric], before[metric])
    return numbers


def _is_cheap(numbers: Numbers) -> bool:
    """What the paper calls a small price: a fifth of the toxicity left for a quarter more perplexity."""
    return is_less(numbers, "left", 0.25) and is_less(numbers, "own", 1.25)


def _pairings(results: dict[str, Any]) -> Numbers:
    """How much rarer an attribute is with the neighbour below than at random, and how much likelier the texts are.

    Likelier to the SFT model; positive is better in both, and perplexities are compared by their logarithms.
    """
    numbers: Numbers = {}
    for attribute in _ATTRIBUTES:
        below, at_random = (_row(results, attribute, "pairing", name) for name in ("below", "random"))
        surprise, own = (
            torch.tensor(row["own perplexity"], dtype=torch.float64).log().tolist() for row in (at_random, below)
        )
        numbers |= difference(f"{attribute}_rarer", at_random[attribute], below[attribute])
        numbers |= difference(f"{attribute}_likelier", surprise, own)
    return numbers


def _beats_random(numbers: Numbers, attribute: str) -> bool:
    """Better by one measure, beyond chance, and not worse by the other."""
    measures = [f"{attribute}_{measure}" for measure in ("rarer", "likelier")]
    return any(is_more(numbers, name) for name in measures) and all(
        numbers[name] > -numbers[f"{name}_half"] for name in measures
    )


CLAIMS = (
    Claim(
        id="click-1",
        claimed_by="the source, section on RRHF",
        statement="CLICK adds some techniques to RRHF.",
        remark=(
            "Where RRHF has means it has sums; and it has a margin, one partner for each good candidate, and a "
            "likelihood term on people's texts in the place of the best candidate. The condition: the margin helps, "
            "but the method works without it, with a hinge like RRHF's."
        ),
        slip="CLICK was accepted at ACL about when RRHF became public, and its loss is SLiC-HF's.",
        evidence=_EVIDENCE,
        numbers=_without_margin,
        measured=(
            "of the SFT model's rude texts a share of {with_margin:.3f} ± {with_margin_half:.3f} is gone after CLICK "
            "with δ = 15, and {without_margin:.3f} ± {without_margin_half:.3f} with δ = 0, all else equal, "
            + LABORATORIES
            + "."
        ),
        # That the one was made from the other no number of ours can show: at best the parts add up.
        holds_if=lambda n: is_more(n, "with_margin", 0.5) and is_more(n, "without_margin", 0.5),
    ),
    Claim(
        id="click-2",
        claimed_by=_PAPER,
        statement="It detoxifies a model at a small price in perplexity: toxicity .450 → .084, perplexity 5.2 → 6.5.",
        remark=(
            "Rude words stand for toxicity, and the SFT model for the larger one that measures the perplexity "
            "of the samples. Toxicity in the paper is the share of contexts with a toxic reply among 25. Small is what "
            "the paper calls so, a quarter more, with a fifth of the toxicity left."
        ),
        evidence=_EVIDENCE,
        numbers=_price,
        measured=(
            "with the neighbour below a share of {left:.3f} ± {left_half:.3f} of the rude texts is left; the "
            "perplexity of the policy's samples under the SFT model is {own:.2f} ± {own_half:.2f} times what it was, "
            "that of people's reviews under the policy {people:.2f} ± {people_half:.2f} times; " + LABORATORIES + "."
        ),
        holds=lambda n: _is_cheap(n) and is_less(n, "people", 1.25),
        holds_if=lambda n: _is_cheap(n),
    ),
    Claim(
        id="click-3",
        claimed_by=f"{_PAPER}, abstract",
        statement="Its likelihood-ranking-based pairing is better than random pairing.",
        remark=(
            "Better means rarer or likelier to the SFT model, beyond chance, and not worse by the other. Where a "
            "prompt has only one bad candidate all rules give the same pairs. The condition: against one of the "
            "attributes. The paper does not say clearly which neighbour it takes; the one above is not better than "
            "random."
        ),
        evidence=_EVIDENCE,
        numbers=_pairings,
        measured=(
            "random less the neighbour below, rude: rate {rude_rarer:+.3f} ± {rude_rarer_half:.3f}, log-perplexity of "
            "the samples {rude_likelier:+.3f} ± {rude_likelier_half:.3f}; repetitive: rate {repetitive_rarer:+.3f} ± "
            "{repetitive_rarer_half:.3f}, log-perplexity {repetitive_likelier:+.3f} ± {repetitive_likelier_half:.3f}; "
            + LABORATORIES
            + "."
        ),
        holds=lambda n: all(_beats_random(n, attribute) for attribute in _ATTRIBUTES),
        holds_if=lambda n: any(_beats_random(n, attribute) for attribute in _ATTRIBUTES),
    ),
)
