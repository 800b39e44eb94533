"""The recipe of `clinstack predict`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clinstack.recipe.stage import StageRecipe

EmptyText = Literal["refuse", "read", "leave_out"]


class PredictRecipe(StageRecipe):
    """A saved classifier on every row of a table, however long the table is."""

    stage: Literal["predict"] = "predict"
    stack: str
    """A Stack with a task, or the finished Run of one."""
    base: str | None = None
    """Where the base is on this machine; as the stack recorded when not given."""
    table: str | None = None
    """A Parquet or csv file (``.parquet``, ``.csv``, ``.csv.gz``), or a folder of such files of one kind, which are
    read in the order of their names."""
    id_column: str | None = None
    """Of ``table``: what names a row, once each; ``example_id`` when not given."""
    text_column: str | None = None
    """Of ``table``; ``text`` when not given."""
    patient_column: str | None = None
    """Of ``table``; without it ``patient_id`` is null in the predictions."""
    examples: str | None = None
    """Instead of a table: a task's folder of Notes; labels are not read, so the task may be another one."""
    split: Literal["train", "validation", "test"] | None = None
    """Of ``examples``: one split; all three when not given."""
    notes: str | None = None
    """Instead of a table: a folder written by ``clinstack prepare``, whose notes are read by their ``note_id``."""
    empty_text: EmptyText | None = None
    """What a row without text comes to: an error that names it, the scores of an empty note, or no row. When not given,
    an error; with ``examples`` it is read, as training and evaluation read it."""
    calibration: Literal["isotonic", "temperature", "none"] | None = None
    """How scores become probabilities; when not given, isotonic where the stack has a fit, else none."""
    batch_size: int = Field(default=16, ge=1)
    """Notes that are computed together where they are padded; on a CPU decoders read rows without padding."""
    rows_per_part: int = Field(default=2048, ge=1)
    """Rows between two files that are kept; a killed run repeats at most so many in each process."""

    @model_validator(mode="after")
    def _one_source(self) -> PredictRecipe:
        if [self.table, self.examples, self.notes].count(None) != 2:
            raise ValueError("give one of table (a file), examples (a task's folder) and notes (a folder of Notes)")
        if self.table is None:
            for name in ("id_column", "text_column", "patient_column"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: Notes have their own columns; leave it out, or name a table")
        if self.examples is None and self.split is not None:
            raise ValueError("split: it chooses among a task's examples; leave it out")
        return self

    @property
    def treats_empty_text(self) -> EmptyText:
        """What a row without text comes to."""
        return self.empty_text or ("refuse" if self.examples is None else "read")
