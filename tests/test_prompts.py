"""Prompts: the same tokens in training and in generation, for tokenizers with and without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clinstack.errors import InputError
from clinstack.model.base import find_base, load_tokenizer
from clinstack.notes.instructions import Instructions
from clinstack.recipe import PromptRecipe
from clinstack.tokens.prompt_fit import GAP, _middle, cut_prompts
from clinstack.tokens.prompts import Prompt, draw_shots, encode_answers, encode_pairs, encode_prompts
from tiny_instructions import CHAT_TEMPLATE, long_note

NOTE = "CHIEF COMPLAINT: chest pain.\n\nDISCHARGE MEDICATIONS: aspirin 81 mg {daily}."
QUESTION = "Which drug was given?"
ANSWER = "aspirin 81 mg"


def tokenizer(chat: str | None = None) -> Any:
    """The embedded base's, with a chat template where one is given."""
    found = load_tokenizer(find_base("embedded"))
    found.chat_template = chat
    return found


def instructions(*notes: str, answer: str = ANSWER) -> Instructions:
    names = [f"e{place}" for place in range(len(notes))]
    many = len(notes)
    return Instructions(names, names, list(notes), [QUESTION] * many, [answer] * many, ["Question Answering"] * many)


TEMPLATES = [
    pytest.param(None, {}, id="clinstack"),
    pytest.param(None, {"template": "asclepius"}, id="asclepius"),
    pytest.param(None, {"template": "phi2"}, id="phi2"),
    pytest.param(CHAT_TEMPLATE, {}, id="chat"),
    pytest.param(CHAT_TEMPLATE, {"template": "asclepius", "system": "Be brief."}, id="chat-asclepius"),
    pytest.param(CHAT_TEMPLATE, {"chat_template": "never"}, id="chat-never"),
]


@pytest.mark.parametrize(("chat", "keys"), TEMPLATES)
def test_training_and_generation_read_the_same_tokens_up_to_the_answer(chat: str | None, keys: dict[str, Any]) -> None:
    """::

    training     p0 p1 ... pn a0 a1 ... E
    generation   p0 p1 ... pn              to the last token, also of a note that is cut
    """
    words = tokenizer(chat)
    prompt = Prompt.of(PromptRecipe(**keys), words)
    notes = [NOTE, long_note()]
    pairs = encode_pairs(words, prompt, instructions(*notes), 400, answer_tokens=64)
    # As `generate` does it: from what the stack's file says, with room for an answer that is not known.
    read_back = Prompt.from_dict(prompt.to_dict())
    generated = encode_prompts(words, read_back, notes, [QUESTION] * 2, 400 - 64)
    assert pairs.prompts.report["texts_cut"] == 1
    for trained, alone, answer in zip(pairs.prompts.ids, generated.ids, pairs.answers, strict=True):
        assert trained == alone
        assert len(trained) + len(answer) <= 400


@pytest.mark.parametrize(("chat", "keys"), TEMPLATES)
def test_an_answer_never_changes_its_prompts_last_token(chat: str | None, keys: dict[str, Any]) -> None:
    """Tokenised together, "Output:" and "aspirin" could share a token; here they cannot."""
    words = tokenizer(chat)
    prompt = Prompt.of(PromptRecipe(**keys), words)
    ids = {
        tuple(encode_pairs(words, prompt, instructions(NOTE, answer=answer), 400).prompts.ids[0])
        for answer in ("aspirin", ": no", "\nnone", "1")
    }
    assert len(ids) == 1


def test_a_chat_is_what_transformers_makes_of_it() -> None:
    words = tokenizer(CHAT_TEMPLATE)
    prompt = Prompt.of(PromptRecipe(template="asclepius", system="Be brief."), words)
    ours = encode_prompts(words, prompt, [NOTE], [QUESTION], 512).ids[0]
    user = prompt.template.replace("{note}", NOTE).replace("{question}", QUESTION)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": user}]
    theirs = words.apply_chat_template(messages, add_generation_prompt=True)
    assert ours == (theirs if isinstance(theirs, list) else theirs["input_ids"])
    assert ours.count(words.bos_token_id) == 1  # the template's own, and not a second one


def test_plain_text_begins_as_a_document_of_pretraining_does() -> None:
    words = tokenizer()
    ids = encode_prompts(words, Prompt.of(PromptRecipe(), words), [NOTE], [QUESTION], 512).ids[0]
    assert ids[0] == words.bos_token_id
    assert ids.count(words.bos_token_id) == 1
    assert words.eos_token_id not in ids


def test_the_templates_are_what_they_say() -> None:
    words = tokenizer()
    asclepius = Prompt.of(PromptRecipe(template="asclepius"), words).text(words, "N", "Q")
    assert asclepius.startswith("You are an intelligent clinical languge model.\nBelow is a snippet of patient's")
    assert asclepius.endswith("[Discharge Summary End]\n\n[Instruction Begin]\nQ\n[Instruction End]\n")
    phi2 = Prompt.of(PromptRecipe(template="phi2"), words).text(words, "N", "Q")
    assert phi2.startswith("Instruct: ")
    assert phi2.endswith("\nOutput:")
    ours = Prompt.of(PromptRecipe(system=""), words).text(words, NOTE, QUESTION)
    assert ours.startswith("### Note\n")
    assert NOTE in ours  # braces in a note are only braces


