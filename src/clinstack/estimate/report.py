"""An estimate as tables and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clinstack.estimate.architectures import Architecture, find_architecture
from clinstack.estimate.devices import CONTEXT, Device
from clinstack.estimate.memory import Estimator, rule_of_thumb, with_settings
from clinstack.estimate.parameters import count, describe_adapter, planned_adapter
from clinstack.recipe import AdapterRecipe, TrainingStageRecipe

VARIANTS = ("as it is", "checkpointing", "4bit", "4bit, checkpointing")
"""What a recipe can be changed to without changing what it learns from."""
_PARTS = {
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits",
    "temporary": "temporary",
}
_WHEN = {
    "forward": "in the forward pass",
    "loss": "when the loss is computed",
    "backward": "in the backward pass",
    "step": "in the optimizer's step",
}


@dataclass(frozen=True)
class DeviceAnswer:
    """What a card takes.

    Parameters
    ----------
    device : Device
    largest : dict of str to int or None
        The largest batch by variant; 0 where not even one row fits, None where the recipe cannot be changed so.
    """

    device: Device
    largest: dict[str, int | None]


class Estimate:
    """All that `clinstack estimate` says of a recipe.

    Parameters
    ----------
    recipe : TrainingStageRecipe
    devices : sequence of Device
    """

    def __init__(self, recipe: TrainingStageRecipe, devices: Sequence[Device]) -> None:
        self.recipe = recipe
        self.architecture: Architecture = find_architecture(recipe.base)
        self._estimators: dict[tuple[str, bool], Estimator] = {}
        self.main = self._estimator("as it is", has_flash=any(device.has_flash for device in devices))
        self.memory = self.main.memory()
        self.whole_logits = self.main.memory(full_logits=True) if self.main.classes is None else None
        self.other_way = None
        if recipe.training.gradient_checkpointing:
            plain = with_settings(recipe, checkpointing=False)
            self.other_way = Estimator(plain, self.architecture, stack=self.main.stack).memory()
        elif self._recipe("checkpointing") is not None:
            self.other_way = self._estimator("checkpointing", has_flash=True).memory()
        self.answers = [self._answer(device) for device in devices]

    @property
    def trainable(self) -> int:
        """Parameters that train."""
        return count(list(self.main.stack.trainable_parameters().values()))

    def parts(self) -> list[dict[str, Any]]:
        """Return base, adapters and head with their parameters."""
        stack = self.main.stack
        whole = any(adapter.method == "full" for adapter in stack.adapters)
        found = [{"name": "base", "method": "", "parameters": stack.base_parameters(), "trainable": False}]
        for index, adapter in enumerate(self.recipe.adapters):
            described = describe_adapter(adapter, index)
            parameters = count(list(stack.adapter_parameters(adapter.name).values()))
            trains = adapter.is_trainable
            found.append(
                {"name": adapter.name, "method": described.method, "parameters": parameters, "trainable": trains}
            )
        if whole:
            found = found[1:]
        if stack.task is not None:
            head = count(list(stack.head_parameters().values()))
            found.append({"name": "head", "method": f"{len(stack.task.classes)} outputs", "parameters": head} | _TRAINS)
        return found

    def notes(self) -> list[str]:
        """Return what a person should know of how this was estimated, one sentence each."""
        found = []
        for adapter in self.recipe.adapters:
            planned = None if adapter.path is None else planned_adapter(adapter.path)
            if planned is not None:
                found.append(f"{adapter.name}: {adapter.path} is counted as the preset {planned[0]} makes it.")
        if self.recipe.dtype == "bfloat16" and any(not answer.device.has_bfloat16 for answer in self.answers):
            names = ", ".join(a.device.name for a in self.answers if not a.device.has_bfloat16)
            found.append(f"{names} computes no bfloat16 in hardware: set dtype=float16 there.")
        return found

    def advice(self) -> list[str]:
        """Return what to change on each card where the recipe's batch does not fit, one sentence each."""
        found = []
        rows = self.main.rows
        for answer in self.answers:
            name, here = answer.device.name, answer.largest["as it is"] or 0
            if here >= rows:
                continue
            fitting = [v for v in VARIANTS[1:] if (answer.largest[v] or 0) >= rows]
            some = [v for v in VARIANTS if (answer.largest[v] or 0) >= 1]
            if fitting:
                found.append(f"{name}: {_overrides(fitting[0])} makes batches of {rows} fit.")
            elif some:
                best = max(some, key=lambda v: answer.largest[v] or 0)
                most = answer.largest[best] or 0
                how = f"with {_overrides(best)} " if _overrides(best) else ""
                steps = -(-self.recipe.training.accumulate * rows // most)
                found.append(
                    f"{name}: {how}training.batch_size={most} training.accumulate={steps} fits, and learns the same."
                )
            elif any(adapter.method == "full" for adapter in self.main.stack.adapters):
                found.append(f"{name}: full fine-tuning does not fit; use lora, with quantize=4bit.")
            else:
                found.append(f"{name}: not even one row of {self.main.tokens} tokens fits; take a smaller base.")
        return found

    def values(self) -> dict[str, Any]:
        """Return everything as plain values; sizes in bytes."""
        memory, trace = self.memory, self.memory.trace
        checkpointed = self.recipe.training.gradient_checkpointing
        kept = {checkpointed: trace.kept}
        if self.other_way is not None:
            kept[not checkpointed] = self.other_way.trace.kept
        return {
            "base": self.architecture.name,
            "source": self.architecture.source,
            "trainable_parameters": self.trainable,
            "parameters": self.main.stack.base_parameters(),
            "parts": self.parts(),
            "batch": self.main.rows,
            "length": self.main.tokens,
            "memory": {
                "weights": memory.weights.base,
                "quantization": memory.weights.scales,
                "adapters": memory.weights.adapters,
                "gradients": trace.gradients,
                "optimizer": trace.optimizer,
                "activations": kept.get(False),
                "activations_checkpointed": kept.get(True),
                "logits": trace.parts["loss"].get("logits", 0),
                "full_logits": None if self.whole_logits is None else self.whole_logits.trace.parts["loss"]["logits"],
                "peak": memory.peak,
                "peak_with_full_logits": None if self.whole_logits is None else self.whole_logits.peak,
                "when": trace.when,
                "at_the_peak": trace.parts[trace.when],
                "context": CONTEXT,
            },
            "devices": [
                {"name": a.device.name, "room": a.device.room, "fits": self._fits(a), "largest_batch": a.largest}
                for a in self.answers
            ],
            "rule_of_thumb_gb": [round(bound, 1) for bound in rule_of_thumb(self.main.stack.base_parameters())],
            "advice": self.advice(),
            "notes": self.notes(),
        }

    def show(self, console: Console) -> None:
        """Print the tables."""
        values = self.values()
        console.print(f"{escape(self.architecture.name)}: {escape(self.architecture.source)}")
        console.print(self._parameters_table())
        console.print(self._memory_table(values["memory"]))
        console.print(self._devices_table())
        low, high = values["rule_of_thumb_gb"]
        console.print(
            f"Rule of thumb for training all of it: {low:,.1f} to {high:,.1f} GB (6 to 16 bytes a parameter)."
        )
        for line in values["advice"]:
            console.print(f"[green]advice[/] {escape(line)}")
        for line in values["notes"]:
            console.print(f"[yellow]note[/] {escape(line)}")

    # ------------------------------------------------------------------ tables

    def _parameters_table(self) -> Table:
        table = Table(show_footer=True)
        whole = sum(part["parameters"] for part in self.parts())
        table.add_column("part", footer="trainable")
        table.add_column("method")
        table.add_column("", footer="")
        table.add_column("parameters", justify="right", footer=f"{self.trainable:,}")
        table.add_column("share", justify="right", footer=f"{100 * self.trainable / whole:.3g} %")
        for part in self.parts():
            state = "[green]trainable[/]" if part["trainable"] else "frozen"
            share = f"{100 * part['parameters'] / whole:.3g} %"
            table.add_row(escape(part["name"]), part["method"], state, f"{part['parameters']:,}", share)
        return table

    def _memory_table(self, memory: dict[str, Any]) -> Table:
        recipe = self.recipe
        held = recipe.dtype if recipe.quantize == "none" else f"{recipe.quantize}, {recipe.dtype}"
        title = f"{self.main.rows} rows of {self.main.tokens} tokens, base in {held}"
        table = Table("memory", title=title, title_style="")
        table.add_column("GiB", justify="right")
        table.add_column("at the peak", justify="right")
        fixed = {"weights": "weights", "quantization": "scales of quantised weights", "adapters": "adapters and head"}
        for key, name in fixed.items():
            if memory[key]:
                table.add_row(name, _gib(memory[key]), _gib(memory[key]))
        at_peak = memory["at_the_peak"]
        whole = {
            "optimizer": memory["optimizer"],
            "gradients": memory["gradients"],
            "activations": self.memory.trace.kept,
            "logits": memory["logits"],
            "temporary": at_peak.get("temporary", 0),
        }
        for key, name in _PARTS.items():
            word = ", layers computed again" if key == "activations" and recipe.training.gradient_checkpointing else ""
            table.add_row(name + word, _gib(whole[key]), _gib(at_peak.get(key, 0)))
        table.add_section()
        table.add_row(f"[bold]peak[/], {_WHEN[memory['when']]}", "", f"[bold]{_gib(memory['peak'])}[/]")
        table.add_row("beside it: CUDA context and workspaces", "", _gib(memory["context"]))
        if self.other_way is not None:
            word = "without" if recipe.training.gradient_checkpointing else "with"
            kept, peak = self.other_way.trace.kept, self.other_way.peak
            table.add_row(f"{word} gradient checkpointing: activations, peak", _gib(kept), _gib(peak))
        if memory["full_logits"] is not None:
            peak = memory["peak_with_full_logits"]
            table.add_row("with full logits: logits, peak", _gib(memory["full_logits"]), _gib(peak))
        return table

    def _devices_table(self) -> Table:
        table = Table("card", title="the largest batch that fits", title_style="")
        table.add_column("room, GiB", justify="right")
        for variant in VARIANTS:
            table.add_column(variant, justify="right")
        for answer in self.answers:
            cells = [_batch(answer.largest[variant], self.main.rows) for variant in VARIANTS]
            table.add_row(answer.device.name, _gib(answer.device.room), *cells)
        return table

    # ------------------------------------------------------------------ variants

    def _fits(self, answer: DeviceAnswer) -> bool:
        return (answer.largest["as it is"] or 0) >= self.main.rows

    def _answer(self, device: Device) -> DeviceAnswer:
        largest: dict[str, int | None] = {}
        for variant in VARIANTS:
            if self._recipe(variant) is None:
                largest[variant] = None
            else:
                largest[variant] = self._estimator(variant, has_flash=device.has_flash).largest_batch(device.room)
        return DeviceAnswer(device, largest)

    def _estimator(self, variant: str, *, has_flash: bool) -> Estimator:
        # Where the kernel does not matter, what was traced for one card is true of another.
        key = (variant, has_flash or not (variant == "as it is" or self.main.needs_flash))
        if key not in self._estimators:
            recipe = self._recipe(variant)
            assert recipe is not None
            stack = self.main.stack if self._estimators else None
            self._estimators[key] = Estimator(recipe, self.architecture, has_flash=has_flash, stack=stack)
        return self._estimators[key]

    def _recipe(self, variant: str) -> TrainingStageRecipe | None:
        """Return the recipe of a variant; None where there is none, or it is the recipe itself."""
        recipe = self.recipe
        if variant == "as it is":
            return recipe
        described = [describe_adapter(adapter, index) for index, adapter in enumerate(recipe.adapters)]
        checkpointing = "checkpointing" in variant or recipe.training.gradient_checkpointing
        quantize = "4bit" if "4bit" in variant else recipe.quantize
        changed = (checkpointing, quantize) != (recipe.training.gradient_checkpointing, recipe.quantize)
        if not changed or not _can(described, checkpointing=checkpointing, quantize=quantize):
            return None
        return with_settings(recipe, checkpointing=checkpointing, quantize=quantize)


_TRAINS = {"trainable": True}


def _can(adapters: Sequence[AdapterRecipe], *, checkpointing: bool, quantize: str) -> bool:
    methods = {adapter.method for adapter in adapters}
    if checkpointing and "prefix" in methods:
        return False
    return not (quantize != "none" and "full" in methods)


def _overrides(variant: str) -> str:
    words = []
    if "4bit" in variant:
        words.append("quantize=4bit")
    if "checkpointing" in variant:
        words.append("training.gradient_checkpointing=true")
    return " ".join(words)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"


def _batch(largest: int | None, wanted: int) -> str:
    if largest is None:
        return "[dim]–[/]"
    color = "green" if largest >= wanted else "yellow" if largest else "red"
    return f"[{color}]{largest:,}[/]" if largest else f"[{color}]none[/]"
