"""The README.md of an export: what it is, how to open it, what to give it, what it was made from, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clinstack import __version__
from clinstack.export.cards import card_sections, front_matter
from clinstack.export.check import ROUNDING, Measured
from clinstack.export.plain import opening_code, why_not_plain
from clinstack.export.source import Source, public_name
from clinstack.model.card import asking, trained_on
from clinstack.model.cards.facts import StackFacts
from clinstack.model.cards.sentences import audited
from clinstack.model.data_lineage import openly_publishable


def readme(kind: str, sources: Sequence[Source], measured: Mapping[str, Measured], known: Sequence[StackFacts]) -> str:
    """Return the text of the README.

    Parameters
    ----------
    kind : str
        One of the kinds of `clinstack export`.
    sources : sequence of Source
        One, or for ``clinical-merged`` several.
    measured : mapping of str to Measured
        By folder; "" is the export's own.
    known : sequence of StackFacts
        What the cards say of each source.
    """
    first = sources[0]
    base = public_name(first.stack.base)
    parts = [
        f"---\n{front_matter(kind, known)}\n---",
        f"# {', '.join(source.label for source in sources)}",
        _what(kind, first, base),
        *_warnings(sources, known),
        "## Opening it\n\n" + _opening(kind, sources, measured, base),
        *(_feeding(source, titled=len(sources) > 1) for source in sources),
        "## What it was made from\n\n" + "\n".join(_origin(first, sources, base)),
        trained_on(first.stack.data),
        *card_sections({source.label: facts for source, facts in zip(sources, known, strict=True)}),
        "## Checked\n\n" + _checked(measured, first),
        "## Limits\n\nResearch software. An aid for people who know the data; not a medical device, and no replacement "
        "for clinicians. It has seen notes like those it was trained on, and says nothing reliable about others.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_WHAT = {
    "merged": "A plain transformers model: the base `{base}` with {stack} folded into its weights by `clinstack export "
    "--as merged`.",
    "fused": "One ordinary LoRA on the plain base `{base}`: {stack} in one adapter, exactly, made by `clinstack export "
    "--as fused`. It is the whole: no other adapter lies beneath it.",
    "clinical-merged": "A base and the adapters on it: `base/` is `{base}` with everything beneath the top adapter "
    "folded in, by `clinstack export --as clinical-merged`. **An adapter here belongs on `base/` alone**; on `{base}` "
    "it gives other outputs and no error.",
    "peft": "The plain PEFT folders of a stack on `{base}`: {stack}, in this order from below (`order.json`). "
    "**Each alone is only a part of the model**; opened without the others, it gives other outputs and no error.",
    "gguf": "One GGUF file for llama.cpp and what is built on it: `{base}` with {stack} folded in, by "
    "`clinstack export --as gguf`.",
}


def _what(kind: str, source: Source, base: str) -> str:
    levels = [f"`{adapter.name}` ({adapter.method})" for adapter in source.stack.adapters]
    if not levels:
        return f"A plain transformers model: the base `{base}` with a trained head, written by `clinstack export`."
    return _WHAT[kind].format(base=base, stack=" + ".join(levels))


def _warnings(sources: Sequence[Source], known: Sequence[StackFacts]) -> list[str]:
    found = []
    data = [item for source in sources for item in source.stack.data or ()]
    if any(item.synthetic for item in data) or any(source.run_is_synthetic for source in sources):
        found.append("**Trained on synthetic data:** its outputs say nothing about medicine.")
    if openly_publishable(sources[0].stack.data) is False:
        found.append("**Not to be published openly:** it was trained on data whose use agreement forbids it.")
    if sources[0].quantized != "none":
        found.append(
            f"It was trained on the base in {sources[0].quantized.removesuffix('bit')} bits, and what stands here is "
            f"on the base in {sources[0].dtype}: outputs differ a little from those that were measured in training."
        )
    for source, facts in zip(sources, known, strict=True):
        audit = audited(facts)
        if audit.verdict != "clean":
            of = f" of {source.label}" if len(sources) > 1 else ""
            found.append(f"**Audit{of}:** {audit.short}")
    return found


def _opening(kind: str, sources: Sequence[Source], measured: Mapping[str, Measured], base: str) -> str:
    source = sources[0]
    task = source.stack.task
    model = "AutoModelForCausalLM" if task is None else "AutoModelForSequenceClassification"
    padding = ["model.config.pad_token_id = tokenizer.pad_token_id"] if task is not None else []
    labels = f", num_labels={len(task.classes)}" if task is not None else ""
    if kind == "gguf":
        return (
            "```bash\nllama-cli --model model.gguf --file prompt.txt\n```\n\nor with transformers, "
            "`AutoModelForCausalLM.from_pretrained('.', gguf_file='model.gguf')`."
        )
    if kind == "merged":
        code = [
            f"from transformers import {model}, AutoTokenizer",
            "",
            "tokenizer = AutoTokenizer.from_pretrained('.')  # pad on the right",
            f"model = {model}.from_pretrained('.', dtype='{source.dtype}').eval()",
        ]
        return "In this folder, with transformers:\n\n" + _code(code)
    if kind == "fused":
        auto = model.replace("AutoModel", "AutoPeftModel")
        code = [
            f"from peft import {auto}",
            "from transformers import AutoTokenizer",
            "",
            f"model = {auto}.from_pretrained('.'{labels}, dtype='{source.dtype}').eval()",
            "tokenizer = AutoTokenizer.from_pretrained(model.peft_config['default'].base_model_name_or_path)",
            *padding,
        ]
        facts = measured[""].facts
        filled = ""
        if facts["rank"] != facts["ranks_in_use"]:
            filled = (
                f" Of its rank of {facts['rank']}, {facts['ranks_in_use']} are in use; the rest are zeros, because "
                "vLLM has kernels for certain ranks only."
            )
        return (
            f"With plain PEFT, in this folder; `adapter_config.json` names the base `{base}` as it was called on the "
            f"machine that wrote it, so change `base_model_name_or_path` where that is another.\n\n{_code(code)}"
            f"{_head_in(source.dtype, source)}\n\nvLLM takes it with `--max-lora-rank {facts['rank']}`.{filled}"
        )
    if kind == "clinical-merged":
        place = next(iter(measured))
        code = [
            "from peft import PeftModel",
            f"from transformers import {model}, AutoTokenizer",
            "",
            "tokenizer = AutoTokenizer.from_pretrained('base')  # pad on the right",
            f"model = {model}.from_pretrained('base'{labels}, dtype='{source.dtype}')",
            *padding,
            f"model = PeftModel.from_pretrained(model, '{place}').eval()",
        ]
        others = [name for name in measured if name != place]
        also = f"\n\n{', '.join(f'`{name}`' for name in others)} alike, with `num_labels` of its own." if others else ""
        return (
            "With plain PEFT, in this folder. `base_model_name_or_path` of the adapters is `base`, as seen from here; "
            f"where they stand elsewhere, write the place of the base there.\n\n{_code(code)}{also}"
            f"{_head_in(source.dtype, source)}"
        )
    obstacle = why_not_plain(source.stack)
    how = "With plain PEFT, in this folder" if obstacle is None else f"With clinstack, for {obstacle}; in this folder"
    return f"{how}:\n\n{_code(opening_code(source))}"


def _code(lines: Sequence[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _feeding(source: Source, *, titled: bool) -> str:
    """Return what to give the model: it was trained on no other."""
    stack = source.stack
    title = f"## What to give it{f', {source.label}' if titled else ''}\n\n"
    if stack.task is None:
        room = f"It was trained with up to {stack.max_tokens} tokens, prompt and answer together."
        return title + (asking(stack.prompt) if stack.prompt is not None else "It goes on with a text.") + f"\n\n{room}"
    reading, task = stack.reading, stack.task
    lines = [
        f"- The task is {task.kind}; the logits are of the classes "
        + ", ".join(f"{number}: {name}" for number, name in enumerate(task.classes[:40]))
        + (", … (all in export.json)" if len(task.classes) > 40 else "")
        + ".",
        "- Probabilities: "
        + ("a sigmoid of each logit." if task.kind == "multilabel" else "the logits' softmax.")
        + (" They are not calibrated; calibration.json holds what was fitted." if stack.calibration else ""),
        f"- At most {reading.max_tokens} tokens, special tokens counted. Of a longer note it was trained to read: "
        f"{_KEPT[reading.keep].format(share=reading.beginning_share, chunks=reading.max_chunks)}. **Plain libraries do "
        "not do this by themselves: cut the text before.**",
    ]
    if reading.keep == "chunks":
        how = (
            "The mean of the pieces' logits is what the stack computes (its head is linear)."
            if reading.chunk_pooling == "mean" and not stack.is_encoder
            else "The stack pools the pieces' features before the head, by their "
            f"{'mean' if reading.chunk_pooling == 'mean' else 'largest values'}; pooling logits is not the same."
        )
        lines.append(f"- Pieces overlap by {reading.chunk_overlap} tokens. {how}")
    if reading.suffix:
        lines.append(f"- After every note, also a cut one, this text was written: {reading.suffix!r}.")
    if stack.layer is not None:
        lines.append(f"- The head reads layer {stack.layer}; there are no layers above it.")
    return title + "\n".join(lines)


_KEPT = {
    "beginning": "its beginning",
    "end": "its end",
    "both_ends": "its beginning ({share:.0%} of the room) and its end",
    "sections": "the sections that matter most, whole (`clinstack.tokens.texts`)",
    "chunks": "at most {chunks} pieces of that length",
}


def _origin(first: Source, sources: Sequence[Source], base: str) -> list[str]:
    lines = [f"- Base: `{base}`, fingerprint `{first.stack.base.fingerprint}`."]
    lines += [f"- Stack `{source.label}`: stack.json `{source.fingerprint}`." for source in sources]
    return [*lines, f"- clinstack {__version__}; versions of the libraries are in export.json."]


def _head_in(dtype: str, source: Source) -> str:
    """Return what to know of a head on a base of 16 bits."""
    if dtype not in ROUNDING or source.stack.task is None:
        return ""
    return f"\n\nPlain PEFT rounds the head to {dtype} too; what was compared below was computed in float32."


def _checked(measured: Mapping[str, Measured], first: Source) -> str:
    lines = []
    for place, found in measured.items():
        where = f"`{place}`" if place else "The folder"
        exact = found.facts.get("before_rounding")
        rounding = "" if exact is None else f" Before weights were rounded to {first.dtype} it was {exact:.1e}."
        lines.append(
            f"{where} was opened with {found.opened_with} when it was written, and its logits on a probe batch "
            f"compared with the stack's: the largest difference was {found.difference:.1e} (allowed "
            f"{found.limit:.1e}).{rounding}"
        )
    return "\n\n".join(lines)


def reading_facts(source: Source) -> dict[str, Any]:
    """Return for export.json what the stack was trained to read."""
    stack = source.stack
    if stack.task is None:
        prompt = None if stack.prompt is None else stack.prompt.to_dict()
        return {"max_tokens": stack.max_tokens, "prompt": prompt}
    return {**stack.reading.to_dict(), "pooling": stack.pooling, "layer": stack.layer}
