"""Models of other families, and folders exchanged with transformers 5.24, peft 0.21 and TRL 1.16, LoRA included."""

import json
import shutil
import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

from dapedu.data import collate, encode
from dapedu.models import ModelError, ScalarHead, add_lora, evaluating, load_model, load_tokenizer, save_model, score
from dapedu.sampling import sample
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

IDS = torch.tensor([[3, 4, 5, 5, 3], [4, 4, 3, 1, 5]])
PROMPTS = ["a b", "c", "b b a", "c a"]
COMPLETIONS = ["c c b a", "a", "", "b a c c a b"]
PAIRS = [{"prompt": "a b ", "chosen": "c a", "rejected": "b"}, {"prompt": "c ", "chosen": "a", "rejected": "c b"}] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer("a b c")


@pytest.fixture(scope="module")
def sequences(tokenizer):
    return encode(PROMPTS, COMPLETIONS, tokenizer)


@pytest.fixture
def base(tokenizer, tmp_path):
    folder = tmp_path / "base"
    save_model(opinionated(vocab_size=6), tokenizer, folder, "# base")
    return folder


@pytest.fixture
def policy(base):
    """A base from its folder, with adapters that have learned something."""
    return trained(add_lora(load_model(base)[0], rank=2, seed=1))


def trained(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def dpo_trainer(model, output, tokenizer, **settings):
    """TRL's trainer on eight pairs, one step of which is a fourth of them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(output),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    return DPOTrainer(
        model=model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(PAIRS), **settings
    )


# ---- other families ----

SHAPE = {
    "vocab_size": 9,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.5,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "gemma2": Gemma2Config(**GROUPED, head_dim=4, final_logit_softcapping=3.0, sliding_window=4),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "opt": OPTConfig(
        **{k: v for k, v in SHAPE.items() if k not in ("intermediate_size", "pad_token_id")},
        pad_token_id=0,
        ffn_dim=24,
        word_embed_proj_dim=16,
        init_std=0.5,
    ),
    "bloom": BloomConfig(
        vocab_size=9, hidden_size=16, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=1, initializer_range=0.5
    ),
}


def made(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_another_family_is_loaded_and_scored(family, tokenizer, sequences, tmp_path):
    """Oracle: the logits before saving, bit by bit; log-softmax of a plain forward pass of each text alone."""
    model = made(family)
    save_model(model, tokenizer, tmp_path / family, "")
    loaded, _ = load_model(tmp_path / family)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    expected = []
    for ids, start in zip(sequences.input_ids, sequences.prompt_lengths, strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        expected.append(sum(logps[t - 1, ids[t]].item() for t in range(start, len(ids))))
    assert min(expected) < -5
    scores = score(loaded, sequences, batch_size=3)
    torch.testing.assert_close(scores.double(), torch.tensor(expected).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_saved_and_merged_in_each_family(family, tokenizer, tmp_path):
    """Oracle: the logits of base and adapters together."""
    save_model(made(family), tokenizer, tmp_path / "base", "")
    policy = trained(add_lora(load_model(tmp_path / "base")[0]))
    assert (logits(policy) - logits(made(family))).abs().max() > 0.01
    save_model(policy, tokenizer, tmp_path / "adapters", "")
    torch.testing.assert_close(logits(load_model(tmp_path / "adapters")[0]), logits(policy), rtol=1e-4, atol=1e-4)


def test_a_tokenizer_without_padding_is_left_so(base):
    """Oracle: no padding token after loading; scores and samples are those of the tokenizer that has one."""
    model, padded = load_model(base)
    bare = word_tokenizer("a b c", special={"bos_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"})
    bare.save_pretrained(base)
    _, tokenizer = load_model(base)
    assert tokenizer.pad_token is None
    assert encode(PROMPTS, COMPLETIONS, tokenizer) == encode(PROMPTS, COMPLETIONS, padded)
    drawn = sample(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert drawn == sample(model, padded, PROMPTS, max_new_tokens=6)
    assert len(set(drawn.sequences.lengths.tolist())) > 1
    assert tokenizer.pad_token is None


# ---- whole models ----


def test_transformers_and_trl_read_what_we_write(base, tokenizer, tmp_path):
    """Oracle: the same logits bit by bit in transformers; one DPO step from the folder, which begins at log 2."""
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(base)), logits(opinionated(vocab_size=6)))
    assert AutoTokenizer.from_pretrained(base)("a c")["input_ids"] == [3, 5]
    trainer = dpo_trainer(str(base), tmp_path / "trl", None)
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-4)


def test_we_read_what_transformers_and_trl_write(base, tokenizer, tmp_path):
    """Oracle: the trained model in memory, bit by bit, which is no longer the base."""
    trainer = dpo_trainer(str(base), tmp_path / "trl", tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    loaded, read = load_model(tmp_path / "trained")
    assert torch.equal(logits(loaded), logits(trainer.model))
    assert not torch.equal(logits(loaded), logits(opinionated(vocab_size=6)))
    assert read("a c")["input_ids"] == [3, 5]
    trainer.model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(load_model(tmp_path / "plain")[0]), logits(trainer.model))


# ---- LoRA ----


def test_adapters_start_as_the_base_and_alone_learn(base):
    """Oracle: the base's logits bit by bit; which parameters get a gradient; their number by hand.

    Rank 2 on GPT-2's four maps of a layer, 64 → 192, 64 → 64, 64 → 256 and 256 → 64.
    """
    model, _ = load_model(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = add_lora(model, rank=2)
    assert not policy.training
    assert torch.equal(logits(policy), logits(opinionated(vocab_size=6)))
    policy(IDS).logits.sum().backward()
    learn = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in learn)
    assert sum(p.numel() for p in learn.values()) == 2 * 2 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)
    assert all(p.grad is None for name, p in policy.named_parameters() if name not in learn)
    assert all(p.grad.any() for name, p in learn.items() if "lora_B" in name)
    assert policy.active_peft_config.lora_dropout == 0


def test_an_adapted_map_is_the_formula(base):
    """Oracle: W + (alpha / rank) B A of one map, multiplied by hand, GPT-2's W being transposed."""
    model, _ = load_model(base)
    policy = trained(add_lora(model, rank=2, alpha=3.0, targets=["attn.c_proj"]))
    layer = policy.get_base_model().transformer.h[1].attn.c_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected = x @ (layer.base_layer.weight + 1.5 * (b @ a).T) + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert sum("lora_A" in name for name, _ in policy.named_parameters()) == 2


def test_the_seed_decides_the_adapters_and_leaves_other_random_numbers_alone(base):
    """Oracle: equal adapters for equal seeds; the caller's generator goes on as before, also when loading."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (add_lora(load_model(base)[0], seed=seed) for seed in (0, 0, 1))
    save_model(first, load_tokenizer(base), base.parent / "adapters", "")
    load_model(base.parent / "adapters")
    assert torch.equal(torch.rand(3), expected)
    matrices = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (first, second, third)]
    assert all(torch.equal(p, matrices[1][name]) for name, p in matrices[0].items())
    assert not any(torch.equal(p, matrices[2][name]) for name, p in matrices[0].items())


def test_saved_adapters_are_read_by_us_peft_and_transformers(base, tokenizer, tmp_path, monkeypatch):
    """Oracle: the logits in memory; nothing of the base is saved. The base is read by a path that holds no longer."""
    from peft import AutoPeftModelForCausalLM

    folder = tmp_path / "adapters"
    monkeypatch.chdir(tmp_path)
    policy = trained(add_lora(load_model("base")[0], rank=2, seed=1))
    monkeypatch.chdir("/")
    save_model(policy, tokenizer, folder, "# adapters")
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "README.md").read_text() == "# adapters"
    assert (folder / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 10
    plain, read = load_model(folder)
    assert type(plain) is type(opinionated(vocab_size=6))
    assert not plain.training
    assert read("a c")["input_ids"] == load_tokenizer(folder)("a c")["input_ids"] == [3, 5]
    torch.testing.assert_close(logits(plain), logits(policy), rtol=1e-5, atol=1e-5)
    assert (logits(plain) - logits(load_model(base)[0])).abs().max() > 0.1
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), logits(policy))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(policy))


def test_we_read_adapters_that_trl_has_trained(base, tokenizer, tmp_path, monkeypatch):
    """Oracle: TRL's model in memory after a step; its folder has the base as TRL was given it, a relative path."""
    from peft import LoraConfig

    monkeypatch.chdir(tmp_path)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainer = dpo_trainer("base", tmp_path / "trl", tokenizer, peft_config=lora)
    trainer.train()
    trainer.save_model("adapters")
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    expected = logits(trainer.model)
    torch.testing.assert_close(logits(load_model("adapters")[0]), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(load_model("base")[0])).abs().max() > 1e-3


def test_a_base_beside_its_adapters_moves_with_them(base, policy, tokenizer, tmp_path):
    """Oracle: a relative path, read after both folders have moved; without a tokenizer, the base's is read."""
    save_model(policy, tokenizer, tmp_path / "adapters", "")
    new = tmp_path / "new"
    new.mkdir()
    for folder in ("base", "adapters"):
        shutil.move(tmp_path / folder, new / folder)
    with pytest.raises(ModelError, match=r"whose base is \S*/base, but there is no folder"):
        load_model(new / "adapters")
    config = json.loads((new / "adapters" / "adapter_config.json").read_text())
    (new / "adapters" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    for file in (new / "adapters").glob("tokenizer*"):
        file.unlink()
    loaded, read = load_model(new / "adapters")
    torch.testing.assert_close(logits(loaded), logits(policy), rtol=1e-5, atol=1e-5)
    assert read("a c")["input_ids"] == load_tokenizer(new / "adapters")("a c")["input_ids"] == [3, 5]


def test_adapters_whose_base_could_not_be_found_again_are_not_saved(policy, tokenizer, tmp_path):
    """Oracle: a base made in memory, and one that was merged and so is no longer what its folder holds."""
    save_model(policy, tokenizer, tmp_path / "adapters", "")
    merged, _ = load_model(tmp_path / "adapters")
    for model in (opinionated(vocab_size=6), merged):
        with pytest.raises(ModelError, match=r"^save_model: the adapters' base has no folder.* save the base"):
            save_model(add_lora(model), tokenizer, tmp_path / "new", "")
        assert not (tmp_path / "new").exists()


def test_adapters_hidden_in_a_model_are_not_saved_as_a_whole_one(policy, tokenizer, tmp_path):
    """Oracle: a head, and the model inside; both are saved once merged."""
    head = ScalarHead(policy)
    for model in (head, policy.get_base_model()):
        with pytest.raises(ModelError, match=r"^save_model: the model has LoRA adapters inside; merge them first"):
            save_model(model, tokenizer, tmp_path / "whole", "")
    save_model(policy.merge_and_unload(), tokenizer, tmp_path / "whole", "")
    save_model(head, tokenizer, tmp_path / "head", "")


def test_scores_and_heads_see_the_adapters(policy, sequences, tmp_path, tokenizer):
    """Oracle: the merged model's, and the base's where adapters are switched off; afterwards the mode is as before."""
    save_model(policy, tokenizer, tmp_path / "adapters", "")
    plain, _ = load_model(tmp_path / "adapters")
    policy.train()
    torch.testing.assert_close(score(policy, sequences), score(plain, sequences), rtol=1e-5, atol=1e-5)
    assert policy.training
    with policy.disable_adapter(), evaluating(policy):
        torch.testing.assert_close(score(policy, sequences), score(opinionated(vocab_size=6), sequences))
    heads = [ScalarHead(policy), ScalarHead(plain)]
    for head in heads:
        torch.nn.init.ones_(head.linear.weight)
    values = [head(collate(sequences)[0]) for head in heads]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)
    values[0].sum().backward()
    assert all(p.grad is None for name, p in policy.named_parameters() if "lora_" not in name)
    assert any(p.grad is not None for name, p in policy.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0, expected at least 1"),
        ({"alpha": 0.0}, "alpha is 0.0, expected a positive number"),
        ({"targets": ["c_attn", "q_proj"]}, "targets q_proj match no linear map .* has c_attn, c_proj, c_fc, lm_head"),
        ({"targets": r".*\.q_proj"}, r"targets \.\*\\\.q_proj match no linear map"),
        ({"targets": ["wte"]}, "targets wte match no linear map"),
        ({"targets": []}, "targets are none and match no linear map"),
    ],
)
def test_adapters_that_cannot_be(arguments, message):
    """Oracle: the message names the argument and what there is; the model is as it was."""
    model = opinionated(vocab_size=6)
    with pytest.raises(ValueError, match=f"^add_lora: {message}"):
        add_lora(model, **arguments)
    assert all(p.requires_grad for p in model.parameters())
    policy = add_lora(model, targets=r".*\.c_attn")
    assert sum("lora_A" in name for name, _ in policy.named_parameters()) == 2
    with pytest.raises(ValueError, match=r"^add_lora: the model has adapters already"):
        add_lora(model)
