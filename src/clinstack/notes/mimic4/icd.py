"""ICD-9 and ICD-10 codes side by side: versions, categories, and mappings that the user brings.

MIMIC-IV codes an admission in the version of its day (ICD-9-CM until September 2015, ICD-10-CM and ICD-10-PCS since),
so what to do with the two is a choice of the study, never a silent one.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from clinstack.errors import InputError
from clinstack.files import sha256_file
from clinstack.notes.labels import diagnosis_category, procedure_category

IcdChoice = Literal["9", "10", "map-to-9", "map-to-10", "both"]
ICD_CHOICES: tuple[str, ...] = get_args(IcdChoice)
CodeKind = Literal["diagnoses", "procedures"]
_NO_TARGET = {"", "NODX", "NOPCS", "NOPROC", "NOCODE"}


def bare_code(code: str) -> str:
    """Return a code without padding and dot, in capitals; MIMIC-IV's char(7) column may be filled up with blanks."""
    return code.strip().upper().replace(".", "")


def category(code: str, version: int, kind: CodeKind) -> str:
    """Return the category of a code.

    ICD-9 diagnoses: three characters, four for external causes (E885). ICD-9 procedures: three digits with their
    leading zeros. ICD-10-CM: the three characters before the dot (I509 is I50). ICD-10-PCS: section, body system and
    operation, the first three of its seven characters.
    """
    if version == 9:
        return diagnosis_category(code) if kind == "diagnoses" else procedure_category(code)
    return bare_code(code)[:3]


def read_as_number(code: str, version: int, kind: CodeKind) -> bool:
    """Whether a code can only have come about by reading it as a number, which takes leading zeros: 66 for 0066.

    An ICD-9 code has three characters at least, and an ICD-10-PCS code exactly seven; ICD-10-CM begins with a letter.
    """
    bare = bare_code(code)
    if not bare.isdigit():
        return False
    if version == 9:
        return len(bare) < 3
    return kind == "diagnoses" or len(bare) < 7


@dataclass
class IcdMap:
    """A mapping from one version to the other, such as one made from the General Equivalence Mappings of CMS.

    Parameters
    ----------
    path : Path
        Where it was read.
    targets : dict of str to tuple of str
        For each bare code its targets, in the order of the file.
    """

    path: Path
    targets: dict[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> IcdMap:
        """Read a csv file with the columns ``from_code,to_code`` and perhaps ``flags``, plain or gzipped.

        A code may stand in several rows: each names one more target. ``flags`` are the five digits of CMS (approximate,
        no map, combination, scenario, choice list): a row with *no map* gives no target, and of several scenarios the
        first counts, since the others are alternatives to it.

        Raises
        ------
        InputError
            If the file is missing, is not such a file, or a row is not complete.
        """
        if not path.is_file():
            raise InputError(f"{path} is not a file; --icd-map takes a csv file with the columns from_code,to_code.")
        opener = gzip.open if path.suffix == ".gz" else open
        targets: dict[str, list[str]] = {}
        try:
            with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                names = [name.strip().lower() for name in reader.fieldnames or []]
                if not {"from_code", "to_code"} <= set(names):
                    raise InputError(f"{path}: its first line must name the columns from_code,to_code[,flags].")
                reader.fieldnames = names
                for row in reader:
                    source, target = _map_row(path, reader.line_num, row)
                    found = targets.setdefault(source, [])
                    if target and target not in found:
                        found.append(target)
        except (OSError, EOFError, UnicodeDecodeError, csv.Error):
            raise InputError(f"{path} cannot be read as a csv file in UTF-8; write it again.") from None
        if not targets:
            raise InputError(f"{path} holds no rows; it must map codes.")
        return cls(path, {source: tuple(found) for source, found in targets.items()})

    def facts(self) -> dict[str, str]:
        """Return name and hash, for ``prepare.json``."""
        return {"file": self.path.name, "sha256": sha256_file(self.path)}


def _map_row(path: Path, line: int, row: dict[str, str | None]) -> tuple[str, str]:
    """Return source and target of a row; the target is empty where the row says that there is none."""
    source, target = bare_code(row["from_code"] or ""), bare_code(row["to_code"] or "")
    flags = (row.get("flags") or "").strip()
    if not source:
        raise InputError(f"{path} line {line}: from_code is empty; each row maps one code.")
    if flags and not (len(flags) == 5 and flags.isdigit()):
        raise InputError(f"{path} line {line}: flags are {flags[:20]!r}; use the five digits of CMS, zeros included.")
    if target in _NO_TARGET or (flags and (flags[1] == "1" or flags[3] > "1")):
        target = ""
    return source, target


@dataclass
class CodeBook:
    """Turns source codes into the categories that become labels, by the choice of the study.

    Attributes
    ----------
    unmapped : Counter
        Rows whose code the mapping does not hold or maps to nothing, by code.
    """

    kind: CodeKind
    choice: IcdChoice
    mapping: IcdMap | None = None
    unmapped: Counter[str] = field(default_factory=Counter)

    def categories(self, code: str, version: int, rows: int = 1) -> list[str]:
        """Return the categories of a code, none if the choice leaves it out or the mapping does not know it.

        Parameters
        ----------
        code : str
            As it stands in the table, padded or not.
        version : int
            9 or 10.
        rows : int
            How many rows have the code, for the count of what is not mapped.
        """
        if self.choice == "both":
            return [f"{version}:{category(code, version, self.kind)}"]
        wanted = 9 if self.choice in ("9", "map-to-9") else 10
        if version == wanted:
            return [category(code, version, self.kind)]
        if self.mapping is None:
            return []
        targets = self.mapping.targets.get(bare_code(code), ())
        if not targets:
            self.unmapped[bare_code(code)] += rows
        return sorted({category(target, wanted, self.kind) for target in targets})
