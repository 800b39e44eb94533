"""The ways to train that `pretraining.py` compares; it starts one process of this file for each.

A process takes turns: for each line "turn" that it reads it does some optimizer steps and answers with one JSON line.
In between it waits, so that all ways meet the machine in the same state. The ways of other packages run in Pythons of
their own, so nothing here imports clinstack before it is needed.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ENDLESS = 1_000_000
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def resident(field: str = "VmRSS") -> float:
    """Return this process's resident memory in MB, now (VmRSS) or at its highest since `forget_peak` (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Let VmHWM begin anew at what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Setting:
    """Where and how precisely the ways compute; `setting.json` in the work folder."""

    device: str = "cpu"
    dtype: str = "float32"
    rows: int = 4
    """Rows in a step: notes where they are padded, packed rows where they are packed."""
    context: int = 512
    quantize: str = "none"
    warm_up: int = 3
    """Steps before the first turn, which are not in the figures."""
    steps: int = 4
    """Optimizer steps in a turn."""

    @classmethod
    def read(cls, work: Path) -> Setting:
        """Read what `make_work` wrote."""
        return cls(**json.loads((work / "setting.json").read_text()))


class Turns:
    """Counts and times the steps of a way, and waits for its next turn after the last step of one."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._cuda: Any = None if setting.device == "cpu" else importlib.import_module("torch").cuda
        # Whatever libraries print goes to stderr; answers go where stdout was.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._steps = 0
        self._left = setting.warm_up
        self._before: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._wall = self._cpu = 0.0
        self._useful = self._computed = 0

    def begin(self) -> None:
        """Begin a step."""
        if self._cuda:
            self._cuda.synchronize()
        if self._before is None:
            self._before = self._cuda.memory_allocated() / 2**20 if self._cuda else resident()
        self._started = (time.perf_counter(), time.process_time())

    def count(self, useful: int, computed: int) -> None:
        """Count the tokens of the step: those that are no padding, and all that went through the model."""
        self._useful += useful
        self._computed += computed

    def end(self, loss: float) -> None:
        """End a step; after the last of a turn answer, and wait for the next turn."""
        if self._cuda:
            self._cuda.synchronize()
        wall, cpu = self._started
        self._wall += time.perf_counter() - wall
        self._cpu += time.process_time() - cpu
        self._steps += 1
        self._left -= 1
        if self._cuda and self._left == self._setting.steps:
            # The first step of a turn allocates anew what was given back while others had theirs.
            self._reset()
        if self._left:
            return
        answer = {
            "steps": self._steps,
            "loss": loss,
            "useful": self._useful,
            "computed": self._computed,
            "wall": self._wall,
            "cpu": self._cpu,
            "before": self._before,
            "peak": self._cuda.max_memory_allocated() / 2**20 if self._cuda else resident("VmHWM"),
        }
        self._answers.write(json.dumps(answer) + "\n")
        self._reset()
        self._left = self._setting.steps
        if self._cuda:
            self._left += 1
            self._cuda.empty_cache()
        if sys.stdin.readline().strip() != "turn":
            # Trainers would go on to save and say good-bye.
            os._exit(0)
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        else:
            forget_peak()


# ---------------------------------------------------------------------- what all read


def read_texts(work: Path) -> list[str]:
    """Return the invented notes: words of a vocabulary of 32,000, one token each."""
    return [json.loads(line)["text"] for line in (work / "notes.jsonl").read_text().splitlines()]


def make_work(work: Path, model: dict[str, int], groups: int, setting: Setting, seed: int = 0) -> None:
    """Write setting, notes, tokenizer and a random model into ``work``."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    (work / "setting.json").write_text(json.dumps(asdict(setting)))
    words = ["<unk>", "<s>", "</s>", "<pad>"]
    words += [f"w{index}" for index in range(32_000 - len(words))]
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        max_position_embeddings=2 * setting.context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
        **model,
    )
    LlamaForCausalLM(config).to(getattr(torch, setting.dtype)).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    with (work / "notes.jsonl").open("w") as file:
        for text in invent_notes(words[4:], groups, seed):
            file.write(json.dumps({"text": text}) + "\n")


def invent_notes(words: list[str], groups: int, seed: int) -> Iterator[str]:
    """Yield notes with lengths like MIMIC-IV-Note's: radiology about 300 tokens, discharge about 2,300, seven to one.

    Lengths are lognormal (sigma 0.5). Each group of 16 notes takes them at even steps of the distribution, begun at
    another place, so that each turn of the padded ways meets nearly the same lengths.
    """
    from statistics import NormalDist

    import numpy as np

    random = np.random.default_rng(seed)
    normal = NormalDist()
    for group in range(groups):
        offset = (0.5 + group * 0.6180339887) % 1
        lengths = []
        for mean, count in ((300, 14), (2300, 2)):
            places = [(index + offset) / count for index in range(count)]
            # exp(mu + sigma^2 / 2) is a lognormal's mean.
            lengths += [int(mean * np.exp(0.5 * normal.inv_cdf(place) - 0.125)) for place in places]
        for length in random.permutation(lengths):
            yield " ".join(words[index] for index in random.integers(0, len(words), max(20, length)))


