"""What is claimed of DPO: by the source (ids dpo-…) and by the paper."""

from typing import Any

from dapedu.claims.entry import Claim, Numbers, is_less

_SOURCE = "the source, section on DPO"
_PROBLEMS = "{settings[closed_forms][problems]} random problems."


def _reads_as_claimed(n: Numbers) -> bool:
    """Weight and margin as claimed, and each likelihood too where no parameters are shared."""
    return n["weight"] < 1e-9 and n["free_chosen"] > 0 > n["free_rejected"] and n["shared_margin"] > 0


def _distances(results: dict[str, Any]) -> Numbers:
    """To RLHF's optimum in total variation: with exact proportions, and on datasets of two sizes."""
    numbers = {"population": results["closed_forms"]["dpo_population_worst"]}
    for name, comparisons in (("few", "30"), ("many", "10000")):
        row = results["finite_data"][comparisons]
        numbers |= {name: row["total_variation_mean"], f"{name}_half": row["half_width_95"]}
    return numbers


CLAIMS = (
    Claim(
        id="dpo-1",
        claimed_by=f"{_SOURCE}; arXiv:2305.18290, Eq. 4",
        statement="The KL-regularised objective has a closed-form optimum, with Z(x) as its normaliser.",
        remark="Climbing the objective on the simplex without knowing the answer ends where the formula says.",
        evidence=("closed_forms",),
        numbers=lambda results: {"worst": results["closed_forms"]["gibbs_worst"]},
        measured="total variation to the formula at most {worst:.1e} on " + _PROBLEMS,
        holds=lambda n: n["worst"] < 1e-5,
    ),
    Claim(
        id="dpo-2",
        claimed_by=f"{_SOURCE}; arXiv:2305.18290, Eqs. 5–6",
        statement="The reward is β log π/π_ref + β log Z(x), and Z(x) cancels in Bradley–Terry.",
        remark="So Z(x), a sum over every possible completion, is never needed.",
        evidence=("closed_forms",),
        numbers=lambda results: {"worst": results["closed_forms"]["reward_margin_worst"]},
        measured="implicit and true reward margins differ by at most {worst:.1e} on " + _PROBLEMS,
        holds=lambda n: n["worst"] < 1e-8,
    ),
    Claim(
        id="dpo-3",
        claimed_by=f"{_SOURCE}; arXiv:2305.18290, §4",
        statement="Minimising DPO's loss needs no reward model and reaches RLHF's optimum.",
        remark=(
            "The conditions, for the true reward: infinitely many comparisons of every pair, in Bradley–Terry's "
            "proportions, and a policy that can be any distribution. On a finite sample DPO goes to the optimum for "
            "the rewards that fit the sample."
        ),
        evidence=("closed_forms", "finite_data"),
        numbers=_distances,
        measured=(
            "total variation to RLHF's optimum at most {population:.1e} with exact Bradley–Terry proportions; on "
            "datasets over five responses {few:.3f} ± {few_half:.3f} with 30 comparisons and {many:.4f} ± "
            "{many_half:.4f} with 10,000, mean of {settings[finite_data][datasets]:,} ± 95 % interval."
        ),
        holds=lambda n: n["population"] < 1e-5 and is_less(n, "few", 0.01) and is_less(n, "many", 0.05),
        holds_if=lambda n: n["population"] < 1e-5 and is_less(n, "many", 0.05),
    ),
    Claim(
        id="dpo-4",
        claimed_by=f"{_SOURCE}; arXiv:2305.18290, §4, “What does the DPO update do?”",
        statement="Its gradient raises the likelihood of y_w, lowers that of y_l, and weights by how wrong it is.",
        remark=(
            "The weight is as claimed. For a small step on one pair the margin does not fall. Each likelihood moves as "
            "claimed if every response has a parameter of its own; with shared ones y_w can fall, and a response never "
            "compared gains. With several pairs one pair's step can undo another's."
        ),
        evidence=("closed_forms", "displacement"),
        numbers=lambda results: {
            "weight": results["closed_forms"]["dpo_weight_worst"],
            "free_chosen": results["displacement"]["DPO free"]["chosen_change"],
            "free_rejected": results["displacement"]["DPO free"]["rejected_change"],
            "shared_chosen": results["displacement"]["DPO shared"]["chosen_change"],
            "shared_margin": results["displacement"]["DPO shared"]["margin_change"],
        },
        measured=(
            "autograd's weight and β σ(r̂_l − r̂_w) differ by at most {weight:.1e}. After "
            "{settings[displacement][steps]} steps on one pair, in which there is no chance, in nats: log π(y_w) "
            "{free_chosen:+.2f} and log π(y_l) {free_rejected:+.2f} with a parameter for each response; "
            "log π(y_w) {shared_chosen:+.2f} while the margin goes {shared_margin:+.2f} with shared features."
        ),
        holds=lambda n: _reads_as_claimed(n) and n["shared_chosen"] > 0,
        holds_if=lambda n: _reads_as_claimed(n),
    ),
    Claim(
        id="dpo-9",
        claimed_by=_SOURCE,
        statement="DPO is also verified on helpful and harmless dialogue; it is the most widely used of these methods.",
        remark=(
            "A statement about the paper and the field, not about something that runs: the paper's §6 does report "
            "single-turn dialogue on Anthropic's data. Usage we did not measure."
        ),
    ),
)
