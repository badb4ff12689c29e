"""Sequences laid end to end in one row, so that a model reads no padding, and a common beginning only once.

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
    from transformers import PretrainedConfig, PreTrainedModel

_NAME = "dapedu_packed"  # in transformers' table of attention functions
_RECTANGLES = 4  # at most; more of them save cells, and cost calls


@dataclass(frozen=True)
class Packed:
    """A batch as one row of tokens. What several sequences begin with stands there once."""

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
    """Lay sequences end to end, what several begin with only once.

    Under causal attention a token's state depends on what stands before it alone: sequences with a common beginning, be
    it a pair's prompt, a system prompt or the first words of two completions, have the same states there. Sorted,
    those with the longest common beginnings are neighbours.

    A sequence's last token predicts nothing that is scored, so it is a target only.

    Args:
        sequences: a batch, at least one sequence.
        device: where to put it.

    Returns:
        `Packed`.

    Raises:
        ValueError: a prompt has no tokens.
    """
    starts = sequences.prompt_lengths
    if not all(starts):
        empty = starts.index(0)
        raise ValueError(f"pack: prompt {empty} has no tokens; nothing would predict its completion's first one")
    tokens, positions = [], []
    places: dict[int, np.ndarray] = {}  # by sequence: where in the row its tokens stand
    end, before, before_places = 0, np.arange(0), np.arange(0)
    for row in sorted(range(len(sequences)), key=sequences.input_ids.__getitem__):
        inner = np.array(sequences.input_ids[row][:-1])
        shorter = min(len(before), len(inner))
        differs = before[:shorter] != inner[:shorter]
        shared = int(differs.argmax()) if differs.any() else shorter
        own = np.arange(end, end + len(inner) - shared)
        before, before_places = inner, np.concatenate([before_places[:shared], own])
        places[row] = before_places
        tokens.append(inner[shared:])
        positions.append(np.arange(shared, len(inner)))
        end += len(own)

    rectangles, cells, offset = [], np.zeros(end, dtype=np.int64), 0
    for rows in _alike([len(places[row]) for row in range(len(sequences))]):
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
        predictors=torch.from_numpy(np.concatenate([places[row][start - 1 :] for row, start in enumerate(starts)])),
        targets=torch.tensor([t for ids, start in zip(sequences.input_ids, starts, strict=True) for t in ids[start:]]),
        owners=torch.from_numpy(np.repeat(np.arange(len(sequences)), scored)),
        n=len(sequences),
    ).to(device)


def hidden_states(model: PreTrainedModel | PeftModel, batch: Packed) -> Tensor:
    """The last hidden states of a packed batch.

    Args:
        model: a causal language model that `layout_of` found able, or the transformer inside it.
        batch: what it reads.

    Returns:
        Shape (tokens, width of the model).
    """
    inner = unwrapped(model)
    if inner.training and getattr(inner, "is_activation_checkpointing", False):
        raise OtherAttentionError("layers are read again in the backward pass, when the row is forgotten")
    if inner.base_model is inner and inner.get_output_embeddings() is not None:
        raise OtherAttentionError("the model is not a transformer with an output layer on top")
    with _packed_attention(inner, batch):
        return inner.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state[0]


def unwrapped(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
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
    """A model asks for what cannot be done in a packed row."""


_BATCH: ContextVar[Packed] = ContextVar("_BATCH")


@contextmanager
def _packed_attention(model: PreTrainedModel, batch: Packed) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    before, padding = model.config._attn_implementation, model.config.pad_token_id
    token = _BATCH.set(batch)
    model.set_attn_implementation(_NAME)
    model.config.pad_token_id = None  # or transformers warns of padding where a policy drew that token
    try:
        yield
    finally:
        model.config.pad_token_id = padding
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
    if softcap is not None or s_aux is not None or _has_other_mask(module, sliding_window):
        raise OtherAttentionError(f"{type(module).__name__} attends in its own way")
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


def _has_other_mask(module: nn.Module, sliding_window: int | None) -> bool:
    """Whether a layer limits what it sees by its mask alone, of which a packed row knows nothing."""
    config = cast("PretrainedConfig", module.config)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else None
    windowed = kind == "sliding_attention" or (kinds is None and getattr(config, "sliding_window", None))
    return kind == "chunked_attention" or bool(windowed and not sliding_window)


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in groups of like length, shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    size = -(-len(order) // _RECTANGLES)
    return [order[start : start + size] for start in range(0, len(order), size)]
