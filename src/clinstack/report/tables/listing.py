"""All tables of a report, in its order."""

from __future__ import annotations

from clinstack.report.summary import Summary
from clinstack.report.tables.cells import Table
from clinstack.report.tables.codes import code_tables
from clinstack.report.tables.data import data_table
from clinstack.report.tables.language import note_type_table, perplexity_table
from clinstack.report.tables.measures import calibration_table, f1_table, operating_table
from clinstack.report.tables.outcomes import auprc_table, auroc_table, difference_table, test_table
from clinstack.report.tables.paper import paper_table
from clinstack.report.tables.runs import budget_table, run_table
from clinstack.report.tables.subgroups import subgroup_tables


def all_tables(summary: Summary) -> list[Table]:
    """Return the tables of the report that have something in them, in its order."""
    tables = [
        data_table(summary.data),
        perplexity_table(summary),
        note_type_table(summary),
        auroc_table(summary),
        paper_table(summary.data),
        difference_table(summary),
        auprc_table(summary),
        f1_table(summary),
        operating_table(summary),
        calibration_table(summary),
        *subgroup_tables(summary),
        *code_tables(summary),
        test_table(summary),
        budget_table(summary),
        run_table(summary),
    ]
    return [table for table in tables if table.rows]
