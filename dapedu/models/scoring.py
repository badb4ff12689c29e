"""A model read without learning: evaluation mode, and the log-probabilities of completions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dapedu.data import Sequences
from dapedu.logps import layout_of, model_logps

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout inside; afterwards the model is in the mode that it was in.

    Args:
        model: switched to evaluation mode.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def score(model: PreTrainedModel | PeftModel, sequences: Sequences, *, batch_size: int = 256) -> Tensor:
    """Log-probability of each completion under the model: a sum over its tokens, without gradient.

    Minus its mean over samples of the model itself estimates the model's entropy in nats, without bias.

    Args:
        model: a causal language model, with LoRA adapters or without, on any device.
        sequences: prompts with completions.
        batch_size: sequences read at once; those of like length are read together, which saves padding.

    Returns:
        Nats, float32 on the CPU, shape (sequences,), in the order given.

    Raises:
        ValueError: batch_size is not positive, or a prompt has no tokens.

    Source: arXiv:2305.18290, §4: log π(y|x) of a completion is the sum over its tokens.
    """
    if batch_size < 1:
        raise ValueError(f"score: batch_size is {batch_size}, expected at least 1")
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.input_ids[row]))
    logps = torch.zeros(len(sequences))
    with evaluating(model):
        layout = layout_of(model)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            logps[rows] = model_logps(model, layout(sequences.select(rows), device=model.device)).cpu()
    return logps
