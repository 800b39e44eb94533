"""Prolonged mechanical ventilation from charted ventilator settings.

After Huang et al. 2020 (Clinical XLNet) and the ventilation rules of the MIMIC Code Repository. What is done here:

* A charted ventilator setting (not marked as an error) means ventilated; an extubation (CHARTEVENTS 640,
  PROCEDUREEVENTS_MV 227194, 225468, 225477) or oxygen therapy without a setting (226732, 467) ends a period, and so do
  more than 8 hours without a setting. A period has a setting and lasts longer than one moment.
* Adults only (18 years at admission), the first ICU stay of each admission, and only stays with a period.
* Positive when the end of the last period plus 6 hours is at least 7 days after the start of the first: a span with its
  gaps, not a sum of durations.

What is not done: the published cohort's exclusions by diagnosis (head and neck cancer, neuromuscular disease, burns,
donors), its minimum of two days on the ventilator, and its need of a nursing note within 48 hours. Deaths are not
censored, as in the published cohort: a patient who died on day five is a negative.
"""

from __future__ import annotations

from typing import Any

from clinstack.notes.attrition import Attrition
from clinstack.notes.source_tables import SourceTables

PROLONGED_DAYS = 7
_GRACE_HOURS = 6
_LONGEST_PAUSE_HOURS = 8
_ADULT = 18
_SETTINGS = (
    *(445, 448, 449, 450, 1340, 1486, 1600, 224687),  # minute volume
    *(639, 654, 681, 682, 683, 684, 224684, 224685, 224686),  # tidal volume
    *(218, 436, 535, 444, 224697, 224695, 224696, 224746, 224747),  # airway pressures
    *(221, 1, 1211, 1655, 2000, 226873, 224738, 224419, 224750, 227187),  # inspiration
    543,  # plateau pressure
    *(5865, 5866, 224707, 224709, 224705, 224706),  # airway pressure release
    *(60, 437, 505, 506, 686, 220339, 224700),  # PEEP
    3459,  # high pressure relief
    *(501, 502, 503, 224702),  # pressure control
    *(223, 667, 668, 669, 670, 671, 672),  # time cycled
    224701,  # pressure support
    223849,  # ventilator mode
)
_EXTUBATIONS = (227194, 225468, 225477)
_OXYGEN_METAVISION = (
    "nasal cannula|face tent|aerosol-cool|trach mask|high flow neb|non-rebreather|venti mask|medium conc mask|t-piece|"
    "high flow nasal cannula|ultrasonic neb|vapomist"
)
_OXYGEN_CAREVUE = (
    "cannula|nasal cannula|face tent|aerosol-cool|trach mask|hi flow neb|non-rebreather|venti mask|medium conc mask|"
    "vapotherm|t-piece|hood|hut|transtrachealcat|heated neb|ultrasonic neb"
)


def open_ventilation_tables(tables: SourceTables) -> None:
    """Open what the task needs beyond notes and admissions."""
    remedy = "prolonged_ventilation needs it: add the file, or leave the task out."
    tables.open("PATIENTS", {"SUBJECT_ID": "BIGINT", "DOB": "TIMESTAMP"}, remedy)
    tables.open("ICUSTAYS", {"HADM_ID": "BIGINT", "ICUSTAY_ID": "BIGINT", "INTIME": "TIMESTAMP"}, remedy)
    tables.open(
        "CHARTEVENTS",
        {
            "ICUSTAY_ID": "BIGINT",
            "ITEMID": "BIGINT",
            "CHARTTIME": "TIMESTAMP",
            "VALUE": "VARCHAR",
            "ERROR": "VARCHAR",
        },
        remedy,
    )
    tables.open("PROCEDUREEVENTS_MV", {"ICUSTAY_ID": "BIGINT", "ITEMID": "BIGINT", "STARTTIME": "TIMESTAMP"}, remedy)


