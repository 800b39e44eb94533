"""Train the small embedded models from plain text, on a CPU, from nothing: a decoder, or an encoder.

    python scripts/train_base_model.py --text BOOK.txt.gz ... --hold-out NAME --out DIR
    python scripts/train_base_model.py --text BOOK.txt.gz ... --hold-out NAME --out DIR --objective masked

Any UTF-8 text files will do (plain or gzip). The script trains a byte-level BPE tokenizer, trains the model, measures
it on the files held out, and writes a folder that transformers opens: half precision safetensors and tokenizer. With
``--objective next`` that is a Llama (``AutoModelForCausalLM``), measured in bits per character; with ``masked`` a
ModernBERT (``AutoModelForMaskedLM``; Warner et al. 2024), all of whose layers see the whole text, measured by the loss
of masked tokens.

Matrices inside the blocks are updated by Muon (Jordan et al. 2024), embeddings and norms by AdamW.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

BOS, EOS, PAD, MASK = "<|bos|>", "<|eos|>", "<|pad|>", "<|mask|>"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, .txt or .txt.gz")
    parser.add_argument("--hold-out", nargs="*", default=[], help="files whose name contains this are only measured on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--objective", choices=["next", "masked"], default="next")
    parser.add_argument("--mask-share", type=float, default=0.3, help="share of the tokens to guess (masked)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the byte-level BPE")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--key-value-heads", type=int, default=3)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--flat-share", type=float, default=0.5, help="share of the steps at the peak rate")
    parser.add_argument("--stop-after", type=int, help="end after so many of the steps, without the decay")
    parser.add_argument("--initial", type=Path, help="go on from a folder that this script wrote (its tokenizer too)")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the schedule")
    parser.add_argument("--document-characters", type=int, default=6000, help="paragraphs are grouped to documents")
    parser.add_argument("--save-every", type=int, default=500, help="steps between two writings of the folder")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks (needs a C compiler)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def read_text(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read().strip()


def documents(text: str, characters: int) -> list[str]:
    """Group paragraphs to documents of about ``characters``, so that begin and end tokens are seen often."""
    groups: list[str] = []
    current: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        current.append(paragraph)
        size += len(paragraph)
        if size >= characters:
            groups.append("\n\n".join(current))
            current, size = [], 0
    if current:
        groups.append("\n\n".join(current))
    return groups


def train_tokenizer(texts: list[str], vocabulary: int, *, masked: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # Digits stay single, so that a laboratory value is read the same way whatever its neighbours are.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, MASK] if masked else [PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if masked else f"{BOS} $A",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)],
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One stream of token ids: begin, document, end, begin, document, end, ..."""
    begin, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.array([begin, *item.ids, end], dtype=np.int64) for item in encoded])


def next_loss(model: PreTrainedModel, blocks: Any, block: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of predicting each token from those before it."""
    hidden = blocks(input_ids=block[:, :-1], use_cache=False).last_hidden_state
    return F.linear_cross_entropy(
        hidden.flatten(0, 1),
        model.lm_head.weight,
        block[:, 1:].flatten(),
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None),
    )


def masked_loss(model: PreTrainedModel, blocks: Any, block: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of guessing the chosen tokens, shape of ``chosen`` as ``block``, from all others."""
    masked = torch.where(chosen, model.config.mask_token_id, block)
    hidden = blocks(input_ids=masked).last_hidden_state[chosen]
    return F.cross_entropy(model.decoder(model.head(hidden)), block[chosen])


def choose_masked(block: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a share of the tokens, never special ones, whose ids come first."""
    return (torch.rand(block.shape, generator=generator) < share) & (block > 3)


def masked_loss_of_text(model: PreTrainedModel, stream: np.ndarray, context: int, share: float) -> float:
    """Return the mean loss of masked tokens in a text's windows, in nats; the masks are drawn by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(stream) - context, context):
            block = torch.from_numpy(stream[start : start + context])[None]
            chosen = choose_masked(block, share, generator)
            total += float(masked_loss(model, model.model, block, chosen)) * int(chosen.sum())
            count += int(chosen.sum())
    model.train()
    return total / count


def bits_per_character(model: PreTrainedModel, stream: np.ndarray, characters: int, context: int) -> float:
    """Every token is scored once: the first window whole, each later one, half a window on, in its second half."""
    half = context // 2
    total = 0.0
    model.eval()
    with torch.inference_mode():
        for start in range(0, max(1, len(stream) - half), half):
            window = torch.from_numpy(stream[start : start + context + 1])[None]
            logits = model(input_ids=window[:, :-1], use_cache=False).logits[0]
            losses = F.cross_entropy(logits, window[0, 1:], reduction="none")
            total += float(losses[half if start else 0 :].sum())
    model.train()
    return total / math.log(2) / characters


def build_model(arguments: argparse.Namespace, tokenizer: Tokenizer) -> PreTrainedModel:
    torch.manual_seed(arguments.seed)
    begin, end, padding = (tokenizer.token_to_id(token) for token in (BOS, EOS, PAD))
    common = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.intermediate,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "max_position_embeddings": arguments.context,
        "tie_word_embeddings": True,
        "pad_token_id": padding,
        "bos_token_id": begin,
        "eos_token_id": end,
    }
    if arguments.objective == "next":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=arguments.key_value_heads, **common))
    config = ModernBertConfig(
        # Every layer sees the whole text, and a classifier reads the mean over it: no token has learned to sum up.
        global_attn_every_n_layers=1,
        classifier_pooling="mean",
        cls_token_id=begin,
        sep_token_id=end,
        mask_token_id=tokenizer.token_to_id(MASK),
        **common,
    )
    return ModernBertForMaskedLM(config)


