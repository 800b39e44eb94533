"""Fine-tuning a classifier as the code of Gema et al. (2023) does it, written anew on transformers and PEFT.

Every note is padded to ``max_tokens``; a frozen backbone is computed again in every epoch; after each epoch loss and
metrics are computed on all training notes too; the whole model is saved whenever the validation loss is a new low. Two
things are done as the paper describes them and not as its code does: a second adapter is active and trains (the code
leaves it out of the forward pass), and the warm-up is a share of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clinstack.recipe import AdapterRecipe, FinetuneRecipe
from clinstack.tasks import Task


def adapter_folder(path: Path) -> Path:
    """Return the PEFT folder of the only adapter in a Run or a Stack."""
    return next(file.parent for file in sorted(path.rglob("adapter_config.json")))


def build(base: str, adapters: Sequence[AdapterRecipe], task: Task) -> Any:
    """Return a classifier of transformers under the adapters, all active, exactly those of the spec trainable."""
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification

    kind = "multi_label_classification" if task.kind == "multilabel" else "single_label_classification"
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(task.classes), problem_type=kind, dtype=torch.float32, local_files_only=True
    )
    model.config.use_cache = False
    for adapter in adapters:
        wrapped = isinstance(model, PeftModel)
        if adapter.path is not None:
            folder = adapter_folder(Path(adapter.path))
            config = PeftConfig.from_pretrained(folder)
            config.task_type = None  # a language model's adapter does not open on a classifier otherwise
            if wrapped:
                model.load_adapter(folder, adapter.name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter.name, config=config)
            continue
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=adapter.target_modules
            if isinstance(adapter.target_modules, str)
            else list(adapter.target_modules),
            exclude_modules=["score"],
        )
        if wrapped:
            model.add_adapter(adapter.name, config)
        else:
            model = get_peft_model(model, config, adapter.name)
    if adapters:
        model.base_model.set_adapter([adapter.name for adapter in adapters])
    trains = [f".{adapter.name}." for adapter in adapters if adapter.is_trainable]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("score." in name or any(part in name for part in trains))
    return model


def balanced_weights(task: Task, labels: Tensor) -> Tensor | None:
    """Return scikit-learn's balanced class weights; multilabel tasks have none."""
    if task.kind == "multilabel":
        return None
    counts = torch.bincount(labels, minlength=len(task.classes)).float()
    return len(labels) / (len(counts) * counts.clamp(min=1))


