"""What the audit finds: planted copies and near misses, and brute force over sets of n-grams."""

import random
import re
import string
import unicodedata

import pytest
from audit_bench import example, overlapping

from optiml_jax.audit.words import AuditWords, Normaliser
from optiml_jax.errors import UserError

TEXT = (
    "when the old ferry crossed the northern strait at dawn nobody on the quay expected "
    "that its captain would return before the autumn storms had passed over the bay"
)
WORDS = TEXT.split()
THIRTEEN = " ".join(WORDS[8:21])  # a change of any word of it leaves nothing to find


def found(tmp_path, train: str | tuple[str, str], evaluated: str = TEXT, **rules) -> bool:
    """Whether one training text overlaps with one evaluation text, among others that do not."""
    pair = (train, "") if isinstance(train, str) else train
    others = [example("b/train", i, f"nothing of this kind number {i}") for i in range(1, 6)]
    kept = [example("b/eval", i, f"quite another matter altogether {i}") for i in range(1, 6)]
    rows = overlapping(
        tmp_path,
        [example("b/train", 0, *pair), *others],
        [example("b/eval", 0, evaluated), *kept],
        AuditWords(**rules),
    )
    assert {*rows} <= {0}
    return 0 in rows and rows[0]["content"]


@pytest.mark.parametrize(
    "train",
    [
        TEXT,
        TEXT.upper(),
        TEXT.replace(" ", "  \n\t "),
        ", ".join(WORDS) + "!",
        " -- ".join(WORDS),
        "zero " + " ".join(WORDS[:13]),  # the first 13-gram
        " ".join(WORDS[-13:]) + " zero",  # the last one
        (" ".join(WORDS[5:12]), " ".join(WORDS[12:20])),  # across input and target
    ],
)
def test_a_copy_is_found_however_it_is_written(tmp_path, train):
    assert found(tmp_path, train)


@pytest.mark.parametrize(
    "captain",
    [
        "cap\u00adtain",  # soft hyphen
        "\uff43\uff41\uff50\uff54\uff41\uff49\uff4e",  # full-width letters
        "cap\u200btain",  # zero-width space
        "\u201ccaptain\u201d",
        "\u2014captain\u2026",
        "CAPTAIN",
        "cap'tain",
        "(B) captain",
    ],
)
def test_a_changed_word_is_the_same_word(tmp_path, captain):
    assert found(tmp_path, THIRTEEN.replace("captain", captain), THIRTEEN)
    assert not found(tmp_path, THIRTEEN.replace("captain", "captains"), THIRTEEN)


@pytest.mark.parametrize(
    "train",
    [
        " ".join(WORDS[:12]),
        " ".join([*WORDS[:12], "zero", *WORDS[13:25]]),  # two 12-grams with another word between
        " ".join(WORDS[-12:]),
        " ".join(reversed(WORDS)),
        " ".join(WORDS[::2]),
        "",
    ],
)
def test_a_near_miss_is_not_found(tmp_path, train):
    assert not found(tmp_path, train)


def test_composed_and_decomposed_letters_are_one(tmp_path):
    text = THIRTEEN.replace("captain", "capit\u00e1n")
    assert found(tmp_path / "a", unicodedata.normalize("NFD", text), text)
    assert not found(tmp_path / "b", unicodedata.normalize("NFD", text), text, unicode=False)


def test_rules_can_be_made_stricter(tmp_path):
    assert not found(tmp_path / "a", TEXT.upper(), fold_case=False)
    commas = ", ".join(WORDS)
    assert not found(tmp_path / "b", commas, punctuation="kept")
    hyphens = TEXT.replace(" ", "-", 1)
    assert found(tmp_path / "c", hyphens, " ".join(WORDS[:13]))
    assert not found(tmp_path / "d", hyphens, " ".join(WORDS[:13]), punctuation="removed")
    assert found(tmp_path / "e", " ".join(WORDS[:8]), n=8)


def test_scripts_without_spaces_are_compared_by_character(tmp_path):
    text = "那艘旧渡船在黎明时分驶过北方海峡码头上没有人料到"
    assert found(tmp_path / "a", text[3:20], text)
    assert not found(tmp_path / "b", text[3:15], text)


@pytest.mark.parametrize("bad", [{"n": 1}, {"punctuation": "gone"}])
def test_rules_that_make_no_sense_are_errors(bad):
    with pytest.raises(UserError, match="AuditWords"):
        AuditWords(**bad)


def test_ascii_letters_and_punctuation_are_those_of_python():
    """Against string and re, character by character."""
    normaliser = Normaliser(AuditWords())
    for character in map(chr, range(128)):
        words = normaliser.words(f"a {character} b")
        if character in string.ascii_letters + string.digits:
            assert words == [b"a", character.lower().encode(), b"b"]
        else:
            assert words == [b"a", b"b"], character
            assert not re.match(r"[a-zA-Z0-9]", character)


