"""A small folder of instructions, invented, as `prepare` writes it; and a chat template such as models have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinstack.files import write_json
from clinstack.notes.splits import SPLITS, assign_splits

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message.role }}] {{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""Writes its own begin token; a turn ends with the end token and a line end behind it."""
CANARY = "zebra quartz lantern"
"""Stands in notes and answers of every split; nothing that a stage writes may hold it."""
_DRUGS = ("aspirin 81 mg", "heparin 5000 units", "insulin 10 units", "furosemide 40 mg")
_PROBLEMS = ("chest pain", "leg pain", "polyuria", "dyspnea")


def long_note(sentences: int = 40) -> str:
    """Return a note of five sections whose middle is long."""
    course = " ".join(f"On day {day} the patient was seen and felt somewhat better." for day in range(sentences))
    return (
        "CHIEF COMPLAINT: dyspnea.\n\n"
        "HISTORY OF PRESENT ILLNESS: The patient came with dyspnea.\n\n"
        f"HOSPITAL COURSE: {course}\n\n"
        "DISCHARGE MEDICATIONS: furosemide 40 mg.\n\n"
        "FOLLOW-UP: in two weeks."
    )


def write_tiny_instructions(folder: Path, patients: int = 60) -> Path:
    """Write two examples of each patient, of two tasks, and the patients' splits."""
    splits = assign_splits([f"p{index:03d}" for index in range(patients)], seed=0)
    rows = []
    for split in SPLITS:
        for place, patient in enumerate(name for name, where in splits.items() if where == split):
            drug, problem = _DRUGS[place % 4], _PROBLEMS[place % 4]
            canary = f" {CANARY}" if place % 4 == 1 else ""
            note = f"CHIEF COMPLAINT: {problem}.\n\nDISCHARGE MEDICATIONS: {drug}.{canary}"
            for number, (task, question, answer) in enumerate(
                (
                    ("Named Entity Recognition", "Which drug was given?", f"{drug}{canary}"),
                    ("Question Answering", "Why did the patient come?", problem),
                )
            ):
                rows.append(
                    {
                        "example_id": f"{patient}-{number}",
                        "patient_id": patient,
                        "note": note,
                        "question": question,
                        "answer": answer,
                        "task": task,
                    }
                )
    (folder / "instructions").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "instructions" / "instructions.parquet")
    pq.write_table(pa.table({"patient_id": list(splits), "split": list(splits.values())}), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True, "seed": 0})
    return folder
