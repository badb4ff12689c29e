"""Packed rows and rectangles: the log-probabilities that each sequence has alone, whatever the model."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from dapedu.data import Sequences, collate
from dapedu.logps import layout_of, model_logps
from dapedu.models import add_lora, score
from dapedu.packing import pack
from tests.words import opinionated

VOCABULARY = 40
# Three completions of one prompt, one of its beginning, a prompt of one token, no completion, the first prompt anew.
PROMPT = [3, 4, 5, 6]
SEQUENCES = Sequences(
    [
        [*PROMPT, 7, 1],
        [*PROMPT, 8, 9, 10, 11, 1],
        [*PROMPT, 1],
        [3, 4, 12, 1],
        [13, 14, 15, 1],
        [20, 21, 22],
        [*PROMPT, 1],
    ],
    [4, 4, 4, 3, 1, 3, 4],
)
SIZE = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **SIZE}
DEEP = {"intermediate_size": 48, "num_key_value_heads": 2, **WIDE}
PACKED = {
    "llama, grouped queries": LlamaConfig(**DEEP),
    "qwen2": Qwen2Config(**DEEP),
    "mistral, a window of 3": MistralConfig(**DEEP, sliding_window=3),
    "gpt-neox": GPTNeoXConfig(intermediate_size=48, **WIDE),
    "opt": OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **WIDE),
}
RECTANGLES = {
    "gemma2, capped logits": Gemma2Config(head_dim=8, **DEEP, final_logit_softcapping=0.1),
    "cohere, scaled logits": CohereConfig(**DEEP),
    "granite, scaled logits": GraniteConfig(**DEEP, logits_scaling=4.0),
    "gemma2, attention capped at 50": Gemma2Config(head_dim=8, **DEEP, final_logit_softcapping=None),
    "gemma3, capped logits, small as they are": Gemma3TextConfig(head_dim=8, **DEEP, final_logit_softcapping=30.0),
    "qwen2-moe, a window by its mask alone": Qwen2MoeConfig(
        use_sliding_window=True, sliding_window=16, max_window_layers=2, num_experts=4, moe_intermediate_size=16, **DEEP
    ),
    "bloom, positions by bias": BloomConfig(n_layer=2, n_head=4, hidden_size=32, **SIZE),
    "falcon, positions by bias": FalconConfig(alibi=True, new_decoder_architecture=False, **WIDE),
    "gpt-neo, attention of its own": GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=3, **SIZE
    ),
    "mamba, a state along the row": MambaConfig(hidden_size=32, num_hidden_layers=2, **SIZE),
}


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # opinions, so that a wrong neighbour shows
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def alone(model) -> torch.Tensor:
    """Each sequence by itself: all its logits, a softmax, and the completion's tokens one after the other."""
    sums = []
    for ids, start in zip(SEQUENCES.input_ids, SEQUENCES.prompt_lengths, strict=True):
        logits = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        sums.append(sum((logits[t - 1, ids[t]] for t in range(start, len(ids))), torch.zeros(())))
    return torch.stack(sums)


@pytest.fixture
def model():
    return opinionated(vocab_size=VOCABULARY)


def test_a_packed_row_by_hand():
    """Oracle: places counted on paper; a shared prompt of two tokens, the first of which begins a third one too."""
    batch = pack(Sequences([[5, 6, 7, 1], [5, 6, 8, 9, 1], [5, 1]], [2, 2, 1]))
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert batch.predictors.tolist() == [1, 2, 1, 3, 4, 0]
    assert batch.targets.tolist() == [7, 1, 8, 9, 1, 1]
    assert batch.owners.tolist() == [0, 0, 1, 1, 1, 2]
    rows = {tuple(row) for rectangle in batch.rectangles for row in rectangle.tolist()}
    assert rows == {(0,), (0, 1, 2), (0, 1, 3, 4)}
    cells = torch.cat([rectangle.flatten() for rectangle in batch.rectangles])
    assert cells[batch.cells].tolist() == list(range(5))  # each token's output is its own


@pytest.mark.parametrize("layout", [pack, collate])
def test_every_layout_gives_what_a_sequence_has_alone(layout, model):
    """Oracle: `alone`; and its gradient, by a backward pass through each."""
    weights = torch.linspace(-1, 1, len(SEQUENCES))
    expected, actual = alone(model), model_logps(model, layout(SEQUENCES))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert actual[5] == 0
    gradients = [torch.autograd.grad((weights * logps).sum(), list(model.parameters())) for logps in (expected, actual)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*PACKED, *RECTANGLES])
def test_every_family_is_read_right(name):
    """Oracle: `alone`. Who can read a packed row does; who cannot is found out, and read in rectangles."""
    model = model_of({**PACKED, **RECTANGLES}[name])
    with torch.no_grad():
        assert layout_of(model) is (pack if name in PACKED else collate)
        torch.testing.assert_close(score(model, SEQUENCES), alone(model), rtol=0, atol=1e-3)


def test_logits_are_made_at_scored_tokens_only(model):
    """Oracle: rows that the output layer sees, counted: one a completion token."""
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(tuple(output.shape)))
    model_logps(model, pack(SEQUENCES))
    assert rows == [(int(SEQUENCES.lengths.sum()), VOCABULARY)]


def test_adapters_are_read_through_their_wrapper(model):
    """Oracle: `alone`, with adapters that say something; without them the model is what it was."""
    before = alone(model).detach()
    policy = add_lora(model, rank=2)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        assert layout_of(policy) is pack
        torch.testing.assert_close(score(policy, SEQUENCES), alone(policy), rtol=0, atol=1e-4)
        assert (alone(policy) - before).abs().max() > 0.1
        with policy.disable_adapter():
            torch.testing.assert_close(score(policy, SEQUENCES), before, rtol=0, atol=1e-4)


def test_the_model_attends_as_before_afterwards(model):
    """Oracle: its own implementation, also after an error in the middle; `alone` is the same number."""
    before = model.config._attn_implementation
    expected = alone(model).detach()
    model_logps(model, pack(SEQUENCES))
    handle = model.transformer.h[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model_logps(model, pack(SEQUENCES))
    handle.remove()
    assert model.config._attn_implementation == before
    torch.testing.assert_close(alone(model).detach(), expected, rtol=0, atol=0)


def test_a_model_that_forgets_its_activations_is_read_in_rectangles(model):
    """Oracle: gradients of `alone`; in the backward pass a layer would be read again, without knowing of the row."""
    model.activation_checkpointing_enable()
    assert layout_of(model.eval()) is pack
    assert layout_of(model.train()) is collate
