"""The neighbourhood attack: is a note itself likelier than texts that differ from it in a few tokens?

::

    note         the patient was admitted with chest pain               loss L
    neighbours   the patient was transferred with chest pain            loss L1      score = mean(L1, L2, ...) - L
                 the woman was admitted with back pain                  loss L2

Mattern et al. 2023, "Membership Inference Attacks against Language Models via Neighbourhood Comparison". A model that
was trained on a note prefers exactly this wording; of a note that is merely easy, the neighbours are easy too.

Theirs come from a masked language model, which sees both sides of a token. Here a token is drawn from what the base,
its adapters off, expects after the tokens before it: the same vocabulary and no second model, which a closed network
may not have, but replacements fit what follows less well, so that all neighbours are somewhat less likely.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from clinstack.engine.attack_losses import attack_losses, log_distributions, predicted_states
from clinstack.engine.precision import forward_precision
from clinstack.engine.progress import progress_bar
from clinstack.model.stack import Stack
from clinstack.tokens.documents import Documents
from clinstack.tokens.layout import NoteRows
from clinstack.tokens.pack import IGNORED

SHARE = 0.15
"""Of a text's tokens that each neighbour replaces: as many as masked language models are trained to guess."""
WINDOW = 128
"""Predicted tokens of a note that are compared, from its first: about as many as the texts of Mattern et al. have. The
attack reads them once for each neighbour."""
CANDIDATES = 10
"""Most likely tokens, the original left out, among which a replacement is drawn by their probabilities."""


@dataclass(frozen=True)
class Replacements:
    """What neighbours have in place of a note's tokens.

    Parameters
    ----------
    places : list of int32 arrays [neighbours, replaced]
        For each note the places in its document.
    tokens : list of int32 arrays [neighbours, replaced]
        What stands there instead.
    """

    places: list[NDArray[np.int32]]
    tokens: list[NDArray[np.int32]]


def draw_replacements(
    base: Stack, rows: NoteRows, batch_size: int, neighbours: int, seed: int, description: str | None = None
) -> Replacements:
    """Draw the tokens of neighbours from a language model's own predictions, in one pass over the notes.

    Only predicted tokens are replaced, so that of answers the prompts stay, and never the end token. Which ones and by
    what depends on the seed and the note's place alone, not on the batches.

    Parameters
    ----------
    base : Stack
        As it is now; with its adapters switched off it is the base.
    rows : NoteRows or AnswerRows
        One segment for each note.
    neighbours : int
        Of each note.
    seed : int
    """
    nothing = np.zeros((neighbours, 0), dtype=np.int32)
    places, tokens = [nothing] * len(rows.documents), [nothing] * len(rows.documents)
    end = base.tokenizer.eos_token_id
    batches = rows.in_order(batch_size)
    base.eval()
    with torch.inference_mode(), forward_precision(base), progress_bar(description, len(batches)) as bar:
        for chosen in batches:
            batch = rows.collate(chosen)
            hidden, labels = predicted_states(base, batch.to(base.device))
            predicts = batch.labels != IGNORED
            owners, position = batch.documents[predicts].numpy(), batch.position_ids[predicts].numpy()
            original = labels.cpu().numpy()
            # Draw where first, so that only these positions meet the output layer.
            where: list[NDArray[np.int64]] = []
            edges = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
            starts = edges[:-1].tolist()
            for begin, stop in zip(starts, edges[1:].tolist(), strict=True):
                free = begin + np.flatnonzero(original[begin:stop] != end)
                count = min(len(free), max(1, round(SHARE * len(free))))
                random = np.random.default_rng([seed, int(owners[begin])])
                where.append(np.stack([np.sort(random.permutation(free)[:count]) for _ in range(neighbours)]))
            needed = np.unique(np.concatenate([part.ravel() for part in where]))
            ids, chances = _candidates(base, hidden[torch.from_numpy(needed)], labels[torch.from_numpy(needed)])
            for begin, of_note in zip(starts, where, strict=True):
                note = int(owners[begin])
                random = np.random.default_rng([seed, note, 1])
                at = np.searchsorted(needed, of_note)
                # The first candidate whose share of the probability reaches the draw.
                drawn = (chances[at] < random.random(of_note.shape)[..., None]).sum(-1)
                # A position predicts the token after it.
                places[note] = (position[of_note] + 1).astype(np.int32)
                tokens[note] = ids[at, drawn].astype(np.int32)
            bar.advance(batch.predictions)
    return Replacements(places, tokens)


def _candidates(
    base: Stack, hidden: torch.Tensor, labels: torch.Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the likeliest other tokens at some positions and their cumulated chances, both [positions, candidates]."""
    ids, chances = [], []
    for chunk, distribution in log_distributions(base, hidden):
        # What a tokenizer adds by itself, such as padding, does not stand in a text.
        distribution[
            :, [token for token in base.tokenizer.all_special_ids if token < distribution.shape[1]]
        ] = -torch.inf
        distribution.scatter_(1, labels[chunk, None], -torch.inf)
        best = distribution.topk(CANDIDATES, dim=1)
        ids.append(best.indices.cpu().numpy())
        chances.append(torch.softmax(best.values.double(), 1).cumsum(1).cpu().numpy())
    cumulated = np.concatenate(chances)
    cumulated[:, -1] = 1.0
    return np.concatenate(ids), cumulated


def neighbour_losses(
    stack: Stack, rows: NoteRows, found: Replacements, batch_size: int, description: str | None = None
) -> NDArray[np.float64]:
    """Return the mean summed loss of each note's neighbours under a stack as it is now, in nats: shape [notes].

    Neighbours are laid out as their notes are, one neighbour of each after the other, so that memory does not grow with
    their number.
    """
    neighbours = len(found.places[0])
    stops = np.zeros(len(rows.documents), dtype=np.int64)
    stops[rows.segments.document] = rows.segments.stop
    total = np.zeros(len(rows.documents))
    for number in range(neighbours):
        changed = []
        for note, stop in enumerate(stops.tolist()):
            # The last token that is predicted is no input, so it stands one behind the segment.
            ids = rows.documents.part(note, 0, stop + 1).astype(np.uint32)
            ids[found.places[note][number]] = found.tokens[note][number]
            changed.append(ids)
        label = None if description is None else f"{description} {number + 1} of {neighbours}"
        other = replace(rows, documents=Documents.of(changed))
        total += attack_losses(stack, other, batch_size, min_k=None, description=label).nll
    return total / neighbours
