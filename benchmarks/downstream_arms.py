"""The ways to train a classifier that `downstream.py` compares; it starts one process of this file for each.

A process answers each line of JSON that it reads: for ``{"case": "lora radiology", "steps": 2}`` it does three
optimizer steps of 16 notes and times two: the first finds the memory as the case before left it, which no training
does. All ways read the same notes in the same batches, drawn at random from all lengths.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH = 16
SPECS = ("lora", "clinical-frozen+lora")


class Trainer:
    """A way's model of one spec on one kind of notes."""

    def __init__(self, work: Path, spec: str, kind: str) -> None:
        from downstream_notes import TASK

        from clinstack.notes.read import read_examples
        from clinstack.recipe import AdapterRecipe, FinetuneRecipe, TrainingRecipe

        adapters = [AdapterRecipe(name="task")]
        if spec.startswith("clinical"):
            adapters.insert(0, AdapterRecipe(name="clinical", path=str(work / "clinical")))
        folder = work / kind / "examples" / TASK
        self.recipe = FinetuneRecipe(
            run="-",
            base=str(work / "model"),
            examples=str(folder),
            adapters=tuple(adapters),
            training=TrainingRecipe(batch_size=BATCH, epochs=1000, tracking="none"),
        )
        self.task, self.examples = read_examples(folder)
        self.notes = len(self.examples["train"].texts)

    def step(self, batch: list[int]) -> float:
        """Do an optimizer step on some training notes, and return their mean loss."""
        raise NotImplementedError

    def loss(self, batch: list[int]) -> Any:
        """Return the mean loss of some training notes, to differentiate."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """Return what trains, by the names of clinstack's network."""
        raise NotImplementedError


