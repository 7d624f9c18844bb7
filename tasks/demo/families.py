"""The generators of the demo bench: one function per family of tasks.

A family draws one candidate instance at a time from a seeded random generator and the word lists.
Which tasks exist, what they are called and how they are worded is in `tasks.yaml`; balancing,
de-duplication and files are the business of `build.py`.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

Words = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One possible instance.

    Attributes:
      input: the text of the instance.
      output: its only correct answer.
      wrong: a plausible wrong answer, for negative examples.
      bucket: what the task is balanced over, e.g. the label or the place of the answer.
      key: two candidates with equal keys count as the same instance, e.g. a pair of numbers in
        either order.
    """

    input: str
    output: str
    wrong: str
    bucket: str
    key: Any


Family = Callable[..., Candidate]


def _other(rng: random.Random, items: list[str], answer: str) -> str:
    return rng.choice([item for item in items if item != answer])


def _vocabulary(words: Words) -> list[str]:
    """All nouns of the kinds, the material of the list tasks."""
    return [word for members in words["kinds"].values() for word in members]


def pick_from_list(rng: random.Random, words: Words, separator: str, which: int) -> Candidate:
    """Three to five different words; the answer is the one at index `which`."""
    length = rng.randint(3, 5)
    items = rng.sample(_vocabulary(words), length)
    answer = items[which]
    text = separator.join(items)
    return Candidate(text, answer, _other(rng, items, answer), str(length), text)


def reverse_list(rng: random.Random, words: Words) -> Candidate:
    """Two or three words; the answer has them in the opposite order."""
    length = rng.randint(2, 3)
    items = rng.sample(_vocabulary(words), length)
    text = " ".join(items)
    return Candidate(text, " ".join(items[::-1]), text, str(length), text)


def list_contains(rng: random.Random, words: Words) -> Candidate:
    """A list of words and one more word: is it on the list?"""
    *items, extra = rng.sample(_vocabulary(words), rng.randint(3, 4) + 1)
    present = rng.random() < 0.5
    asked = rng.choice(items) if present else extra
    output, wrong = ("yes", "no") if present else ("no", "yes")
    text = f"{', '.join(items)}. Word: {asked}"
    return Candidate(text, output, wrong, output, text)


def count_words(rng: random.Random, words: Words) -> Candidate:
    """A line of two to five words; the answer is their number."""
    length = rng.randint(2, 5)
    text = " ".join(rng.sample(_vocabulary(words), length))
    wrong = _other(rng, ["2", "3", "4", "5"], str(length))
    return Candidate(text, str(length), wrong, str(length), text)


def compare_numbers(rng: random.Random, words: Words, count: int, which: str) -> Candidate:
    """`count` different numbers below 60; the answer is the largest or the smallest."""
    numbers = rng.sample(range(1, 60), count)
    answer = (max if which == "largest" else min)(numbers)
    items = [str(n) for n in numbers]
    place = str(numbers.index(answer))
    wrong = _other(rng, items, str(answer))
    return Candidate(", ".join(items), str(answer), wrong, place, tuple(sorted(numbers)))


def pick_parity(rng: random.Random, words: Words, remainder: int) -> Candidate:
    """One even and one odd number below 60; the answer is the one with this remainder."""
    even, odd = rng.randrange(2, 60, 2), rng.randrange(1, 60, 2)
    numbers = rng.sample([even, odd], 2)
    answer = next(n for n in numbers if n % 2 == remainder)
    wrong = next(n for n in numbers if n != answer)
    place = str(numbers.index(answer))
    text = ", ".join(map(str, numbers))
    return Candidate(text, str(answer), str(wrong), place, (even, odd))


def spell_digits(rng: random.Random, words: Words, to: str) -> Candidate:
    """Three different digits, written in figures and in words; `to` says which of the two is the answer."""
    numbers = rng.sample(range(10), 3)
    figures = " ".join(map(str, numbers))
    spelt = " ".join(words["digits"][n] for n in numbers)
    text, answer = (figures, spelt) if to == "words" else (spelt, figures)
    wrong = " ".join(answer.split()[::-1])
    return Candidate(text, answer, wrong, str(numbers[-1]), text)


def sentiment(rng: random.Random, words: Words, domain: str, labels: list[str]) -> Candidate:
    """A sentence of a review; `labels` are the names of praise and complaint."""
    facts = words["sentiment"]
    praise = rng.random() < 0.5
    n1, n2 = rng.sample(facts["things"][domain], 2)
    a1, a2 = rng.sample(facts["positive" if praise else "negative"], 2)
    template = rng.choice(facts["templates"])
    if not praise and rng.random() < 0.2:
        template = facts["negated"]
    text = template.format(
        n1=n1,
        n2=n2,
        a1=a1,
        a2=a2,
        p1=rng.choice(facts["positive"]),
        adverb=rng.choice(facts["adverbs"]),
    )
    output, wrong = labels if praise else labels[::-1]
    return Candidate(text, output, wrong, output, text)


RELATIONS = {  # relation -> (list of values, "{name} {verb} {value}", question for it)
    "place": ("places", "{} is in the {}.", "Where is {}?", "Who is in the {}?"),
    "object": ("objects", "{} has the {}.", "What does {} have?", "Who has the {}?"),
    "pastime": ("pastimes", "{} likes {}.", "What does {} like?", "Who likes {}?"),
}


def _two_facts(rng: random.Random, words: Words, relation: str) -> tuple[list, list, str]:
    values_key, statement, *_ = RELATIONS[relation]
    names = rng.sample(words["names"], 2)
    values = rng.sample(words[values_key], 2)
    text = " ".join(statement.format(*fact) for fact in zip(names, values, strict=True))
    return names, values, text


