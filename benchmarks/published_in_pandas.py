"""One of the four van Aken tasks with pandas 1, step by step as the published script takes them.

The stand-in that `builders.py` measures against where no checkout of the published repository is at hand. It reads the
whole of NOTEEVENTS.csv with pandas' own guesses of types, searches each section with one expression, and writes the
same files, byte for byte. Run with a Python that has pandas 1.5; newer ones give no rows.

    python published_in_pandas.py TASK MIMIC_DIR SPLITS_DIR OUT_DIR [admission]
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pandas as pd

HEADERS = {
    "CHIEF COMPLAINT": "chief complaint:",
    "PRESENT ILLNESS": "present illness:",
    "MEDICAL HISTORY": "medical history:",
    "MEDICATION ON ADMISSION": "medications on admission:",
    "ALLERGIES": "allergies:",
    "PHYSICAL EXAM": "physical exam:",
    "FAMILY HISTORY": "family history:",
    "SOCIAL HISTORY": "social history:",
}
FILES = {
    "mp": ("MP_IN", "hospital_expire_flag"),
    "los": ("LOS_WEEKS", "los_label"),
    "dia": ("DIA_GROUPS_3_DIGITS", "short_codes"),
    "pro": ("PRO_GROUPS_3_DIGITS", "short_codes"),
}
DEATH = "(?:expired|died|passed away|deceased)"


def admission_texts(source: Path, admission: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    notes, stays = pd.read_csv(source / "NOTEEVENTS.csv"), pd.read_csv(source / "ADMISSIONS.csv")
    notes = notes[notes["HADM_ID"].isin(stays.loc[stays["ADMISSION_TYPE"] != "NEWBORN", "HADM_ID"])]
    notes = notes.dropna(subset=["TEXT", "HADM_ID"])
    notes = notes[notes["CATEGORY"] == "Discharge summary"]
    notes = notes.sort_values(by=["CHARTDATE"]).drop_duplicates(subset=["TEXT"], keep="last")
    texts = notes.groupby("HADM_ID")["TEXT"].apply("\n\n".join).reset_index()
    reports = notes.loc[notes["DESCRIPTION"] == "Report", ["HADM_ID", "SUBJECT_ID"]]
    texts = texts.merge(reports.drop_duplicates(subset=["HADM_ID"], keep="last"), on="HADM_ID", how="inner")
    texts["TEXT"] = texts["TEXT"].str.strip()
    if not admission:
        return texts, stays
    one_line = texts["TEXT"].str.replace(r"\n", r"\\n", regex=True)
    sections = pd.DataFrame(index=texts.index)
    for title, header in HEADERS.items():
        found = one_line.str.extract(rf"(?i){header}(.+?)\\n\\n[^(\\|\d|\.)]+?:", expand=False)
        sections[title] = found.str.replace(r"\\n", " ", regex=True).str.strip().fillna("")
    kept = (sections[["CHIEF COMPLAINT", "PRESENT ILLNESS", "MEDICAL HISTORY"]] != "").any(axis=1)
    parts = [title + ": " + sections[title] for title in HEADERS]
    texts["TEXT"] = parts[0].str.cat(parts[1:], sep="\n\n")
    return texts[kept], stays


def mortality(texts: pd.DataFrame, stays: pd.DataFrame) -> pd.DataFrame:
    rows = texts.merge(stays[["HADM_ID", "HOSPITAL_EXPIRE_FLAG"]], how="left", on="HADM_ID")
    rows = rows.dropna(subset=["HOSPITAL_EXPIRE_FLAG"]).rename(columns={"HOSPITAL_EXPIRE_FLAG": "LABEL"})
    start = r"((?:PHYSICAL EXAM|MEDICATION ON ADMISSION):[^\n]*?)"
    charted = re.compile(rf"{start}((?:patient|pt)?\s+(?:had\s|has\s)?{DEATH})", re.IGNORECASE)
    rows["TEXT"] = rows["TEXT"].replace(charted, r"\1", regex=True)
    told = (rf"(?:patient|pt)\s+(?:had\s|has\s)?{DEATH}", "he expired", "pronounced expired", "time of death")
    for pattern in told:
        rows = rows[~rows["TEXT"].str.contains(pattern, flags=re.IGNORECASE)]
    return rows


def length_of_stay(texts: pd.DataFrame, stays: pd.DataFrame) -> pd.DataFrame:
    stay = pd.to_datetime(stays["DISCHTIME"]) - pd.to_datetime(stays["ADMITTIME"])
    days = (stay.dt.total_seconds() / 86400).round(1)
    stays = stays.assign(LABEL=(days > 3).astype(int) + (days > 7) + (days > 14))
    rows = texts.merge(stays[["HADM_ID", "LABEL", "HOSPITAL_EXPIRE_FLAG"]], how="left", on="HADM_ID")
    return rows[rows["HOSPITAL_EXPIRE_FLAG"] == 0]


def codes(texts: pd.DataFrame, source: Path, task: str, out: Path) -> pd.DataFrame:
    table = pd.read_csv(source / ("DIAGNOSES_ICD.csv" if task == "dia" else "PROCEDURES_ICD.csv"))
    table = table[["SUBJECT_ID", "HADM_ID", "ICD9_CODE"]].dropna(subset=["ICD9_CODE"])
    code = table["ICD9_CODE"].astype(str)
    long = code.str.startswith("V") | code.str.startswith("E") if task == "dia" else code.str.startswith("\0")
    table["SHORT"] = code.str[:3].where(~long, code.str[:4])
    (out / f"ALL_3_DIGIT_{task.upper()}_CODES.txt").write_text(" ".join(table["SHORT"].unique()), encoding="utf-8")
    table = table.drop_duplicates(["HADM_ID", "SHORT"])
    joined = table.groupby(["HADM_ID", "SUBJECT_ID"])["SHORT"].apply(",".join).reset_index()
    joined = joined.rename(columns={"SHORT": "LABEL"})
    return joined[["HADM_ID", "LABEL"]].merge(texts, how="inner", on="HADM_ID")


def main(task: str, source: Path, splits: Path, out: Path, admission: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    texts, stays = admission_texts(source, admission)
    if task == "mp":
        rows = mortality(texts, stays)
    elif task == "los":
        rows = length_of_stay(texts, stays)
    else:
        rows = codes(texts, source, task, out)
    name, label = FILES[task]
    rows = rows.assign(ID=rows["HADM_ID"].astype(int))
    for split in ("train", "val", "test"):
        patients = pd.read_csv(splits / f"mimic_{split}.csv")["SUBJECT_ID"]
        chosen = rows[rows["SUBJECT_ID"].isin(patients)].sample(frac=1, random_state=123)
        chosen = chosen[["ID", "TEXT", "LABEL"]].set_axis(["id", "text", label], axis=1)
        path = out / f"{name}{'_adm' if admission else ''}_{split}.csv"
        chosen.to_csv(path, index=False, quoting=csv.QUOTE_ALL)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]), admission="admission" in sys.argv[5:])
