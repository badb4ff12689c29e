"""Every loss of the book, in the book's order: pure functions of log-probabilities, one value per example.

All arguments are keyword-only, because tensors of one type must not be swappable. Log-probabilities are
sums over the completion's tokens in nats, unless a name says `mean`. Nothing is averaged, logged or
configured here; hyperparameters have no defaults, they belong to the method that calls. A hyperparameter is
a number, or a tensor that broadcasts over the examples.
"""

from dapedu.losses.classic import (
    bradley_terry_loss,
    click_loss,
    dpo_loss,
    ipo_loss,
    plackett_luce_loss,
    rrhf_loss,
    slic_hf_loss,
    spin_loss,
)
from dapedu.losses.later import kto_loss, orpo_loss, robust_dpo_loss, simpo_loss

__all__ = [  # noqa: RUF022  # in the book's order, which is that of the page about the package
    "bradley_terry_loss",
    "plackett_luce_loss",
    "slic_hf_loss",
    "dpo_loss",
    "ipo_loss",
    "rrhf_loss",
    "click_loss",
    "spin_loss",
    "kto_loss",
    "orpo_loss",
    "simpo_loss",
    "robust_dpo_loss",
]
