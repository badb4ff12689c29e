"""What is claimed of all losses together: by the source's conclusion (ids end-…) and by the paper on the family."""

from typing import Any

from dapedu.claims.comparison import gold_at_kl
from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more, ratio

_SOURCE = "the source, conclusion"
_PAPER = "arXiv:2402.05749, abstract"
_EVIDENCE = ("reviews_frontier",)
_METHODS = ("dpo", "ipo")


def _sides(results: dict[str, Any]) -> Numbers:
    """In how many rows of the frontier the chosen completions rise and the rejected ones fall, beyond doubt."""
    rows = [row for method in _METHODS for row in results["reviews_frontier"][method].values()]
    chosen, rejected = ([estimate("change", row[side]) for row in rows] for side in ("chosen", "rejected"))
    return {
        "rows": len(rows),
        "risen": sum(is_more(change, "change") for change in chosen),
        "fallen": sum(is_less(change, "change", 0.0) for change in rejected),
    }


def _apart(results: dict[str, Any]) -> Numbers:
    """What DPO earns more than IPO at one and at four nats, as a share of what it has gained there."""
    frontier = results["reviews_frontier"]
    start = frontier["sft"]["gold"]
    # From the largest strength on, which is the order of rising KL.
    by_kl = {"sft": frontier["sft"], "methods": {name: dict(reversed(frontier[name].items())) for name in _METHODS}}
    numbers: Numbers = {}
    for name, kl in (("one", 1.0), ("four", 4.0)):
        dpo, ipo = (gold_at_kl(by_kl, method, kl) for method in _METHODS)
        gained = [gold - floor for gold, floor in zip(dpo, start, strict=True)]
        numbers |= difference(
            name,
            [gold / gain for gold, gain in zip(dpo, gained, strict=True)],
            [gold / gain for gold, gain in zip(ipo, gained, strict=True)],
        )
    return numbers


def _best_strengths(results: dict[str, Any]) -> Numbers:
    """IPO's best τ over DPO's best β, where best means most gold reward in the laboratory."""
    frontier = results["reviews_frontier"]
    laboratories = range(len(frontier["sft"]["gold"]))
    betas, taus = (
        [
            float(max(frontier[method], key=lambda strength: frontier[method][strength]["gold"][lab]))
            for lab in laboratories
        ]
        for method in _METHODS
    )
    return ratio("best", taus, betas)


CLAIMS = (
    Claim(
        id="end-1",
        claimed_by=_SOURCE,
        statement=(
            "All these methods do one and the same: they raise the likelihood of what people liked and lower that of "
            "the other."
        ),
        remark=(
            "The condition: next to the reference, where half the margin outweighs the KL. Further off both fall, on "
            "average over pairs drawn from the reference, whatever the loss. What grows in every row is the margin. "
            "(A pair that is trained alone is another matter: dpo-4.)"
        ),
        evidence=_EVIDENCE,
        numbers=_sides,
        measured=(
            "of {rows:.0f} policies, DPO's and IPO's at six strengths each, the rejected completions of held-out pairs "
            "fall under {fallen:.0f}, and the chosen ones rise under {risen:.0f}. What counts is a 95 % interval of "
            "five laboratories that is all on one side."
        ),
        holds=lambda n: n["risen"] == n["fallen"] == n["rows"],
        holds_if=lambda n: n["risen"] > 0 and n["fallen"] == n["rows"],
    ),
    Claim(
        id="end-2",
        claimed_by=_SOURCE,
        statement=(
            "Reinforcement learning is so unstable that one is left with PPO; supervised losses let one try function "
            "after function, and so the methods came to be many."
        ),
        remark=(
            "A sentence about the history of a field, which no run of ours decides. That the losses came to be many is "
            "so: the book alone has a dozen. The reason given for PPO's being alone does not fit what was measured: "
            "over learning rates DPO was not seen to be stabler than PPO (intro-1, intro-3), and PPO does as well "
            "without parts of its apparatus (rloo-1)."
        ),
    ),
    Claim(
        id="tang-1",
        claimed_by=_PAPER,
        statement="Different functions of the family reach similar trade-offs between reward and regularisation.",
        remark=(
            "For two of them, DPO and IPO, whose strengths were swept; the paper's hinge and its new functions were "
            "not trained here."
        ),
        evidence=_EVIDENCE,
        numbers=_apart,
        measured=(
            "DPO's gold reward on reviews less IPO's at the same KL, as a share of what DPO has gained there, is "
            "{one:+.2f} ± {one_half:.2f} at one nat and {four:+.2f} ± {four_half:.2f} at four; " + LABORATORIES + "."
        ),
        holds=lambda n: all(is_more(n, at, -0.1) and is_less(n, at, 0.1) for at in ("one", "four")),
    ),
    Claim(
        id="tang-2",
        claimed_by=_PAPER,
        statement="The best strength may differ from function to function, as theory predicts.",
        remark=(
            "The condition: to within a factor of two or so. Second order has τ = β/4, for small margins and close "
            "calls. Where a win is surer, DPO's optimum is the further one, so that IPO needs a still smaller τ."
        ),
        evidence=_EVIDENCE,
        numbers=_best_strengths,
        measured=(
            "on reviews, the τ with which IPO earns most, over the β with which DPO does, is {best:.2f} ± "
            "{best_half:.2f}, from grids whose steps are a factor of two to four; " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "best", 0.25 / 2**0.5) and is_less(n, "best", 0.25 * 2**0.5),
        holds_if=lambda n: is_more(n, "best", 0.05) and is_less(n, "best", 0.5),
    ),
)
