"""Models by name, their folders, their scores and their heads, against transformers' own classes."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from dapedu.data import Sequences, collate, encode
from dapedu.models import (
    SIZES,
    ModelError,
    ScalarHead,
    evaluating,
    head_rewards,
    load_head,
    load_model,
    save_model,
    score,
    tiny_gpt2,
)
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

PROMPTS = ["a b", "c", "b b a", "c a"]
COMPLETIONS = ["c c b a", "a", "", "b a c c a b"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer("a b c")


@pytest.fixture(scope="module")
def sequences(tokenizer):
    return encode(PROMPTS, COMPLETIONS, tokenizer)


@pytest.fixture
def model():
    return opinionated(vocab_size=6)


@pytest.fixture
def head(model):
    head = ScalarHead(model)
    with torch.no_grad():
        head.linear.weight.copy_(torch.linspace(-1, 1, 64))
        head.linear.bias.fill_(0.25)
    return head


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- made by name ----


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_the_models_shape(size):
    """Oracle: the configuration, and a logit for each token of the vocabulary."""
    model = tiny_gpt2(size, vocab_size=11, n_positions=7)
    assert (model.config.n_embd, model.config.n_layer, model.config.n_head) == SIZES[size]
    assert model(torch.zeros(1, 7, dtype=torch.long)).logits.shape == (1, 7, 11)


def test_the_tokens_kept_with_a_model_do_not_change_it():
    """Oracle: the same weights bit by bit; transformers' generate then stops at the end-of-sequence token itself."""
    plain = tiny_gpt2("tiny", vocab_size=6, n_positions=16)
    model = tiny_gpt2("tiny", vocab_size=6, n_positions=16, pad_token_id=0, eos_token_id=1)
    assert_same_weights(plain, model)
    with torch.no_grad():
        model.transformer.wte.weight[1] = 0  # logit 0 …
        model.transformer.wte.weight[[0, 2, 3, 4, 5]] = 1e-3 * torch.randn(5, 64)
        hidden = model.transformer(torch.tensor([[3, 4]])).last_hidden_state[0, -1]
        model.transformer.wte.weight[1] = hidden  # … and now the likeliest token
    ids = torch.tensor([[3, 4]])
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9).tolist() == [[3, 4, 1]]


# ---- folders ----


