"""On a GPU training is what it is on the CPU: `make gpu-check`, nowhere else."""

import copy

import pytest
import torch

from dapedu.data import collate, encode
from dapedu.experiments.gpu import throughput_gpu
from dapedu.logps import layout_of, model_logps
from dapedu.models import add_lora
from dapedu.packing import pack
from dapedu.train import Settings, train_preference
from tests.train_cases import RECORDS, WORDS
from tests.words import opinionated, word_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


def test_every_layout_is_read_as_on_the_cpu(model):
    """Oracle: the CPU's log-probabilities and gradients, in float32."""
    pairs = RECORDS["preferences"][:8]
    sequences = encode([r["prompt"] for r in pairs], [r["chosen"] for r in pairs], word_tokenizer(WORDS))
    expected = model_logps(model, pack(sequences))
    gradient = torch.autograd.grad(expected.sum(), model.transformer.wte.weight)[0]
    there = copy.deepcopy(model).cuda()
    assert layout_of(there) is pack
    for layout in (pack, collate):
        actual = model_logps(there, layout(sequences, device="cuda"))
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-2)
        other = torch.autograd.grad(actual.sum(), there.transformer.wte.weight)[0]
        torch.testing.assert_close(other.cpu(), gradient, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("adapters", [False, True])
def test_training_in_bfloat16_learns(adapters, model, tmp_path):
    """Oracle: the margin on the pairs trained on, which thirty steps raise on the CPU by more than a nat."""
    policy = add_lora(model, rank=4) if adapters else model
    log = train_preference(
        policy,
        word_tokenizer(WORDS),
        RECORDS["preferences"],
        method="dpo",
        strengths={"beta": 0.5},
        settings=Settings(steps=30, batch_size=8, lr=1e-3, warmup=0, kl_samples=0),
        output=tmp_path,
        progress=False,
    )
    assert log[-1]["margin"] > log[0]["margin"] + 0.5
    assert policy.device.type == "cpu"  # back where it was


def test_the_benchmark_runs():
    """Oracle: a card, and a peak of memory above the model's own."""
    found = throughput_gpu(shapes=("tiny GPT-2",), steps=2, repeats=1)
    assert found.pop("card") != "none"
    assert all(result["peak memory, MiB"] > 3 for result in found.values())
