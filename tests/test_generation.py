"""Answers from a stack: the same whatever stands beside a prompt, the same as the libraries', and once only."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from clinstack.engine import generation
from clinstack.engine.generation import GumbelNoise, generate, generate_answers
from clinstack.errors import ClinstackError, InputError
from clinstack.files import read_json, write_json
from clinstack.model.stack import Stack
from clinstack.recipe import AdapterRecipe, DecodingRecipe, EvaluateRecipe, GenerateRecipe, PromptRecipe
from clinstack.stages.evaluate import evaluate
from clinstack.stages.generate import generate as stage
from clinstack.tokens.prompts import Prompt
from methods import NAMES, new

GREEDY = DecodingRecipe(max_new_tokens=10)
_LENGTHS = (5, 12, 7, 20, 3, 12, 9)
PROMPTS = [
    [1, *torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(place)).tolist()]
    for place, length in enumerate(_LENGTHS)
]


def moved(base: Path, *adapters: AdapterRecipe) -> Stack:
    """Return a stack whose new adapters are not where they began: a new LoRA changes nothing."""
    stack = Stack.build(str(base), adapters)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    stack.eval()
    return stack


@torch.inference_mode()
def one_by_one(stack: Stack, prompt: Sequence[int], most: int) -> str:
    """Return the greedy answer by whole forward passes: no cache, no padding, nobody beside it."""
    ids = list(prompt)
    output: Any = stack.network.get_output_embeddings()
    for _ in range(most):
        hidden = stack.hidden_states(torch.tensor([ids]))
        ids.append(int(output(hidden[:, -1]).argmax()))
        if ids[-1] == stack.tokenizer.eos_token_id:
            break
    return str(stack.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("spec", NAMES)
def test_greedy_answers_do_not_depend_on_their_batch(tiny_base: Path, spec: str) -> None:
    stack = moved(tiny_base, new(spec))
    prompts = PROMPTS[:4]
    wanted = [one_by_one(stack, prompt, 8) for prompt in prompts]
    assert len(set(wanted)) > 1
    for size in (1, 3, 16) if spec == "lora" else (3,):
        settings = DecodingRecipe(max_new_tokens=8, batch_size=size)
        assert generate_answers(stack, prompts, settings, "answers") == wanted


def test_two_adapters_both_answer(tiny_base: Path) -> None:
    stack = moved(tiny_base, new("prefix", "clinical"), new("lora", "task"))
    wanted = [one_by_one(stack, prompt, 10) for prompt in PROMPTS]
    assert generate_answers(stack, PROMPTS, GREEDY, "answers") == wanted
    with stack.switched_off("clinical"):
        without = generate_answers(stack, PROMPTS, GREEDY, "answers")
        assert without == [one_by_one(stack, prompt, 10) for prompt in PROMPTS]
    assert without != wanted


@pytest.mark.parametrize("spec", ["lora", "prompt", "prefix"])
def test_the_same_as_plain_peft(tiny_base: Path, tmp_path: Path, spec: str) -> None:
    moved(tiny_base, new(spec)).save(tmp_path / "stack")
    stack = Stack.load(tmp_path / "stack")
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, str(tmp_path / "stack" / "clinical")).eval()
    for beams in (1, 3):
        settings = GREEDY.model_copy(update={"num_beams": beams})
        ours = generate_answers(stack, PROMPTS, settings, "answers")
        theirs = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            found = plain.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, num_beams=beams
            )
            # PEFT's prompt tuning goes by embeddings, so that transformers returns new tokens only.
            new_tokens = found[0] if spec == "prompt" and found.shape[1] <= 10 else found[0, len(prompt) :]
            theirs.append(str(stack.tokenizer.decode(new_tokens, skip_special_tokens=True)).strip())
        assert ours == theirs


def test_the_bases_own_settings_are_not_used(tiny_base: Path) -> None:
    stack = moved(tiny_base)
    wanted = generate_answers(stack, PROMPTS, GREEDY, "answers")
    own = GenerationConfig(repetition_penalty=5.0, do_sample=True, temperature=3.0, max_length=11, eos_token_id=7)
    network: Any = stack.network
    network.generation_config = own
    assert generate_answers(stack, PROMPTS, GREEDY, "answers") == wanted
    assert network.generation_config is own


def test_ends_at_the_end_token(tiny_base: Path) -> None:
    stack = moved(tiny_base)
    whole = generate(stack, PROMPTS[:1], GREEDY, None)[0]
    assert (whole.tokens, whole.cut) == (10, True)
    prompt = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        found: Any = stack.network.generate(prompt, max_new_tokens=10, do_sample=False)  # type: ignore[operator]
    third = int(found[0, len(PROMPTS[0]) + 2])
    first = found[0, len(PROMPTS[0]) :].tolist().index(third)
    ended = generate(stack, PROMPTS[:1], GREEDY, None, ends=[third])[0]
    assert (ended.tokens, ended.cut) == (first + 1, False)


def test_drawn_answers_depend_on_seed_and_prompt_only(tiny_base: Path) -> None:
    stack = moved(tiny_base)
    drawn = DecodingRecipe(max_new_tokens=10, temperature=1.0, top_p=0.95, batch_size=1)
    alone = generate_answers(stack, PROMPTS, drawn, "answers")
    together = generate_answers(stack, PROMPTS[::-1], drawn.model_copy(update={"batch_size": 5}), "answers")
    assert together == alone[::-1]
    assert generate_answers(stack, PROMPTS, drawn.model_copy(update={"seed": 1}), "answers") != alone
    assert alone != generate_answers(stack, PROMPTS, GREEDY, "answers")


def test_noise_draws_from_the_softmax() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = 4000
    scores = shares.log().expand(rows, -1)
    noise = GumbelNoise(0, [str(row) for row in range(rows)])
    for _ in range(2):  # each step draws anew
        drawn = noise(torch.zeros(rows, 1), scores).argmax(1)
        found = torch.bincount(drawn, minlength=5) / rows
        assert float((found - shares).abs().max()) < 4 * float(np.sqrt(0.25 / rows))


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Let the given batch (from 1) raise as Control-C does; return the list of the batches' sizes."""
    real, sizes = generation._answer, []

    def answer(stack: Any, prompts: Any, *further: Any) -> Any:
        sizes.append(len(prompts))
        if len(sizes) == call:
            raise KeyboardInterrupt
        return real(stack, prompts, *further)

    monkeypatch.setattr(generation, "_answer", answer)
    return sizes


