"""The ways of instruction tuning that `instruct.py` compares; it starts one process of this file for each.

As in `pretraining_arms.py`, a process does some optimizer steps for each line "turn" that it reads, and answers with
one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretraining_arms import ENDLESS, LORA, Setting, Turns, make_work, time_trainer

NOTE, ANSWER, QUESTION = 1000, 80, 12
"""Words, each of one token."""
PROMPT = "{note} {question}"
"""A template without words of its own, so that all ways read the same tokens."""


def make(work: Path, model: dict[str, int], examples: int, setting: Setting, seed: int = 0) -> None:
    """Write what `pretraining_arms.make_work` writes, and invented examples."""
    import numpy as np

    make_work(work, model, 0, setting, seed)
    (work / "prompt.txt").write_text(PROMPT)
    random = np.random.default_rng(seed)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in random.integers(0, 31_000, count))

    with (work / "examples.jsonl").open("w") as file:
        for _ in range(examples):
            line = {"note": words(NOTE), "question": words(QUESTION), "answer": words(ANSWER)}
            file.write(json.dumps(line) + "\n")


def read_examples(work: Path) -> list[dict[str, str]]:
    """Return the invented examples."""
    return [json.loads(line) for line in (work / "examples.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- the ways


def full_logits(work: Path, turns: Turns, setting: Setting) -> None:
    """Train with transformers and PEFT: padded batches, labels on the answers, and the logits of all tokens."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(work / "model", use_cache=False)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-4)
    examples = encoded(work)
    model.train()
    for at in itertools.cycle(range(0, len(examples) - setting.rows + 1, setting.rows)):
        turns.begin()
        ids, mask, labels = padded(examples[at : at + setting.rows])
        turns.count(int(mask.sum()), mask.numel())
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        turns.end(loss.item())