def test_an_answer_behind_a_colon_begins_with_a_blank_and_behind_a_line_end_does_not() -> None:
    words = tokenizer()
    end = [words.eos_token_id]
    bare = words(ANSWER, add_special_tokens=False)["input_ids"]
    spaced = words(f" {ANSWER}", add_special_tokens=False)["input_ids"]
    assert encode_answers(words, Prompt.of(PromptRecipe(template="asclepius"), words), [ANSWER]) == [bare + end]
    assert encode_answers(words, Prompt.of(PromptRecipe(template="phi2"), words), [ANSWER]) == [spaced + end]


def test_a_sentencepiece_tokenizer_gets_no_second_blank(shared: Path) -> None:
    words = load_tokenizer(find_base(str(shared / "assets" / "stories260K")))
    answers = encode_answers(words, Prompt.of(PromptRecipe(template="phi2"), words), ["the cat"])
    assert answers == [[*words("the cat", add_special_tokens=False)["input_ids"], words.eos_token_id]]


@pytest.mark.parametrize(
    ("turn_end", "expected"),
    [("{{ eos_token }}\n", "<|eos|>"), ("<|pad|>\n", "<|pad|>"), ("\n", "<|eos|>")],
    ids=["end token", "a token of its own", "none"],
)
def test_an_answer_ends_as_a_turn_of_the_chat_does(turn_end: str, expected: str) -> None:
    """The line end behind it is not for the model to write; without any token the tokenizer's own end ends."""
    words = tokenizer(CHAT_TEMPLATE.replace("{{ eos_token }}\n", turn_end))
    assert "<|pad|>" in words.get_vocab()
    prompt = Prompt.of(PromptRecipe(), words)
    answer = encode_answers(words, prompt, [ANSWER])[0]
    assert answer[-1] == words.convert_tokens_to_ids(expected)
    assert answer[:-1] == words(ANSWER, add_special_tokens=False)["input_ids"]
    assert prompt.end_tokens(words)[0] == answer[-1]
    assert words.eos_token_id in prompt.end_tokens(words)


def test_a_chat_without_system_messages_has_the_text_in_the_users() -> None:
    refusing = CHAT_TEMPLATE.replace(
        "[{{ message.role }}]",
        "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ message.role }}]",
    )
    words = tokenizer(refusing)
    prompt = Prompt.of(PromptRecipe(system="Be brief."), words)
    assert prompt.system is None
    assert "[user] Be brief.\n\n### Note" in prompt.text(words, NOTE, QUESTION)


def test_a_template_that_asks_for_the_day_gets_a_fixed_one() -> None:
    words = tokenizer("{{ date_string if date_string is defined else strftime_now('%d') }}" + CHAT_TEMPLATE)
    assert Prompt.of(PromptRecipe(), words).text(words, NOTE, QUESTION).startswith("26 Jul 2024")


# ---------------------------------------------------------------------- long notes


def test_a_long_note_loses_its_middle_and_nothing_else() -> None:
    words = tokenizer()
    prompt = Prompt.of(PromptRecipe(), words)
    whole = len(encode_prompts(words, prompt, [long_note()], [QUESTION], 10_000).ids[0])
    short = encode_prompts(words, prompt, [long_note()], [QUESTION], whole - 200)
    text = words.decode(short.ids[0])
    assert whole - 230 < len(short.ids[0]) <= whole - 200
    assert "CHIEF COMPLAINT: dyspnea." in text
    assert "FOLLOW-UP: in two weeks." in text
    assert "DISCHARGE MEDICATIONS: furosemide 40 mg." in text
    assert "On day 0 " in text  # the section in the middle loses its end
    assert "On day 39" not in text
    assert text.endswith(f"### Question\n{QUESTION}\n\n### Answer\n")
    assert short.report["texts_cut"] == 1
    assert list(short.report["cut_by_section"]) == ["HOSPITAL COURSE"]
    assert 200 <= short.report["cut"] == short.report["cut_by_section"]["HOSPITAL COURSE"] < 240
    assert 0 < short.report["share_cut"] < 1
    (said,) = cut_prompts(short.report, "train", 512)
    assert "1 of 1 notes" in said
    assert "HOSPITAL COURSE" in said


@pytest.mark.parametrize("room", [600, 300, 200, 130, 110])
@pytest.mark.parametrize("note", [long_note(), "word " * 900, "x" * 4000], ids=["sections", "one", "no blanks"])
def test_whatever_the_room_a_prompt_fits_and_ends_the_same(note: str, room: int) -> None:
    words = tokenizer()
    encoded = encode_prompts(words, Prompt.of(PromptRecipe(), words), [note], [QUESTION], room)
    assert len(encoded.ids[0]) <= room
    text = words.decode(encoded.ids[0])
    assert text.endswith(f"### Question\n{QUESTION}\n\n### Answer\n")
    assert text.count(GAP.strip()) == (encoded.report["texts_cut"] if encoded.report["share_cut"] < 1 else 0)


