"""What is claimed of SLiC-HF: margin, likelihood term, win rates, and its kinship to DPO (dpo-5).

A half is half of the 95 % interval of a mean of differences, laboratory by laboratory.
"""

import statistics
from typing import Any

from dapedu.claims.entry import Claim, Numbers, difference

_SOURCE = "the source, section on SLiC-HF"
_PAPER = "arXiv:2305.10425"
_EVIDENCE = ("reviews_slic_hf",)
_LABORATORIES = "five laboratories, mean ± 95 % interval"
_RECIPES = ("SLiC-HF, direct", "SLiC-HF, sample and rank")
_OWN = "likelihood of the SFT model's"
_LITTLE = 0.05  # of win rate


def _method(results: dict[str, Any], name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = results["reviews_slic_hf"]["methods"][name]
    return found


def _distance_by_margin(results: dict[str, Any]) -> Numbers:
    by_delta = results["reviews_slic_hf"]["delta"]
    return {"near": statistics.mean(by_delta["0"]["kl"]), "far": statistics.mean(by_delta["10"]["kl"])}


def _leash(results: dict[str, Any]) -> Numbers:
    """The share of the KL that is left when samples of the SFT model get a likelihood term."""
    variants = results["reviews_slic_hf"]["variants"]
    free, own = (statistics.mean(variants[name]["kl"]) for name in ("no likelihood term", _OWN))
    return {"left": own / free}


def _without_reference(results: dict[str, Any]) -> Numbers:
    """Peak memory of RLOO, which keeps two frozen models, over that of DPO with a stored reference; the largest."""
    largest = list(results["cost_memory"].values())[-1]
    return {kind: largest["RLOO"][kind] / largest["DPO"][kind] for kind in ("counted", "measured")}


def _recipes(results: dict[str, Any]) -> Numbers:
    return difference("wins", *(_method(results, method)["SFT: win rate"] for method in _RECIPES))


def _wins(results: dict[str, Any]) -> Numbers:
    direct, ranked = (statistics.mean(_method(results, method)["SFT: win rate"]) for method in _RECIPES)
    return {"direct": direct, "ranked": ranked}


def _kinship(results: dict[str, Any]) -> Numbers:
    slic, dpo = _method(results, _RECIPES[0]), _method(results, "DPO")
    return {
        "slic": statistics.mean(slic["SFT: win rate"]),
        "dpo": statistics.mean(dpo["SFT: win rate"]),
        "longer": statistics.mean(slic["length"]) - statistics.mean(dpo["length"]),
    }


CLAIMS = (
    Claim(
        id="slic-1",
        claimed_by=_SOURCE,
        statement="The loss separates positive and negative completions as an SVM's hinge with margin δ does classes.",
        remark=(
            "By construction. The difference: an SVM's δ is a choice of unit (only C/δ "
            "counts), and here it is in nats and asks for another policy. One of a few "
            "nats is small beside the spread of the margins, though."
        ),
        evidence=_EVIDENCE,
        numbers=_distance_by_margin,
        measured=(
            "with all else as tuned, the KL to the SFT model is {near:.1f} nats with δ = 0 and {far:.1f} with δ = 10, "
            "means of five laboratories."
        ),
        holds=lambda n: n["far"] > 1.25 * n["near"],
    ),
    Claim(
        id="slic-2",
        claimed_by=f"{_SOURCE}, after arXiv:2210.00045",
        statement="A likelihood term on the reference model's answers has the same effect as a KL to the reference.",
        remark=(
            "A slip, if it says the same. In expectation the term is the forward KL(π_ref‖π), where RLHF's is "
            "the reverse; where δ is small they hardly differ, where it is large the one forbids forgetting and the "
            "other does not. On people's texts it is a KL to people, on the chosen ones an imitation of the winners. "
            "The condition: as something that keeps the policy near the reference."
        ),
        evidence=_EVIDENCE,
        numbers=_leash,
        measured=(
            "on samples of the SFT model, the term leaves {left:.0%} of the KL(π‖π_ref) that there is without it, "
            "means of five laboratories."
        ),
        holds_if=lambda n: n["left"] < 0.5,
    ),
    Claim(
        id="slic-3",
        claimed_by=_SOURCE,
        statement="With it the reference model need not be loaded in training, which lowers the cost.",
        remark=(
            "Beside methods that ask a reference in training, as RLOO does here (whose reward model is in the "
            "number too). DPO's reference need not be loaded either: it reads the pairs once, before. Against DPO "
            "only that reading is saved; and a target that is no text of the pair is a third text to read at each step."
        ),
        evidence=("cost_memory",),
        numbers=_without_reference,
        measured=(
            "with two frozen models beside the policy the peak is {measured:.1f} times that of the policy alone, for "
            "the largest GPT-2; counted, {counted:.1f} times."
        ),
        holds=lambda n: min(n.values()) > 1.1,
    ),
    Claim(
        id="slic-4",
        claimed_by=f"{_SOURCE}; {_PAPER}, §3",
        statement="Labelled pairs from outside or samples of the SFT model, ranked: there is little difference.",
        remark=(
            "The condition: both kinds of pairs are texts of the SFT model here, and differ in who judged "
            "them. Pairs written by other models, as in the paper, are not tested."
        ),
        evidence=_EVIDENCE,
        numbers=_recipes,
        measured=(
            "direct less sample-and-rank: win rate against the SFT model {wins:+.3f} ± {wins_half:.3f}, "
            + _LABORATORIES
            + "."
        ),
        holds_if=lambda n: abs(n["wins"]) + n["wins_half"] < 2 * _LITTLE and abs(n["wins"]) < _LITTLE,
    ),
    Claim(
        id="slic-5",
        claimed_by=_SOURCE,
        statement="It wins more than 80 % of comparisons against the SFT model.",
        remark=(
            "A slip. The paper's 83 % and 86 % are win rates against the summaries of people, where the SFT "
            "model has 45 %."
        ),
        evidence=_EVIDENCE,
        numbers=_wins,
        measured=(
            "against the SFT model, by the gold reward, direct wins {direct:.2f} and sample-and-rank {ranked:.2f}, "
            "means of five laboratories."
        ),
        holds=lambda n: min(n["direct"], n["ranked"]) > 0.8,
        holds_if=lambda n: max(n["direct"], n["ranked"]) > 0.8,
    ),
    Claim(
        id="slic-6",
        claimed_by=f"{_SOURCE}; {_PAPER}",
        statement="Human annotators rate it above RLHF.",
        remark=(
            "Nobody was asked. In the paper people took the variant with a ranking model over the RLHF model in 66 % "
            "of the cases, and that with a reward model in 56 %, which is not significant; at like length the two "
            "were similar."
        ),
    ),
    Claim(
        id="slic-7",
        claimed_by=_SOURCE,
        statement="It was shown on summarisation only, so that nothing follows for general tasks.",
        remark=(
            "A statement about the paper, not about something that runs. The paper has one task, summaries of TL;DR."
        ),
    ),
    Claim(
        id="dpo-5",
        claimed_by="the source, section on DPO",
        statement="DPO's loss has the concept of SLiC-HF: raise the positive's likelihood, lower the negative's.",
        remark=(
            "The gradients share their bracket. What stands before it differs twice: a soft weight against all "
            "or nothing, and a margin from the reference against one from nothing, of which length is two thirds. The "
            "condition: both win against the SFT model; what they write differs."
        ),
        evidence=_EVIDENCE,
        numbers=_kinship,
        measured=(
            "on the same pairs DPO wins {dpo:.2f} against the SFT model and SLiC-HF {slic:.2f}; the length of "
            "SLiC-HF's texts less that of DPO's is {longer:+.1f} tokens, means of five laboratories."
        ),
        holds=lambda n: min(n["slic"], n["dpo"]) > 0.5 and abs(n["longer"]) < 1,
        holds_if=lambda n: min(n["slic"], n["dpo"]) > 0.5,
    ),
)