def encoded(work: Path) -> list[tuple[list[int], int]]:
    """Return the tokens of each example and how many of them are its prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "model")

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = []
    for example in read_examples(work):
        prompt = [tokenizer.bos_token_id, *ids(f"{example['note']} {example['question']}")]
        found.append(([*prompt, *ids(example["answer"]), tokenizer.eos_token_id], len(prompt)))
    return found


def padded(examples: list[tuple[list[int], int]]) -> tuple[Any, Any, Any]:
    """Return ids, mask and labels, padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in examples)
    shape = (len(examples), width)
    inputs, mask, labels = torch.full(shape, 3), torch.zeros(shape, dtype=torch.int64), torch.full(shape, -100)
    for row, (ids, prompt) in enumerate(examples):
        inputs[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
    return inputs, mask, labels


def clinstack(work: Path, turns: Turns, setting: Setting) -> None:
    """Train as `clinstack instruct` does."""
    import torch

    from clinstack.engine.trainer import build_optimizer
    from clinstack.recipe import TrainingRecipe

    stack, objective = build(work, setting)
    settings = TrainingRecipe(batch_size=setting.rows)
    optimizer = build_optimizer(stack, settings)
    parameters = list(stack.trainable_parameters().values())
    stack.train()
    for epoch in range(ENDLESS):
        for chosen in objective.epoch_batches(epoch):
            turns.begin()
            read = objective.size(chosen) + len(chosen)  # a row's last token is a label only
            turns.count(read, read)
            loss, weight = objective.loss(chosen)
            loss.backward()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(weight)
            torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            turns.end(loss.item() / weight)


def build(work: Path, setting: Setting) -> tuple[Any, Any]:
    """Return the model under a new LoRA, and what it trains on."""
    from clinstack.engine.instruction_tuning import InstructionObjective
    from clinstack.model.stack import Stack
    from clinstack.notes.instructions import Instructions
    from clinstack.recipe import AdapterRecipe, PromptRecipe, TrainingRecipe
    from clinstack.tokens.prompts import Prompt, encode_pairs

    stack = Stack.build(str(work / "model"), [AdapterRecipe(name="instruct")], seed=0, dtype=setting.dtype)
    examples = read_examples(work)
    names = [str(place) for place in range(len(examples))]
    columns = {f"{key}s": [example[key] for example in examples] for key in ("note", "question", "answer")}
    instructions = Instructions(example_ids=names, patient_ids=names, tasks=[""] * len(names), **columns)
    recipe = PromptRecipe(template=str(work / "prompt.txt"), chat_template="never", system="")
    prompt = Prompt.of(recipe, stack.tokenizer)
    pairs = encode_pairs(stack.tokenizer, prompt, instructions, setting.context)
    objective = InstructionObjective(
        stack,
        TrainingRecipe(batch_size=setting.rows),
        "packed",
        setting.context,
        {"train": pairs, "validation": pairs},
    )
    return stack, objective


def trl(work: Path, turns: Turns, setting: Setting) -> None:
    """Train with TRL's SFTTrainer and its defaults: a loss in chunks, gradient checkpointing."""
    _trl(work, turns, setting)


def trl_plain(work: Path, turns: Turns, setting: Setting) -> None:
    """Train with TRL's SFTTrainer without gradient checkpointing."""
    _trl(work, turns, setting, gradient_checkpointing=False)


def _trl(work: Path, turns: Turns, setting: Setting, **options: Any) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    examples = read_examples(work)
    config = SFTConfig(
        output_dir=str(work / "trl"),
        use_cpu=True,
        bf16=False,  # its default, which fails on a CPU
        max_length=setting.context,
        per_device_train_batch_size=setting.rows,
        num_train_epochs=ENDLESS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    trainer = SFTTrainer(
        model=str(work / "model"),
        args=config,
        train_dataset=Dataset.from_dict(
            {
                "prompt": [f"<s> {example['note']} {example['question']}" for example in examples],
                "completion": [f" {example['answer']}" for example in examples],
            }
        ),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[time_trainer(turns)],
    )
    trainer.train()


WAYS: dict[str, Callable[[Path, Turns, Setting], None]] = {
    "full logits": full_logits,
    "clinstack": clinstack,
    "trl": trl,
    "trl, no checkpointing": trl_plain,
}


def check_losses(work: Path) -> float:
    """Return how far loss and gradients are from those of all logits, relative; examples packed against each alone."""
    import torch
    import torch.nn.functional as F

    stack, objective = build(work, Setting.read(work))
    parameters = list(stack.trainable_parameters().values())
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        # A new LoRA's B is zero, and A then has no gradient to compare.
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    chosen = objective.epoch_batches(0)[0]
    ours, weight = objective.loss(chosen)
    our_gradients = torch.autograd.grad(ours, parameters)
    rows = objective._train
    plain = torch.zeros(())
    for row in chosen:
        for segment in rows.rows[row].tolist():
            place = int(rows.segments.document[segment])
            ids, labels = torch.from_numpy(rows.documents[place]), torch.from_numpy(rows.documents[place])
            logits = stack.network(input_ids=ids[None, :-1]).logits[0]
            prompt = int(rows.prompts[place])
            plain = plain + F.cross_entropy(logits[prompt - 1 :], labels[prompt:], reduction="sum")
    plain_gradients = torch.autograd.grad(plain, parameters)
    assert weight == len(chosen) * (ANSWER + 1), f"{weight} tokens are trained in {len(chosen)} rows"
    differences = [abs(ours.item() / plain.item() - 1)]
    for mine, other in zip(our_gradients, plain_gradients, strict=True):
        differences.append(float((mine - other).norm() / other.norm()))
    return max(differences)


if __name__ == "__main__":
    chosen_way, folder = sys.argv[1], Path(sys.argv[2])
    if chosen_way == "make":
        make(folder, json.loads(sys.argv[3]), int(sys.argv[4]), Setting(**json.loads(sys.argv[5])))
    elif chosen_way == "check":
        print(check_losses(folder))
    else:
        here = Setting.read(folder)
        WAYS[chosen_way](folder, Turns(here), here)
