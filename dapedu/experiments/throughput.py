"""How fast `dapedu` trains, beside TRL's DPOTrainer on the same model, data, batches and precision.

Each run has a process of its own and begins with a few untimed steps, so that neither imports nor first calls count.
Then the clock runs from records in memory to trained weights: tokens, reference, steps, log. TRL is in the extra
`test`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dapedu import reviews
from dapedu.data import Record, load_preferences
from dapedu.evaluate import mean_interval
from dapedu.experiments.units import RESULTS
from dapedu.models import load_model, save_model, tiny_gpt2
from dapedu.train import METHODS, Examples, Settings, batches_of_epoch, train_preference
from dapedu.train.loop import learning_rate
from dapedu.train.monitor import measure, scores_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINERS = ("dapedu", "TRL, precomputed", "TRL")  # TRL's default scores the reference again at every step
_BETA = 0.5


# Words at these quantiles of hh-rlhf's harmless-base test split: lengths as people's dialogues have them.
_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_WORDS = {
    "prompt": (4, 11, 21, 64, 118, 197, 406),
    "chosen": (1, 6, 11, 21, 41, 70, 144),
    "rejected": (1, 7, 13, 27, 51, 84, 193),
}


class Case(NamedTuple):
    """One run: who trains on what, on how many threads, in which order."""

    trainer: str
    folder: str  # of the starting model
    data: str  # "reviews", or "dialogues": nonsense of the lengths that people's dialogues have
    threads: int
    pairs: int
    steps: int
    seed: int
    own_order: bool  # whether TRL shuffles by itself, or reads dapedu's batches


def throughput(
    *,
    size: str = "small",
    pairs: Sequence[tuple[str, int]] = (("reviews", 512), ("dialogues", 128)),
    epochs: int = 2,
    threads: Sequence[int] = (1, 2),
    repeats: int = 3,
    seeds: int = 5,
) -> dict[str, Any]:
    """Seconds from records to trained weights, dapedu beside TRL: the same batches, then as a user runs them."""
    with TemporaryDirectory() as folder:
        tokenizer = reviews.make_tokenizer()
        model = tiny_gpt2(size, vocab_size=len(tokenizer), n_positions=640, pad_token_id=0, eos_token_id=1)
        save_model(model, tokenizer, Path(folder) / "start", card="Random weights.\n")

        def case(data: str, **changes: Any) -> Case:
            n = dict(pairs)[data]
            steps = epochs * n // Settings().batch_size
            return Case("dapedu", folder, data, 1, n, steps, 0, False)._replace(**changes)

        def rounds(cases: Sequence[Case]) -> list[list[dict[str, Any]]]:
            return [[_alone(_run, one._replace(trainer=name)) for name in TRAINERS] for one in cases]

        operations = {data: _alone(_operations, case(data)) for data, _ in pairs}
        same = {
            f"{data}, {n} thread{'s' if n > 1 else ''}": _summary(
                rounds([case(data, threads=n)] * repeats), operations[data]
            )
            for data, _ in pairs
            for n in threads
        }
        own = rounds([case("reviews", seed=seed, own_order=True) for seed in range(seeds)])
    return {
        "same batches": same,
        "as a user runs it": _summary(own, operations["reviews"]) | {"held out": _held_out(own)},
        "operations": operations,  # multiplications and additions of dapedu's matrix products, its whole run
    }


def _summary(rounds: Sequence[Sequence[dict[str, Any]]], operations: int) -> dict[str, Any]:
    """Medians, and ratios within each round."""
    seconds = np.array([[run["seconds"] for run in runs] for runs in rounds])
    rate = np.median([runs[0]["matmul_rate"] for runs in rounds])
    ratios = seconds[:, 1:] / seconds[:, :1]
    return {
        "seconds": {name: [round(s, 2) for s in seconds[:, n].tolist()] for n, name in enumerate(TRAINERS)},
        "times faster than": {
            name: {"median": round(float(np.median(column)), 2), "least": round(float(column.min()), 2)}
            for name, column in zip(TRAINERS[1:], ratios.T, strict=True)
        },
        "matrix products, GFLOP/s": round(float(rate) / 1e9, 1),
        "share of that rate": round(operations / float(np.median(seconds[:, 0])) / float(rate), 3),
        "largest difference of weights": {
            name: float(f"{max(_difference(runs[0], runs[n]) for runs in rounds):.2g}")
            for n, name in enumerate(TRAINERS[1:], start=1)
        },
    }


def _held_out(rounds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Mean and half-width of the 95 % interval over seeds, and of the paired differences from dapedu."""

    def interval(values: Sequence[float]) -> list[float]:
        mean, half_width = mean_interval(torch.tensor(values), dim=0)
        return [round(mean.item(), 4), round(half_width.item(), 4)]

    found = {
        name: {key: interval([runs[n]["held_out"][key] for runs in rounds]) for key in rounds[0][n]["held_out"]}
        for n, name in enumerate(TRAINERS)
    }
    for n, name in enumerate(TRAINERS[1:], start=1):
        found[f"dapedu − {name}"] = {
            key: interval([runs[0]["held_out"][key] - runs[n]["held_out"][key] for runs in rounds])
            for key in rounds[0][0]["held_out"]
        }
    return found


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float(np.abs(value - other["weights"][name]).max()) for name, value in one["weights"].items())


