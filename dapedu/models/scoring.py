"""A model read without learning: evaluation mode, the log-probabilities of completions, and their rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dapedu.data import Sequences, collate
from dapedu.logps import layout_of, model_logps
from dapedu.models.tiny import ScalarHead

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
    with evaluating(model):
        layout = layout_of(model)
        return _in_batches(
            "score", sequences, batch_size, lambda some: model_logps(model, layout(some, device=model.device))
        )


def head_rewards(head: ScalarHead, sequences: Sequences, *, batch_size: int = 256) -> Tensor:
    """Reward of each completion under a head: the number of its last token, without gradient.

    `lambda samples: head_rewards(head, samples.sequences)` is a reward function for `dapedu.sampling` and
    `dapedu.evaluate`.

    Args:
        head: on any device, say a reward model.
        sequences: prompts with completions, of the head's tokens.
        batch_size: as `score`.

    Returns:
        Float32 on the CPU, shape (sequences,), in the order given.

    Raises:
        ValueError: batch_size is not positive, or a completion has no token.

    Source: arXiv:2009.01325, §3.4: a language model with a linear head that outputs a scalar.
    """

    def read(some: Sequences) -> Tensor:
        input_ids, completion_mask = collate(some, device=head.device)
        return head.last(input_ids=input_ids, completion_mask=completion_mask)

    with evaluating(head):
        return _in_batches("head_rewards", sequences, batch_size, read)


def _in_batches(function: str, sequences: Sequences, batch_size: int, read: Callable[[Sequences], Tensor]) -> Tensor:
    """A number for each sequence, those of like length read together."""
    if batch_size < 1:
        raise ValueError(f"{function}: batch_size is {batch_size}, expected at least 1")
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.input_ids[row]))
    numbers = torch.zeros(len(sequences))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        numbers[rows] = read(sequences.select(rows)).cpu()
    return numbers