# ---------------------------------------------------------------------- the ways


def published(work: Path, turns: Turns, setting: Setting) -> None:
    """Train as the paper's code does: the first tokens of each note, padded to the context, and all logits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    options: dict[str, Any] = {"dtype": getattr(torch, setting.dtype), "device_map": {"": setting.device}}
    if setting.quantize == "4bit":
        options["quantization_config"] = four_bit(setting)
    model = AutoModelForCausalLM.from_pretrained(work / "model", use_cache=False, **options)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-4)
    texts = [f"<s> {text} </s>" for text in read_texts(work)]
    cut = {"max_length": setting.context, "truncation": True, "padding": "max_length", "add_special_tokens": False}
    encoded = tokenizer(texts, return_tensors="pt", **cut).to(setting.device)
    labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
    model.train()
    for at in itertools.cycle(range(0, len(texts) - setting.rows + 1, setting.rows)):
        turns.begin()
        here = slice(at, at + setting.rows)
        mask = encoded.attention_mask[here]
        turns.count(int(mask.sum()), mask.numel())
        loss = model(input_ids=encoded.input_ids[here], attention_mask=mask, labels=labels[here]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        turns.end(loss.item())


def four_bit(setting: Setting) -> Any:
    """Return the 4-bit setting of QLoRA, which clinstack has too."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, setting.dtype),
    )


def clinstack(work: Path, turns: Turns, setting: Setting) -> None:
    """Train as `clinstack pretrain` does."""
    stack = build_stack(work, setting)
    train_stack(stack, lay_notes_out(stack, read_texts(work), setting), turns, setting)


def clinstack_compiled(work: Path, turns: Turns, setting: Setting) -> None:
    """Train as `clinstack pretrain` with training.compile does."""
    stack = build_stack(work, setting, compiled=True)
    train_stack(stack, lay_notes_out(stack, read_texts(work), setting), turns, setting)


def build_stack(work: Path, setting: Setting, compiled: bool = False) -> Any:
    """Return the model under a new LoRA, its layers compiled on demand."""
    from clinstack.model.stack import Stack
    from clinstack.recipe import AdapterRecipe

    adapters = [AdapterRecipe(name="clinical")]
    stack = Stack.build(str(work / "model"), adapters, seed=0, dtype=setting.dtype, quantize=setting.quantize)
    stack.to(setting.device)
    if compiled:
        # What compiles is not what trains: its code is in memory before the first step.
        importlib.import_module("torch._inductor.compile_fx")
        importlib.import_module("clinstack.engine.compile").compile_layers(stack)
    stack.train()
    return stack


