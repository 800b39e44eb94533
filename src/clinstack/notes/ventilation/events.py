"""Periods of mechanical ventilation from charted settings, by the rules of the MIMIC Code Repository.

A row is a moment of an ICU stay. Chart rows that are not marked as errors say three things about it: a ventilator
setting, oxygen therapy, an extubation. Procedures add extubations, as rows of their own.

* A setting more than 8 hours after the setting before it begins a period; so does the first setting, or the first
  extubation, after an extubation; oxygen therapy without a setting closes the period before it.
* What falls on the same moment falls into the same period.
* A period lasts from its first to its last setting or extubation. It has a setting, and more than one moment.
"""

from __future__ import annotations

from typing import Any

from clinstack.notes.sources.source_tables import SourceTables

_LONGEST_PAUSE_HOURS = 8
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
_TYPE_CAREVUE, _TYPE_METAVISION = 720, 223848
_OXYGEN_DEVICE_CAREVUE, _OXYGEN_DEVICE_METAVISION = 467, 226732
_EXTUBATION_CAREVUE = 640
_SELF_EXTUBATION = 225468
_EXTUBATIONS = (227194, _SELF_EXTUBATION, 225477)
# Values as they are charted, in upper and lower case, but for blanks at their ends.
_DEVICES_METAVISION = (
    "Nasal cannula", "Face tent", "Aerosol-cool", "Trach mask", "High flow neb", "Non-rebreather", "Venti mask",
    "Medium conc mask", "T-piece", "High flow nasal cannula", "Ultrasonic neb", "Vapomist",
)  # fmt: skip
_DEVICES_CAREVUE = (
    "Cannula", "Nasal Cannula", "Face Tent", "Aerosol-Cool", "Trach Mask", "Hi Flow Neb", "Non-Rebreather",
    "Venti Mask", "Medium Conc Mask", "Vapotherm", "T-Piece", "Hood", "Hut", "TranstrachealCat", "Heated Neb",
    "Ultrasonic Neb",
)  # fmt: skip


def _listed(values: tuple[int, ...] | tuple[str, ...]) -> str:
    return ", ".join(str(value) if isinstance(value, int) else f"'{value}'" for value in values)


_CHARTED = (
    *_SETTINGS,
    *(_TYPE_CAREVUE, _TYPE_METAVISION, _OXYGEN_DEVICE_CAREVUE, _OXYGEN_DEVICE_METAVISION, _EXTUBATION_CAREVUE),
)


def open_events(tables: SourceTables, remedy: str) -> None:
    """Open CHARTEVENTS and PROCEDUREEVENTS_MV, of which only the items of the rules are kept."""
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
        where=f"ITEMID IN ({_listed(_CHARTED)}) AND VALUE IS NOT NULL",
    )
    tables.open(
        "PROCEDUREEVENTS_MV",
        {"ICUSTAY_ID": "BIGINT", "ITEMID": "BIGINT", "STARTTIME": "TIMESTAMP"},
        remedy,
        where=f"ITEMID IN ({_listed(_EXTUBATIONS)})",
    )


def make_periods(connection: Any) -> None:
    """Make the table ``ventilation_periods`` (stay, started, ended) of the stays in the table ``icu_stays``."""
    connection.execute(_OBSERVATIONS)
    connection.execute(_PERIODS)
    connection.execute("DROP TABLE observations")


_OBSERVATIONS = f"""
CREATE OR REPLACE TABLE observations AS
WITH charted AS (
    SELECT ICUSTAY_ID AS stay, CHARTTIME AS moment, ITEMID AS item, trim(VALUE) AS value
    FROM CHARTEVENTS
    WHERE VALUE IS NOT NULL AND CHARTTIME IS NOT NULL AND coalesce(TRY_CAST(ERROR AS DOUBLE), 0) <> 1
        AND ICUSTAY_ID IN (SELECT stay FROM icu_stays)
), read AS (
    SELECT stay, moment,
        item IN ({_listed(_SETTINGS)})
            OR (item = {_TYPE_CAREVUE} AND value <> 'Other/Remarks')
            OR (item = {_TYPE_METAVISION} AND value <> 'Other')
            OR (item = {_OXYGEN_DEVICE_CAREVUE} AND value = 'Ventilator') AS setting,
        (item = {_OXYGEN_DEVICE_METAVISION} AND value IN ({_listed(_DEVICES_METAVISION)}))
            OR (item = {_OXYGEN_DEVICE_CAREVUE} AND value IN ({_listed(_DEVICES_CAREVUE)})) AS oxygen,
        item = {_EXTUBATION_CAREVUE} AND value IN ('Extubated', 'Self Extubation') AS extubation,
        item = {_EXTUBATION_CAREVUE} AND value = 'Self Extubation' AS by_patient
    FROM charted
)
SELECT stay, moment, bool_or(setting) AS setting, bool_or(oxygen) AS oxygen, bool_or(extubation) AS extubation,
    bool_or(by_patient) AS by_patient
FROM read WHERE setting OR oxygen OR extubation
GROUP BY stay, moment
UNION
SELECT ICUSTAY_ID, STARTTIME, false, false, true, ITEMID = {_SELF_EXTUBATION}
FROM PROCEDUREEVENTS_MV
WHERE ITEMID IN ({_listed(_EXTUBATIONS)}) AND STARTTIME IS NOT NULL AND ICUSTAY_ID IN (SELECT stay FROM icu_stays)
"""

_PERIODS = f"""
CREATE OR REPLACE TABLE ventilation_periods AS
WITH marked AS (
    SELECT stay, moment, setting, setting OR extubation AS counts, oxygen AND NOT setting AS closes,
        lag(extubation) OVER (PARTITION BY stay, setting OR extubation ORDER BY moment, extubation) AS after_extubation,
        lag(moment) OVER (PARTITION BY stay, setting ORDER BY moment) AS setting_before
    FROM observations
), numbered AS (
    SELECT *, sum(CASE
        WHEN counts AND after_extubation THEN 1
        WHEN closes THEN 1
        WHEN setting AND moment > setting_before + INTERVAL {_LONGEST_PAUSE_HOURS} HOUR THEN 1
        ELSE 0 END) OVER (PARTITION BY stay ORDER BY moment) AS period
    FROM marked
)
SELECT stay, min(moment) AS started, max(moment) AS ended
FROM numbered WHERE counts
GROUP BY stay, period
HAVING bool_or(setting) AND min(moment) <> max(moment)
"""