def test_a_saved_model_comes_back(model, tokenizer, tmp_path):
    """Oracle: weights bit by bit, the same token ids, the card; no file that is a pickle."""
    path = tmp_path / "new" / "model"
    save_model(model, tokenizer, path, "# A model\nof 6 words\n")
    loaded, read = load_model(path)
    assert_same_weights(model, loaded)
    assert not loaded.training
    assert read("a c <eos> d")["input_ids"] == tokenizer("a c <eos> d")["input_ids"] == [3, 5, 1, 2]
    assert (read.pad_token_id, read.eos_token_id, read.unk_token_id) == (0, 1, 2)
    assert (path / "README.md").read_text() == "# A model\nof 6 words\n"
    assert {file.suffix for file in path.iterdir()} == {".json", ".md", ".safetensors"}
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_transformers_reads_what_we_write(model, tokenizer, tmp_path):
    """Oracle: AutoModelForCausalLM and AutoTokenizer, which know nothing of us."""
    save_model(model, tokenizer, tmp_path / "model", "")
    assert_same_weights(model, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").decode([3, 5]) == "a c"


def test_we_read_what_transformers_writes(tokenizer, tmp_path):
    """Oracle: another configuration than ours, in bfloat16 and in two shards; a pickle beside it is not opened."""
    config = GPT2Config(vocab_size=6, n_positions=9, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"not even a pickle")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, _ = load_model(str(tmp_path))
    assert_same_weights(model, loaded)
    assert loaded.dtype == torch.bfloat16


def test_a_new_model_replaces_the_earlier_one(tokenizer, tmp_path):
    """Oracle: the second model's weights, and nothing beside its folder."""
    for seed in (0, 1):
        save_model(opinionated(vocab_size=6, seed=seed), tokenizer, tmp_path / "model", f"seed {seed}")
    assert_same_weights(load_model(tmp_path / "model")[0], opinionated(vocab_size=6, seed=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_earlier_model(model, tokenizer, tmp_path, monkeypatch):
    """Oracle: a disk that fills up after the weights: every byte of the earlier folder, nothing beside it."""
    path = tmp_path / "model"
    save_model(model, tokenizer, path, "first")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        save_model(opinionated(vocab_size=6, seed=1), tokenizer, path, "second")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_what_a_run_that_was_killed_left_is_cleared(model, tokenizer, tmp_path):
    """Oracle: killed while writing, and killed between the two renames; saving works and leaves one folder."""
    for leftover in (".model.dapedu-partial", ".model.dapedu-previous"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half.json").touch()
    for card in ("first", "second"):
        save_model(model, tokenizer, tmp_path / "model", card)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert "half.json" not in {file.name for file in (tmp_path / "model").iterdir()}


def test_a_folder_with_anything_else_is_left_alone(model, tokenizer, tmp_path):
    """Oracle: a thesis, which is still there, alone; the message names it."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match=r"^save_model: .* holds thesis.tex and no model; expected a new folder"):
        save_model(model, tokenizer, tmp_path, "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    save_model(model, tokenizer, tmp_path / "model", "")
    (tmp_path / "model" / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match=r"^save_model: .* also holds thesis.tex, which would be lost"):
        save_model(model, tokenizer, tmp_path / "model", "")
    assert (tmp_path / "model" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ModelError, match=r"^save_model: .*thesis.tex is a file, expected a folder"):
        save_model(model, tokenizer, tmp_path / "thesis.tex", "")


def test_a_folder_that_is_no_model_is_refused(model, tokenizer, tmp_path):
    """Oracle: files taken away one by one; the message says which is missing, before anything is read."""
    save_model(model, tokenizer, tmp_path / "model", "")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer; write it there with tokenizer.save_pretrained"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights, expected model.safetensors"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json"):
        load_model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"^load_model: there is no folder .*nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("read", [load_model, load_head])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(read, name, model, tokenizer, tmp_path):
    """Oracle: a real state dict in the old format, which transformers would take; the message says what to do."""
    save_model(model, tokenizer, tmp_path / "model", "")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / name)
    with pytest.raises(ModelError, match=f"has its weights as {name}; only safetensors are read.*save_pretrained"):
        read(tmp_path / "model")


# ---- scores ----


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_a_score_is_what_reading_each_text_alone_gives(batch_size, model, sequences):
    """Oracle: softmax of the model's logits, one token at a time; order and batches do not matter."""
    expected = []
    for ids, start in zip(sequences.input_ids, sequences.prompt_lengths, strict=True):
        with torch.no_grad():
            probabilities = model(torch.tensor([ids])).logits[0].double().softmax(dim=-1)
        expected.append(sum(math.log(probabilities[t - 1, ids[t]]) for t in range(start, len(ids))))
    scores = score(model, sequences, batch_size=batch_size)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    torch.testing.assert_close(scores.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def test_scores_of_no_sequences_are_none(model):
    """Oracle: an empty vector; and a batch size of 0 is refused by name."""
    assert score(model, Sequences([], [])).shape == (0,)
    with pytest.raises(ValueError, match=r"^score: batch_size is 0, expected at least 1"):
        score(model, Sequences([], []), batch_size=0)


def test_a_model_in_training_is_scored_without_dropout(sequences):
    """Oracle: the same numbers as in evaluation mode; the mode is then as before, also after an error."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=6, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
    expected = score(model, sequences)
    model.train()
    assert torch.equal(score(model, sequences), expected)
    assert model.training
    assert not torch.equal(model(torch.tensor([[3]])).logits, model(torch.tensor([[3]])).logits)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = model.training / 0
    assert model.training
    assert torch.is_grad_enabled()


# ---- a number on each token ----


def test_a_head_starts_at_zero_and_learns(model, sequences):
    """Oracle: 0 everywhere; a first gradient in the linear map alone; a step along it, and the transformer has one."""
    head = ScalarHead(model)
    input_ids, _ = collate(sequences)
    assert torch.equal(head(input_ids), torch.zeros(input_ids.shape))
    head(input_ids).sum().backward()
    assert head.linear.weight.grad.abs().min() > 0
    assert all(not p.grad.any() for p in head.transformer.parameters() if p.grad is not None)
    with torch.no_grad():
        head.linear.weight.sub_(0.1 * head.linear.weight.grad)
    head(input_ids).square().sum().backward()
    assert head.transformer.wte.weight.grad.abs().max() > 0


def test_a_head_reads_the_models_own_transformer(model):
    """Oracle: the same tensors as the model's; a deep copy has others."""
    assert ScalarHead(model).transformer.wte.weight is model.transformer.wte.weight
    assert ScalarHead(copy.deepcopy(model)).transformer.wte.weight is not model.transformer.wte.weight


def test_values_are_a_linear_map_of_the_hidden_states(model, head, sequences):
    """Oracle: transformers' last hidden states, one text at a time, times the map, summed by hand in float64."""
    values = head(collate(sequences)[0])
    for row, ids in enumerate(sequences.input_ids):
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
        expected = (hidden * torch.linspace(-1, 1, 64).double()).sum(dim=1) + 0.25
        torch.testing.assert_close(values[row, : len(ids)].double(), expected, rtol=0, atol=1e-4)


def test_the_last_number_is_that_of_transformers_classifier(model, head, sequences):
    """Oracle: GPT2ForSequenceClassification with one label, transformers 5.24's reward model, on the same weights."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    classifier = GPT2ForSequenceClassification(config).eval()
    classifier.transformer.load_state_dict(model.transformer.state_dict())
    classifier.score.load_state_dict({"weight": head.linear.weight})
    input_ids, completion_mask = collate(sequences)
    lengths = torch.tensor([len(ids) for ids in sequences.input_ids])
    padding = torch.arange(input_ids.shape[1]) >= lengths[:, None]
    expected = classifier(input_ids.masked_fill(padding, 0)).logits[:, 0] + 0.25
    torch.testing.assert_close(head.last(input_ids=input_ids, completion_mask=completion_mask), expected)
    wider = torch.nn.functional.pad(torch.stack([input_ids, completion_mask.long()]), (0, 3))
    torch.testing.assert_close(head.last(input_ids=wider[0], completion_mask=wider[1]), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_rewards_are_what_reading_each_text_alone_gives(batch_size, head, sequences):
    """Oracle: the head on one text, its last token's number; order and batches do not matter."""
    head.train()
    with torch.no_grad():
        expected = torch.stack([head(torch.tensor([ids]))[0, -1] for ids in sequences.input_ids])
    rewards = head_rewards(head, sequences, batch_size=batch_size)
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)
    assert rewards.std() > 1
    assert (rewards.dtype, rewards.requires_grad, head.training) == (torch.float32, False, True)
    assert head_rewards(head, Sequences([], [])).shape == (0,)
    with pytest.raises(ValueError, match=r"^head_rewards: batch_size is 0, expected at least 1"):
        head_rewards(head, sequences, batch_size=0)


def test_a_head_in_half_precision_gives_float32(model, sequences):
    """Oracle: the type; and zero still."""
    values = ScalarHead(model.bfloat16())(collate(sequences)[0])
    assert values.dtype == torch.float32
    assert not values.any()


def test_a_head_in_mixed_precision_gives_float32(model, sequences):
    """Oracle: a bias that bfloat16 would round to 1."""
    head = ScalarHead(model)
    head.linear.bias.data.fill_(1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(collate(sequences)[0])
    torch.testing.assert_close(values, torch.full(values.shape, 1.001), rtol=0, atol=0)


def test_a_completion_without_tokens_has_no_last_number(head):
    """Oracle: the message names the row; another names both shapes."""
    input_ids = torch.full((2, 3), 4)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    with pytest.raises(ValueError, match=r"^ScalarHead.last: the completions of rows \[1\] are empty"):
        head.last(input_ids=input_ids, completion_mask=mask)
    with pytest.raises(ValueError, match=r"completion_mask has shape \(2, 2\), expected \(2, 3\)"):
        head.last(input_ids=input_ids, completion_mask=mask[:, 1:])


def test_a_saved_head_comes_back(head, tokenizer, tmp_path):
    """Oracle: weights bit by bit, all in safetensors; a language model and a head are not taken for each other."""
    save_model(head, tokenizer, tmp_path / "head", "# A reward")
    loaded, read = load_head(tmp_path / "head")
    assert_same_weights(head, loaded)
    assert not loaded.training
    assert read("c")["input_ids"] == [5]
    assert load_file(tmp_path / "head" / "scalar_head.safetensors")["bias"].item() == 0.25
    with pytest.raises(ModelError, match=r"^load_model: .* read it with load_head"):
        load_model(tmp_path / "head")
    save_model(opinionated(vocab_size=6), tokenizer, tmp_path / "model", "")
    with pytest.raises(ModelError, match=r"^load_head: .* a language model is read with load_model"):
        load_head(tmp_path / "model")
