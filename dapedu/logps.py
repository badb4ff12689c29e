"""From a causal language model's logits to log-probabilities: the only place that shifts, masks and gathers.

The logits at position t predict the token at t + 1. So the log-probability of token t + 1 comes from row t,
the first token of a sequence has none, and the first token of a completion is predicted by the last row of
the prompt. Getting this wrong by one is the commonest silent mistake in this field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
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


def model_logps(model: PreTrainedModel, *, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """`token_logps` of a model, with logits only where they are scored.

    Prompt and padding need none: with a large vocabulary and a small model that is most of the work. Sequences are
    padded on the right, where causal attention needs no mask.

    Args:
        model: a causal language model whose logits are its output embeddings' product with the hidden states.
        input_ids: prompt and completion, padded on the right, shape (batch, seq).
        completion_mask: true (or 1) on the completion's tokens, false elsewhere, shape (batch, seq).

    Returns:
        Nats, float32, shape (batch, seq − 1); zero outside the completion.

    Raises:
        ValueError: shapes differ, or a completion starts at position 0.

    Source: arXiv:2305.18290, §4: log π(y|x) of a completion is the sum of these.
    """
    if completion_mask.shape != input_ids.shape:
        raise ValueError(
            f"model_logps: completion_mask has shape {tuple(completion_mask.shape)}, expected {tuple(input_ids.shape)}"
        )
    is_completion = completion_mask.bool()
    if is_completion[:, 0].any():
        raise ValueError(
            "model_logps: completion_mask is true at position 0, where no earlier token predicts; "
            "put a prompt or a begin-of-sequence token before the completion"
        )
    scored = is_completion[:, 1:]
    # The last token predicts nothing that is scored.
    hidden = model.base_model(input_ids=input_ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[scored])  # (scored tokens, vocabulary)
    logps = torch.zeros(scored.shape, device=input_ids.device)
    return logps.masked_scatter(scored, -F.cross_entropy(logits.float(), input_ids[:, 1:][scored], reduction="none"))
