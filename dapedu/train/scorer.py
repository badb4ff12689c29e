"""A model as the loop reads it: a number for each completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dapedu.data import collate
from dapedu.logps import layout_of, model_logps
from dapedu.models import ScalarHead
from dapedu.packing import Packed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Scorer(nn.Module):
    """A model as accelerate should see it: what it computes in a forward pass is what the loss needs.

    Args:
        model: a causal language model, which gives log-probabilities, or a `ScalarHead`, which gives rewards; where
            it is to be read.
    """

    layout: Callable[..., Packed | tuple[Tensor, Tensor]]  # makes a batch of sequences, on a device

    def __init__(self, model: PreTrainedModel | PeftModel | ScalarHead) -> None:
        super().__init__()
        self.model = model
        self.layout = collate if isinstance(model, ScalarHead) else layout_of(model)

    def forward(self, batch: Packed | tuple[Tensor, Tensor]) -> Tensor:
        """Score of each completion.

        Args:
            batch: of `layout`.

        Returns:
            Log-probabilities in nats, or rewards, shape (sequences,).
        """
        if isinstance(self.model, ScalarHead):
            assert not isinstance(batch, Packed)
            input_ids, completion_mask = batch
            return self.model.last(input_ids=input_ids, completion_mask=completion_mask)
        return model_logps(self.model, batch)
