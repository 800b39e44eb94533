"""Identifiers written into the cohort's notes: invented people, and where in each text each identifier stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from clinstack.notes.cohort import identifier_formats as formats
from clinstack.notes.cohort import identifier_pools as pools
from clinstack.notes.cohort.chance import Chance
from clinstack.notes.cohort.patient import Patient
from clinstack.notes.cohort.stay import PlantedRow
from clinstack.notes.cohort.tables import COLUMNS, Rows
from clinstack.notes.cohort.wording import HOSPITAL_LINE, misspell

TRUTH = "identifiers.csv.gz"
"""Beside the tables of a cohort with identifiers."""
TRUTH_COLUMNS = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "START", "END", "KIND", "FORM", "HELD_OUT")
_FIELD = re.compile(r"<(\w+(?:\.\w+)?)>")
_SUBJECT, _HADM, _DAY = (COLUMNS["NOTEEVENTS"].index(name) for name in ("SUBJECT_ID", "HADM_ID", "CHARTDATE"))
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_GERMAN = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
_FRENCH = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"
_NINETIES = "ninety ninety-one ninety-two ninety-three ninety-four ninety-five ninety-six ninety-seven ninety-eight"


class Truth(NamedTuple):
    """One identifier in a note.

    Parameters
    ----------
    place : int
        The note's place among the chunk's rows of NOTEEVENTS.
    subject, hadm : int, int or None
    start, end : int
        Characters of TEXT.
    kind : str
        One of `clinstack.privacy.identifiers.KINDS`.
    form : str
        How it was written.
    held_out : bool
        Whether no pattern was written for its format.
    """

    place: int
    subject: int
    hadm: int | None
    start: int
    end: int
    kind: str
    form: str
    held_out: bool


@dataclass(frozen=True)
class Person:
    """An invented name."""

    first: str
    last: str
    middle: str


def _person(chance: Chance, sex: str, last: str | None = None) -> Person:
    return Person(
        chance.pick(pools.FIRST_NAMES[sex]), last or chance.pick(pools.LAST_NAMES), chance.pick("ABCDEFGHJKLMRSTW")
    )


def _digits(chance: Chance, count: int, first: int = 0) -> str:
    return str(chance.between(max(first, 1), 9)) + "".join(str(chance.between(0, 9)) for _ in range(count - 1))


class Persona:
    """Everything that identifies one invented patient, the same in all of the patient's notes."""

    def __init__(self, seed: int, patient: Patient) -> None:
        chance = Chance(seed, patient.index, 5)
        self.patient = patient
        self.me = _person(chance, patient.sex)
        self.relative = _person(chance, chance.pick("FM"), self.me.last if chance.yes(0.7) else None)
        self.pcp, self.resident = _person(chance, chance.pick("FM")), _person(chance, chance.pick("FM"))
        self.doctors = [_person(chance, chance.pick("FM")) for _ in range(3)]
        kinds = ("Hospital", "Medical Center", "Hospital", "Nursing Home")
        self.hospitals = [f"{chance.pick(pools.HOSPITALS)} {chance.pick(kinds)}" for _ in range(2)]
        born = patient.admissions[0].admitted - timedelta(days=patient.age * 365.25)
        self.born = born.replace(hour=0, minute=0, second=0, microsecond=0)
        self.mrn, self.account = _digits(chance, 7), _digits(chance, 10)
        self.ssn = f"{chance.between(100, 665)}{chance.between(11, 99)}{chance.between(1000, 9999)}"
        self.phone, self.cell, self.fax = (f"{chance.between(201, 989)}555{_digits(chance, 4)}" for _ in range(3))
        self.pager, self.plan = _digits(chance, 5, 2), f"{chance.pick('ABCXYZ')}QX{_digits(chance, 8)}"
        self.house, self.street = str(chance.between(2, 999)), chance.pick(pools.STREETS)
        self.road = chance.pick(("Street", "St", "Avenue", "Ave", "Road", "Lane", "Drive"))
        self.city, self.state, self.zip = chance.pick(pools.CITIES), chance.pick(pools.STATES), _digits(chance, 5)
        self.device, self.license = f"SN{_digits(chance, 7)}", f"MD{_digits(chance, 6)}"
        self.vehicle = f"{_digits(chance, 3)}{chance.pick('KLMP')}{_digits(chance, 3)}"
        self.host = f"10.{chance.between(0, 255)}.{chance.between(0, 255)}.{chance.between(1, 254)}"
        local = chance.pick((f"{self.me.first}.{self.me.last}", f"{self.me.first[0]}{self.me.last}", self.me.last))
        self.email = f"{local.lower().replace(chr(39), '')}{chance.between(1, 99)}@mailbox.example.com"

    def write(self, field: str, chance: Chance, moment: datetime) -> tuple[str, str] | None:
        """Return the kind of a field and its words; None where this patient has no such identifier."""
        kind, _, form = field.partition(".")
        if kind == "date":
            return "date", _date(form, chance, self._moment(form, chance, moment))
        if kind == "dob":
            return "date", _date(chance.pick(("us", "us", "written", "dmy")), chance, self.born)
        if kind == "age_over":
            age = int(self.patient.age)
            words = _NINETIES.split(" ")
            return ("age", words[min(age, 98) - 90] if form else str(age)) if age >= 90 else None
        person = {"name": self.me, "pcp": self.pcp, "resident": self.resident, "relative": self.relative}.get(kind)
        if kind == "doctor":
            person = chance.pick(self.doctors)
        if person is not None:
            return "name", _name(form, chance, person)
        found = self._values(chance).get(field)
        if found is None:
            raise KeyError(field)
        return found

    def _moment(self, form: str, chance: Chance, moment: datetime) -> datetime:
        if form == "before":
            return moment - timedelta(days=chance.between(60, 1500))
        return moment + timedelta(days=chance.between(-9, 12), minutes=chance.between(0, 1400))

    def _values(self, chance: Chance) -> dict[str, tuple[str, str]]:
        """Return kind and words of each field that is neither a date nor a name."""
        phone, fax = self.phone, self.fax
        area, middle, last = phone[:3], phone[3:6], phone[6:]
        street = f"{self.house} {self.street} {self.road}"
        hospital = chance.pick(self.hospitals)
        number = int(self.ssn)
        return {
            "mrn": ("mrn", self.mrn),
            "mrn.dashed": ("mrn", f"{self.mrn[:3]}-{self.mrn[3:5]}-{self.mrn[5:]}"),
            "mrn.zeros": ("mrn", f"00{self.mrn}"),
            "mrn.letter": ("mrn", f"{'EHA'[number % 3]}{self.mrn}"),
            "mrn.hl7": ("mrn", f"{self.mrn[:6]}"),
            "mrn.nhs": ("mrn", f"{self.ssn[:3]} {self.ssn[3:6]} {self.ssn[5:]}"),
            "account": ("account", self.account),
            "phone": (
                "phone",
                chance.pick((f"{area}-{middle}-{last}", f"({area}) {middle}-{last}", f"{middle}-{last}")),
            ),
            "phone.dots": ("phone", f"{area}.{middle}.{last}"),
            "phone.paren": ("phone", f"({area}){middle}-{last}"),
            "phone.cell": ("phone", f"{self.cell[:3]}-{self.cell[3:6]}-{self.cell[6:]}"),
            "phone.german": ("phone", f"0{area}/{last}{middle}"),
            "phone.uk": ("phone", f"020 7946 0{middle}"),
            "phone.uk_mobile": ("phone", f"07700 900{area}"),
            "phone.spaced": ("phone", f"{area} {middle} {last}"),
            "pager": ("phone", self.pager),
            "fax": ("fax", chance.pick((f"{fax[:3]}-{fax[3:6]}-{fax[6:]}", f"({fax[:3]}) {fax[3:6]}-{fax[6:]}"))),
            "email": ("email", self.email),
            "email.spelled": ("email", self.email.replace("@", " at ").replace(".", " dot ")),
            "url": ("url", f"https://portal.example.org/patients/{self.mrn}"),
            "ip": ("ip", self.host),
            "ssn": ("ssn", f"{self.ssn[:3]}-{self.ssn[3:5]}-{self.ssn[5:]}"),
            "ssn.spaced": ("ssn", f"{self.ssn[:3]} {self.ssn[3:5]} {self.ssn[5:]}"),
            "ssn.last_four": ("ssn", self.ssn[5:]),
            "plan": ("plan", self.plan),
            "license": ("license", self.license),
            "vehicle": ("vehicle", self.vehicle),
            "device": ("device", self.device),
            "address": (
                "address",
                chance.pick((street, f"{street}, {self.city}", f"{street} Apt {number % 40}"))
                if chance.yes(0.7)
                else street.lower(),
            ),
            "address.full": ("address", f"{street}, {self.city}, {self.state} {self.zip}"),
            "address.uk": (
                "address",
                f"{number % 9 + 1}, {self.house} {self.street} Mews, {self.city} NW{number % 9} 6XE",
            ),
            "address.german": ("address", f"{self.street}straße {self.house}, {self.zip} {self.city}"),
            "address.rural": ("address", f"RR {number % 9 + 1} Box {self.house}"),
            "city_state": ("address", f"{self.city}, {self.state}"),
            "city": ("address", self.city),
            "hospital": ("hospital", hospital),
            "hospital.short": ("hospital", "".join(word[0] for word in hospital.split())),
            "hospital.german": ("hospital", f"Klinikum {self.city}"),
            "username": ("email", f"{self.me.first[0]}{self.me.last}{number % 100}".lower()),
        }