def test_goes_on_after_a_kill(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = moved(tiny_base)
    settings = GREEDY.model_copy(update={"batch_size": 3})
    wanted = generate(stack, PROMPTS, settings, None)
    kept = tmp_path / "kept"
    sizes = kill_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        generate(stack, PROMPTS, settings, None, kept=kept)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with kept.open("a") as file:
        file.write('["half a li')  # what a kill within a write leaves
    assert generate(stack, PROMPTS, settings, None, kept=kept) == wanted
    assert sizes == [3, 3, 3, 1]  # the first batch was not generated again
    assert generate(stack, PROMPTS, settings, None, kept=kept) == wanted
    assert len(sizes) == 4


def test_equal_prompts_are_answered_once(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = kill_at(monkeypatch, 0)
    answers = generate_answers(moved(tiny_base), [PROMPTS[0], PROMPTS[1], PROMPTS[0]], GREEDY, "answers")
    assert answers[0] == answers[2]
    assert sizes == [2]


def test_goes_on_with_fewer_where_memory_is_full(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = moved(tiny_base)
    wanted = generate_answers(stack, PROMPTS, GREEDY, "answers")
    real, sizes = generation._answer, []

    def answer(stack: Any, prompts: Any, *further: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(stack, prompts, *further)

    monkeypatch.setattr(generation, "_answer", answer)
    most = 2
    assert generate_answers(stack, PROMPTS, GREEDY, "answers") == wanted
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    most = 0
    with pytest.raises(ClinstackError, match="single prompt"):
        generate_answers(stack, PROMPTS, GREEDY, "answers")


def test_refuses_what_does_not_fit(tiny_base: Path) -> None:
    stack = moved(tiny_base)
    with pytest.raises(InputError, match="the base reads 256"):
        generate_answers(stack, [list(range(3, 253))], GREEDY, "answers")
    with pytest.raises(InputError, match="no token"):
        generate_answers(stack, [[]], GREEDY, "answers")
    with pytest.raises(ValueError, match="num_beams"):
        DecodingRecipe(num_beams=2, temperature=0.5)
    with pytest.raises(ValueError, match="top_p"):
        DecodingRecipe(top_p=0.5)


_FAMILIES = {
    "phi": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "qwen3": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "mistral": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 6,
    },
    "gemma2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 6,
    },
}


@pytest.mark.parametrize("family", _FAMILIES)
def test_padding_changes_nothing_in_any_family(tiny_base: Path, tmp_path: Path, family: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, vocab_size=300, **_FAMILIES[family])
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path / family)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / family)
    stack = Stack.build(str(tmp_path / family))
    alone = generate_answers(stack, PROMPTS, GREEDY.model_copy(update={"batch_size": 1}), "answers")
    assert generate_answers(stack, PROMPTS, GREEDY, "answers") == alone