def learning_rate_at(step: int, steps: int, flat_share: float) -> float:
    """Factor of the peak: 2 % warm-up, flat, then linear to 2 %."""
    warmup, flat = max(1, int(0.02 * steps)), int(flat_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    if step < flat:
        return 1.0
    return 1.0 - 0.98 * (step - flat) / max(1, steps - flat)


def save(
    model: PreTrainedModel, tokenizer: Tokenizer, arguments: argparse.Namespace, record: dict[str, object]
) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    half = type(model)(model.config).half()
    half.load_state_dict(model.state_dict())
    half.config.dtype = "float16"
    half.save_pretrained(arguments.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        **({"cls_token": BOS, "sep_token": EOS, "mask_token": MASK} if arguments.objective == "masked" else {}),
        model_max_length=arguments.context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(arguments.out)
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    arguments = parse_arguments()
    masked = arguments.objective == "masked"
    held_out = [p for p in arguments.text if any(name in p.name for name in arguments.hold_out)]
    training = [p for p in arguments.text if p not in held_out]
    if not training:
        sys.exit("Nothing to train on: every file of --text is named by --hold-out.")
    texts = {path: documents(read_text(path), arguments.document_characters) for path in arguments.text}
    if arguments.initial:
        tokenizer = Tokenizer.from_file(str(arguments.initial / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(
            [text for path in training for text in texts[path]], arguments.vocabulary, masked=masked
        )
    stream = encode(tokenizer, [text for path in training for text in texts[path]])
    measured = encode(tokenizer, [text for path in held_out for text in texts[path]]) if held_out else None
    measured_characters = sum(len(text) for path in held_out for text in texts[path])
    if arguments.initial:
        kind = ModernBertForMaskedLM if masked else LlamaForCausalLM
        model = kind.from_pretrained(arguments.initial, dtype=torch.float32)
    else:
        model = build_model(arguments, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} training tokens", flush=True)

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=arguments.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    order = np.random.default_rng(arguments.seed)
    masks = torch.Generator().manual_seed(arguments.seed)
    width, queue = arguments.context + 1, np.empty(0, dtype=np.int64)
    blocks = torch.compile(model.model) if arguments.compile else model.model
    started, record = time.monotonic(), {}
    last = min(arguments.steps, arguments.stop_after or arguments.steps)
    for step in range(last):
        if len(queue) < arguments.batch:
            # Each pass cuts the stream at another offset, so that blocks differ from pass to pass.
            offset = int(order.integers(arguments.context))
            starts = np.arange(offset, len(stream) - width, arguments.context)
            queue = np.concatenate([queue, order.permutation(starts)])
        chosen, queue = queue[: arguments.batch], queue[arguments.batch :]
        block = torch.from_numpy(np.stack([stream[s : s + width] for s in chosen]))
        if masked:
            block = block[:, :-1]
            loss = masked_loss(model, blocks, block, choose_masked(block, arguments.mask_share, masks))
        else:
            loss = next_loss(model, blocks, block)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * learning_rate_at(step, arguments.steps, arguments.flat_share)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 20 == 0:
            rate = done * arguments.batch * arguments.context / (time.monotonic() - started)
            print(f"step {done}/{arguments.steps} loss {loss.item():.3f} {rate:,.0f} tokens/s", flush=True)
        if done % arguments.save_every == 0 or done == last:
            record = {
                "parameters": parameters,
                "files": [path.name for path in training],
                "held_out": [path.name for path in held_out],
                "training_tokens_in_files": len(stream),
                "steps": done,
                "steps_planned": arguments.steps,
                "tokens_seen": done * arguments.batch * arguments.context,
                "seed": arguments.seed,
                "before": json.loads((arguments.initial / "training.json").read_text()) if arguments.initial else None,
                "seconds": round(time.monotonic() - started),
                "command": "python scripts/train_base_model.py "
                + " ".join(
                    f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                    for name, value in vars(arguments).items()
                    if name not in {"text", "out", "hold_out", "initial"} and value not in (None, False)
                ),
            }
            if measured is not None and masked:
                loss_of_text = masked_loss_of_text(model, measured, arguments.context, arguments.mask_share)
                record["held_out_masked_loss"] = round(loss_of_text, 4)
                print(f"held out: {record['held_out_masked_loss']} nats for a masked token", flush=True)
            elif measured is not None:
                record["held_out_bits_per_character"] = round(
                    bits_per_character(model, measured, measured_characters, arguments.context), 4
                )
                print(f"held out: {record['held_out_bits_per_character']} bits per character", flush=True)
            save(model, tokenizer, arguments, record)


if __name__ == "__main__":
    main()