def _name(form: str, chance: Chance, person: Person) -> str:
    first, last = person.first, person.last
    full = f"{first} {last}"
    if form == "variant":
        nickname = f"{first[:3]} {last}" if len(first) > 4 else f"{first[0]}. {last}"
        slip = misspell(chance, last.lower(), 1.0).capitalize()
        return chance.pick((nickname, f"{first[0]}. {last}", f"{first} {slip}", slip))
    return {
        "": first,
        "first": first,
        "last": last,
        "last_alone": last,
        "alone": last,
        "full": full,
        "full_alone": full,
        "upper": f"{last}, {first} {person.middle}".upper(),
        "last_first": f"{last}, {first}",
        "lower": last.lower(),
        "initials": f"{first[0]}{last[0]}",
        "initial": f"{first[0]}. {last}",
        "hl7": f"{last}^{first}^{person.middle}".upper(),
    }[form]


def _date(form: str, chance: Chance, moment: datetime) -> str:
    year, month, day = moment.year, moment.month, moment.day
    name = _MONTHS[month - 1]
    short = year % 100
    stay = (
        f"{month}/{day}/{year}", f"{month:02d}/{day:02d}/{year}", f"{month}/{day}/{short:02d}", f"{name} {day}, {year}",
        f"{month}-{day}-{short:02d}",
    )  # fmt: skip
    if form in ("stay", "admitted", "before", "us"):
        return chance.pick(stay if form != "us" else stay[:3])
    return {
        "stay_time": f"{month:02d}/{day:02d}/{year} {moment.hour:02d}:{moment.minute:02d}",
        "iso": f"{year}-{month:02d}-{day:02d}",
        "dmy": f"{day:02d}-{name[:3]}-{year}",
        "written": chance.pick(
            (f"{name} {day}", f"{name[:3]} {day}, {year}", f"{day} {name} {year}", f"{name} {_ordinal(day)}")
        ),
        "month": name,
        "month_year": chance.pick((f"{name} {year}", f"{month}/{year}", f"{name[:3]} {year}")),
        "partial": f"{month}/{day}",
        "german": f"{day}. {_GERMAN.split(' ')[month - 1]} {year}",
        "french": f"{day} {_FRENCH.split(' ')[month - 1]} {year}",
        "day_only": f"the {_ordinal(day)}",
        "dm_partial": f"{day}.{month}.",
        "hl7": f"{year}{month:02d}{day:02d}{moment.hour:02d}{moment.minute:02d}",
        "year_dash": f"{day} {month} {year}",
        "apostrophe": f"{name[:3]}'{short:02d}",
    }[form]


