"""Answers in generated texts, against upstream's demonstrations and gold answers; votes."""

import json

import pytest

from optiml_jax.evaluate import answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # Measured traps of MGSM: numeric comparison, signs, separators, text behind the number.
        ("18.0", "18"),
        ("−5", "-5"),
        ("-0.0", "0"),
        ("2,125", "2125"),
        ("5+6=11。答えは11です。", "11"),
        ("The answer is $1,450,000.00.", "1450000"),
        ("The answer is -$18.", "-18"),
        ("The answer is 50%.", "50"),
        ("the answer is **8** apples, of 12", "8"),
        ("The answer is:\n8", "8"),
        ("10-7 = 3", "3"),
        ("There are 3 left: 10-7", "7"),
        ("about ...5", "5"),
        ("it is .5", "0.5"),
        ("no number", None),
        ("", None),
        # Only a cue with a number behind it in its line counts, the last one of these.
        ("The answer is 4. No: the answer is 5. Then 6.", "5"),
        ("The answer is 4. The answer is unknown.\n7", "4"),
        ("The answer is unknown, of 7 and 9", "7"),
        # The thousands of other languages, and the digits of other scripts.
        ("La respuesta es 80 000 dólares", "80000"),
        ("La réponse est 70\u202f000.", "70000"),
        ("Die Antwort ist 70.000.", "70000"),
        ("The answer is 1.125.", "1.125"),
        ("1.234.567,5", "1234567.5"),
        ("Ответ: 2,5", "2.5"),
        ("उत्तर 1,14,200", "114200"),
        ("答案是 ２，１２５。", "2125"),
        ("答案是 －５", "-5"),
        ("উত্তর হল ১১।", "11"),
        # Groups of digits are one number only where the language writes it so.
        ("The answer is 20 100-gram bars", "20"),
        ("She buys 20 100-gram bars", "100"),
        ("20 100", "100"),
        ("La réponse est 20 100 euros", "20100"),
        ("Die Antwort ist 0,125 Liter", "0.125"),
        ("Итого получится 12 500 рублей", "12500"),
        ("Die Antwort ist 1’250 Franken", "1250"),
        # Currencies, numerals and decimals of the target languages.
        ("উত্তর হল ৳১,২৫০।", "1250"),
        ("The answer is -₹5", "-5"),
        ("The answer is $-5.50", "-5.5"),
        ("คำตอบคือ ฿๑๒", "12"),
        ("سعره ١٬٢٣٤٫٥", "1234.5"),
        ("答案是十二。", "12"),
        ("答案是三百二十元", "320"),
        ("答えは一万二千円です", "12000"),
        ("答案是3万", "30000"),
        ("答案是5千克", "5"),
        # Numbers behind the cue, in the last sentence of the demonstrations not at hand here.
        ("5 + 6 = 11। উত্তর হল 11।", "11"),
        ("La réponse est 11. 12", "11"),
        ("Ответ — 11. 12", "11"),
        ("Jibu ni 11. 12", "11"),
        ("దశలవారీగా సమాధానం: 5+6=11. సమాధానం 11. 12", "11"),
    ],
)
def test_number_of_an_answer(text, number):
    assert answers.number_answer(text) == number


def test_every_mgsm_demonstration_gives_its_published_number(real_data):
    """Against EXEMPLAR_NUMBER_ANSWERS of google-research/url-nlp; another number follows each."""
    file = json.loads((real_data / "mgsm" / "exemplars.json").read_text("utf-8"))
    numbers = [str(n) for n in file["EXEMPLAR_NUMBER_ANSWERS"]]
    for language, exemplars in file["MGSM_EXEMPLARS"].items():
        texts = [f"{exemplars[str(i)]['a']} 99" for i in range(1, 9)]
        assert [answers.number_answer(t) for t in texts] == numbers, language


def test_every_gold_answer_of_mgsm_and_gsm8k_is_read(real_data):
    golds = []
    for file in sorted((real_data / "mgsm").glob("*.tsv")):
        lines = file.read_text("utf-8").rstrip("\n").split("\n")
        golds += [line.rpartition("\t")[2] for line in lines]
    folder = real_data / "gsm8k" / "grade_school_math" / "data"
    rows = [
        json.loads(x)["answer"] for x in (folder / "test.jsonl").read_text("utf-8").splitlines()
    ]
    assert (len(golds), len(rows)) == (5 * 250, 1319)
    for text in golds + rows:
        wanted = str(int(text.rpartition("#### ")[2].replace(",", "")))
        assert answers.number_answer(text) == wanted


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is (A)", "(A)"),
        ("So the answer is (A).", "(A)"),
        ("the answer is no. So the answer is yes.\n\nQ: the next one", "yes"),
        ("So the answer is ] ) }.", "] ) }"),
        ("So the answer is -185.", "-185"),
        ("(A)", None),
    ],
)
def test_answer_after_the_cue_of_bbh(text, answer):
    assert answers.bbh_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So the answer is (C).", "C"),
        ("The answer is: b.", "B"),
        ("the answer is c", "C"),
        ("The answer is (d) because it is.", "D"),
        ("the answer is A, not B", "A"),
        ("The answer is I.", "I"),
        ("The answer is (A). No, the answer is (B", "B"),
        ("So the answer is a prime number, which is option (C).", None),
        ("the answer is I think (C)", None),
        ("the answer is I'm not sure", None),
        ("The answer is Paris.", None),
        ("The answer is (a prime) number", None),
        ("The answer is d\nand more", "D"),
    ],
)
def test_letter_answer(text, letter):
    assert answers.letter_answer(text) == letter


def test_normalisations_differ_in_articles_and_punctuation():
    text = "The cat's  “tail”, a (short) one।"
    assert answers.normalize_tk_instruct(text) == "the cats “tail” a short one।"
    assert answers.normalize_squad(text) == "cats “tail” short one।"
    assert answers.normalize_unicode(text) == "cats tail short one"
    assert answers.normalize_trivia_qa("The cat‘s tail") == "cat s tail"


@pytest.mark.parametrize(
    ("texts", "logprobs", "winner"),
    [
        (["8", "7", "7.0", "none"], [-1, -9, -9, -0.1], 1),  # 7 has two of three votes
        (["none", "8", "7"], [-1, -3, -2], 2),  # as many votes: the more probable
        (["7", "8", "8", "7"], [-900, -901, -905, -903], 0),  # exp of these is 0 by itself
        (["7", "8", "8", "7"], [-904, -901, -905, -903], 1),
        (["8", "7"], [-1, -1], 0),  # as probable: the earlier
        (["none", "no"], [-2, -1], 0),
    ],
)
def test_vote(texts, logprobs, winner):
    assert answers.vote(texts, logprobs, answers.number_answer) == winner


def test_votes_are_for_the_answer_and_not_for_the_text():
    chains = ["x. the answer is (B).", "y. the answer is (A).", "z. the answer is (A)", "(B)"]
    assert answers.vote(chains, [-1, -5, -5, -1], answers.bbh_answer) == 1
    assert (
        answers.vote(["Paris", "London.", "the london"], [-1, -5, -5], answers.normalize_squad) == 1
    )
