"""Classifying examples: what fine-tuning and evaluation share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinstack.engine.distributed import world
from clinstack.engine.losses import encode_labels
from clinstack.engine.pieces import Lengths, note_logits, pool_pieces, reads_flat
from clinstack.engine.progress import progress_bar
from clinstack.model.stack import Stack
from clinstack.notes.read import Examples
from clinstack.recipe import TrainingRecipe
from clinstack.tasks import Task
from clinstack.tokens.texts import EncodedTexts, encode_texts

_encoded_last: tuple[Hashable, dict[str, EncodedTexts]] | None = None


class EncodedExamples:
    """One split as tokens and targets; where the backbone is frozen, also as features that are computed once.

    A note is one piece, or several where it is read in chunks: then what the head reads is pooled over its pieces.
    """

    def __init__(self, stack: Stack, task: Task, examples: Examples, encoded: EncodedTexts | None = None) -> None:
        self.encoded = encoded or encode_texts(stack.tokenizer, stack.reading, examples.texts, examples.sections)
        self.targets = encode_labels(task, examples.labels)
        self.features: Tensor | None = None
        self._stack = stack
        self._counts = np.bincount(self.encoded.owners, minlength=len(examples.texts))
        self._lengths = Lengths([len(piece) for piece in self.encoded.pieces], self._counts, flat=reads_flat(stack))

    def __len__(self) -> int:
        return len(self._counts)

    def token_counts(self) -> dict[str, Any]:
        """Return what was read and cut, in tokens."""
        return self.encoded.cut

    def epoch_batches(self, settings: TrainingRecipe, epoch: int) -> Sequence[list[int]]:
        """Return the examples of an epoch's batches, by (seed, epoch), as many in each epoch."""
        return self._lengths.epoch_batches(settings, epoch)

    def use_features(self, features: NDArray[np.float32]) -> None:
        """Read features of the pieces from now on, shape [pieces, features], instead of running the backbone."""
        pooled = pool_pieces(torch.from_numpy(features), self._counts.tolist(), self._stack.reading.chunk_pooling)
        self.features = pooled.to(self._stack.device)

    def logits(self, batch: Sequence[int]) -> Tensor:
        """Return the stack's logits for some examples, shape [examples, classes]."""
        if self.features is not None:
            chosen: Tensor = self._stack.head(self.features[torch.tensor(batch)])
            return chosen
        places, counts = self._lengths.pieces_of(batch)
        return note_logits(self._stack, [self.encoded.pieces[place] for place in places], counts)

    def all_logits(self, batch_size: int, description: str | None = None) -> NDArray[np.float32]:
        """Return the logits of all examples in order, shape [examples, classes]."""
        self._stack.eval()
        if self.features is not None:
            with torch.inference_mode():
                logits: NDArray[np.float32] = self._stack.head(self.features).float().cpu().numpy()
            return logits
        result = np.zeros((len(self), self._stack.head.out_features), dtype=np.float32)
        batches = world().share(self._lengths.measuring_batches(batch_size))
        with torch.inference_mode(), progress_bar(description, len(batches), unit="notes") as bar:
            for batch in batches:
                result[batch] = self.logits(batch).float().cpu().numpy()
                bar.advance(len(batch))
        return world().add_up(result)


def encode_splits(
    stack: Stack, task: Task, examples: Mapping[str, Examples], inputs: Mapping[str, str]
) -> dict[str, EncodedExamples]:
    """Encode a task's splits. The tokens of the last call stay at hand, for a sweep's next trial reads the same.

    Parameters
    ----------
    inputs : mapping of str to str
        Hashes of the files that the examples are from.
    """
    global _encoded_last
    key = (stack.base.fingerprint, stack.reading, tuple(sorted(inputs.items())))
    known = _encoded_last[1] if _encoded_last is not None and _encoded_last[0] == key else {}
    splits = {name: EncodedExamples(stack, task, split, known.get(name)) for name, split in examples.items()}
    _encoded_last = key, {name: split.encoded for name, split in splits.items()}
    return splits


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
