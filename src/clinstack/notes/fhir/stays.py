"""Stays from FHIR's Encounters: the admissions of the data sheet, and two outcomes that they tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clinstack.errors import InputError
from clinstack.notes.attrition import Attrition
from clinstack.notes.corpus import Corpus
from clinstack.notes.labels import LENGTH_OF_STAY_CLASSES
from clinstack.notes.prepared import PreparedFolder
from clinstack.tasks import Task

TASKS = {
    "mortality": Task("mortality", "binary", ("survived", "died"), "Death in the hospital."),
    "length_of_stay": Task(
        "length_of_stay", "multiclass", LENGTH_OF_STAY_CLASSES, "Length of stay of those who left alive."
    ),
}
INPATIENT = ("IMP", "ACUTE", "NONAC", "inpatient")
"""Codes of a stay in HL7's ActCode, and STU3's word."""
_NO_STAY = ("cancelled", "entered-in-error", "planned")


def write_admissions(folder: PreparedFolder, classes: Sequence[str] | None) -> int:
    """Make the table ``stays`` and write ``admissions.parquet``; return the number of stays.

    A patient died in a stay if its discharge disposition says so, or if the patient's date of death lies in it.

    Parameters
    ----------
    folder : PreparedFolder
        Its connection holds ``encounters``, ``people`` and ``splits``.
    classes : sequence of str, optional
        Codes of the encounters that are stays; `INPATIENT` when not given.

    Raises
    ------
    InputError
        If an encounter has notes of another patient, or classes are named and none occurs.
    """
    connection = folder.connection
    foreign = connection.execute(
        "SELECT encounters.id, note_id FROM encounters JOIN corpus ON corpus.encounter_id = encounters.id "
        "WHERE corpus.patient_id <> encounters.patient ORDER BY corpus.row LIMIT 1"
    ).fetchall()
    if foreign:
        raise InputError(
            f"DocumentReference {foreign[0][1]} names Encounter {foreign[0][0]}, which is another patient's; "
            f"correct its subject or its encounter."
        )
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in classes or INPATIENT)
    excluded = ", ".join(f"'{name}'" for name in _NO_STAY)
    connection.execute(
        f"""
        CREATE TABLE stays AS
        SELECT encounters.id AS encounter_id, patient AS patient_id, admitted, discharged, gender AS sex, language,
            class,
            date_diff('day', born, admitted) / 365.2425 AS years,
            CASE
                WHEN died = 1 THEN 1
                WHEN deceased_day AND deceased::DATE BETWEEN admitted::DATE AND discharged::DATE THEN 1
                WHEN NOT deceased_day AND deceased BETWEEN admitted AND discharged THEN 1
                ELSE died
            END::BIGINT AS died
        FROM encounters LEFT JOIN people ON people.id = encounters.patient
        WHERE class IN ({listed}) AND status NOT IN ({excluded})
        """
    )
    count = int(connection.execute("SELECT count(*) FROM stays").fetchone()[0])
    if classes and not count:
        found = connection.execute(
            "SELECT class FROM encounters GROUP BY class ORDER BY count(*) DESC LIMIT 10"
        ).fetchall()
        names = ", ".join(str(row[0] or "none named") for row in found) or "no Encounter"
        raise InputError(f"No Encounter has the class {', '.join(classes)}; there are: {names}.")
    if count:
        folder.write_admissions(
            "SELECT encounter_id, patient_id, admitted, discharged, floor(years) AS age, sex, "
            "language, class AS admission_type, died FROM stays SEMI JOIN splits USING (patient_id) "
            "ORDER BY patient_id, admitted, encounter_id"
        )
    return count


def write_tasks(
    corpus: Corpus,
    tasks: Sequence[str],
    *,
    note_types: Sequence[str] | None,
    admission_only: bool,
    hours: float | None,
) -> dict[str, dict[str, int]]:
    """Write the examples of tasks from ``stays``; return the rows of each split.

    Raises
    ------
    InputError
        If a task has no example.
    """
    rows: dict[str, dict[str, int]] = {}
    for name in tasks:
        attrition = Attrition()
        (_label_mortality if name == "mortality" else _label_length_of_stay)(corpus.connection, attrition, hours)
        corpus.join_texts(
            "encounter_id",
            attrition,
            note_types=note_types,
            admission_only=admission_only,
            timed=f"{hours:g} hours from admission" if hours else "",
        )
        facts: dict[str, Any] = {"key": "encounter_id", "text": "admission" if admission_only else "full"}
        rows[name] = corpus.write_examples(TASKS[name], attrition, facts, without_deaths=name == "mortality")
        if not sum(rows[name].values()):
            steps = ", ".join(f"{step['step']}: {step['kept']:,}" for step in attrition.steps)
            raise InputError(f"{name}: no example is left ({steps}); leave the task out, or try --text full.")
    return rows


def _label_mortality(connection: Any, attrition: Attrition, hours: float | None) -> None:
    attrition.step("stays", _count(connection, "true"))
    attrition.step("with a discharge disposition or a death in the stay", _count(connection, "died IS NOT NULL"))
    _make_labels(connection, "died", "died IS NOT NULL", hours)


def _label_length_of_stay(connection: Any, attrition: Attrition, hours: float | None) -> None:
    attrition.step("stays", _count(connection, "true"))
    alive = "died IS DISTINCT FROM 1"
    attrition.step("not known to end in death", _count(connection, alive))
    timed = f"{alive} AND admitted IS NOT NULL AND discharged IS NOT NULL"
    attrition.step("with times of admission and discharge", _count(connection, timed))
    bounds = " + ".join(f"(discharged - admitted > INTERVAL {days} DAY)::BIGINT" for days in (3, 7, 14))
    _make_labels(connection, bounds, timed, hours)


def _make_labels(connection: Any, label: str, condition: str, hours: float | None) -> None:
    before = f"admitted + INTERVAL {round((hours or 0) * 3600)} SECOND" if hours else "NULL::TIMESTAMP"
    connection.execute(
        f"CREATE OR REPLACE TABLE labels AS SELECT encounter_id AS key, {label} AS label, {before} AS before "
        f"FROM stays WHERE {condition}"
    )


def _count(connection: Any, condition: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM stays WHERE {condition}").fetchone()[0])
