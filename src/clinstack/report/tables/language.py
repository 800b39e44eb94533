"""Tables of how well notes are predicted: held-out perplexity (the paper's Table 2), and by note type."""

from __future__ import annotations

from clinstack.report.summary import Summary
from clinstack.report.tables.cells import MISSING, Cell, Table, count, figure, perplexity_digits
from clinstack.report.tables.names import stack_label


def intervals_note(summary: Summary) -> str:
    """Say what stands beside figures."""
    return f"Beside each figure its 95 % interval ({summary.resamples:,} bootstrap resamples of patients)."


def perplexity_table(summary: Summary) -> Table:
    """Return held-out perplexity of the base and of each pretrained stack."""
    rows = [
        (
            stack_label(row["stack"]),
            [
                figure(row, perplexity_digits(row["value"])),
                figure({"value": row["bits_per_character"], "interval": row["bits_per_character_interval"]}),
                count(row["trainable_parameters"]) if row["trainable_parameters"] else Cell(MISSING),
            ],
        )
        for row in summary.perplexity_rows()
    ]
    details = next(iter(summary.perplexity.values()), None)
    held_out = (
        f"{details['notes']:,} {details['split']} notes of {details['patients']:,} patients unseen in pretraining, "
        f"{details['tokens']:,} tokens, each counted once. "
        if details
        else ""
    )
    return Table(
        "perplexity",
        "Perplexity on held-out notes",
        f"{held_out}Lower is better. Bits per character do not depend on the tokenizer. {intervals_note(summary)}",
        ["Model", "Perplexity", "Bits per character", "Trainable parameters"],
        rows,
    )


def note_type_table(summary: Summary) -> Table:
    """Return perplexity by note type."""
    rows = []
    for label, details in summary.perplexity.items():
        for note_type, part in details["by_note_type"].items():
            base, adapted = part["base"]["perplexity"], part["adapted"]["perplexity"]
            name = note_type if len(summary.perplexity) == 1 else f"{note_type}, {label}"
            rows.append(
                (
                    name,
                    [
                        count(part["notes"]),
                        figure(base, perplexity_digits(base["value"])),
                        figure(adapted, perplexity_digits(adapted["value"])),
                        figure(part["ratio"], 2),
                    ],
                )
            )
    return Table(
        "note-types",
        "Perplexity by note type",
        "Base over adapted is how many times lower the perplexity became, on the same notes in each resample.",
        ["Note type", "Notes", "Base", "+ Clinical LoRA", "Base over adapted"],
        rows,
    )
