"""What is claimed of SLiC-HF: margin, likelihood term, win rates, and its kinship to DPO (dpo-5).

A half is half of the 95 % interval of a mean of differences, laboratory by laboratory.
"""

from typing import Any

from dapedu.claims.entry import LABORATORIES, Claim, Numbers, difference, estimate, is_less, is_more, ratio

_SOURCE = "the source, section on SLiC-HF"
_PAPER = "arXiv:2305.10425"
_EVIDENCE = ("reviews_slic_hf",)
_RECIPES = ("SLiC-HF, direct", "SLiC-HF, sample and rank")
_OWN = "likelihood of the SFT model's"
_LITTLE = 0.05  # of win rate


def _method(results: dict[str, Any], name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = results["reviews_slic_hf"]["methods"][name]
    return found


def _distance_by_margin(results: dict[str, Any]) -> Numbers:
    by_delta = results["reviews_slic_hf"]["delta"]
    return ratio("further", by_delta["10"]["kl"], by_delta["0"]["kl"])


def _leash(results: dict[str, Any]) -> Numbers:
    """The share of the KL that is left when samples of the SFT model get a likelihood term."""
    variants = results["reviews_slic_hf"]["variants"]
    return ratio("left", variants[_OWN]["kl"], variants["no likelihood term"]["kl"])


def _without_reference(results: dict[str, Any]) -> Numbers:
    """Peak memory of RLOO, which keeps two frozen models, over that of DPO with a stored reference; the largest."""
    largest = list(results["cost_memory"].values())[-1]
    return {kind: largest["RLOO"][kind] / largest["DPO"][kind] for kind in ("counted", "measured")}


def _recipes(results: dict[str, Any]) -> Numbers:
    return difference("wins", *(_method(results, method)["SFT: win rate"] for method in _RECIPES))


def _wins(results: dict[str, Any]) -> Numbers:
    direct, ranked = (_method(results, method)["SFT: win rate"] for method in _RECIPES)
    return estimate("direct", direct) | estimate("ranked", ranked)


def _kinship(results: dict[str, Any]) -> Numbers:
    slic, dpo = _method(results, _RECIPES[0]), _method(results, "DPO")
    return {
        **estimate("slic", slic["SFT: win rate"]),
        **estimate("dpo", dpo["SFT: win rate"]),
        **difference("longer", slic["length"], dpo["length"]),
    }


def _both_win(numbers: Numbers) -> bool:
    return is_more(numbers, "slic", 0.5) and is_more(numbers, "dpo", 0.5)


def _against_people(results: dict[str, Any]) -> Numbers:
    """Win rates against people's reviews."""
    numbers: Numbers = {}
    for name, method in zip(("sft", "direct", "ranked"), ("SFT", *_RECIPES), strict=True):
        numbers |= estimate(name, _method(results, method)["people: win rate"])
    return numbers


def _above_the_sft_model(numbers: Numbers, than: float) -> bool:
    """Whether the SFT model loses against people, and both recipes win more than this."""
    return is_less(numbers, "sft", 0.5) and is_more(numbers, "direct", than) and is_more(numbers, "ranked", than)


def _over_imitation(results: dict[str, Any]) -> Numbers:
    """What sample-and-rank wins against people more than continued fine-tuning on the candidates of one judge."""
    rates = (_method(results, name)["people: win rate"] for name in (_RECIPES[1], "best of n, learned reward"))
    return difference("over", *rates)


def _growth(results: dict[str, Any]) -> Numbers:
    """How much longer both recipes' texts are than the SFT model's."""
    numbers: Numbers = {}
    for name, method in zip(("direct", "ranked"), _RECIPES, strict=True):
        numbers |= ratio(name, _method(results, method)["length"], _method(results, "SFT")["length"])
    return numbers


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
            "with all else as tuned, the KL to the SFT model with δ = 10 is {further:.2f} ± {further_half:.2f} times "
            "that with δ = 0, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "further", 1.25),
    ),
    Claim(
        id="slic-2",
        claimed_by=f"{_SOURCE}, after arXiv:2210.00045",
        statement="A likelihood term on the reference model's answers has the same effect as a KL to the reference.",
        remark=(
            "Where δ is small they hardly differ, where it is large the one forbids forgetting and the other does not. "
            "On people's texts it is a KL to people, on the chosen ones an imitation of the winners. The condition: as "
            "something that keeps the policy near the reference."
        ),
        slip="Not the same: in expectation the term is the forward KL(π_ref‖π), where RLHF's is the reverse.",
        evidence=_EVIDENCE,
        numbers=_leash,
        measured=(
            "on samples of the SFT model, the KL(π‖π_ref) with the term is {left:.3f} ± {left_half:.3f} of that "
            "without it, " + LABORATORIES + "."
        ),
        holds_if=lambda n: is_less(n, "left", 0.5),
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
            "the largest GPT-2, one process each; counted, {counted:.1f} times."
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
            + LABORATORIES
            + "."
        ),
        holds_if=lambda n: abs(n["wins"]) + n["wins_half"] < 2 * _LITTLE and abs(n["wins"]) < _LITTLE,
    ),
    Claim(
        id="slic-5",
        claimed_by=_SOURCE,
        statement="It wins more than 80 % of comparisons against the SFT model.",
        remark="What becomes of the paper's numbers here is slic-8.",
        slip=("The paper's 83 % and 86 % are win rates against the summaries of people, where the SFT model has 45 %."),
        evidence=_EVIDENCE,
        numbers=_wins,
        measured=(
            "against the SFT model, by the gold reward, direct wins {direct:.2f} ± {direct_half:.2f} and "
            "sample-and-rank {ranked:.2f} ± {ranked_half:.2f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "direct", 0.8) and is_more(n, "ranked", 0.8),
        holds_if=lambda n: is_more(n, "direct", 0.8) or is_more(n, "ranked", 0.8),
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
        id="slic-8",
        claimed_by=f"{_PAPER}, headline",
        statement="Against people's texts it wins 83 % (direct) and 86 % (sample and rank), the SFT model 45 %.",
        remark=(
            "The paper's judge is a ranking model, ours the gold reward. The condition: as a direction, from below a "
            "half to above it."
        ),
        evidence=_EVIDENCE,
        numbers=_against_people,
        measured=(
            "against people's reviews the SFT model wins {sft:.2f} ± {sft_half:.2f}, direct {direct:.2f} ± "
            "{direct_half:.2f} and sample-and-rank {ranked:.2f} ± {ranked_half:.2f}, " + LABORATORIES + "."
        ),
        holds=lambda n: _above_the_sft_model(n, 0.8),
        holds_if=lambda n: _above_the_sft_model(n, 0.5),
    ),
    Claim(
        id="slic-9",
        claimed_by=f"{_PAPER}, headline",
        statement="It beats continued fine-tuning on the best of the SFT model's samples, which wins 65 %.",
        remark=(
            "The other way round, with the same judge for both. Ours imitates the best of sixteen candidates, the "
            "paper's the best of eight."
        ),
        evidence=_EVIDENCE,
        numbers=_over_imitation,
        measured=(
            "the share of comparisons with people's reviews that sample-and-rank wins, less that which imitation of "
            "the best candidate wins, is {over:+.3f} ± {over_half:.3f}, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "over"),
    ),
    Claim(
        id="slic-10",
        claimed_by=_PAPER,
        statement="Its texts are longer than the SFT model's: 23.6 words become 38 to 41.",
        remark=(
            "The condition: a little longer. In the paper length is a part of why people prefer it; the gold reward "
            "does not care for length."
        ),
        evidence=_EVIDENCE,
        numbers=_growth,
        measured=(
            "direct, texts are {direct:.2f} ± {direct_half:.2f} times as long as the SFT model's, sample-and-rank "
            "{ranked:.2f} ± {ranked_half:.2f} times, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "direct", 1.5) and is_more(n, "ranked", 1.5),
        holds_if=lambda n: is_more(n, "direct", 1) and is_more(n, "ranked", 1),
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
            "on the same pairs DPO wins {dpo:.2f} ± {dpo_half:.2f} against the SFT model and SLiC-HF {slic:.2f} ± "
            "{slic_half:.2f}; the length of SLiC-HF's texts less that of DPO's is {longer:+.1f} ± {longer_half:.1f} "
            "tokens; " + LABORATORIES + "."
        ),
        holds=lambda n: _both_win(n) and abs(n["longer"]) + n["longer_half"] < 1,
        holds_if=_both_win,
    ),
)
