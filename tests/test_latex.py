"""Tables as LaTeX are well formed whatever stands in their cells."""

from __future__ import annotations

import re

import pytest

from clinstack.report.latex import escape, latex_table
from clinstack.report.tables.cells import Cell, Table

NASTY = r"50 % of $x_1$ & #2 {a} ~b ^c \d <e> |f| “g” −1 ± 0.5 × 2 † ▼ –"


def check_latex(text: str) -> None:
    """Complain about what LaTeX would: braces, environments, cells of a row, bare special characters."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    plain = re.sub(r"\\[\\{}%&#_$]", "", body)  # escaped characters and line ends
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    assert not re.search(r"(?<!\\)[%#~^](?!\})", re.sub(r"\\text\w+\{\}", "", plain))
    assert "_" not in re.sub(r"\\label\{[^}]*\}", "", plain)
    assert body.isascii()
    specification = re.search(r"\\begin\{tabular\}\{(.*)\}\n", body)
    assert specification is not None
    columns = len(re.sub(r"p\{[^}]*\}", "p", specification[1]))
    rows = [line for line in lines if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    for line in rows:
        assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
    for rule in ("toprule", "midrule", "bottomrule"):
        assert body.count(f"\\{rule}") == 1


def table(**changes: object) -> Table:
    rows = [("a_b", [Cell("0.731", "0.70 to 0.76; p < 0.001", strong=True, paper="58.61 †"), Cell("–")])]
    values = {
        "key": "auroc",
        "title": "Table 3: AUROC",
        "note": NASTY,
        "columns": ["Stack", "100 %", "B&C"],
        "rows": rows,
    }
    return Table(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [False, True])
def test_a_table_is_well_formed(words: bool) -> None:
    text = latex_table(table(words=words, groups={0: NASTY}), "Synthetic patients")
    check_latex(text)
    assert r"\textbf{0.731}" in text
    assert "\n" + r" & {\scriptsize 0.70 to 0.76} & \\" + "\n" + r" & {\scriptsize p \textless{} 0.001} & \\" in text
    assert r"paper} & {\scriptsize 58.61 \textdagger{}}" in text
    assert r"\caption{AUROC. Synthetic patients. " in text
    assert r"\label{tab:auroc}" in text
    assert r"\multicolumn{3}{l}{\emph{" in text


def test_every_special_character_is_escaped() -> None:
    assert escape(r"\{}") == r"\textbackslash{}\{\}"
    assert escape("5 % & 6 #") == r"5 \% \& 6 \#"
    assert escape("−0.1 to +0.2") == "$-$0.1 to +0.2"
    assert escape("a\nb") == "a b"
    check_latex(latex_table(table(rows=[(NASTY, [Cell(NASTY, NASTY, strong=True), Cell(NASTY, paper=NASTY)])]), ""))


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.replace(r"\%", "%", 1),
        lambda text: text.replace(r"\bottomrule", "", 1),
        lambda text: text.replace(" & ", " ", 1),
        lambda text: text.replace(r"\textbf{", "", 1),
        lambda text: text.replace("$-$", "−", 1),
    ],
)
def test_the_checker_sees_what_latex_would_not_take(broken: object) -> None:
    with pytest.raises(AssertionError):
        check_latex(broken(latex_table(table(), "")))  # type: ignore[operator]
