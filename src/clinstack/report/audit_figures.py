"""The figures of an audit: ROC curves on logarithmic axes, areas with intervals, exposure by repetition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clinstack.privacy.finding_names import membership_name
from clinstack.report.figures.canvas import FAINT, LINES, WIDTH, Drawing, canvas, finish, legend
from clinstack.report.sacro import roc_points
from clinstack.report.tables.cells import interval, number

CHANCE_EXPOSURE = 1.44
"""Bits of exposure of what nobody planted: the mean of minus log2 of a uniform rank, 1 / ln 2."""
_THRESHOLD = "#a61b1b"
_HIGH = 0.75
"""An AUROC from which on curves leave the diagonal, and pass through the corner above it."""


def title(name: str) -> str:
    """Return a name at the beginning of a line."""
    return name[:1].upper() + name[1:]


def roc_figure(folder: Path, report: Mapping[str, Any], caveat: str) -> Drawing | None:
    """Draw the membership attacks' ROC curves, both axes logarithmic; None where membership was not tested.

    As SACRO-ML draws them: what matters is at the left, where few others are called members.
    """
    section = report["sections"]["membership"]
    if not section["tested"]:
        return None
    table = pq.read_table(folder / section["table"])
    member = table["member"].to_numpy(zero_copy_only=False).astype(bool)
    members, others = int(member.sum()), int((~member).sum())
    left, bottom = 0.5 / others, 0.5 / members
    with canvas(WIDTH) as (figure, axes):
        low = min(left, bottom)
        axes.plot([low, 1], [low, 1], color="#bdbdbd", linewidth=0.8)
        described = []
        for (name, attack), (color, style) in zip(section["attacks"].items(), LINES, strict=False):
            false, true, _ = roc_points(member, table[f"score_{name}"].to_numpy())
            area = number(attack["auroc"]["value"])
            label = f"{title(membership_name(name))} {area}"
            described.append(label)
            # A logarithm has no zero: what calls nobody a member stands at half an item.
            axes.plot(
                false.clip(left, 1),
                true.clip(bottom, 1),
                color=color,
                linestyle=style,
                linewidth=1.5,
                drawstyle="steps-post",
                label=label,
            )
        axes.axvline(0.01, color=_THRESHOLD, linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(bottom, 1.05), title="Membership: ROC curves")
        axes.set_xlabel("False positive rate (held-out)")
        axes.set_ylabel("True positive rate (training)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        highest = max(attack["auroc"]["value"] for attack in section["attacks"].values())
        legend(axes, "Attack and AUROC", "lower right" if highest > _HIGH else "upper left")
        caption = (
            "ROC curves of the membership attacks, both axes logarithmic. On the gray line an attack guesses. The "
            f"dotted line is a false positive rate of 1 %. {members:,} against {others:,}; where nobody is called a "
            "member the curve stands at half of one."
        )
        return finish(figure, "audit-roc", f"ROC curves, AUROC: {'; '.join(described)}.", caption, caveat)


def areas_figure(report: Mapping[str, Any], caveat: str) -> Drawing | None:
    """Draw the AUROC of each membership attack with its joint interval, and the threshold."""
    section = report["sections"]["membership"]
    if not section["tested"]:
        return None
    rows = {title(membership_name(name)): attack["auroc_joint"] for name, attack in section["attacks"].items()}
    threshold = report["thresholds"]["membership_auroc"]
    with canvas(1.0 + 0.42 * len(rows)) as (figure, axes):
        axes.axvline(0.5, color="#bdbdbd", linewidth=0.9)
        axes.axvline(threshold, color=_THRESHOLD, linewidth=0.9, linestyle=":")
        for place, area in enumerate(rows.values()):
            color = LINES[place % len(LINES)][0]
            axes.plot(area["interval"], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
            axes.plot([area["value"]], [place], "D", markersize=5.5, color=color)
        ends = [0.45, threshold + 0.05, *(end for area in rows.values() for end in area["interval"])]
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(max(0, min(ends) - 0.02), min(1.01, max(ends) + 0.02)))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title("Membership: areas")
        axes.set_xlabel("AUROC with 95 % intervals that hold together")
        described = "; ".join(
            f"{name} {number(area['value'])}, {interval(area['interval'])}" for name, area in rows.items()
        )
        caption = (
            "AUROC of each membership attack. The intervals are over patients and hold for all attacks together. Gray: "
            f"guessing. Dotted: the threshold, {threshold:g}."
        )
        return finish(figure, "audit-areas", f"AUROC of membership attacks: {described}.", caption, caveat)


def exposure_figure(report: Mapping[str, Any], caveat: str) -> Drawing | None:
    """Draw mean exposure by how often canaries were planted; None where none were."""
    section = report["sections"]["canaries"]
    rows = exposures(section)
    if not rows:
        return None
    threshold = report["thresholds"]["exposure"]
    with canvas(WIDTH * 0.8) as (figure, axes):
        axes.axhline(CHANCE_EXPOSURE, color="#bdbdbd", linewidth=0.9)
        axes.axhline(threshold, color=_THRESHOLD, linewidth=0.9, linestyle=":")
        places = range(len(rows))
        axes.plot(places[1:], [row["value"] for _, row in rows[1:]], color=FAINT, linewidth=0.8)
        for place, (_, row) in enumerate(rows):
            if row["interval"] is not None:
                axes.plot([place, place], row["interval"], color=LINES[0][0], linewidth=2.2, solid_capstyle="butt")
            axes.plot([place], [row["value"]], "D", markersize=5.5, color=LINES[0][0])
        axes.set_xticks(places, [str(often) for often, _ in rows])
        axes.set(ylim=(0, None), xlim=(-0.5, len(rows) - 0.5), title="Canaries: exposure")
        axes.set_xlabel("Times planted (0: controls)")
        axes.set_ylabel("Mean exposure, bits")
        described = "; ".join(f"planted {often} times: {number(row['value'], 2)} bits" for often, row in rows)
        caption = (
            "Mean exposure of canaries by how often they stood in the training notes, with 95 % intervals. Gray: what "
            f"canaries come to that nobody planted, {CHANCE_EXPOSURE} bits. Dotted: the threshold, {threshold:g} bits."
        )
        return finish(figure, "audit-exposure", f"Exposure of canaries: {described}.", caption, caveat)


def exposures(section: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return mean exposure with its interval by how often canaries were planted, the controls (0) first."""
    if not section["tested"]:
        return []
    groups = [(0, section["of_controls"])] + [(one["repetitions"], one) for one in section["by_repetition"]]
    return [(often, group["exposure"]) for often, group in groups if group["exposure"]["value"] is not None]
