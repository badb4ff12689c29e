"""What is claimed of IPO: by the source (ids ipo-…) and by the paper (ids azar-…)."""

import math
from typing import Any

from dapedu.claims.entry import Claim, Numbers, is_less, is_more

_SOURCE = "the source, section on IPO"
_EVIDENCE = ("bandit_figures",)
_SEEDS = "means of {settings[bandit_figures][seeds]} seeds, 95 % intervals of at most ± {half:.4f}"


def _end(results: dict[str, Any], dataset: str, run: str, response: str) -> float:
    """Mean probability of a response at the end of a run, over the seeds."""
    return results["bandit_figures"][dataset][run]["mean"]["abc".index(response)]


def _ends(results: dict[str, Any], **ends: tuple[str, str, str]) -> Numbers:
    """Mean probabilities at the end of some runs, and half of the widest of their 95 % intervals.

    Args:
        results: by name.
        ends: dataset, run and response by the number's name.

    Returns:
        The numbers, and the half-width as `half`.
    """
    halves = [
        results["bandit_figures"][dataset][run]["half_width_95"]["abc".index(response)]
        for dataset, run, response in ends.values()
    ]
    return {name: _end(results, *end) for name, end in ends.items()} | {"half": max(halves)}


def _worst_ipo(results: dict[str, Any], dataset: str) -> float:
    """Largest distance of IPO's mean end points from the closed form."""
    runs = [results["bandit_figures"][dataset][f"IPO {tau}"] for tau in ("0.1", "0.5", "1")]
    return max(abs(m - c) for run in runs for m, c in zip(run["mean"], run["closed_form"], strict=True))


def _margin_in_targets(results: dict[str, Any], name: str, dataset: str, loser: str) -> Numbers:
    """log π(a)/π(loser) in units of 1/(2τ), at τ = 1, and half of its interval, as the two probabilities' give it."""
    run = results["bandit_figures"][dataset]["IPO 1"]
    winner, loser_at = 0, "abc".index(loser)
    relative = sum(run["half_width_95"][at] / run["mean"][at] for at in (winner, loser_at))
    return {name: math.log(run["mean"][winner] / run["mean"][loser_at]) / 0.5, f"{name}_half": relative / 0.5}


def _only_dpo_removes_it(n: Numbers) -> bool:
    return n["beaten_dpo"] + n["half"] < 0.01 < n["beaten_ipo"] - n["half"] and n["beaten_ipo_small"] > 0


def _most_of_what_nobody_compared(results: dict[str, Any]) -> Numbers:
    """The largest probability that DPO leaves the response which is in no pair of D3 as it is printed."""
    ends = _ends(results, **{f"DPO {beta}": ("D3 as printed", f"DPO {beta}", "c") for beta in ("0.1", "0.5", "1")})
    return {"half": ends.pop("half"), "most": max(ends.values())}


def _is_greedy(n: Numbers) -> bool:
    """Whether DPO is, and IPO with τ = 1 is not."""
    return min(n["dpo_same"], n["dpo_matched"]) - n["half"] > 0.95 > n["ipo"] + n["half"]


