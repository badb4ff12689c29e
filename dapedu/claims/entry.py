"""One claim: what it says, what decides it, and how it is shown."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from dapedu import experiments
from dapedu.evaluate import mean_interval

Numbers = dict[str, float]

LABORATORIES = "five laboratories, mean ± 95 % interval"  # how a sentence ends whose numbers are estimates


def estimate(name: str, values: Sequence[float]) -> Numbers:
    """A mean, and half of its 95 % interval.

    Args:
        name: of what is estimated.
        values: one a laboratory.

    Returns:
        The mean as `name`, and `name_half`.
    """
    mean, half = mean_interval(torch.tensor(values, dtype=torch.float64))
    return {name: mean.item(), f"{name}_half": half.item()}


def difference(name: str, first: Sequence[float], second: Sequence[float]) -> Numbers:
    """The mean of paired differences, and half of its 95 % interval.

    Args:
        name: of the difference.
        first, second: one number a laboratory, in the same order.

    Returns:
        first less second as `name`, and `name_half`.
    """
    return estimate(name, [a - b for a, b in zip(first, second, strict=True)])


def ratio(name: str, first: Sequence[float], second: Sequence[float]) -> Numbers:
    """The mean of paired ratios, and half of its 95 % interval.

    Args:
        name: of the ratio.
        first, second: one number a laboratory, in the same order.

    Returns:
        first over second as `name`, and `name_half`.
    """
    return estimate(name, [a / b for a, b in zip(first, second, strict=True)])


def is_more(numbers: Numbers, name: str, than: float = 0.0) -> bool:
    """Whether an estimate is above a number, all of its interval.

    Args:
        numbers: with `name` and `name_half`.
        name: of the estimate.
        than: the number.

    Returns:
        True or False.
    """
    return numbers[name] - numbers[f"{name}_half"] > than


def is_less(numbers: Numbers, name: str, than: float) -> bool:
    """Whether an estimate is below a number, all of its interval.

    Args:
        numbers: with `name` and `name_half`.
        name: of the estimate.
        than: the number.

    Returns:
        True or False.
    """
    return numbers[name] + numbers[f"{name}_half"] < than


class Verdict(StrEnum):
    """The four things a claim can be."""

    HOLDS = "holds"
    CONDITIONAL = "holds under stated conditions"
    FAILS = "does not hold here"
    UNTESTED = "cannot be tested here"


@dataclass(frozen=True)
class Claim:
    """One statement of somebody's, and what decides it.

    Args:
        id: short name, unique.
        claimed_by: who says it, and where.
        statement: what they say, as exactly as one sentence can.
        remark: what the reader should take from the numbers: conditions, corrections, why it cannot be tested.
        slip: what is wrong in the statement as written, whatever is measured: the correction in a sentence.
        evidence: names of stored results (`dapedu.experiments`); none if it cannot be tested here.
        numbers: picks the numbers that decide from the results by name; each must be able to turn the verdict.
        measured: the sentence that reports them, a format string over `numbers` and `settings` (by result).
        holds: whether the statement holds as it stands.
        holds_if: whether it holds under the conditions that `remark` states.
    """

    id: str
    claimed_by: str
    statement: str
    remark: str
    slip: str = ""
    evidence: tuple[str, ...] = ()
    numbers: Callable[[dict[str, Any]], Numbers] = lambda results: {}
    measured: str = ""
    holds: Callable[[Numbers], bool] = lambda numbers: False
    holds_if: Callable[[Numbers], bool] = lambda numbers: False

    def judge(self, numbers: Numbers) -> Verdict:
        """The verdict that these numbers give.

        Args:
            numbers: as `self.numbers` picks them.

        Returns:
            One of the four verdicts; a number that is not finite supports nothing.
        """
        if not self.evidence:
            return Verdict.UNTESTED
        if not all(math.isfinite(value) for value in numbers.values()):
            return Verdict.FAILS
        if self.holds(numbers):
            return Verdict.HOLDS
        return Verdict.CONDITIONAL if self.holds_if(numbers) else Verdict.FAILS

    def stored_numbers(self) -> Numbers:
        """The deciding numbers from data/results/.

        Returns:
            Names and values; empty if the claim cannot be tested here.

        Raises:
            FileNotFoundError: the evidence is missing; the message says how to make it.
        """
        return self.numbers({name: experiments.load(name)["results"] for name in self.evidence})

    def report(self) -> str:
        """The sentence of what was measured, with its numbers and the command that makes them.

        Returns:
            Text; empty if the claim cannot be tested here.

        Raises:
            FileNotFoundError: the evidence is missing; the message says how to make it.
        """
        if not self.evidence:
            return ""
        settings = {name: experiments.load(name)["settings"] for name in self.evidence}
        sentence = self.measured.format(settings=settings, **self.stored_numbers())
        return f"{sentence} (dapedu reproduce {' '.join(self.evidence)})"

    @property
    def verdict(self) -> Verdict:
        """The verdict on the stored evidence."""
        return self.judge(self.stored_numbers())

    def __str__(self) -> str:
        """The entry as plain text, for a terminal."""
        measured, remark = self.report(), " ".join(filter(None, (self.slip and f"A slip. {self.slip}", self.remark)))
        lines = [f"{self.id}  [{self.claimed_by}]", f"  claim:    {self.statement}"]
        lines += [f"  measured: {measured}"] if measured else []
        return "\n".join([*lines, f"  verdict:  {self.verdict}", f"  {remark}"])


class ClaimList(list[Claim]):
    """Claims that print as text in a terminal and as a list of entries in a notebook."""

    def having(self, verdict: Verdict) -> ClaimList:
        """Those with a verdict.

        Args:
            verdict: one of the four.

        Returns:
            A list in the same order.
        """
        return ClaimList(claim for claim in self if claim.verdict is verdict)

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return f'<div class="claims">{"".join(entry(claim) for claim in self)}</div>'


def entry(claim: Claim, *, attributes: str = "", measured: str = "", footer: str = "") -> str:
    """A claim as it stands in a page.

    Args:
        claim: which one.
        attributes: more of them for the entry's tag.
        measured: HTML in the place of the sentence that reports the numbers.
        footer: HTML that ends the entry.

    Returns:
        HTML, with `claim-` and the id as its anchor.
    """
    verdict = claim.verdict
    measured = measured or html.escape(claim.report())
    slip = f'<strong class="slip">A slip.</strong> {html.escape(claim.slip)} ' if claim.slip else ""
    parts = [
        f'<p class="claim-statement"><strong>{claim.id}</strong> “{html.escape(claim.statement)}” '
        f"<cite>— {html.escape(claim.claimed_by)}</cite></p>",
        f"<p>Measured: {measured}</p>" if measured else "",
        f'<p class="verdict"><strong data-verdict="{verdict.name.lower()}">{verdict}</strong>. '
        f"{slip}{html.escape(claim.remark)}</p>",
        footer,
    ]
    tag = f'article class="claim" id="claim-{claim.id}" aria-label="Claim {claim.id}"{attributes}'
    return f"<{tag}>{''.join(parts)}</article>"
