"""The three-response laboratory: comparisons, losses and strengths to set by hand, curves that answer at once."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import anywidget
import torch
import traitlets

from dapedu.bandit import DATASETS, Pairs
from dapedu.bandit.comparisons import log_reference_of, table_of
from dapedu.explore.bundle import bundle

_METHODS = ("DPO", "IPO")


class Laboratory(anywidget.AnyWidget):
    """An explorer of three responses that computes in the page itself, with or without a kernel.

    Display it, and set comparisons, losses and strength by mouse, touch or keyboard; or set its attributes from
    Python, and read in them what was set by hand: `lab.pairs` goes straight into `train_bandit`.

    Args:
        pairs: (winner, loser) indices from 0 to 2, at most 20 of each; may be empty.
        losses: which of "DPO" and "IPO" to run.
        beta: DPO's β, from 2⁻⁴ to 2² on the slider.
        matched: whether IPO's τ is β/4, which is as strong for close calls, or β.
        reference: π_ref, shape (3,); None is uniform. (As an attribute, a list of three numbers.)
        steps: optimiser steps, each on the whole dataset.

    Raises:
        ValueError: an index, a probability or a strength is out of range; the message names it. (What is of
            another type altogether, traitlets refuses.)
    """

    _esm = bundle("laboratory")
    _css = files("dapedu.explore").joinpath("laboratory.css").read_text(encoding="utf8")

    pairs = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    losses = traitlets.List(traitlets.Unicode()).tag(sync=True)
    beta = traitlets.Float().tag(sync=True)
    matched = traitlets.Bool().tag(sync=True)
    reference = traitlets.List(traitlets.Float()).tag(sync=True)
    steps = traitlets.Int().tag(sync=True)
    presets = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        pairs: Pairs = DATASETS["D1"],
        *,
        losses: Sequence[str] = _METHODS,
        beta: float = 0.5,
        matched: bool = False,
        reference: Sequence[float] | torch.Tensor | None = None,
        steps: int = 18_000,
    ) -> None:
        uniform = [1 / 3] * 3
        super().__init__(
            pairs=[list(pair) for pair in pairs],
            losses=list(losses),
            beta=beta,
            matched=matched,
            reference=uniform if reference is None else torch.as_tensor(reference, dtype=torch.float64).tolist(),
            steps=steps,
            presets={name: [list(pair) for pair in listed] for name, listed in DATASETS.items()},
        )

    @traitlets.validate("pairs")
    def _valid_pairs(self, proposal: Any) -> list[list[int]]:
        pairs = proposal["value"]
        if pairs and table_of("Laboratory", pairs, 3).max() > 20:
            raise ValueError(f"Laboratory: pairs has {len(pairs)} comparisons, expected at most 20 with one outcome")
        return pairs

    @traitlets.validate("losses")
    def _valid_losses(self, proposal: Any) -> list[str]:
        losses = proposal["value"]
        if not set(losses) <= set(_METHODS):
            raise ValueError(f"Laboratory: losses is {losses}, expected some of {', '.join(_METHODS)}")
        return losses

    @traitlets.validate("beta")
    def _valid_beta(self, proposal: Any) -> float:
        if not 0 < proposal["value"] < float("inf"):
            raise ValueError(f"Laboratory: beta is {proposal['value']}, expected a finite number > 0")
        return proposal["value"]

    @traitlets.validate("reference")
    def _valid_reference(self, proposal: Any) -> list[float]:
        log_reference_of("Laboratory", torch.tensor(proposal["value"]), 3)
        return proposal["value"]

    @traitlets.validate("steps")
    def _valid_steps(self, proposal: Any) -> int:
        if not 2 <= proposal["value"] <= 100_000:
            raise ValueError(f"Laboratory: steps is {proposal['value']}, expected from 2 to 100,000")
        return proposal["value"]

    def __repr__(self) -> str:
        return f"Laboratory({len(self.pairs)} comparisons, beta={self.beta:g})"