# ---------------------------------------------------------------------- the stage


def write_questions(folder: Path, patients: int = 12, *, answerable: bool = True) -> Path:
    """Write two short questions for each invented patient, in all three splits."""
    rows = []
    for place in range(patients):
        note = f"Patient {place} takes aspirin {place + 10} mg. Discharged."
        for number, (task, question, answer) in enumerate(
            [
                ("Named Entity Recognition", "Which drug?", f"aspirin {place + 10} mg"),
                ("Question Answering", "What is the blood type?", "The note does not mention the blood type."),
            ]
        ):
            rows.append(
                {
                    "example_id": f"e{place:02}-{number}",
                    "patient_id": f"p{place:02}",
                    "note": note,
                    "question": question,
                    "answer": answer,
                    "task": task,
                    **({"answerable": number == 0} if answerable else {}),
                }
            )
    (folder / "instructions").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "instructions" / "instructions.parquet")
    splits = [("train", "validation", "test", "test")[place % 4] for place in range(patients)]
    names = [f"p{place:02}" for place in range(patients)]
    pq.write_table(pa.table({"patient_id": names, "split": splits}), folder / "splits.parquet")
    write_json(folder / "prepare.json", {"source": "test", "synthetic": True})
    return folder


def recipe_of(base: Path, questions: Path, run: Path, **changes: Any) -> GenerateRecipe:
    values: dict[str, Any] = {
        "run": str(run),
        "base": str(base),
        "instructions": str(questions),
        "prompt": PromptRecipe(system=""),
        "decoding": GREEDY,
        "evaluation": {"resamples": 100},
    }
    return GenerateRecipe(**(values | changes))


def test_a_run_of_an_untouched_base(tiny_base: Path, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "notes")
    run = stage(recipe_of(tiny_base, questions, tmp_path / "run"))
    answers = pq.read_table(run.folder / "answers.parquet")
    assert answers.column_names == ["example_id", "patient_id", "split", "task", "answer"]
    assert set(answers["split"].to_pylist()) == {"test"}
    assert answers.num_rows == 12
    assert stat.S_IMODE((run.folder / "answers.parquet").stat().st_mode) == 0o600
    assert not (run.folder / "answers.partial.jsonl").exists()
    record, metrics = read_json(run.folder / "run.json"), read_json(run.folder / "metrics.json")["test"]
    assert (record["stage"], record["label"], record["shots"], record["synthetic"]) == ("generate", "base", 0, True)
    assert record["generated"]["new_tokens"] > 0
    assert metrics["examples"] == 12
    assert metrics["unanswerable"] == 6
    assert set(metrics["by_task"]) == {"Named Entity Recognition", "Question Answering"}
    assert metrics["prompts"]["texts"] == 12
    for name in ("token_f1", "exact_match", "rougeL", "refusal_sensitivity", "refusal_specificity", "cut"):
        low, high = metrics[name]["interval"]
        assert low <= metrics[name]["value"] <= high
    texts = [*answers["answer"].to_pylist(), "aspirin"]
    for file in run.folder.rglob("*"):
        if file.suffix in {".json", ".yaml", ".jsonl"} or file.name == "measures.parquet":
            content = file.read_bytes()
            assert not any(text.encode() in content for text in texts if len(text) > 4), file


