"""How fast one training step of DPO is on a GPU, and what memory it takes: eager, compiled, as a CUDA graph; bfloat16.

`make gpu-check` runs it. On the CPU its numbers would say nothing, but a test runs it there to see that it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dapedu.data import Sequences, collate
from dapedu.logps import model_logps
from dapedu.losses import dpo_loss
from dapedu.packing import Packed, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = {  # width, depth, heads, vocabulary, tokens of prompt and of completion, pairs
    "tiny GPT-2": (128, 4, 4, 341, 8, 24, 32),
    "GPT-2 small": (768, 12, 12, 50_257, 128, 128, 16),
}
_MODES = {"compiled": "default", "CUDA graph": "reduce-overhead"}  # torch.compile's
WAYS = ("eager", *_MODES)


def throughput_gpu(
    *,
    shapes: Sequence[str] = tuple(SHAPES),
    ways: Sequence[str] = WAYS,
    steps: int = 30,
    repeats: int = 3,
) -> dict[str, Any]:
    """Tokens a second and peak memory of DPO's step on a GPU: two models, three ways to run them, two precisions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"card": torch.cuda.get_device_name() if device.type == "cuda" else "none"}
    for shape in shapes:
        for way in ways:
            for precision in (torch.float32, torch.bfloat16):
                # Only rectangles have the same shape at every step, which a graph needs; packing is eager's.
                for layout in (pack, collate) if way == "eager" else (collate,):
                    name = f"{shape}, {way}, {str(precision).removeprefix('torch.')}, {layout.__name__}"
                    found[name] = _measured(shape, way, precision, layout, device, steps, repeats)
    return found


def _measured(
    shape: str,
    way: str,
    precision: torch.dtype,
    layout: Callable[..., Any],
    device: torch.device,
    steps: int,
    repeats: int,
) -> dict[str, Any]:
    model, sequences = _setting(shape, device)
    batch = layout(sequences, device=device)
    reference = torch.zeros(len(sequences), device=device)
    step = _Step(model, reference)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = step if way == "eager" else torch.compile(step, mode=_MODES[way])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def train(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                loss = forward(batch)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the GPU
        return (time.perf_counter() - start) / n

    warm_up = train(3) * 3
    seconds = [train(steps) for _ in range(repeats)]
    tokens = sum(map(len, sequences.input_ids))
    return {
        "tokens a second": [round(tokens / s) for s in seconds],
        "warm-up, s": round(warm_up, 1),
        "peak memory, MiB": round(torch.cuda.max_memory_allocated() / 2**20) if device.type == "cuda" else None,
    }


class _Step(nn.Module):
    """What is compiled: from a batch to DPO's mean loss."""

    def __init__(self, model: PreTrainedModel, reference_logps: Tensor) -> None:
        super().__init__()
        self.model, self.reference_logps = model, reference_logps

    def forward(self, batch: Packed | tuple[Tensor, Tensor]) -> Tensor:
        logps = model_logps(self.model, batch).view(-1, 2)
        reference = self.reference_logps.view(-1, 2)
        return dpo_loss(
            policy_chosen_logps=logps[:, 0],
            policy_rejected_logps=logps[:, 1],
            reference_chosen_logps=reference[:, 0],
            reference_rejected_logps=reference[:, 1],
            beta=0.1,
        ).mean()


def _setting(shape: str, device: torch.device) -> tuple[PreTrainedModel, Sequences]:
    from transformers import GPT2Config, GPT2LMHeadModel

    width, depth, heads, vocabulary, prompt, completion, pairs = SHAPES[shape]
    config = GPT2Config(
        n_embd=width,
        n_layer=depth,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=prompt + completion,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2 * pairs, prompt + completion), generator=generator)
    ids[1::2, :prompt] = ids[::2, :prompt]  # a pair's prompt
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    return model.to(device), Sequences(ids.tolist(), [prompt] * len(ids))  # type: ignore[arg-type]


def main() -> int:
    """`python -m dapedu.experiments.gpu`: write data/results/throughput_gpu.json, with the card's name in it.

    Returns:
        The exit status: 1 where there is no GPU.
    """
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        return 1
    from dapedu.experiments import store

    path = store("throughput_gpu", throughput_gpu)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
