"""What is claimed of noisy labels: by the source, on what IPO is good for (ids ipo-3 and ipo-9…)."""

from typing import Any

from dapedu.claims.entry import Claim, Numbers, is_more

_SOURCE = "the source, section on IPO"
_EVIDENCE = ("noise_map",)
_DATASETS = "means of {settings[noise_map][datasets]:,} datasets"
_SOME = 0.005  # of reward: less is called nothing
_TEN = "With ten responses and 20 % of the labels flipped"


def _at(
    results: dict[str, Any], reference: str, strategy: str, name: str, *, flip: str = "0.2", comparisons: int = 1
) -> float:
    """A number of `noise_map` for ten responses, at 1, 2, 4, 8 or 16 comparisons a response."""
    column = (1, 2, 4, 8, 16).index(comparisons)
    return results["noise_map"]["10"][reference][strategy][name][flip][column]


def _ridge_gain(results: dict[str, Any], reference: str, *, flip: str, comparisons: int) -> float:
    """DPO's reward with strength and ridge tuned, less that with the strength alone tuned."""
    with_ridge, without = (
        _at(results, reference, strategy, "reward DPO", flip=flip, comparisons=comparisons)
        for strategy in ("tuned with ridge", "tuned")
    )
    return with_ridge - without


def _lead(results: dict[str, Any], name: str, reference: str, strategy: str) -> Numbers:
    """IPO's lead in reward at four comparisons a response, and half of its 95 % interval."""
    lead, half = (
        _at(results, reference, strategy, f"reward {metric}", comparisons=4)
        for metric in ("difference", "half_width_95")
    )
    return {name: -lead, f"{name}_half": half}


def _leads(results: dict[str, Any]) -> Numbers:
    """From the rough reference at two strengths; and the smaller of two leads elsewhere."""
    elsewhere = (_lead(results, "elsewhere", *case) for case in (("uniform", "matched"), ("rough", "tuned with ridge")))
    return {
        **_lead(results, "matched", "rough", "matched"),
        **_lead(results, "tuned", "rough", "tuned"),
        **min(elsewhere, key=lambda lead: lead["elsewhere"]),
    }


def _never_won(results: dict[str, Any]) -> Numbers:
    """How often a good response never wins, with half of the widest interval, and what DPO leaves of it."""
    cases: dict[str, dict[str, Any]] = {"few": {}, "clean": {"flip": "0.0"}, "more": {"comparisons": 4}}
    shares, halves = (
        {name: _at(results, "uniform", "good but never won", metric, **case) for name, case in cases.items()}
        for metric in ("share", "share half_width_95")
    )
    kept = _at(results, "uniform", "good but never won", "kept by DPO")
    return {**shares, "half": max(halves.values()), "kept": kept}


def _errors_make_it_common(n: Numbers) -> bool:
    """With few comparisons, and DPO removes what they hit."""
    return n["few"] - n["clean"] - 2 * n["half"] > 0.05 and n["kept"] < 0.001


