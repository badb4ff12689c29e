"""What is claimed of a language model: of its optimum, where every completion can be listed, and on sampled text."""

import math

from dapedu.claims.entry import LABORATORIES, Claim, estimate, is_more

_RUNS = ("DPO 0.5", "DPO 0.75", "DPO 1")

CLAIMS = (
    Claim(
        id="dpo-3b",
        claimed_by="the source, section on DPO; arXiv:2305.18290, §4",
        statement="A language model that minimises DPO's loss needs no reward model and reaches RLHF's optimum.",
        remark=(
            "The condition: the loss is taken over all pairs of completions, in Bradley–Terry's proportions. Trained "
            "to the end on ten thousand labelled pairs, 2,500 a prompt, the same network ends far from the optimum: it "
            "fits the labels that happened to be drawn."
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
    Claim(
        id="dpo-4b",
        claimed_by="the source, section on DPO and its conclusion",
        statement="DPO makes the preferred completion of a language model more likely.",
        remark=(
            "It becomes less likely, and the other one still less, so that the margin grows. With pairs drawn from the "
            "reference both cannot rise on average: the mean of the two log-ratios is −KL(π_ref‖π)."
        ),
        evidence=("reviews_frontier",),
        numbers=lambda results: estimate("chosen", results["reviews_frontier"]["dpo"]["1"]["chosen"]),
        measured=(
            "on held-out pairs of reviews, DPO with β = 1 changes the log-probability of the chosen completion by "
            "{chosen:.2f} ± {chosen_half:.2f} nats, " + LABORATORIES + "."
        ),
        holds=lambda n: is_more(n, "chosen"),
    ),
    Claim(
        id="ipo-6b",
        claimed_by="the source, section on IPO",
        statement="The margins of a language model's pairs grow no further than 1/(2τ).",
        remark=(
            "The condition: labels that do not contradict each other, and training to the end. It is a statement about "
            "the pairs of the data; the KL of what the policy writes is another matter."
        ),
        evidence=("reviews_gap",),
        numbers=lambda results: {
            **estimate("margin", [row[-1] for row in results["reviews_gap"]["ipo"]["margin"]]),
            "miss": math.sqrt(max(row[-1] for row in results["reviews_gap"]["ipo"]["loss"])),
        },
        measured=(
            "on {settings[reviews_gap][pairs]} pairs labelled without error, after {settings[reviews_gap][steps]} "
            "steps with τ = {settings[reviews_gap][tau]} the margin is {margin:.3f} ± {margin_half:.3f} nats against a "
            "target of 5, "
            + LABORATORIES
            + "; single pairs miss it by {miss:.3f} (root mean square, worst laboratory)."
        ),
        holds_if=lambda n: abs(n["margin"] - 5) + n["margin_half"] < 0.05 and n["miss"] < 0.1,
    ),
)
