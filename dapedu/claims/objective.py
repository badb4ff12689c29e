"""What is said of RLHF's objective and of best-of-n, widely and in public teaching material."""

from typing import Any

from dapedu.claims.entry import Claim, Numbers


def _excess(results: dict[str, Any], size: int, n: int) -> float:
    """How far the formula lies above the exact KL, in nats."""
    entry = results["best_of_n_kl"][str(size)]["best_of"][str(n)]
    return entry["formula"] - entry["kl"]


def _is_a_bound(n: Numbers) -> bool:
    """Never under the exact KL (up to rounding), and equal to it where no response is likely."""
    return n["least"] > -1e-5 and n["many"] < 0.01


CLAIMS = (
    Claim(
        id="bon-1",
        claimed_by="widely used; arXiv:2009.01325",
        statement="The KL divergence of best-of-n from the reference is log n − (n − 1)/n.",
        remark=(
            "The condition: no reward value is so likely that it is often drawn twice; with distinct rewards, "
            "n · π_ref(y) ≪ 1. In general the formula is an upper bound. It grows without limit, while the KL stays "
            "below −log of the best completions' probability."
        ),
        evidence=("best_of_n_kl",),
        numbers=lambda results: {
            "least": min(
                _excess(results, int(size), int(n))
                for size, entry in results["best_of_n_kl"].items()
                for n in entry["best_of"]
            ),
            "many": _excess(results, 4096, 64),
            "few": _excess(results, 4, 64),
        },
        measured=(
            "with uniform references, formula minus exact KL at n = 64 is {few:.2f} nats over 4 responses and "
            "{many:.5f} over 4,096; the least over all n and sizes is {least:.1e}."
        ),
        holds=lambda n: _is_a_bound(n) and n["few"] < 0.01,
        holds_if=_is_a_bound,
    ),
    Claim(
        id="beta-1",
        claimed_by="public teaching material",
        statement="A small β keeps the policy near the reference.",
        remark="For β → 0 the optimum is the reference restricted to the best completions, for β → ∞ the reference.",
        slip="Backwards: β is the price of a nat of KL, so the smaller it is, the further the optimum goes for reward.",
        evidence=("beta_and_kl",),
        numbers=lambda results: {
            "further": results["beta_and_kl"]["kl_mean"][0] - results["beta_and_kl"]["kl_mean"][-1],
        },
        measured=(
            "over {settings[beta_and_kl][problems]} random problems the mean KL(π*‖π_ref) at "
            "β = {settings[beta_and_kl][betas][0]:g} less that at β = {settings[beta_and_kl][betas][4]:g} is "
            "{further:+.2f} nats."
        ),
        holds=lambda n: n["further"] < 0,
    ),
)
