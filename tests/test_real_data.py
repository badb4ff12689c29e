"""From people's dialogues to a trained model by the command alone: check, clean, train, adapters, load.

DAPEDU_HH_RLHF=…/harmless-base-test.jsonl.gz runs it on Anthropic's hh-rlhf, whose offensive text is neither kept here
nor shown; without it, on a dozen dialogues of the same format that were written for this test.
"""

import gzip
import json
import math
import os
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dapedu.cli import main
from dapedu.data import load_preferences, save_records
from dapedu.models import load_model, save_model, tiny_gpt2

REAL = os.environ.get("DAPEDU_HH_RLHF")
SOURCE = Path(REAL or Path(__file__).with_name("hh_fixture.jsonl"))


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """A tokenizer that knows the dialogues' letters, and a model that knows nothing."""
    folder = tmp_path_factory.mktemp("real")
    opened = gzip.open if SOURCE.suffix == ".gz" else open
    with opened(SOURCE, "rt", encoding="utf8") as file:
        texts = [json.loads(line)["chosen"] for line in file]
    bytes_of = Tokenizer(models.BPE())
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bytes_of.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_of, eos_token="<eos>")
    model = tiny_gpt2("tiny", vocab_size=len(tokenizer), n_positions=256, eos_token_id=tokenizer.eos_token_id)
    save_model(model, tokenizer, folder / "model", card="Random weights.\n")
    return folder


def run(*words: str) -> None:
    assert main([str(word) for word in words]) == 0


def test_check_says_what_can_be_used_and_keeps_it(session, capsys):
    """Oracle: the number of lines, and what the loader makes of the file that is written."""
    clean = session / "clean.jsonl"
    status = main(["data", "check", str(SOURCE), "--tokenizer", str(session / "model"), "--output", str(clean)])
    report = capsys.readouterr().out
    assert status == (1 if REAL else 0)  # four completions of the real file are empty
    usable = len(load_preferences(clean))
    assert usable == (2308 if REAL else len(SOURCE.read_text(encoding="utf8").splitlines()))
    assert re.search(rf"^ *{usable:,}  implicit prompt, hh-rlhf dialogues$", report, re.MULTILINE)
    assert "rejected" in report[report.index("tokens") :]


@pytest.mark.parametrize("adapters", [(), ("--lora-rank", "4")], ids=["all weights", "lora"])
def test_a_short_run_of_dpo(adapters, session, tmp_path, capsys):
    """Oracle: pairs that the model is trained on are told apart better than by a coin (log 2) at the end."""
    clean = tmp_path / "clean.jsonl"
    main(
        ["data", "check", str(SOURCE), "--tokenizer", f"{session}/model", "--max-length", "256", "--output", str(clean)]
    )
    records = load_preferences(clean)[:200]
    save_records(tmp_path / "train.jsonl", records[:-4])
    save_records(tmp_path / "held_out.jsonl", records[-4:])
    words = ["train", "--method", "dpo", "--model", session / "model", "--data", tmp_path / "train.jsonl", "--quiet"]
    words += ["--held-out", tmp_path / "held_out.jsonl", "--max-length", 256, "--batch-size", 8, "--steps", 60]
    words += ["--lr", 3e-3, "--warmup", 5, "--kl-samples", 8, "--output", tmp_path / "run", *adapters]
    capsys.readouterr()
    run(*words)
    last = dict(re.findall(r"(\w+) (-?[\d.e+-]+)", capsys.readouterr().out.splitlines()[0]))
    assert float(last["loss"]) < math.log(2) - 0.03
    assert float(last["margin"]) > 0
    assert {"held_out_loss", "kl"} <= set(last)
    model, tokenizer = load_model(tmp_path / "run" / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ids = tokenizer("Human: hello", return_tensors="pt")["input_ids"]
    assert (model(ids).logits - again(ids).logits).abs().max() < 1e-4
