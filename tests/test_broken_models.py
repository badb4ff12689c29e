"""Model folders that cannot be used: one line each, and a model or that line whatever happens to a folder's bytes."""

import argparse
import json
import os
import random
import re
import shutil
import time
import warnings

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

from dapedu.cli import inputs
from dapedu.models import ModelError, ScalarHead, add_lora, load_head, load_model, load_tokenizer, save_model
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

CODE = {"auto_map": {"AutoModelForCausalLM": "theirs.Theirs", "AutoTokenizer": ["theirs.Tokens", None]}}
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "hidden_size": 8}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer("a b c")


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_model(opinionated(vocab_size=6), tokenizer, folder, "# whole")
    return folder


@pytest.fixture(scope="module")
def adapter(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    base, tokenizer = load_model(whole)
    save_model(add_lora(base, rank=2), tokenizer, folder, "# adapter")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def edit(path, **changes):
    """Set keys of a JSON object; None takes a key away."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def weights(folder, change):
    """Rewrite the weights after a change of their dictionary."""
    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder):
    """The same weights in two files."""
    content = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, key in enumerate(content)}
    for file in set(names.values()):
        save_file({key: content[key] for key in names if names[key] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def lack_a_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def lack_a_map(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')


def be_another(model, folder):
    """The folder of a model that is no language model, with our tokenizer."""
    for file in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / file).unlink(missing_ok=True)
    model.save_pretrained(folder)


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config cut": (lambda f: cut(f / "config.json"), "has a damaged config.json, which is no JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "has a damaged config.json, which holds a list"),
    "config bytes": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe"),
        "has a damaged config.json, which is no JSON",
    ),
    "config empty": (lambda f: (f / "config.json").write_text("{}"), "has a config.json without model_type"),
    "unknown type": (
        lambda f: edit(f / "config.json", model_type="gpt99"),
        "has a config.json of model_type 'gpt99'",
    ),
    "wrong value": (lambda f: edit(f / "config.json", n_head="four"), "has a config.json that .* cannot read"),
    "heads that do not divide": (
        lambda f: edit(f / "config.json", n_head=3),
        "has a config.json of which transformers makes no model",
    ),
    "far longer": (lambda f: edit(f / "config.json", n_positions=10**9), "has 28 tensors of .* a far larger model"),
    "far deeper": (lambda f: edit(f / "config.json", n_layer=10**9), "has 28 tensors of .* a far larger model"),
    "generation config": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "has a damaged generation_config.json, which is no JSON",
    ),
    "T5": (
        lambda f: be_another(
            T5ForConditionalGeneration(T5Config(vocab_size=6, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)), f
        ),
        "holds a t5 model, which is no causal language model",
    ),
    "ViT": (
        lambda f: be_another(ViTModel(ViTConfig(**SMALL, image_size=4, patch_size=2)), f),
        "holds a vit model, which is no causal language model",
    ),
    "BERT": (
        lambda f: be_another(BertForMaskedLM(BertConfig(**SMALL, vocab_size=6)), f),
        "holds a bert model, which is no causal language model",
    ),
    "code": (lambda f: edit(f / "config.json", **CODE), r"has a config.json that asks for Python code .*never run"),
    "code of an unknown type": (
        lambda f: edit(f / "config.json", **CODE, model_type="theirs"),
        r"has a config.json that asks for Python code",
    ),
    "tokenizer's code": (
        lambda f: edit(f / "tokenizer_config.json", **CODE),
        "has a tokenizer_config.json that asks for Python code",
    ),
    "an attention's code": (
        lambda f: edit(f / "config.json", attn_implementation="owner/attention"),
        r"has a config.json that asks for Python code of its own \(attn_implementation\)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights, expected model.safetensors$"),
    "renamed weights": (
        lambda f: (f / "model.safetensors").rename(f / "mine.safetensors"),
        "has no weights, expected model.safetensors; it has mine.safetensors",
    ),
    "pickles": (pickled, "has its weights as pytorch_model.bin; only safetensors are read"),
    "weights cut": (lambda f: cut(f / "model.safetensors"), "has a damaged model.safetensors;"),
    "weights garbage": (
        lambda f: (f / "model.safetensors").write_bytes(bytes(range(256)) * 9),
        "has a damaged model.safetensors;",
    ),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "has a damaged model.safetensors;"),
    "no shard": (lack_a_shard, "has no model-00002-of-00002.safetensors, which its model.safetensors.index.json"),
    "no map": (lack_a_map, "has a damaged model.safetensors.index.json, without a weight_map"),
    "wider": (
        lambda f: edit(f / "config.json", n_embd=32),
        r"has weights that do not fit its config.json: \S+ has shape \(192,\), expected \(96,\) \(28 in all",
    ),
    "deeper": (
        lambda f: edit(f / "config.json", n_layer=3),
        r"has no weights for 12 of its model's parameters: transformer.h.2.attn.c_attn.bias, .*…; they would be random",
    ),
    "a weight less": (
        lambda f: weights(f, lambda content: content.pop("transformer.ln_f.weight")),
        r"has no weights for 1 of its model's parameters: transformer.ln_f.weight;",
    ),
    "no embedding": (
        lambda f: weights(f, lambda content: content.pop("transformer.wte.weight")),
        r"has no weights for \d of its model's parameters: .*transformer.wte.weight",
    ),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "has no tokenizer; write it there with tokenizer.save_pretrained",
    ),
    "a tokenizer's settings alone": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer; write it there"),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json"), "has a tokenizer that transformers cannot read"),
    "tokenizer config cut": (
        lambda f: cut(f / "tokenizer_config.json"),
        "has a damaged tokenizer_config.json, which is no JSON",
    ),
    "no end": (
        lambda f: edit(f / "tokenizer_config.json", eos_token=None),
        "has a tokenizer without an end-of-sequence token.* set tokenizer.eos_token",
    ),
    "too many tokens": (
        lambda f: word_tokenizer("a b c d").save_pretrained(f),
        "has a tokenizer of 7 tokens and a model of 6; .*resize_token_embeddings",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line(case, folder, monkeypatch, capfd, caplog):
    """Oracle: the message, which names function and folder, is one line, and comes alone and within a second.

    Nothing is asked at the keyboard, which is closed.
    """
    spoil, message = BROKEN[case]
    spoil(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks at the keyboard"))
    capfd.readouterr()
    start = time.perf_counter()
    with pytest.raises(ModelError, match=f"^load_model: {folder} {message}") as caught:
        load_model(folder)
    assert time.perf_counter() - start < 1
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    "case", ["no tokenizer", "tokenizer cut", "tokenizer config cut", "tokenizer's code", "code", "no end"]
)
def test_a_tokenizer_alone_is_refused_likewise(case, folder):
    """Oracle: the same message under the other function's name."""
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ModelError, match=f"^load_tokenizer: {folder} {message}"):
        load_tokenizer(folder)


