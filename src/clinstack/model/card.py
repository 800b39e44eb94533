"""The model card in each adapter's folder: what the adapter is half of, and how others' code opens the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from clinstack.model.base import EMBEDDED_FOLDERS, Base
from clinstack.model.data_lineage import UNKNOWN, DataSource
from clinstack.model.lineage import PEFT_PREFIX
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
_OPEN_HEAD = [
    "from safetensors.torch import load_file",
    "head = load_file('head/head.safetensors')",
    f"head = {{key.removeprefix('{PEFT_PREFIX}'): value for key, value in head.items()}}",
    "model.load_state_dict(head, strict=False)",
]


class Level(Protocol):
    """What opening code asks of an adapter, be it in memory or in stack.json."""

    @property
    def name(self) -> str:
        """Its name, which is its folder's too."""

    @property
    def method(self) -> str:
        """Such as ``lora``."""

    @property
    def carries_head(self) -> bool:
        """Whether the task's head is in its folder."""


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
        head = f"\n{asking(prompt)}\n"
    how, code = opening([*beneath, adapter], base.name, task, reads)
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


def asking(prompt: Prompt) -> str:
    """Return how the model wants to be asked: it was trained on no other text."""
    if prompt.chat_template is not None:
        system = f"\n\nwith this system message:\n\n```\n{prompt.system}\n```" if prompt.system else ""
        return (
            "It answers questions about notes. Through the tokenizer's chat template, with this user's message:\n\n"
            f"```\n{prompt.template}\n```{system}"
        )
    system = f"{prompt.system}\n\n" if prompt.system else ""
    return (
        "It answers questions about notes, asked with exactly this text behind the begin token:\n\n"
        f"```\n{system}{prompt.template}{prompt.cue}\n```"
    )


def opening(
    levels: Sequence[Level], base: str, task: Task | None, reads: HeadInput, *, head_beside: bool = False
) -> tuple[str, list[str]]:
    """Return with what a stack, or the lower part of one, is opened, and the code.

    Parameters
    ----------
    levels : sequence of Level
        From below.
    base : str
        What the base is called.
    task : Task or None
        The stack's.
    reads : HeadInput
        What its head reads.
    head_beside : bool
        Whether the head in ``head/`` belongs to what is opened.
    """
    full = levels[0] if levels and levels[0].method == "full" else None
    above = levels[1:] if full else levels
    if len(above) > 1 and any(other.method not in _TOGETHER for other in above):
        return "Plain PEFT does not combine these methods. With clinstack", _WITH_CLINSTACK
    if task is not None and reads.pooling != "auto":
        of = "the mean over all tokens" if reads.pooling == "mean" else f"the {reads.pooling} token"
        return f"The head reads {of}, whatever the family reads by convention. With clinstack", _WITH_CLINSTACK
    # A head that is not in the adapter's folder stands in `head/`; below the top adapter there is none to be shown.
    carries_head = bool(levels) and levels[-1].carries_head
    with_head = task if carries_head else None
    virtual = bool(above) and above[-1].method in (*VIRTUAL, "adaption_prompt")
    beside = task if not carries_head and (head_beside or virtual) else None
    code = _open_base(base, full, with_head or beside, reads)
    if beside:
        code += _OPEN_HEAD
    if not above:
        return "With transformers", [*code, "model.eval()"]
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


def _open_base(base: str, full: Level | None, task: Task | None, reads: HeadInput) -> list[str]:
    code = []
    if full:
        code.append(f"base = '{full.name}'")
    elif base in EMBEDDED_FOLDERS:
        code += ["import clinstack.model.base", f"base = clinstack.model.base.EMBEDDED_FOLDERS['{base}']"]
    else:
        code.append(f"base = {base!r}")
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