class Padded(Trainer):
    """The published loop: every note padded to 512."""

    def __init__(self, work: Path, spec: str, kind: str) -> None:
        super().__init__(work, spec, kind)
        import torch
        from published_classifier import Padded as PaddedSplit
        from published_classifier import Trainer as Published
        from published_classifier import build
        from transformers import AutoTokenizer

        torch.manual_seed(0)
        model = build(self.recipe.base, self.recipe.adapters, self.task)
        tokenizer = AutoTokenizer.from_pretrained(self.recipe.base)
        texts = self.examples["train"].texts
        width = self.recipe.max_tokens
        self.pieces = [torch.tensor(ids) for ids in tokenizer(texts, truncation=True, max_length=width)["input_ids"]]
        labels = torch.tensor(self.examples["train"].labels)
        split = PaddedSplit.of(self.pieces, labels, width, tokenizer.pad_token_id)
        self.published = Published(self.recipe, self.task, model, {"train": split})

    def step(self, batch: list[int]) -> float:
        """Do a step of the published loop, with this way's inputs."""
        return self.published.step([batch], 1000 * self.notes // BATCH)

    def loss(self, batch: list[int]) -> Any:
        """Return the mean loss with class weights."""
        return self.published.loss(batch)

    def parameters(self) -> dict[str, Any]:
        """Return what trains, without the names that PEFT puts in front."""
        named = self.published.model.named_parameters()
        return {name.removeprefix("base_model.model."): value for name, value in named if value.requires_grad}


class Dynamic(Padded):
    """The same, padded to the longest note of the batch."""

    def __init__(self, work: Path, spec: str, kind: str) -> None:
        super().__init__(work, spec, kind)
        self.published.loss = self.loss  # type: ignore[method-assign]

    def loss(self, batch: list[int]) -> Any:
        """Return the mean loss of inputs that are cut to the longest note."""
        split = self.published.splits["train"]
        inputs = split.inputs(batch)
        width = int(inputs["attention_mask"].sum(1).max())
        logits = self.published.model(**{name: value[:, :width] for name, value in inputs.items()}).logits
        return self.published.loss_of(logits, split.labels[batch])


class Dense(Dynamic):
    """One row without padding as transformers' DataCollatorWithFlattening makes it.

    Without FlashAttention transformers then hides the other notes with a mask of all pairs.
    """

    def __init__(self, work: Path, spec: str, kind: str) -> None:
        from transformers import DataCollatorWithFlattening

        super().__init__(work, spec, kind)
        self._flatten = DataCollatorWithFlattening(return_position_ids=True, return_tensors="pt")

    def loss(self, batch: list[int]) -> Any:
        """Return the mean loss; the head reads the last token of each note, which no class of transformers does."""
        import torch

        pieces = [self.pieces[index].tolist() for index in batch]
        row = self._flatten([{"input_ids": piece, "labels": piece} for piece in pieces])
        model = self.published.model.get_base_model()
        inputs = {"input_ids": row["input_ids"], "position_ids": row["position_ids"]}
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1
        return self.published.loss_of(model.score(hidden[0, ends]), self.published.splits["train"].labels[batch])


class Clinstack(Trainer):
    """`clinstack finetune`: its stack, its objective, its optimizer step."""

    def __init__(self, work: Path, spec: str, kind: str) -> None:
        super().__init__(work, spec, kind)
        self.stack, self.objective, self._step = open_objective(self.recipe)

    def step(self, batch: list[int]) -> float:
        """Do one step as the trainer of all stages does."""
        return self._step(batch)

    def loss(self, batch: list[int]) -> Any:
        """Return the mean loss."""
        total, weight = self.objective.loss(batch)
        return total / weight

    def parameters(self) -> dict[str, Any]:
        """Return what trains."""
        return dict(self.stack.trainable_parameters())


def open_objective(recipe: Any) -> tuple[Any, Any, Callable[[list[int]], float]]:
    """Return the stack and the objective that `clinstack finetune` would train, and one step of its trainer."""
    from clinstack.engine.checkpoint import TrainingState
    from clinstack.engine.classification import EncodedExamples
    from clinstack.engine.optimizer import build_optimizer
    from clinstack.engine.step import compute_gradients
    from clinstack.model.reading import Reading
    from clinstack.model.stack import Stack
    from clinstack.notes.read import read_examples
    from clinstack.stages.finetune import FinetuneObjective

    task, examples = read_examples(Path(recipe.examples))
    stack = Stack.build(recipe.base, recipe.adapters, task, seed=recipe.training.seed, dtype=recipe.dtype)
    stack.reading = Reading.of(recipe)
    encoded = {name: EncodedExamples(stack, task, split) for name, split in examples.items()}
    objective = FinetuneObjective(stack, task, recipe, encoded, examples)
    optimizer = build_optimizer(stack, recipe.training)
    state = TrainingState(without_gradient=sorted(stack.trainable_parameters()))

    def step(batch: list[int]) -> float:
        loss, _ = compute_gradients(stack, state, recipe.training, objective, [batch])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return stack, objective, step


class ClinstackCompiled(Clinstack):
    """The same with training.compile."""

    def __init__(self, work: Path, spec: str, kind: str) -> None:
        super().__init__(work, spec, kind)
        importlib.import_module("clinstack.engine.compile").compile_layers(self.stack)


WAYS: dict[str, Callable[[Path, str, str], Trainer]] = {
    "padded to 512": Padded,
    "dynamic padding": Dynamic,
    "flat, dense mask": Dense,
    "clinstack": Clinstack,
    "clinstack compiled": ClinstackCompiled,
}


def make(work: Path, model: dict[str, int], folders: dict[str, tuple[str, dict[str, int]]]) -> None:
    """Write the random base, a clinical LoRA of it, and folders of Notes: each with its lengths and its counts."""
    from downstream_notes import write_clinical, write_notes
    from pretraining_arms import Setting, make_work
    from transformers import AutoTokenizer

    make_work(work, model, 0, Setting())
    write_clinical(work / "model", work / "clinical")
    vocabulary = AutoTokenizer.from_pretrained(work / "model").get_vocab()
    words = sorted(word for word in vocabulary if word.startswith("w"))
    for name, (lengths, counts) in folders.items():
        write_notes(work / name, lengths, words, counts)


def largest_difference(work: Path, spec: str, kind: str, ways: list[str]) -> dict[str, float]:
    """Compare loss and gradients of the ways on one batch.

    Returns
    -------
    dict
        For each way the largest relative difference, of the loss or of a tensor's gradient, from the padded way.
    """
    import torch

    reference: tuple[float, dict[str, torch.Tensor]] | None = None
    start: dict[str, torch.Tensor] = {}
    found = {}
    for name in ["padded to 512", *ways]:
        trainer = WAYS[name](work, spec, kind)
        parameters = {key.replace(".modules_to_save.task", ""): value for key, value in trainer.parameters().items()}
        if reference is None:
            generator = torch.Generator().manual_seed(1)
            # A new LoRA's B is zero, and A then has no gradient to compare.
            start = {
                key: value.detach() + 0.01 * torch.randn(value.shape, generator=generator)
                for key, value in parameters.items()
            }
        if parameters.keys() != start.keys():
            raise ValueError(f"{name} trains other tensors: {sorted(parameters.keys() ^ start.keys())[:3]}")
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(start[key])
        loss = trainer.loss(list(range(BATCH)))
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        if reference is None:
            reference = (loss.item(), gradients)
            continue
        differences = [abs(loss.item() / reference[0] - 1)]
        for key, gradient in gradients.items():
            differences.append(float((gradient - reference[1][key]).norm() / reference[1][key].norm()))
        found[name] = max(differences)
    return found


def batches_of(notes: int) -> Iterator[list[int]]:
    """Yield the batches of all ways, over and over."""
    return itertools.cycle(list(range(at, at + BATCH)) for at in range(0, notes - BATCH + 1, BATCH))


def import_all() -> None:
    """Import what the ways import, which is no part of their work."""
    for name in ("torch", "peft", "published_classifier", "clinstack.stages.finetune"):
        importlib.import_module(name)


def take_turns(way: str, work: Path) -> None:
    """Answer questions until there are no more."""
    # Whatever libraries print goes to stderr; answers go where stdout was.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_all()
    answers.write(json.dumps({"ready": True}) + "\n")
    trainers: dict[str, Trainer] = {}
    batches: dict[str, Iterator[list[int]]] = {}
    for line in sys.stdin:
        question = json.loads(line)
        case = question["case"]
        if case not in trainers:
            spec, kind = case.split()
            trainers[case] = WAYS[way](work, spec, kind)
            batches[case] = batches_of(trainers[case].notes)
        trainers[case].step(next(batches[case]))
        wall, cpu = time.perf_counter(), time.process_time()
        loss = 0.0
        for batch in itertools.islice(batches[case], question["steps"]):
            loss = trainers[case].step(batch)
        answer = {"notes": question["steps"] * BATCH, "loss": loss}
        answer |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(folder, json.loads(sys.argv[3]), json.loads(sys.argv[4]))
    elif sys.argv[1] == "check":
        print(json.dumps(largest_difference(folder, sys.argv[3], sys.argv[4], sys.argv[5:])))
    else:
        take_turns(sys.argv[1], folder)
