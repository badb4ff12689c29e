"""What is claimed of a language model's optimum, decided where every completion can be listed."""

from dapedu.claims.entry import Claim

_RUNS = ("DPO 0.5", "DPO 0.75", "DPO 1")

CLAIMS = (
    Claim(
        id="dpo-3b",
        claimed_by="the source, section on DPO; arXiv:2305.18290, §4",
        statement="A language model that minimises DPO's loss needs no reward model and reaches RLHF's optimum.",
        remark=(
            "The condition: the loss is taken over all pairs of completions, in Bradley–Terry's proportions. Trained "
            "to the end on ten thousand labelled pairs, about two for each completion there is, the same network ends "
            "far from the optimum: it fits the labels that happened to be drawn."
        ),
        evidence=("enumerable_optimum", "enumerable_frontier"),
        numbers=lambda results: {
            "worst": max(results["enumerable_optimum"][run]["total_variation_worst"] for run in _RUNS),
            "start": min(results["enumerable_optimum"][run]["total_variation_at_start_least"] for run in _RUNS),
            "sampled": min(results["enumerable_frontier"]["methods"]["DPO, 10000 pairs"]["0.5"]["total_variation"]),
        },
        measured=(
            "over {settings[enumerable_optimum][seeds]} seeds, {settings[enumerable_optimum][shape][n_prompts]} "
            "prompts and β = .5, .75 and 1, total variation to RLHF's optimum at most {worst:.3f} with all pairs, "
            "after a start at {start:.2f} or more; with 10,000 sampled pairs and β = .5, mean over the prompts, "
            "{sampled:.2f} on the best seed."
        ),
        holds=lambda n: n["worst"] < 0.02 and n["start"] > 0.2 and n["sampled"] < 0.02,
        holds_if=lambda n: n["worst"] < 0.02 and n["start"] > 0.2,
    ),
)
