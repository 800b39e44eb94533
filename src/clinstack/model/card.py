"""The model card in each adapter's folder: what the adapter is half of, and how plain PEFT opens the whole."""

from __future__ import annotations

from collections.abc import Sequence

from clinstack.model.base import EMBEDDED, Base
from clinstack.tasks import Task


def adapter_card(name: str, beneath: Sequence[str], base: Base, task: Task | None) -> str:
    """Return the text of an adapter's ``README.md``.

    Parameters
    ----------
    name : str
        The adapter's.
    beneath : sequence of str
        Names of the adapters that lie between it and the base, whose folders stand beside its own.
    base : Base
        The base model.
    task : Task or None
        Given when this folder carries the task's head.
    """
    title = f"# {name}: a LoRA adapter of a clinstack Stack"
    if beneath:
        half = (
            f"**This folder alone is only half of the model.** It was trained on top of "
            f"{' and '.join(f'`{other}`' for other in beneath)}; opened without, it gives other outputs and no error."
        )
    else:
        half = "It lies directly on the base model."
    folder = "clinstack.model.base.EMBEDDED_FOLDER" if base.name == EMBEDDED else repr(base.name)
    lines = ["import clinstack.model.base"] if base.name == EMBEDDED else []
    model_class = "AutoModelForSequenceClassification" if task else "AutoModelForCausalLM"
    labels = f", num_labels={len(task.classes)}" if task else ""
    lines += ["from peft import PeftConfig, PeftModel", f"from transformers import {model_class}, AutoTokenizer", ""]
    lines += [
        f"base = {folder}",
        "tokenizer = AutoTokenizer.from_pretrained(base)  # pad on the right",
        f"model = {model_class}.from_pretrained(base{labels}, dtype='float32')",
    ]
    if task:
        lines.append("model.config.pad_token_id = tokenizer.pad_token_id")
    chain = [*beneath, name]
    first, *rest = chain
    lines += [
        f"config = PeftConfig.from_pretrained('{first}')",
        *(["config.task_type = config.modules_to_save = None"] if rest or not task else []),
        f"model = PeftModel.from_pretrained(model, '{first}', adapter_name='{first}', config=config)",
    ]
    lines += [f"model.load_adapter('{other}', adapter_name='{other}')" for other in rest]
    names = ", ".join(f"'{other}'" for other in chain)
    lines += [f"model.base_model.set_adapter([{names}])  # PeftModel.set_adapter takes one name only", "model.eval()"]
    head = f"\nIt carries the head of the task `{task.name}`: {len(task.classes)} classes.\n" if task else ""
    return f"""---
library_name: peft
tags: [clinstack, lora, clinical]
---
{title}

{half}
{head}
Base model: `{base.name}`, fingerprint `{base.fingerprint}`. `../stack.json` records what it is stacked on.

With plain PEFT, in the folder that holds `stack.json`:

```python
{chr(10).join(lines)}
```

Research software. An aid for people who know the data; not a medical device.
"""
