"""Classifying examples: what fine-tuning and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.distributed import world
from clinstack.engine.losses import encode_labels
from clinstack.engine.progress import progress_bar
from clinstack.model.stack import Stack
from clinstack.notes.read import Examples
from clinstack.tasks import Task
from clinstack.tokens.batches import pad, sorted_batches
from clinstack.tokens.documents import Tokens
from clinstack.tokens.texts import encode_texts


class EncodedExamples:
    """One split as tokens and targets; where the backbone is frozen, also as pooled features, computed once."""

    def __init__(self, stack: Stack, task: Task, examples: Examples) -> None:
        self.encoded = encode_texts(stack.tokenizer, stack.reading, examples.texts, examples.sections)
        self.tokens = self.encoded.pieces
        self.targets = encode_labels(task, examples.labels)
        self.lengths = [len(tokens) for tokens in self.tokens]
        self.features: Tensor | None = None
        self._stack = stack

    def token_counts(self) -> dict[str, Any]:
        """Return what was read and cut, in tokens."""
        return self.encoded.cut

    def compute_features(self, batch_size: int, description: str) -> None:
        """Run the frozen backbone over all examples and keep what the head reads, shape [examples, hidden]."""
        self._stack.eval()
        features = np.zeros((len(self.tokens), self._stack.head.in_features), dtype=np.float32)
        batches = world().share(sorted_batches(self.lengths, batch_size))
        with torch.inference_mode(), progress_bar(description, len(batches), unit="notes") as bar:
            for batch in batches:
                features[batch] = self._stack.pooled(*self._padded(batch)).cpu().numpy()
                bar.advance(len(batch))
        self.features = torch.from_numpy(world().add_up(features)).to(self._stack.device)

    def logits(self, batch: Sequence[int]) -> Tensor:
        """Return the stack's logits for some examples, shape [examples, classes]."""
        if self.features is not None:
            chosen: Tensor = self._stack.head(self.features[torch.tensor(batch)])
            return chosen
        return self._stack.logits(*self._padded(batch))

    def all_logits(self, batch_size: int, description: str | None = None) -> NDArray[np.float32]:
        """Return the logits of all examples in order, shape [examples, classes]."""
        self._stack.eval()
        result = np.zeros((len(self.tokens), self._stack.head.out_features), dtype=np.float32)
        batches = world().share(sorted_batches(self.lengths, batch_size))
        with torch.inference_mode(), progress_bar(description, len(batches), unit="notes") as bar:
            for batch in batches:
                result[batch] = self.logits(batch).float().cpu().numpy()
                bar.advance(len(batch))
        return world().add_up(result)

    def _padded(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        sequences: list[Tokens] = [self.tokens[index] for index in batch]
        input_ids, mask = pad(sequences, self._stack.tokenizer.pad_token_id or 0)
        return input_ids.to(self._stack.device), mask.to(self._stack.device)


def predictions_table(task: Task, examples: dict[str, Examples], logits: dict[str, NDArray[np.float32]]) -> pa.Table:
    """Return the contract's table: ids, split, label, and the logits as score. No text."""
    columns: dict[str, list[Any]] = {name: [] for name in ("example_id", "patient_id", "split", "label", "score")}
    for split, scores in logits.items():
        part = examples[split]
        columns["example_id"] += part.example_ids
        columns["patient_id"] += part.patient_ids
        columns["split"] += [split] * len(part.example_ids)
        columns["label"] += part.labels
        columns["score"] += scores.tolist()
    label_type = pa.list_(pa.string()) if task.kind == "multilabel" else pa.int64()
    schema = {
        "example_id": pa.string(),
        "patient_id": pa.string(),
        "split": pa.string(),
        "label": label_type,
        "score": pa.list_(pa.float32()),
    }
    return pa.table(columns, schema=pa.schema(list(schema.items())))
