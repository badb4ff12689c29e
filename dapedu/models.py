"""Tiny GPT-2 models by name: made here, with random weights, from transformers' own classes.

transformers is imported when a model is made, so that importing this module stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class Size(NamedTuple):
    """A row of `SIZES`: width, depth and heads of a GPT-2."""

    n_embd: int
    n_layer: int
    n_head: int


SIZES = {"enumerable": Size(n_embd=64, n_layer=2, n_head=4)}


def tiny_gpt2(size: str, *, vocab_size: int, n_positions: int, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, small enough to be trained on a laptop.

    Two departures from GPT-2: no dropout, so that a text gets the same log-probability twice, and the fast kernel
    of its activation.

    Args:
        size: a key of `SIZES`.
        vocab_size: tokens in the vocabulary.
        n_positions: longest text, in tokens.
        seed: of the weights; the same one gives the same model, and the caller's random numbers go on as before.

    Returns:
        The model, on the CPU, in evaluation mode (training mode does not differ, there being no dropout).

    Raises:
        ValueError: there is no such size; the message lists them.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if size not in SIZES:
        raise ValueError(f"tiny_gpt2: no size {size!r}; there are {', '.join(SIZES)}")
    shape = SIZES[size]
    config = GPT2Config(
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        vocab_size=vocab_size,
        n_positions=n_positions,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()