CLAIMS = (
    Claim(
        id="ipo-1",
        claimed_by=_SOURCE,
        statement="Trained to the end, Bradley–Terry drives r(y_w) − r(y_l) to +∞, so π(y_w) = 1 and π(y_l) = 0.",
        remark=(
            "The condition: the win lies on no directed cycle of wins. Then the margin is infinite and π(y_l) = 0; "
            "π(y_w) = 1 needs also that nothing else survives (on D1 b beats c and both go to 0). Where every win lies "
            "on a cycle the optimum is finite. (DPO's margins are the fitted rewards' margins, divided by β. Both "
            "numbers are taken at the last step of training in small batches, which jitters about the optimum.)"
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _ends(
            results, one_way=("two actions", "DPO 1", "a"), on_cycle=("contested", "DPO 1", "a")
        ),
        measured=(
            "DPO with β = 1 ends at π(a) = {one_way:.3f} on the one pair a ≻ b, and at {on_cycle:.3f} on "
            "a ≻ b twice, b ≻ c, c ≻ a, " + _SEEDS + "."
        ),
        holds=lambda n: min(n["one_way"], n["on_cycle"]) - n["half"] > 0.99,
        holds_if=lambda n: n["one_way"] > 0.99 and n["on_cycle"] + n["half"] < 0.99,
    ),
    Claim(
        id="ipo-2",
        claimed_by=_SOURCE,
        statement="When π(y_l) = 0, D_KL goes to infinity.",
        remark=(
            "What diverges is the other direction, KL(π_ref‖π). The sound argument is that an infinite reward gap "
            "overwhelms any finite weight on a bounded KL."
        ),
        slip="RLHF penalises KL(π‖π_ref), in which 0 log 0 = 0; it never exceeds the largest −log π_ref.",
        evidence=("kl_at_the_edge",),
        numbers=lambda results: {
            "earlier": results["kl_at_the_edge"]["reverse"][-3],
            "later": results["kl_at_the_edge"]["reverse"][-2],
        },
        measured=(
            "exactly, with π_ref = {settings[kl_at_the_edge][reference]}, KL(π‖π_ref) is {earlier:.4f} nats when "
            "π(y_l) is {settings[kl_at_the_edge][shares][2]:.0e} and {later:.4f} when it is "
            "{settings[kl_at_the_edge][shares][3]:.0e}; something that goes to infinity would have grown."
        ),
        holds=lambda n: n["later"] - n["earlier"] > 1,
    ),
    Claim(
        id="ipo-4",
        claimed_by=_SOURCE,
        statement="DPO has no separate regulariser, so nothing stops it from over-training.",
        remark=(
            "The condition: a win on no cycle of wins. There every β sends the same responses to 0 (on D1, all but "
            "one). Where every win lies on a cycle, β regularises as RLHF's KL term does."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _ends(
            results,
            one_way=("D1", "DPO 4", "a"),
            cycle_small=("contested", "DPO 0.1", "a"),
            cycle_large=("contested", "DPO 4", "a"),
        ),
        measured=(
            "on D1 even β = 4 is at π(a) = {one_way:.3f} after {settings[bandit_figures][steps]:,} steps; on a dataset "
            "with every win on a cycle π(a) is {cycle_small:.2f} at β = .1 and {cycle_large:.2f} at β = 4; "
            + _SEEDS
            + "."
        ),
        holds=lambda n: min(n["one_way"], n["cycle_small"], n["cycle_large"]) - n["half"] > 0.95,
        holds_if=lambda n: n["one_way"] > 0.95 and n["cycle_small"] - n["cycle_large"] - 2 * n["half"] > 0.3,
    ),
    Claim(
        id="ipo-5",
        claimed_by=_SOURCE,
        statement="A squared loss in place of the sigmoid stops the over-training.",
        remark=(
            "Of the margins on the data, yes: the optimum is finite whatever the comparisons. Not of the policy "
            "elsewhere: with shared parameters a response that was never compared can take nearly everything. And the "
            "square is a consequence; what changes is Ψ (azar-3)."
        ),
        evidence=("bandit_figures", "displacement"),
        numbers=lambda results: {
            **_ends(results, winner=("D1", "IPO 0.1", "a")),
            "other": results["displacement"]["IPO shared"]["other_probability"],
        },
        measured=(
            "on D1 with τ = .1 IPO ends at π(a) = {winner:.3f} ± {half:.3f} where DPO goes to 1, mean of "
            "{settings[bandit_figures][seeds]} seeds ± 95 % interval; with shared features and τ = .2, without chance, "
            "the response never compared ends at {other:.3f}."
        ),
        holds=lambda n: n["winner"] + n["half"] < 0.99 and n["other"] < 0.9,
        holds_if=lambda n: n["winner"] + n["half"] < 0.99,
    ),
    Claim(
        id="ipo-6",
        claimed_by=_SOURCE,
        statement="A pair's margin grows no further than the reference's difference plus 1/(2τ).",
        remark=(
            "The condition: the pairs' targets can all be met at once, as with a single pair. Where they contradict "
            "each other, least squares can leave a margin beyond its target (at D1's optimum 4/3 for a over c, about "
            "which small batches jitter) or all of them short of it (on D2, 0)."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            **_margin_in_targets(results, "single", "two actions", "b"),
            **_margin_in_targets(results, "widest", "D1", "c"),
        },
        measured=(
            "in units of 1/(2τ) at τ = 1, the margin ends at {single:.2f} ± {single_half:.2f} on a single pair, and at "
            "{widest:.2f} ± {widest_half:.2f} for a over c on D1, means of {settings[bandit_figures][seeds]} seeds ± "
            "95 % intervals."
        ),
        holds=lambda n: is_less(n, "single", 1.01) and is_less(n, "widest", 1.01),
        holds_if=lambda n: is_more(n, "single", 0.99) and is_less(n, "single", 1.01),
    ),
    Claim(
        id="ipo-7",
        claimed_by=f"{_SOURCE}; arXiv:2310.12036, Figure 1",
        statement="With y1 ≻ y2 ≻ y3 DPO becomes greedy on y1, IPO leaves room for y2 and y3.",
        remark=(
            "The condition: τ is not small, for IPO leaves what τ says. The difference survives matching the strengths "
            "(β = 4τ), where DPO is slower on the same way."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: _ends(
            results,
            dpo_same=("D1", "DPO 1", "a"),
            dpo_matched=("D1", "DPO 4", "a"),
            ipo=("D1", "IPO 1", "a"),
            ipo_small=("D1", "IPO 0.1", "a"),
        ),
        measured=(
            "on D1, π(y1) = {dpo_same:.3f} (DPO, β = 1), {dpo_matched:.3f} (DPO, β = 4), {ipo:.3f} (IPO, τ = 1), "
            "{ipo_small:.3f} (IPO, τ = .1); " + _SEEDS + "."
        ),
        holds=lambda n: _is_greedy(n) and n["ipo_small"] + n["half"] < 0.95,
        holds_if=lambda n: _is_greedy(n),
    ),
    Claim(
        id="ipo-8",
        claimed_by=_SOURCE,
        statement="DPO gives probability 0 to what never won, IPO does not; so y2 is not 0.",
        remark=(
            "Never winning is not what counts. The conditions: some response reaches it along arrows from winner to "
            "loser, and it does not reach that one; and τ is not small."
        ),
        slip="Two of the paper's datasets are mixed up: in the order y1 ≻ y2 ≻ y3, y2 beats y3.",
        evidence=_EVIDENCE,
        numbers=lambda results: _ends(
            results,
            beaten_dpo=("D3 as meant", "DPO 1", "b"),
            beaten_ipo=("D3 as meant", "IPO 1", "b"),
            beaten_ipo_small=("D3 as meant", "IPO 0.1", "b"),
            never_compared=("D3 as printed", "DPO 1", "c"),
        ),
        measured=(
            "where b only ever loses, π(b) = {beaten_dpo:.3f} (DPO, β = 1), {beaten_ipo:.3f} (IPO, τ = 1) and "
            "{beaten_ipo_small:.3f} (IPO, τ = .1); where c never wins because nobody compared it, DPO keeps "
            "π(c) = {never_compared:.3f}; " + _SEEDS + "."
        ),
        holds=lambda n: _only_dpo_removes_it(n) and n["never_compared"] + n["half"] < 0.01,
        holds_if=lambda n: _only_dpo_removes_it(n),
    ),
    Claim(
        id="ipo-10",
        claimed_by=_SOURCE,
        statement="The paper has no win-rate evaluation.",
        remark="A statement about the paper, not about something that runs. It reports bandits and no language model.",
    ),
    Claim(
        id="azar-1",
        claimed_by="arXiv:2310.12036, §5.3.1",
        statement="Two actions, y1 always preferred: DPO ends at π(y1) = 1 for every τ, IPO at σ(1/(2τ)).",
        remark="Checked for τ = .1, .5 and 1.",
        evidence=_EVIDENCE,
        numbers=lambda results: {  # bounds: the stored means have seven decimals
            "dpo": max(_end(results, "two actions", f"DPO {beta}", "b") for beta in ("0.1", "0.5", "1")) + 1e-7,
            "ipo": _worst_ipo(results, "two actions") + 1e-7,
        },
        measured=(
            "at the same number DPO leaves y2 at most {dpo:.1e}; IPO is off by at most {ipo:.1e}; "
            "{settings[bandit_figures][seeds]} seeds, which are all alike, since there is one pair to draw."
        ),
        holds=lambda n: n["dpo"] < 1e-3 and n["ipo"] < 1e-3,
    ),
    Claim(
        id="azar-2",
        claimed_by="arXiv:2310.12036, §5.4, Figure 2",
        statement="On D3 = {(a,b), (b,a)} one action never wins; DPO drives its probability to 0 for every τ.",
        remark=("On {(a,b), (c,b)}, which we take to be meant, the figure's description holds (ipo-8)."),
        slip="The dataset is misprinted: c is in no pair, so neither loss moves its parameter.",
        evidence=_EVIDENCE,
        numbers=_most_of_what_nobody_compared,
        measured=(
            "for β = .1, .5 and 1 DPO ends with π(c) at most {most:.3f} ± {half:.3f}, where it started: .333; means of "
            "{settings[bandit_figures][seeds]} seeds, the widest 95 % interval."
        ),
        holds=lambda n: n["most"] + n["half"] < 0.01,
    ),
    Claim(
        id="azar-3",
        claimed_by="arXiv:2310.12036, §5.1–5.2",
        statement="The squared loss over sampled pairs has the optimum of ΨPO with Ψ = identity.",
        remark="In expectation over pairs drawn independently from μ, here uniform. A dataset need not be such a draw.",
        evidence=("closed_forms",),
        numbers=lambda results: {"worst": results["closed_forms"]["psi_identity_worst"]},
        measured=(
            "the two optima differ in total variation by at most {worst:.1e} on {settings[closed_forms][problems]} "
            "random preference tables."
        ),
        holds=lambda n: n["worst"] < 1e-5,
    ),
)
