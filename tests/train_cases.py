"""Records of every kind for a tokenizer of six words, and a run in silence."""

import torch
from torch import Tensor

from dapedu.train import METHODS, Settings, train_preference

WORDS = "a b c d e f"
PLAIN = {"log_every": 1, "warmup": 0, "kl_samples": 0}


def texts(seed: int, longest: int) -> list[str]:
    """Forty of one to `longest` words."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, n: torch.randint(high, (n,), generator=generator).tolist()  # noqa: E731
    return [" ".join(WORDS.split()[word] for word in draw(6, n + 1)) for n in draw(longest, 40)]


PROMPTS, FIRST, SECOND, THIRD = texts(1, 4), texts(2, 7), texts(3, 7), texts(4, 7)
RECORDS = {
    "demonstrations": [{"prompt": p, "completion": a} for p, a in zip(PROMPTS, FIRST, strict=True)],
    "preferences": [
        {"prompt": p, "chosen": a, "rejected": b, "target": c}
        for p, a, b, c in zip(PROMPTS, FIRST, SECOND, THIRD, strict=True)
    ],
    "rankings": [
        {"prompt": p, "completions": [a, b, c], "rewards": [n % 3, 1, 0.5]}
        for n, (p, a, b, c) in enumerate(zip(PROMPTS, FIRST, SECOND, THIRD, strict=True))
    ],
}


def records_of(method: str) -> list[dict]:
    return RECORDS[METHODS[method].records]


def go(model, tokenizer, method: str, *, records=None, strengths=None, **options):
    """`train_preference` in silence; options that `Settings` has go there."""
    settings = {name: options.pop(name) for name in list(options) if name in Settings.__dataclass_fields__}
    return train_preference(
        model,
        tokenizer,
        records or records_of(method),
        method=method,
        strengths=strengths,
        settings=Settings(**PLAIN | settings),
        progress=False,
        **options,
    )


def weights(model) -> dict[str, Tensor]:
    """Without the biases of the keys: a softmax does not see them, so their gradients are rounding alone."""
    kept = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().double()
        kept[name] = torch.cat([value[:64], value[128:]]) if name.endswith("c_attn.bias") else value
    return kept


def assert_same_weights(actual, expected, atol: float) -> None:
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(actual)[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
