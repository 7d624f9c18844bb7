import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render, select_demonstrations
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.errors import UserError
from optiml_jax.evaluate.instances import InstanceBuilder
from optiml_jax.evaluate.metrics import METRICS
from tasks.splits import Manifest, category
from tasks.suites.mgsm import find_tasks

MANIFEST = Manifest.load()
ROW = MANIFEST.lookup("mgsm/en", None)
CONFIG = PromptConfig(separator=ROW.protocol.separator, delimiter="\nOutput:").for_evaluation()
PAIRS = [("1 + 1?", "It is 2."), ("2 + 1?", "Count: it is 3.")]
# As upstream writes it: literals in pieces, and more than this one constant.
PYTHON = '''"""Prompts."""
NUMBERS = [2, 3]
MGSM_EXEMPLARS = {
    "fr": {
        "2": {"q": "Question : 2 + 1?", "a": "R\\u00e9ponse : " "Count: it is 3."},
        "1": {"q": "Question : 1 + 1?", "a": "R\\u00e9ponse : It is 2."},
    },
    "zh": {"1": {"q": "\\u95ee\\uff1a1 + 1?", "a": "\\u7b54\\uff1aIt is 2."}},
}
'''


def write(root, exemplars=PYTHON, name="exemplars.py", **tables):
    if exemplars is not None:
        (root / name).write_text(exemplars, "utf-8")
    for language, table in tables.items():
        (root / f"mgsm_{language}.tsv").write_text(table, "utf-8")
    return root


def prompt_of(source, shots=8, n=0):
    example = list(source.read("test", Drops()))[n]
    chosen = select_demonstrations(example, source.demonstrations(), shots, CONFIG)
    return render(example, chosen, source.instruction_level, CONFIG).source()


def test_questions_get_the_labels_of_their_language(tmp_path):
    root = write(tmp_path, fr="3 + 1?\t4\n", zh="3 + 1?\t4\n")
    french, chinese = find_tasks(root, MANIFEST)
    assert (french.name, category(french)) == ("mgsm/fr", "MGSM")
    assert prompt_of(french) == (
        "Question : 1 + 1?\nRéponse : It is 2.\n\nQuestion : 2 + 1?\nRéponse : Count: it is 3.\n\n"
        "Question : 3 + 1?\nRéponse :"
    )
    assert prompt_of(french, 0) == "Question : 3 + 1?\nRéponse :"
    assert prompt_of(chinese) == "问：1 + 1?\n答：It is 2.\n\n问：3 + 1?\n答："


def test_answers_alone_are_the_last_numbers_of_the_reasoning(tmp_path):
    french, chinese = find_tasks(
        write(tmp_path, fr="3 + 1?\t4\n", zh="3 + 1?\t4\n"), MANIFEST, "mgsm_direct"
    )
    assert prompt_of(french) == (
        "Question : 1 + 1?\nRéponse : 2\n\nQuestion : 2 + 1?\nRéponse : 3\n\n"
        "Question : 3 + 1?\nRéponse :"
    )
    assert prompt_of(chinese) == "问：1 + 1?\n解答： 2\n\n问：3 + 1?\n解答："
    assert category(french) == "MGSM (answers alone)"


def test_the_problem_of_one_row_is_the_same_in_all_languages(tmp_path):
    root = write(tmp_path, fr="a?\t1\nb?\t2\n", zh="甲?\t1\n乙?\t2\n")
    clusters = [
        [e.source_id for e in source.read("test", Drops())] for source in find_tasks(root, MANIFEST)
    ]
    assert clusters[0] == clusters[1] == ["gsm8k test 1", "gsm8k test 2"]


def test_rows_of_another_width_are_counted_and_named(tmp_path, caplog):
    (source,) = find_tasks(write(tmp_path, fr='"a"?\t1\nb?\nc?\t1\t2\n\n\t3\n'), MANIFEST)
    drops = Drops()
    assert [e.references for e in source.read("test", drops)] == [("1",)]
    assert drops == {"wrong number of columns": 2, "empty line": 1, "empty input": 1}
    assert "mgsm_fr.tsv, line 2 dropped: wrong number of columns (1 columns)" in caplog.text


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no mgsm_<language>.tsv of benchmark 'mgsm'"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path, exemplars=None, bn="a?\t1\n")
    with pytest.raises(UserError, match=r"no exemplars.py of benchmark 'mgsm'"):
        find_tasks(tmp_path, MANIFEST)
    (source,) = find_tasks(write(tmp_path), MANIFEST)
    with pytest.raises(UserError, match=r"exemplars.py has no MGSM_EXEMPLARS\['bn'\]"):
        list(source.read("test", Drops()))


