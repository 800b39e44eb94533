"""Table 2 as it is printed in Gema et al. (2023), arXiv 2307.03042; checked against the picture in the authors' README.

LLaMA and PMC-LLaMA of 7 billion parameters, pretrained on MIMIC-IV notes (2,653,149, split at random by note), of which
the published code reads the first 128 tokens, padded; perplexity there is the exponential of the mean over batches of
their mean losses. Times are of one epoch on an A100 with 80 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCE = "Gema et al. (2023), Table 2, https://arxiv.org/abs/2307.03042"


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper's table."""

    base: str
    method: str
    trainable_parameters: int
    share: str
    """Per cent of the base's parameters, with the paper's digits."""
    train_perplexity: str
    test_perplexity: str
    time: str
    """Hours, minutes and seconds of the training."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it stands in ``table2.json``."""
        return {
            "base": self.base,
            "method": self.method,
            "trainable_parameters": self.trainable_parameters,
            "trainable_percent": float(self.share),
            "train_perplexity": float(self.train_perplexity),
            "test_perplexity": float(self.test_perplexity),
            "time": self.time,
        }


TABLE2 = (
    PublishedRow("LLaMA", "lora", 8_388_608, "0.12", "1.858", "2.244", "21:37:42"),
    PublishedRow("LLaMA", "adaption_prompt", 1_228_830, "0.02", "2.561", "2.865", "24:57:17"),
    PublishedRow("LLaMA", "prefix", 5_242_880, "0.08", "2.815", "2.748", "20:11:07"),
    PublishedRow("LLaMA", "prompt", 61_440, "0.0009", "4.846", "4.007", "23:27:28"),
    PublishedRow("LLaMA", "p_tuning", 16_093_696, "0.24", "2.723", "3.271", "23:49:31"),
    PublishedRow("PMC-LLaMA", "lora", 2_097_152, "0.03", "1.938", "2.404", "21:32:59"),
    PublishedRow("PMC-LLaMA", "adaption_prompt", 1_228_830, "0.018", "2.374", "2.867", "23:33:10"),
    PublishedRow("PMC-LLaMA", "prefix", 2_621_440, "0.04", "1.789", "2.848", "20:13:10"),
    PublishedRow("PMC-LLaMA", "prompt", 40_960, "0.0006", "4.821", "4.385", "22:25:32"),
    PublishedRow("PMC-LLaMA", "p_tuning", 2_171_392, "0.03", "3.491", "4.572", "22:28:15"),
)
"""In the order of the paper. LoRA has the lowest test perplexity on both bases."""


def published_row(base: str | None, method: str) -> PublishedRow | None:
    """Return the paper's row for a method on one of its two bases; None where the paper has none."""
    return next((row for row in TABLE2 if (row.base, row.method) == (base, method)), None)