def _alone(work: Callable[[Case], Any], case: Case) -> Any:
    """In a new process, so that no run meets what another one left."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, case).result()


def _run(case: Case) -> dict[str, Any]:
    torch.set_num_threads(case.threads)
    train = _train_here if case.trainer == "dapedu" else _in_silence(_train_trl)
    model, tokenizer = load_model(Path(case.folder) / "start")
    records = _records(case)
    train(model, tokenizer, records[:64], case._replace(pairs=64, steps=2))  # not timed: what is done once
    model, tokenizer = load_model(Path(case.folder) / "start")
    start = time.perf_counter()
    model = train(model, tokenizer, records, case)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "matmul_rate": _matmul_rate(),
        "held_out": _measured(model, tokenizer, case),
        "weights": {name: parameter.detach().numpy() for name, parameter in model.named_parameters()},
    }


def _settings(case: Case) -> Settings:
    return Settings(steps=case.steps, seed=case.seed)


def _train_here(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], case: Case
) -> PreTrainedModel:
    train_preference(
        model,
        tokenizer,
        records,
        method="dpo",
        strengths={"beta": _BETA},
        settings=_settings(case),
        progress=False,
    )
    return model


def _train_trl(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], case: Case
) -> PreTrainedModel:
    import datasets
    import transformers
    from torch.utils.data import Sampler
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    settings = _settings(case)

    class Order(Sampler[int]):
        """Rows in the order in which dapedu reads them, epoch after epoch."""

        epochs = itertools.count()

        def __iter__(self) -> Iterator[int]:
            batches = batches_of_epoch(
                len(records), batch_size=settings.batch_size, seed=settings.seed, epoch=next(self.epochs)
            )
            return itertools.chain(*batches)

        def __len__(self) -> int:
            return len(records)

    class Trainer(DPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return super()._get_train_sampler(dataset) if case.own_order else Order()

    with TemporaryDirectory() as output:
        config = DPOConfig(
            output_dir=output,
            beta=_BETA,
            precompute_ref_log_probs=case.trainer == "TRL, precomputed",
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            seed=case.seed,
            max_grad_norm=settings.clip,
            weight_decay=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,  # saves memory, costs time, and dapedu has none
            logging_steps=settings.log_every,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        )
        # TRL joins prompt and completion by nothing: the space is the completion's.
        dataset = datasets.Dataset.from_list([_spaced(record) for record in records])
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(settings, min(step + 1, settings.steps)) / settings.lr
        )
        trainer = Trainer(
            model,
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            optimizers=(optimizer, schedule),
        )
        trainer.train()
    return model  # trained in place


def _in_silence(work: Callable[..., Any]) -> Callable[..., Any]:
    """TRL prints what it logs, and its libraries their warnings."""

    def silent(*arguments: Any) -> Any:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            return work(*arguments)

    return silent


def _spaced(record: Record) -> Record:
    return {"prompt": record["prompt"], "chosen": " " + record["chosen"], "rejected": " " + record["rejected"]}


def _matmul_rate() -> float:
    """Operations a second of products of the shapes that training has, in float32: a batch's tokens, a block's maps."""
    tokens, narrow, wide = torch.randn(1536, 128), torch.randn(128, 512), torch.randn(512, 128)
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < 1:
        (tokens @ narrow) @ wide
        done += 2 * 2 * 1536 * 128 * 512
    return done / spent


def _operations(case: Case) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    model, tokenizer = load_model(Path(case.folder) / "start")
    records = _records(case)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counted = {attention: _attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        _train_here(model, tokenizer, records, case)
    return counter.get_total_flops()


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products as they are run, padding included; causality needs half."""
    rows, heads, tokens, width = query
    return 2 * (2 * rows * heads * tokens * key[2] * width) // 2


def _backward(gradient: Any, query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Five products: the scores once more, and four gradients."""
    return _attention(query, key) // 2 * 5


def _measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, case: Case) -> dict[str, float]:
    """Loss, margin and accuracy of the method on the validation pairs, by dapedu for each trainer."""
    from dapedu.models import score

    held_out = Examples.of(
        load_preferences(RESULTS.parent / "reviews" / "preferences-validation.jsonl"), METHODS["dpo"], tokenizer
    )
    start, _ = load_model(Path(case.folder) / "start")
    policy, reference = (score(one, held_out.sequences).view(-1, 2) for one in (model, start))
    scores = scores_of(held_out, range(len(held_out)), policy, reference)
    found = measure(METHODS["dpo"].loss(scores, beta=_BETA), scores)
    return {name: found[name] for name in ("loss", "margin", "accuracy")}


def _records(case: Case) -> list[Record]:
    if case.data == "reviews":
        return load_preferences(RESULTS.parent / "reviews" / "preferences.jsonl")[: case.pairs]
    generator = np.random.default_rng(0)
    vocabulary = sorted(filter(str.isalpha, reviews.make_tokenizer().get_vocab()))  # get_vocab has no order

    def text(field: str) -> str:
        n = round(float(np.interp(generator.random(), _QUANTILES, _WORDS[field])))
        return " ".join(generator.choice(vocabulary, n))

    return [{field: text(field) for field in _WORDS} for _ in range(case.pairs)]