def ask_fact(rng: random.Random, words: Words, relation: str, ask: str) -> Candidate:
    """Two facts about two people, and a question for the person or the thing of one of them."""
    names, values, text = _two_facts(rng, words, relation)
    _, _, value_question, name_question = RELATIONS[relation]
    i = rng.randrange(2)
    if ask == "name":
        question, answers = name_question.format(values[i]), names
    else:
        question, answers = value_question.format(names[i]), values
    text = f"{text} {question}"
    return Candidate(text, answers[i], answers[1 - i], str(i), text)


def judge_statement(
    rng: random.Random, words: Words, relation: str, form: str, labels: list[str]
) -> Candidate:
    """Two facts about two people, and a statement that is one of them or mixes them up."""
    names, values, facts = _two_facts(rng, words, relation)
    _, statement, _, name_question = RELATIONS[relation]
    i, true = rng.randrange(2), rng.random() < 0.5
    value = values[i]
    name = names[i] if true else names[1 - i]
    text = form.format(
        facts=facts,
        statement=statement.format(name, value),
        question=name_question.format(value),
        name=name,
    )
    output, wrong = labels if true else labels[::-1]
    return Candidate(text, output, wrong, f"{output} {i}", text)


def analogy(rng: random.Random, words: Words, pairs: str, both_ways: bool) -> Candidate:
    """`a : b, c : ?` with two pairs of one relation."""
    (a, b), (c, d) = rng.sample(words[pairs], 2)
    if both_ways and rng.random() < 0.5:
        a, b, c, d = b, a, d, c
    text = f"{a} : {b}, {c} : ?"
    return Candidate(text, d, b, d, text)


def topic_of_list(rng: random.Random, words: Words) -> Candidate:
    """Three words of one kind; the answer names the kind."""
    kind = rng.choice(list(words["kinds"]))
    items = rng.sample(words["kinds"][kind], 3)
    names = words["kind_plurals"]
    wrong = _other(rng, list(names.values()), names[kind])
    return Candidate(", ".join(items), names[kind], wrong, kind, tuple(sorted(items)))


def odd_one_out(rng: random.Random, words: Words) -> Candidate:
    """Three words of one kind and one of another, which is the answer."""
    kind, other = rng.sample(list(words["kinds"]), 2)
    items = rng.sample(words["kinds"][kind], 2)
    odd = rng.choice(words["kinds"][other])
    place = rng.randrange(3)
    shown = [*items[:place], odd, *items[place:]]
    bucket = str(place)
    return Candidate(", ".join(shown), odd, rng.choice(items), bucket, tuple(sorted(shown)))


def same_kind(rng: random.Random, words: Words) -> Candidate:
    """Two words: are they of the same kind?"""
    same = rng.random() < 0.5
    kind, other = rng.sample(list(words["kinds"]), 2)
    first, second = rng.sample(words["kinds"][kind], 2)
    if not same:
        second = rng.choice(words["kinds"][other])
    output, wrong = ("yes", "no") if same else ("no", "yes")
    return Candidate(f"{first}, {second}", output, wrong, output, tuple(sorted((first, second))))


def contains_kind(rng: random.Random, words: Words, kind: str) -> Candidate:
    """Three words, at most one of them of `kind`: is there one?"""
    present = rng.random() < 0.5
    others = [k for k in words["kinds"] if k != kind]
    items = [rng.choice(words["kinds"][k]) for k in rng.sample(others, 3)]
    if present:
        items[rng.randrange(3)] = rng.choice(words["kinds"][kind])
    output, wrong = ("yes", "no") if present else ("no", "yes")
    return Candidate(", ".join(items), output, wrong, output, tuple(sorted(items)))


def find_kind(rng: random.Random, words: Words, kind: str) -> Candidate:
    """Three words of three kinds; the answer is the one of `kind`."""
    others = [k for k in words["kinds"] if k != kind]
    items = [rng.choice(words["kinds"][k]) for k in rng.sample(others, 2)]
    wrong = rng.choice(items)
    answer = rng.choice(words["kinds"][kind])
    place = rng.randrange(3)
    items.insert(place, answer)
    return Candidate(", ".join(items), answer, wrong, str(place), tuple(sorted(items)))


def agreement(rng: random.Random, words: Words, form: str, labels: list[str]) -> Candidate:
    """A sentence whose verb or determiner agrees with its noun, or does not.

    `form` is "verb" (The boy sings / sing), "be" (is / are) or "demonstrative" (This boy / boys).
    """
    facts = words["grammar"]
    noun = rng.choice(facts["nouns"])
    plural, right = rng.randrange(2), rng.random() < 0.5
    shown = plural if right else 1 - plural
    if form == "verb":
        verb = rng.choice(facts["verbs"])[shown]
        text = f"The {noun[plural]} {verb} {rng.choice(facts['times'])}."
    elif form == "be":
        verb = f"{('is', 'are')[shown]} {rng.choice(facts['participles'])}"
        text = f"The {noun[plural]} {verb} {rng.choice(facts['moments'])}."
    else:
        verb = rng.choice(facts["verbs"])[plural]
        determiner = ("This", "These")[shown] if rng.random() < 0.5 else ("That", "Those")[shown]
        text = f"{determiner} {noun[plural]} {verb} {rng.choice(facts['times'])}."
    output, wrong = labels if right else labels[::-1]
    return Candidate(text, output, wrong, f"{output} {plural}", text)


FAMILIES: dict[str, Family] = {
    f.__name__: f
    for f in (
        pick_from_list,
        reverse_list,
        list_contains,
        count_words,
        compare_numbers,
        pick_parity,
        spell_digits,
        sentiment,
        ask_fact,
        judge_statement,
        analogy,
        topic_of_list,
        odd_one_out,
        same_kind,
        contains_kind,
        find_kind,
        agreement,
    )
}
