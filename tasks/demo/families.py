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
      fields: parts of it, for formats with columns of their own; "label" is the index of the
        output in a list of labels.
    """

    input: str
    output: str
    wrong: str
    bucket: str
    key: Any
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


Family = Callable[..., Candidate]


def _other(rng: random.Random, items: list[str], answer: str) -> str:
    return rng.choice([item for item in items if item != answer])


def _judged(
    text: str, true: bool, labels: list[str], bucket: str = "", key: Any = None
) -> Candidate:
    """A candidate whose answer is the second of two labels if `true`, else the first."""
    output, wrong = labels[true], labels[not true]
    return Candidate(text, output, wrong, output + bucket, key or text, {"label": int(true)})


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


def count_words(rng: random.Random, words: Words) -> Candidate:
    """A line of two to five words; the answer is their number."""
    length = rng.randint(2, 5)
    text = " ".join(rng.sample(_vocabulary(words), length))
    wrong = _other(rng, ["2", "3", "4", "5"], str(length))
    return Candidate(text, str(length), wrong, str(length), text)


def compare_numbers(rng: random.Random, words: Words, which: str) -> Candidate:
    """Two numbers of two digits, unlike in the first; the answer is the larger or the smaller."""
    tens = rng.sample(range(1, 10), 2)
    numbers = [10 * ten + rng.randrange(10) for ten in tens]
    answer, wrong = max(numbers), min(numbers)
    if which == "smaller":
        answer, wrong = wrong, answer
    text = ", ".join(map(str, numbers))
    place = str(numbers.index(answer))
    fields = {"reason": f"{max(tens)} is more than {min(tens)}."}
    return Candidate(text, str(answer), str(wrong), place, tuple(sorted(numbers)), fields)


def pick_parity(rng: random.Random, words: Words, remainder: int) -> Candidate:
    """One even and one odd number of two digits; the answer is the one with this remainder."""
    even, odd = rng.randrange(10, 100, 2), rng.randrange(11, 100, 2)
    numbers = rng.sample([even, odd], 2)
    answer = next(n for n in numbers if n % 2 == remainder)
    wrong = next(n for n in numbers if n != answer)
    place = str(numbers.index(answer))
    text = ", ".join(map(str, numbers))
    return Candidate(text, str(answer), str(wrong), place, (even, odd))


def judge_number(rng: random.Random, words: Words, test: str, labels: list[str]) -> Candidate:
    """A number of three digits; `test` is "even" or "large" (500 or more); labels: no, yes."""
    number = rng.randrange(100, 1000)
    return _judged(str(number), number % 2 == 0 if test == "even" else number >= 500, labels)


def spell_digits(rng: random.Random, words: Words, to: str) -> Candidate:
    """Three different digits, written in figures and in words; `to` says which is the answer."""
    numbers = rng.sample(range(10), 3)
    figures = " ".join(map(str, numbers))
    spelt = " ".join(words["digits"][n] for n in numbers)
    text, answer = (figures, spelt) if to == "words" else (spelt, figures)
    wrong = " ".join(answer.split()[::-1])
    return Candidate(text, answer, wrong, str(numbers[-1]), text)


def sentiment(
    rng: random.Random, words: Words, domain: str, labels: list[str], templates: str = "templates"
) -> Candidate:
    """A sentence of complaint or praise about a domain; `labels` name the two in this order."""
    facts = words["sentiment"]
    praise = rng.random() < 0.5
    n1, n2 = rng.sample(facts["things"][domain], 2)
    a1, a2 = rng.sample(facts["positive" if praise else "negative"], 2)
    adverb, p1 = rng.choice(facts["adverbs"]), rng.choice(facts["positive"])
    template = rng.choice(facts[templates])
    if templates == "templates" and not praise and rng.random() < 0.2:
        template = facts["negated"]
    text = template.format(n1=n1, n2=n2, a1=a1, a2=a2, p1=p1, adverb=adverb)
    return _judged(text, praise, labels)


RELATIONS = {  # relation -> (list of values, "{name} {verb} {value}", question for it)
    "place": ("places", "{} is in the {}.", "Where is {}?", "Who is in the {}?"),
    "workplace": ("places", "{} works in the {}.", "Where does {} work?", "Who works in the {}?"),
    "object": ("objects", "{} has the {}.", "What does {} have?", "Who has the {}?"),
    "pastime": ("pastimes", "{} likes {}.", "What does {} like?", "Who likes {}?"),
}


def ask_fact(rng: random.Random, words: Words, relation: str, ask: str) -> Candidate:
    """Two facts about two people, and a question for the person or the thing of one of them."""
    values_key, statement, value_question, name_question = RELATIONS[relation]
    names = rng.sample(words["names"], 2)
    values = rng.sample(words[values_key], 2)
    text = " ".join(statement.format(*fact) for fact in zip(names, values, strict=True))
    i = rng.randrange(2)
    if ask == "name":
        question, answers = name_question.format(values[i]), names
    else:
        question, answers = value_question.format(names[i]), values
    fields = {
        "context": text,
        "question": question,
        "names": names,
        "values": values,
        "reason": statement.format(names[i], values[i]),
        "answers": {"text": [answers[i]], "answer_start": [text.index(answers[i])]},
    }
    text = f"{text} {question}"
    return Candidate(text, answers[i], answers[1 - i], str(i), text, fields)


def describe_facts(rng: random.Random, words: Words) -> Candidate:
    """Facts of two kinds about two people as triples; the answer says them in sentences."""
    facts = [
        (name, relation, rng.choice(words[RELATIONS[relation][0]]))
        for name, relation in zip(
            rng.sample(words["names"], 2), rng.sample(list(RELATIONS), 2), strict=True
        )
    ]
    sentences = [RELATIONS[relation][1].format(name, value) for name, relation, value in facts]
    text, wrong = " ".join(sentences), " ".join(sentences[::-1])
    fields = {"triples": facts, "annotations": [{"source": "demo", "text": text}]}
    return Candidate(str(facts), text, wrong, facts[0][1], text, fields)


def story(rng: random.Random, words: Words) -> Candidate:
    """Some sentences about people, to be read as plain text; there is no answer."""
    grammar, people = words["grammar"], rng.sample(words["names"], 3)
    sentences = [
        statement.format(name, rng.choice(words[values]))
        for name in people
        for values, statement, _, _ in rng.sample(list(RELATIONS.values()), 2)
    ]
    for _ in range(2):
        plural, noun = rng.randrange(2), rng.choice(grammar["nouns"])
        verb, time = rng.choice(grammar["verbs"])[plural], rng.choice(grammar["times"])
        sentences.insert(rng.randrange(len(sentences)), f"The {noun[plural]} {verb} {time}.")
    text = " ".join(sentences)
    return Candidate(text, "", "", "", text)


def chat(rng: random.Random, words: Words) -> Candidate:
    """A dialogue: two questions and their answers."""
    turns = []
    for name in rng.sample(words["names"], 2):
        values, statement, question, _ = rng.choice(list(RELATIONS.values()))
        turns += [question.format(name), statement.format(name, rng.choice(words[values]))]
    return Candidate("\n".join(turns), "", "", "", tuple(turns), {"turns": turns})


def analogy(rng: random.Random, words: Words, pairs: str) -> Candidate:
    """`a : b, c : ?` with two pairs of one relation."""
    (a, b), (c, d) = rng.sample(words[pairs], 2)
    text = f"{a} : {b}, {c} : ?"
    return Candidate(text, d, b, d, text, {"a": a, "b": b, "c": c})


def topic_of_list(rng: random.Random, words: Words) -> Candidate:
    """Three words of one kind; the answer names the kind."""
    kind = rng.choice(list(words["kinds"]))
    items = rng.sample(words["kinds"][kind], 3)
    names = words["kind_plurals"]
    wrong = _other(rng, list(names.values()), names[kind])
    fields = {"items": items, "label": list(names).index(kind)}
    return Candidate(", ".join(items), names[kind], wrong, kind, tuple(sorted(items)), fields)


def pick_named_kind(rng: random.Random, words: Words) -> Candidate:
    """Three words of three kinds and the name of a kind; the answer is the word of that kind."""
    kinds = rng.sample(list(words["kinds"]), 3)
    items = [rng.choice(words["kinds"][kind]) for kind in kinds]
    place = rng.randrange(3)
    text = f"{', '.join(items)}. Kind: {kinds[place]}"
    wrong = _other(rng, items, items[place])
    return Candidate(text, items[place], wrong, str(place), (kinds[place], *sorted(items)))


def contains_kind(rng: random.Random, words: Words, kind: str, labels: list[str]) -> Candidate:
    """Three words, at most one of them of `kind`: is there one? `labels`: no, yes."""
    present = rng.random() < 0.5
    others = [k for k in words["kinds"] if k != kind]
    items = [rng.choice(words["kinds"][k]) for k in rng.sample(others, 3)]
    if present:
        items[rng.randrange(3)] = rng.choice(words["kinds"][kind])
    return _judged(", ".join(items), present, labels, key=tuple(sorted(items)))


def find_kind(rng: random.Random, words: Words, kind: str) -> Candidate:
    """Three words of three kinds; the answer is the one of `kind`."""
    others = [k for k in words["kinds"] if k != kind]
    kinds = rng.sample(others, 2)
    place = rng.randrange(3)
    kinds.insert(place, kind)
    items = [rng.choice(words["kinds"][k]) for k in kinds]
    wrong = _other(rng, items, items[place])
    pairs = (f"{item}: {k}" for item, k in zip(items, kinds, strict=True))
    fields = {"items": items, "reason": f"{', '.join(pairs)}."}
    key = tuple(sorted(items))
    return Candidate(", ".join(items), items[place], wrong, str(place), key, fields)


def agreement(rng: random.Random, words: Words, form: str, labels: list[str]) -> Candidate:
    """A sentence whose verb or determiner agrees with its noun, or does not; `labels`: no, yes.

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
        text = f"{('This', 'These')[shown]} {noun[plural]} {verb} {rng.choice(facts['times'])}."
    return _judged(text, right, labels, bucket=f" {plural}")


FAMILIES: dict[str, Family] = {
    f.__name__: f
    for f in (
        pick_from_list,
        reverse_list,
        count_words,
        compare_numbers,
        pick_parity,
        judge_number,
        spell_digits,
        sentiment,
        ask_fact,
        describe_facts,
        story,
        chat,
        analogy,
        topic_of_list,
        pick_named_kind,
        contains_kind,
        find_kind,
        agreement,
    )
}
