"""What ``clinstack doctor STACK`` shows: what a stack is made of, and that its invariants hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from clinstack.model.checks import effects
from clinstack.model.lineage import tensors_hash
from clinstack.model.methods.configs import LOW_RANK
from clinstack.model.stack import Stack
from clinstack.model.tokenizer import tokenizer_repairs


def explain(folder: Path, base: str | None = None, *, with_layers: bool = True) -> Iterator[Table | str]:
    """Load a stack, which verifies its hashes and asserts its invariants, and describe it.

    Parameters
    ----------
    folder : Path
        A Stack or a finished Run.
    base : str, optional
        Where the base is on this machine.
    with_layers : bool
        Also list each layer with its active adapters.

    Raises
    ------
    InputError, StackError
        If a hash or an invariant does not hold.
    """
    stack = Stack.load(folder, base)
    summary = stack.summary()
    held = stack.dtype if stack.quantize == "none" else f"{stack.quantize}, {stack.dtype}"
    yield f"[bold]Base[/] {stack.base.name}  {stack.base.fingerprint}  loaded as {held}"
    if stack.task is not None:
        yield f"[bold]Task[/] {stack.task.name}: {stack.task.kind}, {len(stack.task.classes)} classes"
        head = tensors_hash({**stack.head_parameters()})
        yield f"[bold]Head[/] {head}  {stack.head.weight.dtype}, reads {_read_by_head(stack)}"
        yield f"[bold]Calibration[/] {_calibration(stack)}"
    yield f"[bold]Parameters[/] {summary['parameters']:,}, of them trainable {summary['trainable_parameters']:,}"
    changes = effects(stack)
    yield _adapters_table(stack, changes)
    if with_layers:
        yield _layers_table(stack)
    yield from _verdicts(stack, changes)
    for repair in tokenizer_repairs(stack.base):
        yield f"[yellow]note[/] {escape(repair)}"


def _calibration(stack: Stack) -> str:
    if stack.calibration is None:
        return "none: scores are the model's own"
    fits = " and ".join(name for name in ("temperature", "isotonic") if stack.calibration.get(name) is not None)
    where = stack.calibration.get("fitted_on", "validation")
    return f"{fits or 'nothing'}, fitted on {where}, {stack.calibration.get('patients', '?')} patients"


def _read_by_head(stack: Stack) -> str:
    what = "the mean over all tokens" if stack.pooling == "mean" else f"the {stack.pooling} token"
    return what if stack.layer is None else f"{what} of layer {stack.layer}"


def _adapters_table(stack: Stack, changes: dict[str, float]) -> Table:
    table = Table(
        "adapter", "method", "spec", "parameters", "effect", "weights", "parent", title="Adapters, base first"
    )
    for name, effect in changes.items():
        adapter = next(item for item in stack.adapters if item.name == name)
        tensors = stack.adapter_tensors(name)
        table.add_row(
            name,
            adapter.method,
            "trainable" if adapter.trainable else "frozen",
            f"{sum(tensor.numel() for tensor in tensors.values()):,}",
            f"{effect:.3g}",
            tensors_hash(tensors)[:19],
            stack.stacked_on(name).parent[:19] + ("" if adapter.verified else " (not verified)"),
        )
    return table


def _layers_table(stack: Stack) -> Table:
    table = Table("layer", "active adapters", "trainable tensors", title="Layers")
    trainable = stack.trainable_parameters()
    rows = {name: list(layer.active_adapters) for name, layer in stack.lora_layers().items()}
    for adapter in stack.adapters:
        if adapter.method not in LOW_RANK:
            for name in stack.placed(adapter.name).places():
                rows.setdefault(name, []).append(adapter.name)
    for name, active in rows.items():
        count = sum(1 for parameter in trainable if parameter.startswith(f"{name}."))
        table.add_row(name, " + ".join(active), str(count))
    return table


def _verdicts(stack: Stack, changes: dict[str, float]) -> Iterator[str]:
    """Say what loading has asserted. An invariant that does not hold has ended the command before this."""
    yield "[green]ok[/] every layer's active adapters are those of the spec, and each is in the forward pass"
    yield "[green]ok[/] exactly the spec's tensors are trainable"
    yield "[green]ok[/] weights, parents and base have the recorded hashes; the output is the one recorded when saved"
    if stack.task is None and stack.can_pack:
        yield "[green]ok[/] packed documents do not see each other"
    yield "[green]ok[/] adapters and head are float32"
    idle = [name for name, effect in changes.items() if effect == 0]
    if idle:
        yield f"[yellow]note[/] {', '.join(idle)}: no effect on the output; it was never trained"
