"""The registry of claims: what the source and the papers say, and what the stored numbers say of it.

A verdict is never typed in. A claim names its stored results, picks numbers from them, and carries predicates
on those numbers; the verdict follows. A chapter shows its claims by id, so each is worded and judged once.
"""

from dapedu.claims import (
    after,
    click,
    comparison,
    dpo,
    equal_budget,
    hacking,
    ipo,
    language,
    noise,
    objective,
    one_view,
    ppo,
    reward,
    rrhf,
    slic_hf,
    spin,
)
from dapedu.claims.entry import Claim, ClaimList, Verdict
from dapedu.claims.overview import ClaimPage, VerdictCounts, count

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        *objective.CLAIMS,
        *dpo.CLAIMS,
        *language.CLAIMS,
        *ipo.CLAIMS,
        *noise.CLAIMS,
        *reward.CLAIMS,
        *ppo.CLAIMS,
        *comparison.CLAIMS,
        *slic_hf.CLAIMS,
        *rrhf.CLAIMS,
        *hacking.CLAIMS,
        *click.CLAIMS,
        *spin.CLAIMS,
        *one_view.CLAIMS,
        *equal_budget.CLAIMS,
        *after.CLAIMS,
    )
}


def select(*ids: str) -> ClaimList:
    """The claims with these ids in the order given; without ids, all.

    Args:
        ids: keys of `CLAIMS`.

    Returns:
        A list that a notebook shows with statement, measurement and verdict.

    Raises:
        ValueError: an id is unknown; the message lists those there are.
    """
    for wanted in ids:
        if wanted not in CLAIMS:
            raise ValueError(f"select: no claim {wanted!r}; there are {', '.join(CLAIMS)}")
    return ClaimList(CLAIMS[wanted] for wanted in (ids or CLAIMS))


def counts() -> VerdictCounts:
    """How often each verdict was given.

    Returns:
        A table that a notebook shows.
    """
    return count(CLAIMS.values())


def page() -> ClaimPage:
    """All claims, each with links to its chapter, its experiments and its papers.

    Returns:
        A list that a notebook shows; in the book the reader can filter it.
    """
    return ClaimPage(CLAIMS.values())


__all__ = ["CLAIMS", "Claim", "ClaimList", "ClaimPage", "Verdict", "VerdictCounts", "counts", "page", "select"]
