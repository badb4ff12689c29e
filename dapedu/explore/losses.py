"""The loss explorer: one pair, three answers, any of the book's losses of pairs, and the ways they take."""

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import anywidget
import torch
import traitlets

from dapedu.bandit.comparisons import log_reference_of
from dapedu.experiments.bandit import SHARED_FEATURES
from dapedu.explore.bundle import bundle

_METHODS = ("DPO", "IPO", "SLiC-HF", "RRHF", "CLICK", "SPIN")
_MATRICES = {"shared": SHARED_FEATURES, "free": torch.eye(3).tolist()}
_FOLDER = files("dapedu.explore")


class LossExplorer(anywidget.AnyWidget):
    """An explorer of losses on one pair, which computes in the page itself, with or without a kernel.

    Of three answers the first is chosen over the second, and the third is never compared. Display it, and set losses,
    strengths and the pair by mouse, touch or keyboard; or set its attributes from Python, and the picture follows.

    Args:
        losses: which to run, of "DPO", "IPO", "SLiC-HF", "RRHF", "CLICK" and "SPIN".
        beta: β of DPO and SPIN, from 2⁻⁴ to 2² on the slider.
        tau: IPO's τ, from 2⁻⁶ to 1 on the slider.
        delta: δ of SLiC-HF and CLICK, nats.
        contrast_weight: α, the weight of CLICK's hinge.
        sft_weight: λ, the weight of the likelihood term of SLiC-HF, RRHF and CLICK; its target is the winner.
        wins: the share of its comparisons that the chosen answer wins, from ½ to 1.
        reference: π_ref of chosen, rejected and third, shape (3,). (As an attribute, a list of three numbers.)
        lengths: of chosen and rejected in tokens, from 1 to 100; RRHF's margin and CLICK's likelihood are per token.
        features: "shared" as in `dapedu.experiments.bandit`, or "free", a parameter each.

    Raises:
        ValueError: a value is out of range; the message names it. (What is of another type altogether, traitlets
            refuses.)
    """

    _esm = bundle("losses")
    _css = "\n".join(_FOLDER.joinpath(f"{name}.css").read_text(encoding="utf8") for name in ("laboratory", "losses"))

    losses = traitlets.List(traitlets.Unicode()).tag(sync=True)
    beta = traitlets.Float().tag(sync=True)
    tau = traitlets.Float().tag(sync=True)
    delta = traitlets.Float().tag(sync=True)
    contrast_weight = traitlets.Float().tag(sync=True)
    sft_weight = traitlets.Float().tag(sync=True)
    wins = traitlets.Float().tag(sync=True)
    reference = traitlets.List(traitlets.Float()).tag(sync=True)
    lengths = traitlets.List(traitlets.Int()).tag(sync=True)
    features = traitlets.Unicode().tag(sync=True)
    matrices = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        losses: Sequence[str] = ("DPO", "IPO", "SLiC-HF", "RRHF"),
        *,
        beta: float = 1.0,
        tau: float = 0.25,
        delta: float = 1.0,
        contrast_weight: float = 0.5,
        sft_weight: float = 0.0,
        wins: float = 1.0,
        reference: Sequence[float] | torch.Tensor = (0.35, 0.60, 0.05),
        lengths: Sequence[int] = (10, 10),
        features: str = "shared",
    ) -> None:
        super().__init__(
            losses=list(losses),
            beta=beta,
            tau=tau,
            delta=delta,
            contrast_weight=contrast_weight,
            sft_weight=sft_weight,
            wins=wins,
            reference=torch.as_tensor(reference, dtype=torch.float64).tolist(),
            lengths=list(lengths),
            features=features,
            matrices=_MATRICES,
        )

    @traitlets.validate("losses")
    def _valid_losses(self, proposal: Any) -> list[str]:
        losses = proposal["value"]
        if not set(losses) <= set(_METHODS):
            raise ValueError(f"LossExplorer: losses is {losses}, expected some of {', '.join(_METHODS)}")
        return losses

    @traitlets.validate("beta", "tau", "contrast_weight")
    def _valid_positive(self, proposal: Any) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        if not 0 < value < math.inf:
            raise ValueError(f"LossExplorer: {name} is {value}, expected a finite number > 0")
        return value

    @traitlets.validate("delta", "sft_weight")
    def _valid_not_negative(self, proposal: Any) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        if not 0 <= value < math.inf:
            raise ValueError(f"LossExplorer: {name} is {value}, expected a finite number ≥ 0")
        return value

    @traitlets.validate("wins")
    def _valid_wins(self, proposal: Any) -> float:
        if not 0.5 <= proposal["value"] <= 1:
            raise ValueError(f"LossExplorer: wins is {proposal['value']}, expected from 0.5 to 1")
        return proposal["value"]

    @traitlets.validate("reference")
    def _valid_reference(self, proposal: Any) -> list[float]:
        log_reference_of("LossExplorer", torch.tensor(proposal["value"]), 3)
        return proposal["value"]

    @traitlets.validate("lengths")
    def _valid_lengths(self, proposal: Any) -> list[int]:
        lengths = proposal["value"]
        if len(lengths) != 2 or not all(1 <= length <= 100 for length in lengths):
            raise ValueError(f"LossExplorer: lengths is {lengths}, expected two from 1 to 100")
        return lengths

    @traitlets.validate("features")
    def _valid_features(self, proposal: Any) -> str:
        if proposal["value"] not in _MATRICES:
            raise ValueError(f"LossExplorer: features is {proposal['value']!r}, expected {' or '.join(_MATRICES)}")
        return proposal["value"]

    def __repr__(self) -> str:
        return f"LossExplorer({', '.join(self.losses)})"