# --- prompts and short texts


def numbered(task: str, i: int) -> str:
    place = f"lies on shelf {i} of {task} under {i}{task}"
    return f"{task} item {i} has colour {i % 7} and weight {i * 13 % 101} {task} and {place}"


def test_a_definition_that_both_tasks_have_makes_no_pair_of_content(tmp_path):
    train = [example("b/t", i, numbered("t", i), "x", TEXT) for i in range(50)]
    rows = overlapping(
        tmp_path, train, [example("b/e", i, numbered("e", i), "y", TEXT) for i in range(20)]
    )
    assert [(r["instantiated"], r["content"]) for r in rows.values()] == [(True, False)] * 20


def test_a_template_inside_the_input_is_told_by_its_prompt(tmp_path):
    """Two prompts of ten examples each; one copies an example besides its template."""
    evaluated = [
        example("b/e", i, f"{TEXT if p == 'a' else 'short'} {numbered('e', i)}", "y", prompt=p)
        for p in "ab"
        for i in range(10)
    ]
    train = [example("b/t", i, f"{TEXT} {numbered('t', i)}", "x", prompt="q") for i in range(50)]
    train[7] = example("b/t", 7, f"{TEXT} {numbered('e', 3)}", "x", prompt="q")
    rows = overlapping(tmp_path, train, evaluated)
    assert {i for i, r in rows.items() if r["instantiated"]} == {*range(10), 13}
    assert {i for i, r in rows.items() if r["content"]} == {3, 13}


def test_pieces_of_a_template_between_texts_make_no_pair_of_content(tmp_path):
    """A template of 12 words stands in every example; with one word more it is an n-gram."""
    template = "using only the description above is the following claim correct or incorrect"
    assert len(template.split()) == 12

    def text(task: str, i: int) -> str:
        return f"{task}{i} met {task}{i + 1} {template} the {task}{i % 3} was late {task}{i} times"

    train = [example("b/t", i, text("t", i)) for i in range(50)]
    evaluated = [example("b/e", i, text("e", i)) for i in range(20)]
    # A true copy of eight words, the claim, behind the template.
    own = f"{template} nobody saw who opened the gate last night"
    evaluated[5] = example("b/e", 5, f"e5 met e6 {own}")
    train[9] = example("b/t", 9, f"t9 met t10 {own}")
    rows = overlapping(tmp_path, train, evaluated)
    assert {i for i, r in rows.items() if r["instantiated"]} == {*range(20)}
    assert {i for i, r in rows.items() if r["content"]} == {5}


def test_an_example_shorter_than_an_ngram_is_compared_as_a_whole(tmp_path):
    train = [example("b/t", 0, "Who wrote Emma?", "Jane Austen"), example("b/t", 1, "Who", "wrote")]
    evaluated = [
        example("b/e", 0, "who wrote emma", "Jane Austen."),
        example("b/e", 1, "Who wrote Emma? Jane", "Austen", "Answer."),
        example("b/e", 2, "Who wrote Emma", "Mary Shelley"),
        example("b/e", 3, "wrote Emma?", "Jane Austen"),
    ]
    rows = overlapping(tmp_path, train, evaluated)
    assert {i: (r["short"], r["content"], r["instantiated"]) for i, r in rows.items()} == {
        0: (True, False, False),
        1: (True, False, False),
    }


# --- brute force


def grams(text: str, n: int = 13) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.parametrize("hash_bits", [64, 12])
def test_it_agrees_with_brute_force_on_2000_by_2000_examples(tmp_path, hash_bits):
    """Few words, so that long runs are shared by chance; with 12 bits almost all hashes collide."""
    draw = random.Random(5)
    number = 2000 if hash_bits == 64 else 600
    phrases = [" ".join(draw.choices("abcdefgh", k=9)) for _ in range(400)]

    def text() -> str:
        return " ".join(draw.choice(phrases) for _ in range(draw.randint(1, 6)))

    train = [example("b/t", i, text(), draw.choice(phrases)) for i in range(number)]
    evaluated = [example("b/e", i, text(), draw.choice(phrases)) for i in range(number)]
    known = set().union(*(grams(f"{e.input} {e.target}") for e in train))
    expected = {
        i: len(common)
        for i, e in enumerate(evaluated)
        if (common := grams(f"{e.input} {e.target}") & known)
    }
    rows = overlapping(tmp_path, train, evaluated, hash_bits=hash_bits)
    assert {i: r["ngrams"] for i, r in rows.items() if r["instantiated"]} == expected
    assert 9 < len(expected) < number