def label_ventilation(connection: Any, attrition: Attrition) -> None:
    """Make the table ``labelled`` (hadm, label) from the table ``candidates`` (hadm, subject, admitted)."""
    connection.execute(_STAYS)
    count = "SELECT count(*) FROM stays"
    attrition.step("with an ICU stay", connection.execute(count).fetchone()[0])
    attrition.step("at least 18 years old", connection.execute(f"{count} WHERE adult").fetchone()[0])
    connection.execute(_OBSERVATIONS)
    connection.execute(_PERIODS)
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE labelled AS
        SELECT hadm, CAST(
            max(ended) + INTERVAL {_GRACE_HOURS} HOUR >= min(started) + INTERVAL {PROLONGED_DAYS} DAY AS BIGINT
        ) AS label
        FROM stays JOIN periods USING (stay) WHERE adult GROUP BY hadm
        """
    )
    kept = connection.execute("SELECT count(*) FROM labelled").fetchone()[0]
    attrition.step("ventilated in the first ICU stay", kept)


_STAYS = f"""
CREATE OR REPLACE TABLE stays AS
SELECT candidates.hadm, ICUSTAY_ID AS stay,
    coalesce(admitted >= DOB + INTERVAL {_ADULT} YEAR, false) AS adult
FROM candidates
JOIN ICUSTAYS ON ICUSTAYS.HADM_ID = candidates.hadm
LEFT JOIN PATIENTS ON PATIENTS.SUBJECT_ID = candidates.subject
QUALIFY row_number() OVER (PARTITION BY candidates.hadm ORDER BY INTIME, ICUSTAY_ID) = 1
"""

_OBSERVATIONS = f"""
CREATE OR REPLACE TABLE observations AS
WITH charted AS (
    SELECT ICUSTAY_ID AS stay, CHARTTIME AS moment,
        ITEMID IN ({", ".join(map(str, _SETTINGS))})
            OR (ITEMID = 720 AND VALUE <> 'Other/Remarks') OR (ITEMID = 223848 AND VALUE <> 'Other')
            OR (ITEMID = 467 AND VALUE = 'Ventilator') AS setting,
        (ITEMID = 226732 AND list_contains(string_split('{_OXYGEN_METAVISION}', '|'), lower(trim(VALUE))))
            OR (ITEMID = 467 AND list_contains(string_split('{_OXYGEN_CAREVUE}', '|'), lower(trim(VALUE)))) AS oxygen,
        ITEMID = 640 AND VALUE IN ('Extubated', 'Self Extubation') AS extubation
    FROM CHARTEVENTS
    WHERE VALUE IS NOT NULL AND coalesce(ERROR, '0') <> '1'
    UNION ALL
    SELECT ICUSTAY_ID, STARTTIME, false, false, true
    FROM PROCEDUREEVENTS_MV WHERE ITEMID IN ({", ".join(map(str, _EXTUBATIONS))})
)
SELECT stay, moment, bool_or(setting) AS setting, bool_or(oxygen) AS oxygen, bool_or(extubation) AS extubation
FROM charted
WHERE (setting OR oxygen OR extubation) AND stay IN (SELECT stay FROM stays WHERE adult)
GROUP BY stay, moment
"""

_PERIODS = f"""
CREATE OR REPLACE TABLE periods AS
WITH marked AS (
    SELECT *, setting OR extubation AS counts,
        lag(extubation) OVER (PARTITION BY stay, setting OR extubation ORDER BY moment) AS after_extubation,
        lag(moment) OVER (PARTITION BY stay, setting ORDER BY moment) AS setting_before
    FROM observations
), numbered AS (
    SELECT *, sum(CASE
        WHEN counts AND after_extubation THEN 1
        WHEN oxygen AND NOT setting THEN 1
        WHEN setting AND moment > setting_before + INTERVAL {_LONGEST_PAUSE_HOURS} HOUR THEN 1
        ELSE 0 END) OVER (PARTITION BY stay ORDER BY moment) AS period
    FROM marked
)
SELECT stay, min(moment) AS started, max(moment) AS ended
FROM numbered WHERE counts
GROUP BY stay, period
HAVING bool_or(setting) AND min(moment) <> max(moment)
"""
