"""The paper's printed figures, as studies name them; they stand in the report's room, which shows them."""

from clinstack.report.published import (
    MEAN,
    REVISED,
    SOURCE,
    TABLE1,
    TABLE2,
    TABLE3,
    TABLE4,
    PublishedAuroc,
    PublishedData,
    PublishedRow,
    published_auroc,
    published_auroc_row,
    published_row,
    slips,
)

__all__ = [
    "MEAN",
    "REVISED",
    "SOURCE",
    "TABLE1",
    "TABLE2",
    "TABLE3",
    "TABLE4",
    "PublishedAuroc",
    "PublishedData",
    "PublishedRow",
    "published_auroc",
    "published_auroc_row",
    "published_row",
    "slips",
]