def test_a_tokenizer_needs_no_weights(folder):
    """Oracle: a folder without them, and a chat template that comes along."""
    (folder / "model.safetensors").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("a c")["input_ids"] == [3, 5]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "b"}], tokenize=False) == "b"


@pytest.mark.parametrize("case", ["no config", "code", "weights cut", "deeper", "wider", "tokenizer cut"])
def test_a_broken_head_is_refused_likewise(case, tokenizer, tmp_path):
    """Oracle: the same message under the other function's name."""
    folder = tmp_path / "head"
    save_model(ScalarHead(opinionated(vocab_size=6)), tokenizer, folder, "")
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ModelError, match=f"^load_head: {folder} {message.replace('transformer.h', 'h')}"):
        load_head(folder)


@pytest.mark.parametrize("linear", [{"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}, None])
def test_a_head_that_does_not_fit(linear, tokenizer, tmp_path):
    """Oracle: a map of another width, and a file of garbage."""
    folder = tmp_path / "head"
    save_model(ScalarHead(opinionated(vocab_size=6)), tokenizer, folder, "")
    if linear:
        save_file(linear, folder / "scalar_head.safetensors")
    else:
        (folder / "scalar_head.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=f"^load_head: {folder} has a scalar_head.safetensors that does not fit"):
        load_head(folder)


def test_fewer_tokens_than_rows_are_fine_and_so_are_shards(folder, tokenizer):
    """Oracle: the model comes back, as it was in one file; a vocabulary is often padded to a round number."""
    expected = load_model(folder)[0].state_dict()
    shard(folder)
    word_tokenizer("a b").save_pretrained(folder)
    model, read = load_model(folder)
    assert len(read) == 5
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_weights_that_no_parameter_takes_are_told_and_the_model_is_read(folder, caplog):
    """Oracle: transformers' own warning, which is held back only where an error says it."""
    weights(folder, lambda content: content.update(stranger=torch.zeros(2)))
    load_model(folder)
    assert "stranger" in caplog.text


# ---- names ----


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/model", "", "two words"])
def test_what_is_neither_a_folder_nor_a_hub_name(name):
    """Oracle: the message names it, and nothing is asked of any hub."""
    with pytest.raises(ModelError, match=f"^load_model: there is no folder {name}; expected one, or a hub name"):
        load_model(name)


def test_a_file_is_no_folder(folder):
    """Oracle: the weights' own path."""
    with pytest.raises(ModelError, match=r"model.safetensors is a file, expected the folder that holds it$"):
        load_model(folder / "model.safetensors")


def answer(status):
    httpx2 = huggingface_hub.utils._http.httpx2
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://example.org"))
    return {
        403: GatedRepoError("Access is restricted.\nLog in.", response=response),
        404: RepositoryNotFoundError("404 Client Error\nRepository Not Found", response=response),
    }[status]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (403, "is gated: ask for access on its page there, then run hf auth login"),
        (404, "is unknown, or private: mend the name, or run hf auth login"),
        (OSError("disk\nfull"), "cannot be fetched: OSError: disk"),
    ],
)
def test_what_the_hub_refuses(problem, message, monkeypatch):
    """Oracle: huggingface_hub's own exceptions, in one line."""

    def refuse(*_, **__):
        raise answer(problem) if isinstance(problem, int) else problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=f"as a name on the Hugging Face hub it {message}$"):
            load("owner/name")


def test_without_a_network_the_hub_is_out_of_reach(tmp_path, monkeypatch):
    """Oracle: huggingface_hub offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"no folder gpt2, .* not in this machine's cache, and the hub cannot be"):
        load_model("gpt2")


def test_a_hub_name_is_read_from_the_cache(whole, tmp_path, monkeypatch):
    """Oracle: a cache laid out as huggingface_hub does; an adapter of that model names it by its hub name.

    peft would warn that it cannot ask the hub about the base when the adapter is saved.
    """
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    shutil.copytree(whole, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model, tokenizer = load_model("owner/name")
    assert torch.equal(model.transformer.wte.weight, load_model(whole)[0].transformer.wte.weight)
    assert load_tokenizer("owner/name")("b")["input_ids"] == [4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(add_lora(model), tokenizer, tmp_path / "adapter", "")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "owner/name"
    )
    load_model(tmp_path / "adapter")


def test_a_command_takes_a_models_folder_a_runs_or_a_name(whole, tmp_path, capsys):
    """Oracle: weights and tokens of the model's folder; one line and status 2 for what is none of them."""
    run = tmp_path / "run"
    shutil.copytree(whole, run / "model")
    options = argparse.Namespace(parser=argparse.ArgumentParser("dapedu it"))
    for name in (whole, run):
        model, tokenizer = inputs.load(options, str(name))
        assert torch.equal(model.transformer.wte.weight, opinionated(vocab_size=6).transformer.wte.weight)
        assert tokenizer("a c")["input_ids"] == inputs.load_tokenizer(options, str(name))("a c")["input_ids"] == [3, 5]
    for load in (inputs.load, inputs.load_tokenizer):
        with pytest.raises(SystemExit, match="2"):
            load(options, "no/such/model")
        assert re.fullmatch(r"dapedu it: load_\w+: there is no folder no/such/model; .*\n", capsys.readouterr().err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "."])
