"""Several processes take the steps of one: two of them on the CPU, started by torchrun and by accelerate."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dapedu.cli import main
from dapedu.data import save_records
from dapedu.models import load_model, save_model
from tests.train_cases import RECORDS, WORDS, weights
from tests.words import opinionated, word_tokenizer

ALONE = ["-m", "dapedu"]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29555", *ALONE],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29556", *ALONE),
    ],
}
# 33 pairs, 8 a step: the last batch of an epoch is a single pair, which leaves one process without any.
STEPS, OPTIONS = 15, "--batch-size 8 --parts 3 --lr 1e-3 --warmup 0 --log-every 1 --evaluate-every 5"
DPO = "train --method dpo --beta 0.5 --kl-samples 16"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A model, pairs, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("processes")
    save_model(opinionated(vocab_size=9), word_tokenizer(WORDS), folder / "model", card="A model.\n")
    save_records(folder / "pairs.jsonl", RECORDS["preferences"][:33])
    save_records(folder / "held_out.jsonl", RECORDS["preferences"][33:])
    run(folder, ALONE, "one")
    return folder


def run(start: Path, launcher: list[str], output: str, *more: str, command: str = DPO) -> None:
    words = f"{command} --model model --data pairs.jsonl --held-out held_out.jsonl"
    words += f" --output {output} --steps {STEPS} --checkpoint-every 5 --quiet {OPTIONS}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, *launcher, *words.split(), *more], cwd=start, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"wrote {output}/model") == 1  # by the first process alone


def log_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, STEPS + 1)]
    # The accuracy counts signs, which at the first step are those of rounding.
    left_out = ("tokens_s", "accuracy")
    return [{name: float(value) for name, value in row.items() if value and name not in left_out} for row in rows]


def assert_alike(one: Path, two: Path) -> None:
    """Up to rounding: sums are in another order, which Adam makes larger and the steps then carry on."""
    for expected, actual in zip(log_of(one), log_of(two), strict=True):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)
    (expected, _), (actual, _) = load_model(one / "model"), load_model(two / "model")
    for (name, value), other in zip(weights(expected).items(), weights(actual).values(), strict=True):
        torch.testing.assert_close(other, value, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_are_one(launcher, start):
    """Oracle: one process on the same global batches; a log with more than losses, KL and held-out records included."""
    run(start, LAUNCHERS[launcher], launcher)
    assert {"loss", "grad_norm", "held_out_margin", "kl"} <= set(log_of(start / launcher)[-1])
    assert_alike(start / "one", start / launcher)


def test_two_processes_train_a_reward_model_as_one(start):
    """Oracle: one process; all rewards are a number off, which the loss does not see and rounding decides."""
    for launcher, output in ((ALONE, "reward"), (LAUNCHERS["torchrun"], "rewards")):
        run(start, launcher, output, command="reward")
    levels = ("chosen", "rejected", "held_out_chosen", "held_out_rejected")
    one, two = (
        [{name: value for name, value in row.items() if name not in levels} for row in log_of(start / output)]
        for output in ("reward", "rewards")
    )
    for expected, actual in zip(one, two, strict=True):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert one[-1]["held_out_loss"] != one[4]["held_out_loss"]


def test_two_processes_go_on_with_what_one_left(start):
    """Oracle: the run of one process; from its checkpoint at step 10 two go on."""
    shutil.copytree(start / "one", start / "resumed")
    shutil.rmtree(start / "resumed" / "model")
    (start / "resumed" / f"checkpoint-{STEPS:08}.safetensors").unlink()
    run(start, LAUNCHERS["torchrun"], "resumed", "--resume")
    assert_alike(start / "one", start / "resumed")


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED"])
def test_what_cuts_a_model_to_pieces_is_refused_before_anything_is_written(plugin, start, monkeypatch, capsys):
    """Oracle: no folder; the message says what to do instead. The variable is what accelerate launch sets."""
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    monkeypatch.chdir(start)
    words = "train --method dpo --model model --data pairs.jsonl --output refused --steps 1 --quiet"
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    assert f"started with {plugin}, but each process here needs the whole model" in capsys.readouterr().err
    assert not (start / "refused").exists()