CLAIMS = (
    Claim(
        id="ipo-3",
        claimed_by=_SOURCE,
        statement="Hence a reward model must be under-fitted.",
        remark=(
            "The condition: labels are wrong; with a uniform reference also that comparisons are few. With clean "
            "labels it gains nothing. (The source adds that over-training it destabilises reinforcement learning. Here "
            "RLHF's optimum is a formula; that half is claim ipo-3b.)"
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            "rough": _ridge_gain(results, "rough", flip="0.2", comparisons=2),
            "uniform": _ridge_gain(results, "uniform", flip="0.2", comparisons=2),
            "many": _ridge_gain(results, "rough", flip="0.2", comparisons=16),
            "clean": _ridge_gain(results, "uniform", flip="0.0", comparisons=2),
        },
        measured=(
            "for RLHF's optimum on a Bradley–Terry reward, β tuned, ten responses, a tuned ridge on the reward adds to "
            "the true reward: at 20 % flips with the rough reference {rough:+.3f} at two comparisons a response and "
            "{many:+.3f} at sixteen, with the uniform one {uniform:+.3f} at two; with clean labels {clean:+.3f}; "
            + _DATASETS
            + "."
        ),
        holds=lambda n: min(n["rough"], n["many"], n["uniform"], n["clean"]) > 0.005,
        holds_if=lambda n: min(n["rough"], n["many"], n["uniform"]) > 0.005,
    ),
    Claim(
        id="ipo-9a",
        claimed_by=_SOURCE,
        statement="Annotation errors quite often leave good answers that never win, and DPO gives those probability 0.",
        remark=(
            "The condition: few comparisons for each response. Most of these cases need no error at all: the response "
            "met better ones. The 0 is DPO trained to the end."
        ),
        evidence=_EVIDENCE,
        numbers=_never_won,
        measured=(
            "with ten responses, a uniform reference and one comparison a response, a share of {few:.2f} of the "
            "datasets have such a response at 20 % flips and {clean:.2f} with clean labels; at four comparisons, "
            "{more:.2f} at 20 % flips; of {settings[noise_map][datasets]:,} datasets, 95 % intervals of at most ± "
            "{half:.2f}. DPO leaves it {kept:.4f} of its probability."
        ),
        holds=lambda n: _errors_make_it_common(n) and n["more"] - n["half"] > 0.05,
        holds_if=lambda n: _errors_make_it_common(n),
    ),
    Claim(
        id="ipo-9b",
        claimed_by=_SOURCE,
        statement="IPO guarantees such an answer some probability.",
        remark=(
            "Always more than none. The condition for it to be much: a strength far more cautious than DPO's. Matched "
            "for close calls, IPO keeps little."
        ),
        evidence=_EVIDENCE,
        numbers=lambda results: {
            "same": _at(results, "uniform", "good but never won", "kept by IPO same number"),
            "matched": _at(results, "uniform", "good but never won", "kept by IPO matched"),
        },
        measured=(
            f"{_TEN}, a uniform reference and one comparison a response, it keeps {{same:.3f}} of its probability "
            "under the reference at τ = .5 and {matched:.3f} at τ = .125, " + _DATASETS + "."
        ),
        holds=lambda n: n["same"] > 0.1 and n["matched"] > 0.1,
        holds_if=lambda n: n["same"] > 0.1 and n["matched"] > 0,
    ),
    Claim(
        id="ipo-9c",
        claimed_by=f"{_SOURCE}, its practical conclusion",
        statement="So over-fitting to annotation errors is solved by using IPO.",
        remark=(
            "The conditions: strengths matched or tuned, training to the end, a reference that is good already, wrong "
            "labels (a tenth is enough from two comparisons a response on), more than a few responses; the map has the "
            "rest. At matched strength with a uniform reference DPO has the higher reward. And with a ridge, both "
            "tuned alike, the two end at nearly the same reward: the regularisation decides, not the loss."
        ),
        evidence=_EVIDENCE,
        numbers=_leads,
        measured=(
            f"{_TEN}, four comparisons a response, IPO's reward less DPO's is, from the rough reference, "
            "{matched:+.3f} ± {matched_half:.3f} at matched strength and {tuned:+.3f} ± {tuned_half:.3f} with each at "
            "its best strength. Of the two leads from the uniform reference at matched strength, and from the rough "
            "one with both tuned with a ridge, the smaller is {elsewhere:+.3f} ± {elsewhere_half:.3f}; means of "
            "{settings[noise_map][datasets]:,} datasets ± 95 % intervals."
        ),
        holds=lambda n: all(is_more(n, name, _SOME) for name in ("matched", "tuned", "elsewhere")),
        holds_if=lambda n: all(is_more(n, name, _SOME) for name in ("matched", "tuned")),
    ),
)