def test_what_may_not_be_read(name, folder):
    """Oracle: permissions taken away; the message names the folder."""
    (folder / name).chmod(0)
    try:
        with pytest.raises(ModelError, match=f"^load_model: {folder} "):
            load_model(folder)
    finally:
        (folder / name).chmod(0o700)


# ---- adapters ----


def pickled_adapter(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def drop_a_matrix(folder):
    content = load_file(folder / "adapter_model.safetensors")
    content.pop(min(content))
    save_file(content, folder / "adapter_model.safetensors")


ADAPTERS = {
    "config cut": (lambda f: cut(f / "adapter_config.json"), "has a damaged adapter_config.json, which is no JSON"),
    "another kind": (
        lambda f: edit(f / "adapter_config.json", peft_type="IA3"),
        "holds an adapter of type 'IA3', expected LORA",
    ),
    "no base": (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path=None),
        "names no base; write its folder as base_model_name_or_path in adapter_config.json",
    ),
    "lost base": (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path="/gone/base"),
        "holds adapters whose base is /gone/base, but there is no folder /gone/base.* write where it is now",
    ),
    "its own base": (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path="."),
        "holds adapters whose base . is itself an adapter",
    ),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no weights, expected adapter_model.safe"),
    "pickles": (pickled_adapter, "has its weights as adapter_model.bin; only safetensors are read"),
    "weights cut": (lambda f: cut(f / "adapter_model.safetensors"), "has a damaged adapter_model.safetensors;"),
    "another rank": (lambda f: edit(f / "adapter_config.json", r=3), "holds adapters that peft cannot add to"),
    "a matrix less": (drop_a_matrix, "has an adapter_config.json and an adapter_model.safetensors that do not fit"),
    "a huge rank": (lambda f: edit(f / "adapter_config.json", r=10**12), "holds adapters that peft cannot add to"),
    "fewer targets": (
        lambda f: edit(f / "adapter_config.json", target_modules=["c_attn"]),
        "has an adapter_config.json and an adapter_model.safetensors that do not fit",
    ),
    "no such target": (
        lambda f: edit(f / "adapter_config.json", target_modules=["q_proj"]),
        "holds adapters that peft cannot add to",
    ),
    "a model too": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors"),
        r"holds both a whole model and an adapter",
    ),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_broken_adapter_is_one_line(case, adapter, tmp_path, recwarn, capfd, caplog):
    """Oracle: the message, which names function and folder, and comes alone."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    spoil, message = ADAPTERS[case]
    spoil(folder)
    with pytest.raises(ModelError, match=f"^load_model: {folder} {message}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list


def test_a_broken_base_is_named(adapter, whole, tmp_path):
    """Oracle: the message names the base's folder, which is what has to be mended."""
    base = shutil.copytree(whole, tmp_path / "base")
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    edit(folder / "adapter_config.json", base_model_name_or_path="../base")
    load_model(folder)
    cut(base / "model.safetensors")
    with pytest.raises(ModelError, match=r"^load_model: \S*base has a damaged model.safetensors;"):
        load_model(folder)


