"""The model card in each adapter's folder: what the adapter is half of, and how others' code opens the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clinstack.model.base import EMBEDDED_FOLDERS, Base
from clinstack.model.data_lineage import UNKNOWN, DataSource
from clinstack.model.families import DECODER_HEAD
from clinstack.model.lineage import HEAD_KEY
from clinstack.model.methods.configs import VIRTUAL
from clinstack.model.pooling import BY_CONVENTION, HeadInput
from clinstack.tasks import Task
from clinstack.tokens.prompts import Prompt

if TYPE_CHECKING:
    from clinstack.model.building import Adapter

_TITLES = {
    "lora": "a LoRA adapter",
    "dora": "a DoRA adapter",
    "rslora": "an rsLoRA adapter",
    "adalora": "an AdaLoRA adapter",
    "adaption_prompt": "an adaption prompt",
    "prefix": "a prefix",
    "prompt": "a prompt",
    "p_tuning": "a P-tuning prompt",
    "full": "a fully fine-tuned base",
}
_WITH_CLINSTACK = [
    "from pathlib import Path",
    "from clinstack.model.stack import Stack",
    "",
    "stack = Stack.load(Path('.'))",
]
_TOGETHER = ("lora", "dora", "rslora")
"""Methods whose adapters plain PEFT lets into one model."""


def adapter_card(
    adapter: Adapter,
    beneath: Sequence[Adapter],
    base: Base,
    task: Task | None,
    reads: HeadInput = BY_CONVENTION,
    prompt: Prompt | None = None,
    data: Sequence[DataSource] | None = None,
) -> str:
    """Return the text of an adapter's ``README.md``.

    Parameters
    ----------
    adapter : Adapter
    beneath : sequence of Adapter
        Those that lie between it and the base, whose folders stand beside its own.
    base : Base
        The base model.
    task : Task or None
        The stack's.
    reads : HeadInput
        What the stack's head reads.
    prompt : Prompt, optional
        What the stack was trained to answer.
    data : sequence of DataSource, optional
        What it was trained on.
    """
    names = [other.name for other in beneath]
    if beneath:
        half = (
            f"**This folder alone is only half of the model.** It was trained on top of "
            f"{' and '.join(f'`{other}`' for other in names)}; opened without, it gives other outputs and no error."
        )
    elif adapter.method == "full":
        half = "It is a whole model: the base with its weights trained."
    else:
        half = "It lies directly on the base model."
    head = ""
    if task is not None and adapter.carries_head:
        head = f"\nIt carries the head of the task `{task.name}`: {len(task.classes)} classes.\n"
    if prompt is not None:
        head = f"\n{_asking(prompt)}\n"
    how, code = _opening(adapter, beneath, base, task, reads)
    return f"""---
library_name: {"transformers" if adapter.method == "full" else "peft"}
tags: [clinstack, {adapter.method}, clinical]
---
# {adapter.name}: {_TITLES[adapter.method]} of a clinstack Stack

{half}
{head}
Base model: `{base.name}`, fingerprint `{base.fingerprint}`. `../stack.json` records what it is stacked on.

{how}, in the folder that holds `stack.json`:

```python
{chr(10).join(code)}
```

{trained_on(data)}

Research software. An aid for people who know the data; not a medical device.
"""


def trained_on(data: Sequence[DataSource] | None) -> str:
    """Return what a card says of the training data, and of publishing the weights."""
    lines = [f"- {source.sentence}" for source in data or (UNKNOWN,)]
    return "Trained on:\n\n" + "\n".join(lines)


def _asking(prompt: Prompt) -> str:
    """Return how the model wants to be asked."""
    if prompt.chat_template is not None:
        return (
            "It answers questions about notes, asked by way of the base's chat template with this user's message"
            + (" (the system's is in `../stack.json`)" if prompt.system else "")
            + f":\n\n```\n{prompt.template}\n```"
        )
    system = f"{prompt.system}\n\n" if prompt.system else ""
    text = f"{system}{prompt.template}{prompt.cue}"
    return f"It answers questions about notes, asked with this text behind the begin token:\n\n```\n{text}\n```"


def _opening(
    adapter: Adapter, beneath: Sequence[Adapter], base: Base, task: Task | None, reads: HeadInput
) -> tuple[str, list[str]]:
    """Return with what the whole is opened, and the code."""
    chain = [*beneath, adapter]
    full = chain[0] if chain[0].method == "full" else None
    above = chain[1:] if full else chain
    alone = len(above) == 1
    if not alone and any(other.method not in _TOGETHER for other in above):
        return "Plain PEFT does not combine these methods. With clinstack", _WITH_CLINSTACK
    if task is not None and reads.pooling != "auto":
        of = "the mean over all tokens" if reads.pooling == "mean" else f"the {reads.pooling} token"
        return f"The head reads {of}, whatever the family reads by convention. With clinstack", _WITH_CLINSTACK
    # A head that is not in the adapter's folder stands in `head/`; below the top adapter there is none to be shown.
    with_head = task if adapter.carries_head else None
    beside = task if above and not adapter.carries_head and above[-1].method in (*VIRTUAL, "adaption_prompt") else None
    code = _open_base(base, full, with_head or beside, reads)
    if not above:
        return "With transformers", [*code, "model.eval()"]
    if beside:
        code += [
            "from safetensors.torch import load_file",
            f"model.{DECODER_HEAD}.weight.data = load_file('head/head.safetensors')['{HEAD_KEY}']",
        ]
    first, *rest = (other.name for other in above)
    code += ["from peft import PeftConfig, PeftModel", f"config = PeftConfig.from_pretrained('{first}')"]
    if beside and above[0].method in VIRTUAL:
        code.append("config.task_type = 'FEATURE_EXTRACTION'  # runs the tokens and passes the logits on")
    elif above[0].method not in (*VIRTUAL, "adaption_prompt") and (rest or not with_head):
        code.append("config.task_type = config.modules_to_save = None")
    code.append(f"model = PeftModel.from_pretrained(model, '{first}', adapter_name='{first}', config=config)")
    code += [f"model.load_adapter('{other}', adapter_name='{other}')" for other in rest]
    if above[0].method in _TOGETHER:
        names = ", ".join(f"'{other.name}'" for other in above)
        code.append(f"model.base_model.set_adapter([{names}])  # PeftModel.set_adapter takes one name only")
    return "With plain PEFT", [*code, "model.eval()"]


def _open_base(base: Base, full: Adapter | None, task: Task | None, reads: HeadInput) -> list[str]:
    code = []
    if full:
        code.append(f"base = '{full.name}'")
    elif base.name in EMBEDDED_FOLDERS:
        code += ["import clinstack.model.base", f"base = clinstack.model.base.EMBEDDED_FOLDERS['{base.name}']"]
    else:
        code.append(f"base = {base.name!r}")
    model_class = "AutoModelForSequenceClassification" if task else "AutoModelForCausalLM"
    labels = f", num_labels={len(task.classes)}" if task else ""
    if reads.layer is not None and not full:
        labels += f", num_hidden_layers={reads.layer}"
    code = [f"from transformers import {model_class}, AutoTokenizer", *code]
    code += [
        "tokenizer = AutoTokenizer.from_pretrained(base)  # pad on the right",
        f"model = {model_class}.from_pretrained(base{labels}, dtype='float32')",
    ]
    if task:
        code.append("model.config.pad_token_id = tokenizer.pad_token_id")
    return code