def test_a_killed_stage_ends_with_the_same_files(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = write_questions(tmp_path / "notes")
    decoding = DecodingRecipe(max_new_tokens=6, batch_size=4, temperature=1.0)
    changes: dict[str, Any] = {"decoding": decoding, "splits": ("validation", "test"), "max_examples": 5}
    whole = stage(recipe_of(tiny_base, questions, tmp_path / "whole", **changes))
    sizes = kill_at(monkeypatch, 3)
    killed = recipe_of(tiny_base, questions, tmp_path / "killed", **changes)
    with pytest.raises(KeyboardInterrupt):
        stage(killed)
    run = stage(killed)
    assert sizes == [4, 1, 4, 4, 1]
    for name in ("answers.parquet", "measures.parquet", "metrics.json"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert stage(killed).is_done
    assert len(sizes) == 5


def test_shots_are_of_training_patients(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clinstack.engine import answers

    questions = write_questions(tmp_path / "notes")
    seen: list[Prompt] = []
    real = answers.encode_prompts
    monkeypatch.setattr(
        answers,
        "encode_prompts",
        lambda tokenizer, prompt, *rest, **further: (seen.append(prompt), real(tokenizer, prompt, *rest, **further))[1],
    )
    (tmp_path / "short.txt").write_text("{note} {question}")
    prompt = PromptRecipe(template=str(tmp_path / "short.txt"), shots=2)
    run = stage(recipe_of(tiny_base, questions, tmp_path / "run", prompt=prompt))
    assert read_json(run.folder / "run.json")["shots"] == 2
    train = {f"Patient {place} takes aspirin {place + 10} mg. Discharged." for place in range(0, 12, 4)}
    assert len(seen[0].shots) == 2
    assert {note for note, _, _ in seen[0].shots} <= train
    again = stage(recipe_of(tiny_base, questions, tmp_path / "other", prompt=prompt, prompt_seed=5))
    assert again.is_done
    assert seen[1].shots != seen[0].shots


def test_a_stack_reads_the_prompt_it_was_trained_with(tiny_base: Path, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "notes", answerable=False)
    stack = moved(tiny_base, new("lora", "instruct"))
    stack.prompt, stack.max_tokens = Prompt("{note} {question}", cue="\n"), 120
    stack.save(tmp_path / "stack")
    own: dict[str, Any] = {"stack": str(tmp_path / "stack")}
    with pytest.raises(InputError, match="a prompt of its own"):
        stage(recipe_of(tiny_base, questions, tmp_path / "refused", **own))
    run = stage(recipe_of(tiny_base, questions, tmp_path / "run", prompt=None, **own))
    record, metrics = read_json(run.folder / "run.json"), read_json(run.folder / "metrics.json")
    assert record["label"] == "instruct"
    assert "refusal_sensitivity" not in metrics["test"]
    recipe = EvaluateRecipe(
        run=str(tmp_path / "evaluated"),
        stack=str(tmp_path / "stack"),
        instructions=str(questions),
        decoding=GREEDY,
        against=str(run.folder),
        evaluation={"resamples": 100},  # type: ignore[arg-type]
    )
    evaluated = evaluate(recipe)
    found = read_json(evaluated.folder / "metrics.json")["test"]
    assert all(row["value"] == 0 and not row["holds"] for row in found.pop("differences"))
    assert found == metrics["test"]
    same = (pq.read_table(one.folder / "answers.parquet") for one in (run, evaluated))
    assert next(same).equals(next(same))


def test_what_a_stage_refuses(tiny_base: Path, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "notes")

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            stage(recipe_of(tiny_base, questions, tmp_path / "run", **changes), fresh=True)

    refused(r"no task 'Question answering'.*Did you mean Question Answering", tasks=("Question answering",))
    refused("prompt.shots", prompt=PromptRecipe(shots=9))
    refused("max_tokens: 16 leaves no room", max_tokens=16, decoding=DecodingRecipe(max_new_tokens=16))
    refused("raise max_tokens", max_tokens=30)
    refused("neither a Run nor a Stack", stack=str(tmp_path / "nowhere"), prompt=None)
    recipe = EvaluateRecipe(run=str(tmp_path / "evaluated"), stack=str(tmp_path / "stack"), instructions=str(questions))
    moved(tiny_base, new("lora")).save(tmp_path / "stack")
    with pytest.raises(InputError, match="not trained on instructions"):
        evaluate(recipe)
    with pytest.raises(ValueError, match="or else instructions"):
        EvaluateRecipe(run="x", stack="y")
    assert not os.path.exists(tmp_path / "run" / "answers.parquet")


@pytest.mark.slow
def test_kill_nine_in_the_middle(tiny_base: Path, tmp_path: Path) -> None:
    """A process that is killed between two batches, and started again, ends with the files of one that was not."""
    import signal
    import subprocess
    import sys
    import time

    questions = write_questions(tmp_path / "notes", patients=60)

    def command(run: str) -> list[str]:
        keys = [f"base={tiny_base}", f"instructions={questions}", "prompt.system=''", "evaluation.resamples=100"]
        keys += ["decoding.max_new_tokens=60", "decoding.batch_size=1", "decoding.temperature=1.0"]
        return [sys.executable, "-m", "clinstack", "generate", f"run={tmp_path / run}", *keys]

    subprocess.run(command("whole"), check=True, capture_output=True)
    kept = tmp_path / "killed" / "answers.partial.jsonl"
    with subprocess.Popen(command("killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (kept.is_file() and kept.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = kept.read_bytes().count(b"\n")
    assert 0 < before < 60
    assert read_json(tmp_path / "killed" / "run.json")["status"] == "running"
    subprocess.run(command("killed"), check=True, capture_output=True)
    for name in ("answers.parquet", "measures.parquet", "metrics.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not kept.exists()
