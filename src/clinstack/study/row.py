"""One pretrained stack of a study, as its Run left it on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clinstack.report.collect import RunRecord
from clinstack.study.published import PublishedRow

METHOD_NAMES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "rslora": "rsLoRA",
    "adalora": "AdaLoRA",
    "adaption_prompt": "Adaption prompt",
    "prefix": "Prefix tuning",
    "prompt": "Prompt tuning",
    "p_tuning": "P-tuning",
    "full": "Full fine-tuning",
}


@dataclass(frozen=True)
class Row:
    """One pretrained stack.

    Parameters
    ----------
    cell : str
        Its name in the study.
    run : RunRecord
    paper : PublishedRow or None
        What is printed for this method.
    half : str or None
        The base of the paper that the cell stands for.
    """

    cell: str
    run: RunRecord
    paper: PublishedRow | None
    half: str | None

    @property
    def method(self) -> str:
        """The methods of its new adapters, joined with ``+``."""
        adapters = self.run.recipe.get("adapters", [])
        return "+".join(adapter["method"] for adapter in adapters if adapter.get("path") is None)

    @property
    def name(self) -> str:
        """The method's name; with the cell's own where that says more, such as ``lora-r4``."""
        own = self.cell.rpartition("/")[2]
        name = METHOD_NAMES.get(self.method, self.method)
        return name if own == self.method else f"{name} ({own})"

    @property
    def seconds(self) -> float | None:
        """Time of the training, without preparation and evaluation."""
        seconds = self.run.record.get("seconds", {}).get("train")
        return None if seconds is None else float(seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """Predicted tokens of the training, padding not counted, over the time without validations."""
        speed = self.run.record.get("tokens_per_second")
        return None if speed is None else float(speed)

    def perplexity(self, split: str, model: str = "adapted") -> dict[str, Any] | None:
        """Return the estimate of a split, or None where it was not measured."""
        figures = self.run.metrics.get(split)
        return figures[model]["perplexity"] if isinstance(figures, dict) and model in figures else None

    def published(self, split: str) -> float | None:
        """Return perplexity as the published code takes it, where the Run measured that too."""
        figures = self.run.metrics.get(split, {}).get("published")
        return None if figures is None else float(figures["perplexity"])

    def bits(self, model: str = "adapted") -> dict[str, Any]:
        """Return the test notes' bits per character."""
        estimate: dict[str, Any] = self.run.metrics["test"][model]["bits_per_character"]
        return estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it stands in ``table2.json``."""
        stack = self.run.stack
        return {
            "cell": self.cell,
            "method": self.method,
            "base": self.run.base,
            "trainable_parameters": stack.get("trainable_parameters"),
            "parameters": stack.get("parameters"),
            "train_perplexity": self.perplexity("train"),
            "test_perplexity": self.perplexity("test"),
            "base_test_perplexity": self.perplexity("test", "base"),
            "bits_per_character": self.bits(),
            "base_bits_per_character": self.bits("base"),
            "train_seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "layout": self.run.metrics.get("layout"),
            "published_test_perplexity": self.published("test"),
            "published_train_perplexity": self.published("train"),
            "paper": None if self.paper is None else self.paper.to_dict(),
        }