def lay_notes_out(stack: Any, texts: list[str], setting: Setting) -> Any:
    """Return the packed rows of texts."""
    import numpy as np

    from clinstack.tokens.documents import Documents
    from clinstack.tokens.layout import lay_out

    tokenizer = stack.tokenizer
    ids = [np.array(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    documents = Documents.of(ids, [tokenizer.bos_token_id], [tokenizer.eos_token_id])
    return lay_out(documents, "packed", setting.context, tokenizer.pad_token_id)


def train_stack(stack: Any, notes: Any, turns: Turns, setting: Setting) -> None:
    """Take turns at a stack's optimizer steps."""
    import torch

    from clinstack.engine.losses import causal_loss
    from clinstack.engine.trainer import build_optimizer
    from clinstack.recipe import TrainingRecipe

    settings = TrainingRecipe(batch_size=setting.rows)
    optimizer = build_optimizer(stack, settings)
    parameters = list(stack.trainable_parameters().values())
    for epoch in range(ENDLESS):
        for chosen in notes.shuffled(setting.rows, settings.seed, epoch):
            turns.begin()
            batch = notes.collate(chosen).to(stack.device)
            turns.count(batch.predictions, batch.input_ids.numel())
            loss = causal_loss(stack, batch)
            loss.backward()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(batch.predictions)
            torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            turns.end(loss.item() / batch.predictions)


def check_losses(work: Path, compiled: bool) -> float:
    """Compare packed documents to each alone with all its logits, in float32 whatever the setting says.

    In bfloat16 both differ from the true gradient by some hundredths, and so from each other.

    Returns
    -------
    float
        Largest relative difference of the loss or of a tensor's gradient.
    """
    import torch
    import torch.nn.functional as F

    from clinstack.engine.losses import causal_loss

    setting = replace(Setting.read(work), dtype="float32")
    stack = build_stack(work, setting)
    parameters = list(stack.trainable_parameters().values())
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        # A new LoRA's B is zero, and A then has no gradient to compare.
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter)
    notes = lay_notes_out(stack, read_texts(work)[:4], setting)
    plain = torch.zeros((), device=stack.device)
    for document in notes.documents:
        for start in range(0, len(document) - 1, setting.context):
            tokens = torch.from_numpy(document[start : start + setting.context + 1]).to(stack.device)
            logits = stack.network(input_ids=tokens[None, :-1]).logits[0]
            plain = plain + F.cross_entropy(logits.float(), tokens[1:], reduction="sum")
    plain_gradients = torch.autograd.grad(plain, parameters)
    if compiled:
        importlib.import_module("clinstack.engine.compile").compile_layers(stack)
    ours = causal_loss(stack, notes.collate(range(len(notes))).to(stack.device))
    our_gradients = torch.autograd.grad(ours, parameters)
    differences = [abs(ours.item() / plain.item() - 1)]
    for mine, other in zip(our_gradients, plain_gradients, strict=True):
        differences.append(float((mine - other).norm() / other.norm()))
    return max(differences)


def time_trainer(turns: Turns) -> Any:
    """Return a callback that takes the turns of transformers' Trainer, from which the peers' derive.

    Its batches are counted where they enter a step; loading them, logging and saving lie outside.
    """
    from transformers import Trainer, TrainerCallback

    training_step = Trainer.training_step
    last = [0.0]

    def counted(self: Any, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        turns.count(ids.numel() if mask is None else int(mask.sum()), ids.numel())
        loss = training_step(self, model, inputs, *others, **named)
        last[0] = float(loss)
        return loss

    Trainer.training_step = counted

    class TakeTurns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end(last[0])

    return TakeTurns()


def trl(work: Path, turns: Turns, setting: Setting) -> None:
    """Train with TRL's SFTTrainer and its defaults: gradient checkpointing, padding to the longest of a batch."""
    _trl(work, turns, setting)


def trl_packed(work: Path, turns: Turns, setting: Setting) -> None:
    """Train with TRL's SFTTrainer, packed without losing a token, and no gradient checkpointing."""
    _trl(work, turns, setting, packing=True, packing_strategy="bfd_split", gradient_checkpointing=False)


def _trl(work: Path, turns: Turns, setting: Setting, **options: Any) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(work / "trl"),
        use_cpu=setting.device == "cpu",
        bf16=setting.dtype == "bfloat16",  # its default, which fails on a CPU
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
        train_dataset=Dataset.from_dict({"text": read_texts(work)}),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[time_trainer(turns)],
    )
    trainer.train()


def llamafactory(work: Path, turns: Turns, setting: Setting) -> None:
    """Train with LLaMA-Factory's pretraining stage and its defaults: gradient checkpointing, texts joined and cut."""
    from llamafactory.train.tuner import run_exp

    columns = {"notes": {"file_name": "notes.jsonl", "columns": {"prompt": "text"}}}
    (work / "dataset_info.json").write_text(json.dumps(columns))
    settings: dict[str, Any] = {
        "stage": "pt",
        "do_train": True,
        "model_name_or_path": str(work / "model"),
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_target": ",".join(LORA["target_modules"]),
        "dataset": "notes",
        "dataset_dir": str(work),
        "cutoff_len": setting.context,
        "per_device_train_batch_size": setting.rows,
        "num_train_epochs": ENDLESS,
        "output_dir": str(work / "llamafactory"),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": setting.device == "cpu",
        "bf16": setting.dtype == "bfloat16",
    }
    run_exp(settings, callbacks=[time_trainer(turns)])


WAYS: dict[str, Callable[[Path, Turns, Setting], None]] = {
    "published": published,
    "published, memory kept": published,
    "clinstack": clinstack,
    "clinstack compiled": clinstack_compiled,
    "trl": trl,
    "trl packed": trl_packed,
    "llamafactory": llamafactory,
}


def take_turns(name: str, work: Path) -> None:
    """Run a way, named as in `WAYS`; " 4bit" behind the name quantises its base."""
    setting = Setting.read(work)
    if name.endswith(" 4bit"):
        name, setting = name.removesuffix(" 4bit"), replace(setting, quantize="4bit")
    WAYS[name](work, Turns(setting), setting)


if __name__ == "__main__":
    chosen, folder = sys.argv[1], Path(sys.argv[2])
    if chosen == "make":
        make_work(folder, json.loads(sys.argv[3]), int(sys.argv[4]), Setting(**json.loads(sys.argv[5])))
    elif chosen == "check":
        print(check_losses(folder, compiled=sys.argv[3] == "clinstack compiled"))
    else:
        take_turns(chosen, folder)
