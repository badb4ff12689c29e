"""From a causal language model's logits to log-probabilities: the only place that shifts, masks and gathers.

The logits at position t predict the token at t + 1. So the log-probability of token t + 1 comes from row t,
the first token of a sequence has none, and the first token of a completion is predicted by the last row of
the prompt. Getting this wrong by one is the commonest silent mistake in this field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dapedu.data import Sequences, collate
from dapedu.packing import Packed, hidden_states, pack, unwrapped

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_IGNORED = -100  # cross_entropy's ignore_index: zero loss, zero gradient


def token_logps(*, logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-probability of each completion token given everything before it.

    ::

        out[b, t] = log π(input_ids[b, t+1] | input_ids[b, ≤t])   where completion_mask[b, t+1], else 0

    Computed in float32 at least, whatever the logits' type: a sum of bfloat16 terms is off by whole nats.

    Args:
        logits: the model's output for input_ids, shape (batch, seq, vocabulary).
        input_ids: prompt and completion, padded on either side, shape (batch, seq).
        completion_mask: true (or 1) on the completion's tokens, false elsewhere, shape (batch, seq).

    Returns:
        Nats, shape (batch, seq − 1); zero outside the completion.

    Raises:
        ValueError: shapes do not fit; a completion starts at position 0, where nothing predicts its first
            token (put a prompt or a begin-of-sequence token before it); or an id is not in the vocabulary.

    Source: arXiv:2305.18290, §4: log π(y|x) of a completion is the sum of these.
    """
    if logits.ndim != 3:
        raise ValueError(f"token_logps: logits has shape {tuple(logits.shape)}, expected (batch, seq, vocabulary)")
    for name, tensor in {"input_ids": input_ids, "completion_mask": completion_mask}.items():
        if tensor.shape != logits.shape[:2]:
            raise ValueError(f"token_logps: {name} has shape {tuple(tensor.shape)}, expected {tuple(logits.shape[:2])}")
    is_completion = completion_mask.bool()
    if is_completion[:, 0].any():
        raise ValueError(
            "token_logps: completion_mask is true at position 0, where no earlier token predicts; "
            "put a prompt or a begin-of-sequence token before the completion"
        )
    if (is_completion & ((input_ids < 0) | (input_ids >= logits.shape[-1]))).any():
        raise ValueError(
            f"token_logps: input_ids on the completion go beyond 0 … {logits.shape[-1] - 1}, the vocabulary of logits; "
            "labels, in which -100 hides tokens, are not input_ids"
        )
    targets = input_ids[:, 1:].long().masked_fill(~is_completion[:, 1:], _IGNORED)  # (batch, seq − 1)
    scores = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(scores.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none")


def sequence_logps(*, logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-probability of each whole completion: the sum over its tokens.

    Args, Raises: as `token_logps`.

    Returns:
        log π(y|x) in nats, shape (batch,).

    Source: arXiv:2305.18290, Eq. 7, which scores whole completions.
    """
    return token_logps(logits=logits, input_ids=input_ids, completion_mask=completion_mask).sum(dim=1)


def mean_logps(*, logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-probability per token of each completion: the sum divided by the completion's length.

    Args: as `token_logps`.

    Returns:
        log π(y|x) / |y| in nats per token, shape (batch,).

    Raises:
        ValueError: as `token_logps`, or a completion has no token.

    Source: arXiv:2304.05302, §3.1 (the p_i of RRHF).
    """
    sums = sequence_logps(logits=logits, input_ids=input_ids, completion_mask=completion_mask)
    lengths = completion_mask.bool().sum(dim=1)
    if (lengths == 0).any():
        rows = (lengths == 0).nonzero().flatten().tolist()
        raise ValueError(f"mean_logps: the completions of rows {rows} are empty, so they have no mean")
    return sums / lengths


def model_logps(model: PreTrainedModel | PeftModel, batch: Packed | tuple[Tensor, Tensor]) -> Tensor:
    """Log-probability of each whole completion under a model, with a gradient.

    Args:
        model: a causal language model.
        batch: as the function that `layout_of` names makes it: packed, with logits at the scored tokens only; or the
            rectangle (input_ids, completion_mask) of `collate`, padded on the right, where causal attention needs no
            mask.

    Returns:
        log π(y|x) in nats, float32, shape (sequences,).

    Raises:
        ValueError: as `token_logps`.

    Source: arXiv:2305.18290, §4: log π(y|x) of a completion is the sum over its tokens.
    """
    if not isinstance(batch, Packed):
        input_ids, completion_mask = batch
        logits = model(input_ids=input_ids, use_cache=False).logits
        return sequence_logps(logits=logits, input_ids=input_ids, completion_mask=completion_mask)
    logps = model_token_logps(model, batch)
    return torch.zeros(batch.n, device=logps.device).index_add(0, batch.owners, logps)


def model_token_logps(model: PreTrainedModel | PeftModel, batch: Packed | tuple[Tensor, Tensor]) -> Tensor:
    """Log-probability of each token of the completions under a model, with a gradient.

    Args:
        model, batch: as `model_logps`.

    Returns:
        Nats, float32, shape (tokens,), the first completion's tokens before the second's, and so on.

    Raises:
        ValueError: as `token_logps`.

    Source: arXiv:1707.06347, §2: PPO compares the probabilities of single actions, which are tokens here.
    """
    if not isinstance(batch, Packed):
        input_ids, completion_mask = batch
        logits = model(input_ids=input_ids, use_cache=False).logits
        logps = token_logps(logits=logits, input_ids=input_ids, completion_mask=completion_mask)
        return logps[completion_mask[:, 1:]]
    states = hidden_states(model, batch).index_select(0, batch.predictors)
    logits = unwrapped(model).get_output_embeddings()(states)  # (scored tokens, vocabulary)
    return -F.cross_entropy(logits.float(), batch.targets, reduction="none")


def layout_of(model: PreTrainedModel | PeftModel) -> Callable[..., Packed | tuple[Tensor, Tensor]]:
    """How a model reads batches: packed where it can, which is the faster way, else in rectangles.

    Three short sequences are read both ways, once more with an output layer that is made a thousand times louder. A
    model with another attention, with a state that runs along the row, or with logits that are not its output layer's
    (scaled, or capped where they are large) is found out so.

    Args:
        model: a causal language model.

    Returns:
        `pack` or `collate`: functions of `Sequences` and a device.
    """
    inner = unwrapped(model)
    generator = torch.Generator().manual_seed(0)
    config = inner.config.get_text_config()
    length = min(7, getattr(config, "max_position_embeddings", None) or 7)
    ids = torch.randint(config.vocab_size, (3, length), generator=generator)
    ids[1, : length // 2] = ids[0, : length // 2]  # a prompt that two share
    sequences = Sequences(ids.tolist(), [length // 2] * 3)
    rectangle, row = (layout(sequences, device=inner.device) for layout in (collate, pack))
    tolerance = 1e-3 if inner.dtype == torch.float32 else 0.05
    with torch.no_grad():
        for factor in (1, 1000):
            with _louder(inner, factor):
                expected = model_logps(model, rectangle)
                try:
                    actual = model_logps(model, row)
                except Exception:  # code that is not ours, read in a way it was not written for, may raise anything
                    return collate
                if not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * factor):
                    return collate
    return pack


@contextmanager
def _louder(model: PreTrainedModel, factor: float) -> Iterator[None]:
    """The output layer's values, factor times as large, whoever asks for them."""
    handle = model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output * factor)
    try:
        yield
    finally:
        handle.remove()