def _ordinal(day: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th") if day not in (11, 12, 13) else "th"
    return f"{day}{ending}"


def plant_identifiers(rows: Rows, seed: int, patients: Sequence[Patient]) -> list[Truth]:
    """Write identifiers into the pending notes of these patients, and return where they stand.

    Lines are added after the letterhead, behind sentences and at the end; no word of the note changes. Notes of traps
    stay as they are, since their texts matter to the letter, and so do those without the letterhead. What is drawn for
    a note comes from a stream of its own, so that the tables without identifiers stay the same.
    """
    personas = {patient.subject_id: Persona(seed, patient) for patient in patients}
    first = patients[0].index
    truths: list[Truth] = []
    pending = rows.pending["NOTEEVENTS"]
    for place, row in enumerate(pending):
        persona = personas.get(row[_SUBJECT])
        if persona is None or isinstance(row, PlantedRow) or not row[-1].startswith(HOSPITAL_LINE):
            continue
        chance = Chance(seed, first, 6, place)
        moment = (
            datetime.combine(row[_DAY], datetime.min.time()) if row[_DAY] else persona.patient.admissions[0].admitted
        )
        text, found = _planted(row[-1], persona, chance, moment)
        pending[place] = (*row[:-1], text)
        truths += [
            Truth(place, row[_SUBJECT], row[_HADM], start, start + len(words), kind, form, held_out)
            for start, words, kind, form, held_out in found
        ]
    return truths


_Found = tuple[int, str, str, str, bool]


def _planted(text: str, persona: Persona, chance: Chance, moment: datetime) -> tuple[str, list[_Found]]:
    """Return a note with identifiers, and their places in it."""
    long = len(text) > 700
    lines = text.rstrip("\n").split("\n")
    found: list[_Found] = []
    places = [place for place in range(1, len(lines)) if len(lines[place]) > 25 and not lines[place].endswith(":")]
    added: dict[int, list[tuple[str, bool]]] = {0: [(f"\n{chance.pick(formats.TOP)}", False)]}
    wanted = [
        (chance.pick(formats.INSIDE), False) for _ in range(chance.between(3, 7) if long else chance.between(1, 3))
    ]
    wanted += [(chance.pick(formats.FALSE_FRIENDS), False) for _ in range(chance.between(1, 3))]
    if chance.yes(0.5):
        wanted.append((chance.pick(formats.HELD_OUT), True))
    for sentence, held_out in chance.some(wanted, len(wanted)):
        added.setdefault(chance.pick(places) if places else len(lines) - 1, []).append((f" {sentence}", held_out))
    if chance.yes(0.8):
        added.setdefault(len(lines) - 1, []).append((f"\n{chance.pick(formats.BOTTOM)}", False))
    result, length = [], 0
    for place, line in enumerate(lines):
        parts = [line]
        length += len(line)
        for sentence, held_out in added.get(place, ()):
            words, inside = _filled(sentence, persona, chance, moment)
            found += [(length + start, value, kind, form, held_out) for start, value, kind, form in inside]
            parts.append(words)
            length += len(words)
        result.append("".join(parts))
        length += 1
    return "\n".join(result) + "\n", found


def _filled(
    sentence: str, persona: Persona, chance: Chance, moment: datetime
) -> tuple[str, list[tuple[int, str, str, str]]]:
    """Fill the fields of a sentence; a sentence with an identifier that the patient has not becomes empty."""
    result, end, inside = "", 0, []
    for match in _FIELD.finditer(sentence):
        result += sentence[end : match.start()]
        end = match.end()
        field = match[1]
        if field in ("title", "time_free"):
            result += (
                ("Mr." if persona.patient.sex == "M" else chance.pick(("Mrs.", "Ms."))) if field == "title" else "9 am"
            )
            continue
        value = persona.write(field, chance, moment)
        if value is None:
            return "", []
        inside.append((len(result), value[1], value[0], field))
        result += value[1]
    return result + sentence[end:], inside
