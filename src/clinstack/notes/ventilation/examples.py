"""Labels of prolonged ventilation with the texts and splits that are this task's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clinstack.notes.attrition import Attrition
from clinstack.notes.prepared import PreparedFolder
from clinstack.notes.sources.source_tables import SourceTables
from clinstack.notes.text_store import TextStore
from clinstack.notes.ventilation.early_texts import texts_before_ventilation
from clinstack.notes.ventilation.label import label_ventilation
from clinstack.notes.ventilation.options import VentilationOptions
from clinstack.tasks import Task

_BATCH = 512


@dataclass(frozen=True)
class VentilationExamples:
    """By admission: the label, the split, and the number of a text of its own where it has one; and facts to report."""

    label: dict[int, int]
    split: dict[int, str]
    text: dict[int, int]
    facts: dict[str, Any]


def label_with_texts(
    prepared: PreparedFolder, tables: SourceTables, attrition: Attrition, options: VentilationOptions, store: TextStore
) -> VentilationExamples:
    """Label the table ``candidates`` (hadm, subject, admitted, split); write texts from before ventilation to a store.

    An admission that asks for such a text and has none is left out.
    """
    connection = prepared.connection
    facts = label_ventilation(connection, attrition, options)
    label = dict(connection.execute("SELECT hadm, label FROM labelled ORDER BY hadm").fetchall())
    text: dict[int, int] = {}
    if options.text == "before":
        facts |= texts_before_ventilation(connection, tables, attrition, prepared.progress)
        cursor = connection.cursor().execute("SELECT hadm, text FROM early_texts ORDER BY hadm")
        while rows := cursor.fetchmany(_BATCH):
            text |= {hadm: store.add(early.encode()) for hadm, early in rows}
        label = {hadm: value for hadm, value in label.items() if hadm in text}
    split = dict(connection.execute("SELECT hadm, split FROM ventilation_splits").fetchall())
    return VentilationExamples(label, split, text, facts)


def ventilation_task(options: VentilationOptions) -> Task:
    """Return the task of prolonged ventilation."""
    days = f"{options.days:g} days"
    return Task(
        "prolonged_ventilation", "binary", (f"under {days}", f"{days} or more"), "Prolonged mechanical ventilation."
    )
