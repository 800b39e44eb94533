"""Traps in what was charted of mechanical ventilation; hours count from the admission."""

from __future__ import annotations

from clinstack.notes.cohort.stay import Stay
from clinstack.notes.cohort.trap import Trap
from clinstack.notes.cohort.ward_notes import nursing_note

_MODE, _PEEP, _OXYGEN, _EXTUBATION = 223849, 220339, 226732, 227194
_START = 2.0
_DAY = 24.0
_GRACE = 6.0


def _stay(stay: Stay, days: float = 25) -> int:
    """Make the admission long and alive, with one ICU stay, a summary and an early nursing note."""
    stay.ends(False)
    stay.lasts(days)
    stay.summarize(stay.text(stay.sections()))
    text = nursing_note(stay.chance, stay.patient, stay.admission)
    moment = stay.after(_START + 3)
    stay.note("Nursing", "Report", text, CHARTDATE=moment.date(), CHARTTIME=moment, STORETIME=moment)
    return stay.intensive_care((1, days * _DAY - 24))[0]


def _settings(stay: Stay, icu: int, start: float, end: float, error: int = 0) -> None:
    """Chart a setting every four hours from ``start``, and one at ``end``."""
    hours = start
    while hours < end:
        stay.chart(icu, hours, *((_MODE, "CMV/ASSIST") if int(hours) % 8 else (_PEEP, "8")), error)
        hours += 4
    stay.chart(icu, end, _MODE, "CMV/ASSIST", error)


def _extubate(stay: Stay, icu: int, hours: float) -> None:
    moment = stay.after(hours)
    stay.add(
        "PROCEDUREEVENTS_MV", ICUSTAY_ID=icu, STARTTIME=moment, ENDTIME=stay.after(hours + 1 / 60),
        ITEMID=_EXTUBATION, VALUE=1, VALUEUOM="None", STORETIME=moment, CGID=20000, ORDERID=1, LINKORDERID=1,
        ORDERCATEGORYNAME="Extubation", ORDERCATEGORYDESCRIPTION="Task", ISOPENBAG=0, CONTINUEINNEXTDEPT=0,
        CANCELREASON=0, STATUSDESCRIPTION="FinishedRunning",
    )  # fmt: skip


def _gap(stay: Stay) -> None:
    icu = _stay(stay)
    _settings(stay, icu, _START, _START + 3 * _DAY)
    _extubate(stay, icu, _START + 3 * _DAY + 0.1)
    _settings(stay, icu, _START + 5 * _DAY, _START + 8 * _DAY)
    _extubate(stay, icu, _START + 8 * _DAY + 0.1)


def _on_the_bound(stay: Stay) -> None:
    _settings(stay, _stay(stay), _START, _START + 7 * _DAY - _GRACE)


def _below_the_bound(stay: Stay) -> None:
    _settings(stay, _stay(stay), _START, _START + 7 * _DAY - _GRACE - 1 / 60)


def _oxygen(stay: Stay) -> None:
    icu = _stay(stay)
    _settings(stay, icu, _START, _START + 3 * _DAY)
    stay.chart(icu, _START + 3 * _DAY + 1, _OXYGEN, "Nasal cannula")
    _settings(stay, icu, _START + 3 * _DAY + 6, _START + 7 * _DAY + 2)


def _silence(stay: Stay) -> None:
    icu = _stay(stay)
    _settings(stay, icu, _START, _START + 3 * _DAY)
    _settings(stay, icu, _START + 3 * _DAY + 8 + 1 / 60, _START + 7 * _DAY + 1)


def _errors(stay: Stay) -> None:
    icu = _stay(stay)
    _settings(stay, icu, _START, _START + 2 * _DAY)
    _settings(stay, icu, _START + 2 * _DAY + 4, _START + 8 * _DAY, error=1)


def _one_moment(stay: Stay) -> None:
    stay.chart(_stay(stay), _START, _MODE, "CMV/ASSIST")


def _second_stay(stay: Stay) -> None:
    _stay(stay)
    first, second = stay.intensive_care((1, 2 * _DAY), (5 * _DAY, 20 * _DAY))
    _settings(stay, first, _START, _START + _DAY)
    _settings(stay, second, 5 * _DAY + 1, 14 * _DAY)


VENTILATION_TRAPS = (
    Trap("ventilation-gap", "two periods: eight days from first start to last end, six days of ventilation", _gap),
    Trap("ventilation-grace", "ends six hours before seven days: just within the grace", _on_the_bound),
    Trap("ventilation-below-grace", "ends six hours and a minute before seven days", _below_the_bound),
    Trap("ventilation-oxygen", "oxygen therapy between two settings ends a period", _oxygen),
    Trap("ventilation-silence", "eight hours and a minute without a setting end a period", _silence),
    Trap("ventilation-errors", "settings after the second day have ERROR = 1", _errors),
    Trap("ventilation-one-moment", "a single charted setting, which is no period", _one_moment),
    Trap("ventilation-second-stay", "prolonged only in the second ICU stay", _second_stay),
)
