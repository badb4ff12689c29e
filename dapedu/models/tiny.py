"""Small models by name, and a number on each token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from dapedu.packing import unwrapped

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GPT2LMHeadModel, PreTrainedModel

HEAD_FILE = "scalar_head.safetensors"


class Size(NamedTuple):
    """A row of `SIZES`: width, depth and heads of a GPT-2."""

    n_embd: int
    n_layer: int
    n_head: int


SIZES = {"tiny": Size(n_embd=64, n_layer=2, n_head=4), "small": Size(n_embd=128, n_layer=4, n_head=4)}


def tiny_gpt2(
    size: str,
    *,
    vocab_size: int,
    n_positions: int,
    seed: int = 0,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, small enough to be trained on a laptop.

    Two departures from GPT-2: no dropout, so that a text gets the same log-probability twice, and the fast kernel
    of its activation.

    Args:
        size: a key of `SIZES`.
        vocab_size: tokens in the vocabulary.
        n_positions: longest text, in tokens.
        seed: of the weights; the same one gives the same model, and the caller's random numbers go on as before.
        pad_token_id, eos_token_id: the tokenizer's, kept with the model for those who load it with transformers alone;
            the weights do not depend on them.

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
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


class ScalarHead(nn.Module):
    """A transformer with one number a token, for rewards and values: a linear map of its last hidden states.

    The transformer is the given model's own, not a copy: training one trains the other, so pass
    `copy.deepcopy(model)` to keep the model as it is. The linear map starts at zero. So every reward and value does,
    whatever the seed: the first preference loss is log 2, the first advantages are the returns, and the transformer
    gets no gradient through random weights; its own starts with the second step.

    Args:
        model: a causal language model, with LoRA adapters or without, or a transformer without a head.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        plain = unwrapped(model)
        self.transformer = cast("PreTrainedModel", plain.base_model)
        self.linear = nn.Linear(plain.config.hidden_size, 1, device=plain.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.linear.weight.device

    def forward(self, input_ids: Tensor) -> Tensor:
        """A number for each token, which has seen that token and those before it.

        Args:
            input_ids: padded on the right, shape (rows, seq).

        Returns:
            Float32, shape (rows, seq); meaningless on padding.
        """
        hidden = self.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
        # In mixed precision a linear map is bfloat16, which has 3 digits: too few for differences of rewards.
        with torch.autocast(self.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)

    def last(self, *, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """The number of each completion's last token, which has seen all of prompt and completion: a reward.

        Args:
            input_ids: padded on the right, shape (rows, seq).
            completion_mask: true on the completion's tokens, shape (rows, seq).

        Returns:
            Float32, shape (rows,).

        Raises:
            ValueError: shapes differ, or a completion has no token.
        """
        if completion_mask.shape != input_ids.shape:
            raise ValueError(
                f"ScalarHead.last: completion_mask has shape {tuple(completion_mask.shape)}, "
                f"expected {tuple(input_ids.shape)}"
            )
        mask = completion_mask.bool()
        if not mask.any(dim=1).all():
            rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"ScalarHead.last: the completions of rows {rows} are empty, so they have no last token")
        positions = torch.arange(mask.shape[1], device=mask.device)
        return self(input_ids).gather(1, (mask * positions).amax(dim=1, keepdim=True)).squeeze(1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the transformer as transformers does, and the linear map beside it; `save_model` calls this.

        Args:
            folder: an existing one.
        """
        from safetensors.torch import save_file

        self.transformer.save_pretrained(folder)
        save_file(self.linear.state_dict(), Path(folder) / HEAD_FILE)