# ---- bytes ----


def harm(path, generator):
    """Delete a file, cut it short, or change up to eight of its bytes."""
    content = bytearray(path.read_bytes())
    how = generator.choice(["delete", "cut", "flip", "flip", "flip", "flip"])
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: generator.randrange(len(content))])
    else:
        # Half of the harm is done in the first kilobyte, where the weights' file says what it holds.
        reach = generator.choice([min(1024, len(content)), len(content)])
        for _ in range(generator.randint(1, 8)):
            content[generator.randrange(reach)] ^= generator.randint(1, 255)
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_whatever_happens_to_a_file_a_model_or_one_line_comes(kind, request, tmp_path):
    """Oracle: 300 folders of each kind with a file deleted, cut or altered: a model, or a ModelError naming a folder.

    Numbers of the weights, or letters of a word, cannot be seen to have changed, and a card may be lost; so about a
    third of the folders are read.
    """
    generator = random.Random(5)
    original = request.getfixturevalue(kind)
    files = sorted(file.name for file in original.iterdir() if file.name != "README.md")
    contents = {name: (original / name).read_bytes() for name in files}
    outcomes = []
    for case in range(300):
        folder = tmp_path / "model"
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        harm(folder / files[case % len(files)], generator)
        try:
            load_model(folder)
            outcomes.append("")
        except ModelError as problem:
            outcomes.append(str(problem))
        shutil.rmtree(folder)
    assert all(str(folder) in message and "\n" not in message for message in outcomes if message)
    assert 15 < outcomes.count("") < 150
