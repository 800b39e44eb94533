"""What `serving_load.py` serves, and what each stack says of each note when nobody serves it.

python serving_load_stacks.py make FOLDER '{"num_hidden_layers": 2, …}' GROUPS
python serving_load_stacks.py offline FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def make(work: Path, model: dict[str, int], groups: int) -> None:
    """Write a random base, five stacks on one clinical LoRA, and 16 notes for each group."""
    from downstream_notes import write_clinical
    from pretraining_arms import Setting, make_work
    from serving_arms import CLASSES, write_stack

    make_work(work, model, groups, Setting())
    write_clinical(work / "model", work / "clinical")
    for seed, task in enumerate(CLASSES):
        write_stack(work, task, seed)


def offline(work: Path) -> None:
    """Write the logits of each stack for each note, computed by its `Stack` alone, note by note."""
    import torch
    from pretraining_arms import read_texts

    from clinstack.model.stack import Stack
    from clinstack.tokens.texts import encode_texts

    texts = read_texts(work)
    found: dict[str, list[list[float]]] = {}
    for folder in sorted((work / "stacks").iterdir()):
        stack = Stack.load(folder)
        with torch.inference_mode():
            pieces = encode_texts(stack.tokenizer, stack.reading, texts).pieces
            rows = [torch.from_numpy(piece)[None] for piece in pieces]
            found[folder.name] = [stack.logits(row, torch.ones_like(row))[0].tolist() for row in rows]
    (work / "offline.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))
    else:
        offline(Path(sys.argv[2]))