def test_the_gap_grows_from_the_middle_section_by_section() -> None:
    """::

    sections   |0 1 ... 9|10 ...|20 ...|30 ...|40 ...49|
    by 5                         25-29                      the middle one loses its end
    by 15                 15 -------29                      it goes, and of the second the end
    by 25                 15 ------------39                 ... and the fourth one
    by 35              7 ----------------- 41               not even the ends can stay whole
    """
    edges = [0, 10, 20, 30, 40, 50]
    assert _middle(edges, 5) == (25, 30)
    assert _middle(edges, 15) == (15, 30)
    assert _middle(edges, 25) == (10, 35)
    assert _middle(edges, 35) == (7, 42)
    assert _middle([0, 10, 50], 20) == (15, 35)
    assert _middle([0, 50], 20) == (15, 35)


def test_the_sections_that_are_known_are_used() -> None:
    from clinstack.notes.sections.find import SectionSpan

    words = tokenizer()
    prompt = Prompt.of(PromptRecipe(), words)
    note = "first part. " * 20 + "second part. " * 20 + "third part. " * 20
    spans = [SectionSpan("A", 0, 240), SectionSpan("B", 240, 500), SectionSpan("C", 500, len(note))]
    whole = len(encode_prompts(words, prompt, [note], [QUESTION], 10_000).ids[0])
    report = encode_prompts(words, prompt, [note], [QUESTION], whole - 20, [spans]).report
    assert list(report["cut_by_section"]) == ["B"]


def test_what_does_not_fit_without_its_note_is_named() -> None:
    words = tokenizer()
    prompt = Prompt.of(PromptRecipe(), words)
    with pytest.raises(InputError, match=r"example e0: .* room for .* raise max_tokens"):
        encode_pairs(words, prompt, instructions(NOTE, answer="aspirin " * 60), 128)


# ---------------------------------------------------------------------- shots, files


def test_shots_stand_solved_before_the_question_and_their_text_is_not_recorded() -> None:
    words = tokenizer(CHAT_TEMPLATE)
    training = instructions(*(f"The patient of note {place}." for place in range(9)))
    shots = draw_shots(training, 2, seed=3)
    assert shots == draw_shots(training, 2, seed=3)
    assert len(set(shots)) == 2
    for recipe in (PromptRecipe(shots=2), PromptRecipe(shots=2, chat_template="never")):
        prompt = Prompt.of(recipe, words, shots)
        text = words.decode(encode_prompts(words, prompt, [NOTE], [QUESTION], 512).ids[0])
        places = [text.index(note) for note, _, _ in shots]
        assert places == sorted(places)
        assert max(places) < text.index("chest pain")
        assert text.count(QUESTION) == 3
        assert text.count(ANSWER) == 3  # two solved ones, and the note's own
        assert "The patient" not in str(prompt.to_dict())
        with pytest.raises(InputError, match="2 shots"):
            Prompt.from_dict(prompt.to_dict())
    with pytest.raises(InputError, match=r"prompt\.shots: 10"):
        draw_shots(training, 10, seed=3)
    with pytest.raises(InputError, match=r"prompt\.shots: 2"):
        Prompt.of(PromptRecipe(shots=2), words)


def test_long_shots_leave_the_note_as_much_room_as_each_has() -> None:
    words = tokenizer()
    prompt = Prompt.of(PromptRecipe(shots=2), words, [(long_note(), QUESTION, ANSWER)] * 2)
    encoded = encode_prompts(words, prompt, [NOTE], [QUESTION], 512)
    assert len(encoded.ids[0]) <= 512
    assert encoded.report["texts_cut"] == 0
    assert words.decode(encoded.ids[0]).count(GAP) == 2


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    words = tokenizer()
    file = tmp_path / "mine.txt"
    file.write_text("Q: {question}\nN: {note}\nA:\n")
    prompt = Prompt.of(PromptRecipe(template=str(file)), words)
    assert prompt.text(words, "{question}", "why?") == "Q: why?\nN: {question}\nA:"
    file.write_text("N: {note}\n")
    with pytest.raises(InputError, match=r"mine\.txt has \{question\} 0 times"):
        Prompt.of(PromptRecipe(template=str(file)), words)
    with pytest.raises(InputError, match="cannot be read"):
        Prompt.of(PromptRecipe(template=str(tmp_path / "none.txt")), words)
    file.write_bytes(b"{note}\xff{question}")
    with pytest.raises(InputError, match="byte 6 is not UTF-8"):
        Prompt.of(PromptRecipe(template=str(file)), words)


def test_a_chat_template_that_is_not_there_or_refuses_is_said() -> None:
    with pytest.raises(InputError, match="has no chat template"):
        Prompt.of(PromptRecipe(chat_template="always"), tokenizer())
    words = tokenizer("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match=r"chat template refuses .* prompt\.chat_template: never"):
        encode_prompts(words, Prompt.of(PromptRecipe(), words), [NOTE], [QUESTION], 512)
