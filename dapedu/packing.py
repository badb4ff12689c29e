"""Sequences laid end to end in one row, so that a model reads no padding, and a shared prompt only once.

In a rectangle of sequences a third of the tokens may be padding, and a pair's prompt stands there twice. But every
layer except attention treats tokens one by one: it can as well read one long row. Attention alone must know which
tokens belong together; it is given them as small rectangles, of sequences that are alike in length.

Only a model whose attention goes through transformers' AttentionInterface can read such a row;
`dapedu.logps.layout_of` tries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dapedu.data import Sequences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_NAME = "dapedu_packed"  # in transformers' table of attention functions
_RECTANGLES = 4  # at most; more of them save cells, and cost calls


@dataclass(frozen=True)
class Packed:
    """A batch as one row of tokens. A prompt that consecutive sequences share stands there once."""

    input_ids: Tensor  # (1, tokens)
    position_ids: Tensor  # (1, tokens), of each token in its own sequence
    rectangles: tuple[Tensor, ...]  # (rows, width) each: where in the row the tokens of these sequences stand
    cells: Tensor  # (tokens,): where among all rectangles' cells a token's attention stands
    predictors: Tensor  # (scored tokens,): where in the row the token before stands
    targets: Tensor  # (scored tokens,): their ids
    owners: Tensor  # (scored tokens,): the sequence that each belongs to
    n: int  # sequences

    def to(self, device: torch.device | str) -> Packed:
        """The same batch elsewhere.

        Args:
            device: where to.

        Returns:
            `Packed`.
        """
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Packed(**(vars(self) | moved | {"rectangles": tuple(part.to(device) for part in self.rectangles)}))


def pack(sequences: Sequences, *, device: torch.device | str = "cpu") -> Packed:
    """Lay sequences end to end.

    A sequence's last token predicts nothing that is scored, so it is a target only.

    Args:
        sequences: a batch, at least one sequence; every prompt has a token.
        device: where to put it.

    Returns:
        `Packed`. A prompt is shared by the sequences next to each other that begin with it.
    """
    starts = sequences.prompt_lengths
    inputs = [np.array(ids[:-1]) for ids in sequences.input_ids]
    tokens, positions, places = [], [], []
    end, prompt, prompt_places = 0, None, np.arange(0)
    for ids, inner, start in zip(sequences.input_ids, inputs, starts, strict=True):
        shares = ids[:start] == prompt and len(inner) >= start
        first = start if shares else 0
        own = np.arange(end, end + len(inner) - first)
        places.append(np.concatenate([prompt_places, own]) if shares else own)
        if not shares:
            # An empty completion leaves its prompt without the last token, which predicts nothing then.
            prompt, prompt_places = (ids[:start], own[:start]) if len(inner) >= start else (None, own)
        tokens.append(inner[first:])
        positions.append(np.arange(first, len(inner)))
        end += len(own)

    rectangles, cells, offset = [], np.zeros(end, dtype=np.int64), 0
    for rows in _alike([len(row) for row in places]):
        width = max(len(places[row]) for row in rows)
        rectangle = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            rectangle[number, : len(places[row])] = places[row]
            # A shared token is computed in each of its rows, with the same result: any of them will do.
            cells[places[row]] = offset + number * width + np.arange(len(places[row]))
        rectangles.append(rectangle)
        offset += rectangle.size
    scored = [len(ids) - start for ids, start in zip(sequences.input_ids, starts, strict=True)]
    return Packed(
        input_ids=torch.from_numpy(np.concatenate(tokens))[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        rectangles=tuple(map(torch.from_numpy, rectangles)),
        cells=torch.from_numpy(cells),
        predictors=torch.from_numpy(
            np.concatenate([row[start - 1 :] for row, start in zip(places, starts, strict=True)])
        ),
        targets=torch.tensor([t for ids, start in zip(sequences.input_ids, starts, strict=True) for t in ids[start:]]),
        owners=torch.from_numpy(np.repeat(np.arange(len(sequences)), scored)),
        n=len(sequences),
    ).to(device)


def hidden_states(model: PreTrainedModel | PeftModel, batch: Packed) -> Tensor:
    """The last hidden states of a packed batch.

    Args:
        model: a causal language model that `layout_of` found able.
        batch: what it reads.

    Returns:
        Shape (tokens, width of the model).
    """
    inner = without_adapters(model)
    with _packed_attention(inner, batch):
        return inner.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state[0]


def without_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model inside peft's wrapper, whose layers still have their adapters; any other model is returned as it is.

    Args:
        model: as transformers or peft made it.

    Returns:
        The model that transformers made.
    """
    if hasattr(model, "get_base_model"):
        return cast("PreTrainedModel", cast("PeftModel", model).get_base_model())
    return cast("PreTrainedModel", model)


class OtherAttentionError(Exception):
    """A model asks of its attention what cannot be done in a packed row."""


_BATCH: ContextVar[Packed] = ContextVar("_BATCH")


@contextmanager
def _packed_attention(model: PreTrainedModel, batch: Packed) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    before = model.config._attn_implementation
    token = _BATCH.set(batch)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _BATCH.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence; query (1, heads, tokens, head width), key and value with as many heads
    or fewer."""
    if softcap is not None or s_aux is not None:
        raise OtherAttentionError
    batch = _BATCH.get()
    outputs = []
    # (tokens, heads · head width): one row a token, so that a rectangle is one gather.
    flat = [tensor[0].transpose(0, 1).flatten(1) for tensor in (query, key, value)]
    for rectangle in batch.rectangles:
        rows, width = rectangle.shape
        q, k, v = (
            rows_of.index_select(0, rectangle.view(-1)).view(rows, width, tensor.shape[1], -1).transpose(1, 2)
            for rows_of, tensor in zip(flat, (query, key, value), strict=True)
        )
        mask = None
        if sliding_window is not None and width > sliding_window:
            age = torch.arange(width, device=q.device)[:, None] - torch.arange(width, device=q.device)
            mask = (age >= 0) & (age < sliding_window)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))  # (cells, heads · head width)
    chosen = torch.cat(outputs).index_select(0, batch.cells)
    return chosen.view(1, query.shape[2], query.shape[1], -1), None


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in groups of like length, shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    size = -(-len(order) // _RECTANGLES)
    return [order[start : start + size] for start in range(0, len(order), size)]
