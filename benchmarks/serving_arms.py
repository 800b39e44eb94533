"""The ways to answer requests for five tasks that `serving.py` compares; it starts one process of this file for each.

A process answers each line of JSON that it reads: for ``{"do": "check", "requests": [0, 40]}`` the logits of these
requests, for ``{"do": "serve", "requests": [40, 80]}`` what they took. All ways read the same requests as tokens.

Every task is a frozen clinical LoRA under a LoRA of its own and a head. The ways of PEFT get it as one plain LoRA: the
factors of both, one after another (which is what its ``combination_type="cat"`` makes), with the head beside it. PEFT
wants heads of one shape, so the smaller ones are filled up with zeros.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clinstack.tokens.documents import Tokens

BATCH = 16
"""Notes in a padded batch."""
CLASSES = {"prolonged_ventilation": 2, "mortality": 2, "length_of_stay": 4, "diagnoses": 20, "procedures": 20}
"""The five outcomes with the number of their classes."""
WIDTH = max(CLASSES.values())
ADAPTER = {"rank": 16, "alpha": 32}


@dataclass(frozen=True)
class Request:
    """One note for one task."""

    task: str
    tokens: Tokens


def read_requests(work: Path) -> list[Request]:
    """Return all requests in the order in which they arrive, the notes as the first 512 tokens."""
    from transformers import AutoTokenizer

    from clinstack.model.reading import Reading
    from clinstack.tokens.texts import encode_texts

    rows = [json.loads(line) for line in (work / "requests.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    pieces = encode_texts(tokenizer, Reading(), [row["text"] for row in rows]).pieces
    return [Request(row["task"], piece) for row, piece in zip(rows, pieces, strict=True)]


class Way:
    """Something that answers requests."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def answer(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """Return the raw logits of each request, in the order of the requests."""
        raise NotImplementedError


class Alone(Way):
    """Not timed: each task's `Stack`, note by note. What all others are compared with."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        from clinstack.model.stack import Stack

        self.stacks = {task: Stack.load(work / "stacks" / task) for task in CLASSES}

    def answer(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        import torch

        answers = []
        for request in requests:
            tokens = torch.from_numpy(request.tokens)[None]
            answers.append(self.stacks[request.task].logits(tokens, torch.ones_like(tokens))[0].numpy())
        return answers


class Batched(Way):
    """Padded batches, by transformers' classification models."""

    batch = BATCH
    filler = 3
    """The base's padding token, by which transformers finds a row's last token."""
    by_task = True
    """Whether a batch has requests of one task only."""
    by_length = False
    """Whether requests are sorted by length before batches are made of them, so that less is padded."""

    def logits(self, tasks: Sequence[str], **inputs: Any) -> Any:
        """Return the logits of a batch, shape [rows, classes of the widest head]."""
        raise NotImplementedError

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return which requests are computed together."""
        order = list(range(len(requests)))
        if self.by_length:
            order.sort(key=lambda place: len(requests[place].tokens))
        groups = [[place for place in order if requests[place].task == task] for task in CLASSES]
        return [
            group[start : start + self.batch]
            for group in (groups if self.by_task else [order])
            for start in range(0, len(group), self.batch)
        ]

    def answer(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        from clinstack.tokens.batches import pad

        answers: dict[int, NDArray[np.float32]] = {}
        for chosen in self.batches(requests):
            tasks = [requests[place].task for place in chosen]
            input_ids, mask = pad([requests[place].tokens for place in chosen], self.filler)
            logits = self.logits(tasks, input_ids=input_ids, attention_mask=mask, use_cache=False).numpy()
            answers |= {place: row[: CLASSES[task]] for place, task, row in zip(chosen, tasks, logits, strict=True)}
        return [answers[place] for place in range(len(requests))]


class Separate(Batched):
    """Five models in memory, into each of which both of a task's adapters were merged."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        from transformers import AutoModelForSequenceClassification

        open_model = AutoModelForSequenceClassification.from_pretrained
        self.models = {task: open_model(work / "merged" / task).eval() for task in CLASSES}

    def logits(self, tasks: Sequence[str], **inputs: Any) -> Any:
        return self.models[tasks[0]](**inputs).logits


class SeparateSorted(Separate):
    by_length = True


class Switching(Batched):
    """One base in PEFT, whose adapter is switched for each task."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification

        base = AutoModelForSequenceClassification.from_pretrained(work / "model", num_labels=WIDTH)
        first, *others = CLASSES
        self.model = PeftModel.from_pretrained(base, str(work / "fused" / first), adapter_name=first)
        for task in others:
            self.model.load_adapter(str(work / "fused" / task), adapter_name=task)
        self.model.eval()

    def logits(self, tasks: Sequence[str], **inputs: Any) -> Any:
        self.model.set_adapter(tasks[0])
        return self.model(**inputs).logits


class SwitchingEach(Switching):
    """The same, request by request: nothing is padded."""

    batch = 1

    def batches(self, requests: Sequence[Request]) -> list[list[int]]:
        return [[place] for place in range(len(requests))]


class Mixed(Switching):
    """One base in PEFT with requests of all tasks in a batch, by ``adapter_names``."""

    by_task = False

    def logits(self, tasks: Sequence[str], **inputs: Any) -> Any:
        return self.model(**inputs, adapter_names=list(tasks)).logits


class MixedSorted(Mixed):
    by_length = True


class Clinstack(Way):
    """`SharedBase`, which `clinstack serve` asks."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        from clinstack.serve.shared_base import SharedBase

        self.shared = SharedBase.open({task: work / "stacks" / task for task in CLASSES}, device="cpu")

    def answer(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        return self.shared.classify([(request.task, [request.tokens]) for request in requests])


WAYS: dict[str, Callable[[Path], Way]] = {
    "alone": Alone,
    "separate": Separate,
    "separate, sorted": SeparateSorted,
    "switching": Switching,
    "switching, one by one": SwitchingEach,
    "mixed batch": Mixed,
    "mixed batch, sorted": MixedSorted,
    "clinstack": Clinstack,
}


# ---------------------------------------------------------------------- what all read


def make(work: Path, model: dict[str, int], groups: int) -> None:
    """Write a random base, a stack for each task on one clinical LoRA, both forms for the peers, and the requests.

    Parameters
    ----------
    model : dict
        The base's shape, as LlamaConfig names it.
    groups : int
        Groups of 16 requests for each of the five tasks.
    """
    import numpy as np
    from downstream_notes import write_clinical
    from pretraining_arms import Setting, make_work, read_texts

    work.mkdir(parents=True, exist_ok=True)
    make_work(work, model, groups * len(CLASSES), Setting())
    write_clinical(work / "model", work / "clinical")
    for seed, task in enumerate(CLASSES):
        write_stack(work, task, seed)
        write_fused(work, task)
        write_merged(work, task)
    texts, random = read_texts(work), np.random.default_rng(3)
    group = BATCH * len(CLASSES)
    with (work / "requests.jsonl").open("w") as file:
        for start in range(0, len(texts), group):
            # As many of each task, so that no way is left with a small batch.
            tasks = random.permutation(np.repeat(list(CLASSES), BATCH)).tolist()
            for task, text in zip(tasks, texts[start : start + group], strict=True):
                file.write(json.dumps({"task": task, "text": text}) + "\n")


def write_stack(work: Path, task: str, seed: int) -> None:
    """Write a task's stack: its LoRA and head with random weights on the clinical LoRA."""
    import torch

    from clinstack.model.stack import Stack
    from clinstack.recipe import AdapterRecipe
    from clinstack.tasks import Task

    count = CLASSES[task]
    kind = "binary" if count == 2 else "multiclass" if count == 4 else "multilabel"
    classes = tuple(f"class {index}" for index in range(count))
    adapters = [AdapterRecipe(name="clinical", path=str(work / "clinical")), AdapterRecipe(name="task", **ADAPTER)]
    stack = Stack.build(str(work / "model"), adapters, Task(task, kind, classes), seed=seed)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.trainable_parameters().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    stack.save(work / "stacks" / task)


def write_fused(work: Path, task: str) -> None:
    """Write a task's two adapters as one plain LoRA of the ranks' sum, with its head, for PEFT."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    source, target = work / "stacks" / task, work / "fused" / task
    parts = []
    for name in ("clinical", "task"):
        config = json.loads((source / name / "adapter_config.json").read_text())
        parts.append((config["lora_alpha"] / config["r"], load_file(source / name / "adapter_model.safetensors")))
    fused = {}
    for key in parts[0][1]:
        if ".lora_A." in key:
            fused[key] = torch.cat([tensors[key] for _, tensors in parts]).contiguous()
        elif ".lora_B." in key:
            fused[key] = torch.cat([scaling * tensors[key] for scaling, tensors in parts], dim=1).contiguous()
    [(key, head)] = [(key, tensor) for key, tensor in parts[1][1].items() if key.endswith("score.weight")]
    fused[key] = torch.cat([head, head.new_zeros(WIDTH - len(head), head.shape[1])])
    rank = 2 * ADAPTER["rank"]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["score"],
        task_type="SEQ_CLS",
        base_model_name_or_path=str(work / "model"),
        inference_mode=True,
    )
    target.mkdir(parents=True)
    config.save_pretrained(str(target))
    save_file(fused, target / "adapter_model.safetensors", metadata={"format": "pt"})


def write_merged(work: Path, task: str) -> None:
    """Write a task's adapters merged into the base, as a plain model of transformers."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(work / "model", num_labels=WIDTH)
    model = PeftModel.from_pretrained(base, str(work / "fused" / task)).merge_and_unload()
    model.save_pretrained(work / "merged" / task)


# ---------------------------------------------------------------------- taking turns


def live_tensors() -> float:
    """Return the MB of all tensors that live in this process, those with a common storage counted once."""
    import gc

    import torch

    gc.collect()
    storages = [found.untyped_storage() for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**20


def take_turns(name: str, work: Path) -> None:
    """Answer questions until there are no more."""
    from pretraining_arms import forget_peak, resident

    # Whatever libraries print goes to stderr; answers go where stdout was.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for module in ("torch", "peft", "transformers", "clinstack.serve.shared_base", "clinstack.model.stack"):
        importlib.import_module(module)
    torch = importlib.import_module("torch")
    requests = read_requests(work)
    before = resident()
    forget_peak()
    way = WAYS[name](work)
    answers.write(json.dumps({"weights": live_tensors()}) + "\n")
    with torch.inference_mode():
        for line in sys.stdin:
            question = json.loads(line)
            chosen = requests[slice(*question["requests"])]
            wall, cpu = time.perf_counter(), time.process_time()
            logits = way.answer(chosen)
            told: dict[str, Any] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            told |= {"requests": len(chosen), "memory": resident("VmHWM") - before}
            if question["do"] == "check":
                told["logits"] = [row.tolist() for row in logits]
            answers.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(folder, json.loads(sys.argv[3]), int(sys.argv[4]))
    else:
        take_turns(sys.argv[1], folder)
