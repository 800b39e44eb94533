"""Strata for the bootstrap, so that no resample loses a class that few patients carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clinstack.evaluate.scored import Scored

RARE = 10
"""Patients. A class that so many carry is missing from a resample once in e to the 10th, 22,000, times."""


def rare_strata(tables: Sequence[tuple[Scored, Sequence[str]]]) -> dict[str, str] | None:
    """Name each patient's stratum: which of the rare classes of the tables the patient carries.

    Only tasks whose classes exclude each other are looked at. Of a code task most codes are rare, so that strata of all
    of them would be single patients, whom every resample would draw: no uncertainty would be left.

    Parameters
    ----------
    tables : sequence of (Scored, sequence of str)
        Each with the patient of every row.

    Returns
    -------
    dict of patient to stratum, or None
        None where no class is rare: then there is one stratum.
    """
    carried: dict[str, list[str]] = {}
    for table, patient_ids in tables:
        if table.task.kind == "multilabel":
            continue
        patients = np.asarray(patient_ids, dtype=np.str_)
        for column in table.scored_columns:
            carriers = np.unique(patients[table.indicator[:, column]])
            if len(carriers) < RARE:
                for patient in carriers.tolist():
                    carried.setdefault(patient, []).append(f"{table.task.name} {table.task.classes[column]}")
    if not carried:
        return None
    everybody = {str(patient) for _, patient_ids in tables for patient in patient_ids}
    return {patient: ", ".join(carried.get(patient, [])) for patient in everybody}