@dataclass
class Padded:
    """One split, every note padded to the same length."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @classmethod
    def of(cls, pieces: Sequence[Any], labels: Tensor, width: int, filler: int) -> Padded:
        """Pad token arrays on the right."""
        ids = np.full((len(pieces), width), filler, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = piece
            mask[row, : len(piece)] = 1
        return cls(torch.from_numpy(ids), torch.from_numpy(mask), labels)

    def inputs(self, rows: Any) -> dict[str, Tensor]:
        """Return what the model reads of some rows."""
        return {"input_ids": self.input_ids[rows], "attention_mask": self.attention_mask[rows]}


@dataclass
class Trainer:
    """The published loop over one recipe's cell."""

    recipe: FinetuneRecipe
    task: Task
    model: Any
    splits: dict[str, Padded]
    train_metrics: bool = True
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.recipe.training
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        weighted = self.recipe.class_weights == "balanced"
        self.weights = balanced_weights(self.task, self.splits["train"].labels) if weighted else None
        self._step = 0
        self._lowest = float("inf")

    def set_head(self, weight: Tensor) -> None:
        """Let the head begin with these weights, shape [classes, hidden]."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "score." in name and parameter.requires_grad:
                    parameter.copy_(weight)

    def loss(self, rows: Any, split: str = "train") -> Tensor:
        """Return the mean loss of some rows."""
        part = self.splits[split]
        return self.loss_of(self.model(**part.inputs(rows)).logits, part.labels[rows])

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits."""
        if self.task.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.cross_entropy(logits, labels, weight=self.weights)

    def step(self, batches: Sequence[Any], total: int) -> float:
        """Do one optimizer step on the batches it accumulates, of ``total`` steps in all."""
        from transformers.optimization import _get_linear_schedule_with_warmup_lr_lambda as linear

        self.model.train()
        last = 0.0
        for rows in batches:
            loss = self.loss(rows)
            (loss / len(batches)).backward()
            last = float(loss.detach())
        settings = self.recipe.training
        warm_up = int(settings.warmup_ratio * total)
        factor = linear(self._step, num_warmup_steps=warm_up, num_training_steps=total)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._step += 1
        return last

    def epoch(self, number: int, save: Path | None = None) -> dict[str, float]:
        """Train an epoch, and measure as the published code does after it."""
        settings = self.recipe.training
        order = np.random.default_rng([settings.seed, number]).permutation(len(self.splits["train"].labels))
        batches = [
            torch.from_numpy(order[at : at + settings.batch_size]) for at in range(0, len(order), settings.batch_size)
        ]
        total = -(-len(batches) // settings.accumulate) * settings.epochs
        for at in range(0, len(batches), settings.accumulate):
            self.step(batches[at : at + settings.accumulate], total)
        figures = self.measure("train")[0] if self.train_metrics else {}
        figures |= self.measure("validation")[0]
        if save is not None and figures["validation_loss"] < self._lowest:
            self._lowest = figures["validation_loss"]
            torch.save(self.model.state_dict(), save)
        self.history.append(figures)
        return figures

    def measure(self, split: str) -> tuple[dict[str, float], Tensor]:
        """Return loss and metrics of a split, and its logits."""
        self.model.eval()
        part = self.splits[split]
        size = self.recipe.training.batch_size
        found, losses = [], []
        with torch.no_grad():
            for at in range(0, len(part.labels), size):
                rows = slice(at, at + size)
                found.append(self.model(**part.inputs(rows)).logits)
                losses.append(self.loss_of(found[-1], part.labels[rows]))
        logits = torch.cat(found)
        figures = {"loss": float(torch.stack(losses).mean()), **metrics(self.task, logits, part.labels)}
        return {f"{split}_{name}": value for name, value in figures.items()}, logits

    def run(self, save: Path) -> tuple[dict[str, float], Tensor]:
        """Train all epochs, go back to the best, and return the test's figures and logits."""
        for number in range(self.recipe.training.epochs):
            self.epoch(number, save)
        self.model.load_state_dict(torch.load(save, weights_only=True))
        return self.measure("test")


def open_cell(recipe: FinetuneRecipe) -> Trainer:
    """Return the loop of a recipe: its base, adapters, task and examples, of which it reads the same tokens."""
    from transformers import AutoTokenizer

    from clinstack.engine.losses import encode_labels
    from clinstack.model.base import find_base
    from clinstack.model.reading import Reading
    from clinstack.notes.read import read_examples
    from clinstack.tokens.texts import encode_texts

    torch.manual_seed(recipe.training.seed)
    task, examples = read_examples(Path(recipe.examples))
    folder = str(find_base(recipe.base).folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    splits = {}
    for name, split in examples.items():
        pieces = encode_texts(tokenizer, Reading.of(recipe), split.texts, split.sections).pieces
        labels = encode_labels(task, split.labels)
        splits[name] = Padded.of(pieces, labels, recipe.max_tokens, tokenizer.pad_token_id)
    model = build(folder, recipe.adapters, task)
    model.config.pad_token_id = tokenizer.pad_token_id  # the head reads the last token before the padding
    return Trainer(recipe, task, model, splits)


def metrics(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the published metrics with scikit-learn: macro AUROC and AUPRC over classes that occur, F1.

    Sigmoids for multilabel tasks, where the published code takes softmax.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    if task.kind == "multilabel":
        scores, truth = torch.sigmoid(logits).numpy(), labels.numpy()
        known = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]
        predicted = scores >= 0.5
        areas = [
            (roc_auc_score(truth[:, k], scores[:, k]), average_precision_score(truth[:, k], scores[:, k]))
            for k in known
        ]
        auroc, auprc = np.mean(areas, axis=0) if areas else (float("nan"), float("nan"))
    else:
        probabilities, truth = torch.softmax(logits, 1).numpy(), labels.numpy()
        predicted = logits.argmax(1).numpy()
        if len(task.classes) == 2:
            scores = probabilities[:, 1]
            auroc, auprc = roc_auc_score(truth, scores), average_precision_score(truth, scores)
        else:
            all_occur = len(np.unique(truth)) == len(task.classes)  # scikit-learn takes nothing else
            options = {"multi_class": "ovo", "average": "macro"}
            auroc = roc_auc_score(truth, probabilities, **options) if all_occur else float("nan")
            each = np.eye(len(task.classes))[truth]
            auprc = average_precision_score(each, probabilities, average="macro")
    return {
        "auroc": float(auroc),
        "auprc": float(auprc),
        "f1_micro": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(truth, predicted, average="macro", zero_division=0)),
    }