@pytest.mark.parametrize(
    "text",
    [
        "MGSM_EXEMPLARS = {",
        "OTHER = {}",
        "MGSM_EXEMPLARS = []",
        "MGSM_EXEMPLARS = {'fr': {}}",
        "MGSM_EXEMPLARS = {'fr': {'1': {'q': 'Question: a'}}}",
        "MGSM_EXEMPLARS = {'fr': {'1': {'q': 'no label', 'a': 'none'}}}",
        "MGSM_EXEMPLARS = {'fr': open('x')}",  # parsed, never executed
    ],
)
def test_exemplars_in_another_form_are_refused(tmp_path, text):
    (source,) = find_tasks(write(tmp_path, text, fr="a?\t1\n"), MANIFEST)
    with pytest.raises(UserError, match="download it again"):
        source.demonstrations()


def test_released_exemplars_are_shown_as_they_are(real_data):
    """Their texts are joined here; the questions get what precedes the first exemplar's text."""
    file = json.loads((real_data / "mgsm" / "exemplars.json").read_text("utf-8"))
    sources = find_tasks(real_data, MANIFEST)  # the folder of a clone
    assert [s.name for s in sources] == [f"mgsm/{code}" for code in ("de", "en", "es", "th", "zh")]
    labels = {
        "de": "Frage: ",
        "en": "Question: ",
        "es": "Pregunta: ",
        "th": "โจทย์: ",
        "zh": "问题：",
    }
    for source in sources:
        language = source.name.split("/")[1]
        pairs = [file["MGSM_EXEMPLARS"][language][str(i)] for i in range(1, 9)]
        shown = "\n\n".join(f"{pair['q']}\n{pair['a']}" for pair in pairs)
        rows = (real_data / "mgsm" / f"mgsm_{language}.tsv").read_text("utf-8").splitlines()
        question, answer = rows[249].split("\t")
        text = prompt_of(source, n=249)
        assert text.startswith(f"{shown}\n\n{labels[language]}{question}\n")
        assert text.endswith(pairs[0]["a"].replace("：", ":").split(":")[0] + text[-1])
        references = [e.references for e in source.read("test", Drops())]
        assert len(references) == len(rows) == 250
        assert references[249] == (answer,)


def test_answers_are_compared_as_numbers(real_data):
    """Section 3.4 of the evaluation's notes: four answers have thousands separators."""
    assert ROW.metric == "em_number"
    (source,) = (s for s in find_tasks(real_data, MANIFEST) if s.name == "mgsm/en")
    examples = list(source.read("test", Drops()))
    commas = [e.references for e in examples if "," in e.target]
    assert commas == [("2,125",), ("114,200",), ("276,000",), ("5,600",)]
    assert METRICS["em_number"].score(("2,125",), "So it is 2125. The answer is 2125.0") == 1
    exemplars = [d.target for d in source.demonstrations()]
    answers = [11, 29, 39, 9, 33, 8, 8, 5]  # upstream's EXEMPLAR_NUMBER_ANSWERS
    scores = [
        METRICS["em_number"].score([str(n)], text)
        for n, text in zip(answers, exemplars, strict=True)
    ]
    assert scores == [1.0] * 8


def test_exemplars_that_do_not_fit_are_left_out_whole(real_data):
    """Eight Thai exemplars have 4,536 tokens of OPT with their line ends: at most two fit."""
    vocabulary = load_vocabulary(f"opt:{real_data / 'gpt2_bpe'}")
    source = next(s for s in find_tasks(real_data, MANIFEST) if s.name == "mgsm/th")
    pool = source.demonstrations()
    block = "\n".join(d.input + d.target for d in pool)
    assert len(vocabulary.encode(block)) == 4536 - 1
    builder = InstanceBuilder(
        level=source.instruction_level,
        prompts=CONFIG,
        encode=lambda texts: [vocabulary.encode(text) for text in texts],
        sequence_length=2048,
        max_new_tokens=ROW.protocol.max_new_tokens,
    )
    examples = list(source.read("test", Drops()))[:40]
    instances = builder.build(examples, pool, 8, rank=False)
    assert {len(i.demonstration_ids) for i in instances} <= {1, 2}
    assert all(i.n_prompt_tokens_dropped > 2500 for i in instances)
    end = vocabulary.encode(f"{examples[0].input}")
    assert instances[0].prompt[-len(end) + 1 :] == end[1:]
