"""T5's tasks against SeqIO's own run of the definitions in t5.data, and against cases by hand."""

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from tasks.splits import Row
from tasks.t5.reader import facts, find_tasks, near_answer, upstream_task
from tasks.templates.instructions import instructions


class TrainOnly:
    """A manifest that has every task trained on."""

    def lookup(self, task, upstream_split):
        return Row("train_only", ("train",))


MANIFEST = TrainOnly()

NLI = {"premise": "Cats purr.", "hypothesis": "Cats make a sound.", "label": 0, "idx": 7}
PAIR = {"sentence1": "It rains.", "sentence2": "Water falls.", "label": 1, "idx": 3}
WSC = {
    "text": "The dog chased the cat because it was angry .",
    "span1_text": "The dog",
    "span1_index": 0,
    "span2_text": "it",
    "span2_index": 6,
    "label": 1,
    "idx": 0,
}
SQUAD = {
    "id": "q1",
    "title": "T",
    "question": "Who's first?",
    "context": "Ann (a nurse) won.",
    "answers": {"text": ["Ann", "Ann (a nurse)"], "answer_start": [0, 0]},
}
ROWS = {  # data set of TFDS -> a row as Hugging Face has it
    "glue/ax": NLI,
    "glue/cola": {"sentence": "Me want.", "label": 0, "idx": 1},
    "glue/mnli": NLI,
    "glue/mnli_matched": NLI,
    "glue/mnli_mismatched": NLI,
    "glue/mrpc": PAIR,
    "glue/qnli": {"question": "Who?", "sentence": "Ann did.", "label": 0, "idx": 2},
    "glue/qqp": {"question1": "Why?", "question2": "How?", "label": 0, "idx": 4},
    "glue/rte": PAIR,
    "glue/sst2": {"sentence": "a joy", "label": 1, "idx": 5},
    "glue/stsb": {**PAIR, "label": 2.7},
    "glue/wnli": {
        "sentence1": "The fish ate the worm. It was tasty.",
        "label": 1,
        "idx": 0,
        "sentence2": "The worm was tasty.",
    },
    "super_glue/axb": PAIR,
    "super_glue/axg": NLI,
    "super_glue/boolq": {"question": "is it?", "passage": "P — it is.", "label": 1, "idx": 0},
    "super_glue/cb": NLI,
    "super_glue/copa": {
        "premise": "It rained.",
        "choice1": "Wet.",
        "choice2": "Dry.",
        "question": "effect",
        "idx": 0,
        "label": 1,
    },
    "super_glue/multirc": {
        "paragraph": "<b>Sent 1: </b>A.<br>B.",
        "question": "Who?",
        "answer": "A",
        "label": 1,
        "idx": {"paragraph": 3, "question": 4, "answer": 5},
    },
    "super_glue/record": {
        "passage": 'He said "so."\n@highlight\nBo won',
        "query": "@placeholder won",
        "entities": ["Bo", "Cy"],
        "answers": ["Bo", "Cy"],
        "entity_spans": {"text": []},
        "idx": {"passage": 1, "query": 2},
    },
    "super_glue/rte": NLI,
    "super_glue/wic": {
        "word": "bank",
        "sentence1": "A bank.",
        "sentence2": "The bank.",
        "label": 0,
        "idx": 1,
        "start1": 2,
        "end1": 6,
        "start2": 4,
        "end2": 8,
    },
    "super_glue/wsc.fixed": WSC,
    "definite_pronoun_resolution": {
        "sentence": "Bob asked Tom if he can pay.",
        "pronoun": "he",
        "label": 1,
        "candidates": ["Bob", "Tom"],
    },
    "cnn_dailymail": {"article": "Rain fell.", "highlights": "Rain .", "id": "x"},
    "squad/v1.1": SQUAD,
    "trivia_qa/rc": {
        "question": "Which city?",
        "answer": {"normalized_aliases": ["oslo", "kristiania"]},
        "entity_pages": {"wiki_context": ["Oslo, once Kristiania, is big."]},
        "search_results": {"search_context": []},
    },
    **{
        f"{year}_translate/{pair}": {"translation": {"en": "Good day", pair[:2]: "Gut"}}
        for year, pair in [
            *[("wmt14", "de-en"), ("wmt14", "fr-en"), ("wmt15", "fr-en"), ("wmt16", "ro-en")],
            *[("wmt19", "de-en"), ("wmt_t2t", "de-en")],
        ]
    },
}


def write(root, dataset, split, *rows) -> None:
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows)
    (folder / f"{split}.jsonl").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def every_source(tmp_path_factory) -> dict[str, TaskSource]:
    """All tasks by id, with one row in every split of every data set."""
    root = tmp_path_factory.mktemp("t5")
    for dataset, row in ROWS.items():
        names = facts()["sources"][dataset].get("splits", {"train": "train"})
        for split in set(names.values()):
            write(root, dataset, split, row)
    return {s.name.split("/")[1]: s for s in find_tasks(root, MANIFEST)}


def read(source: TaskSource, split="train", drops=None) -> list:
    return list(source.read(split, Drops() if drops is None else drops))


def upstream_texts(task_id: str, dataset) -> list[tuple[str, str]]:
    """(inputs, targets) of SeqIO's run of t5.data's task on a tf.data.Dataset of rows."""
    import seqio

    upstream = upstream_task(task_id)
    end = upstream.preprocessors.index(seqio.preprocessors.tokenize)
    feature = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, rank=0)
    clone = seqio.Task(
        f"clone_{task_id}",
        source=seqio.FunctionDataSource(lambda split, shuffle_files: dataset, ["train"]),
        preprocessors=upstream.preprocessors[:end],
        output_features={
            name: dataclasses.replace(feature, dtype=tf_string()) for name in ("inputs", "targets")
        },
    )
    examples = clone.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    return [(e["inputs"].decode(), e["targets"].decode()) for e in examples]


def tf_string():
    import tensorflow as tf

    return tf.string


def fields_of(row, kind):
    """Only what upstream reads: a data set with more fields would print them."""
    if not isinstance(kind, dict):
        return row
    return {key: fields_of(row[key], inner) for key, inner in kind.items()}


def columns(rows):
    if isinstance(rows[0], dict):
        return {key: columns([row[key] for row in rows]) for key in rows[0]}
    return rows


def test_there_are_36_tasks_each_with_a_sentence_of_its_own(every_source):
    import seqio

    upstream_task("glue_cola_v002")
    theirs = {
        n
        for n in seqio.TaskRegistry.names()
        if n.startswith(("glue", "super_glue", "cnn", "wmt", "dpr", "squad", "trivia"))
        and "sentinel" not in n
        and n != "squad_v010"  # deprecated upstream
    }
    sentences = instructions("t5")
    assert len(theirs) == 36
    assert set(every_source) == set(sentences) == theirs
    assert len(set(sentences.values())) == 36
    assert set(facts()["prefixes"]) <= theirs
    assert len(set(instructions("t5").values()) & set(instructions("crossfit").values())) == 0


@pytest.mark.parametrize(
    "task_id",
    [
        *["cnn_dailymail_v002", "squad_v010_allanswers_span", "super_glue_axb_v102"],
        *["super_glue_record_v102", "super_glue_wic_v102", "super_glue_wsc_v102_simple_eval"],
        *["trivia_qa_v010", "wmt16_enro_v003"],
    ],
)
def test_texts_are_those_of_seqio_with_upstreams_definition(every_source, task_id):
    import tensorflow as tf

    source = every_source[task_id]
    dataset = source.read.__self__.dataset
    known = facts()["sources"][dataset]
    row = fields_of(ROWS[dataset].get(known.get("inside"), ROWS[dataset]), known["fields"])
    if dataset == "trivia_qa/rc":
        row["search_results"]["search_context"] = tf.constant([], tf.string)
    theirs = upstream_texts(task_id, tf.data.Dataset.from_tensors(row))
    prefix, sentence = facts()["prefixes"].get(task_id, ""), instructions("t5")[task_id]
    assert all(text.startswith(prefix) for text, _ in theirs)
    ours = [
        (e.input.removesuffix(f"\n{sentence}"), e.target) for e in read(source, source.splits[0])
    ]
    assert ours == [(text.removeprefix(prefix).strip(), target) for text, target in theirs]


def test_the_keyword_of_every_glue_task_is_upstreams(every_source):
    for task_id in every_source:
        (function,) = upstream_task(task_id).preprocessors[-4:-3]
        keywords = getattr(function, "keywords", {})
        if "benchmark_name" in keywords:
            assert facts()["prefixes"][task_id] == f"{keywords['benchmark_name']} "


@pytest.mark.parametrize(
    ("task_id", "split", "text", "target", "options"),
    [
        ("glue_cola_v002", "train", "sentence: Me want.", "unacceptable", 2),
        ("glue_stsb_v002", "train", "sentence1: It rains. sentence2: Water falls.", "2.8", 0),
        (
            "glue_mnli_v002",
            "test",
            "hypothesis: Cats make a sound. premise: Cats purr.",
            "entailment",
            3,
        ),
        (
            "super_glue_copa_v102",
            "train",
            "choice1: Wet. choice2: Dry. premise: It rained. question: effect",
            "choice2",
            2,
        ),
        (
            "super_glue_multirc_v102",
            "train",
            "question: Who? answer: A paragraph: Sent 1: A. B.",
            "True",
            2,
        ),
        (
            "super_glue_record_v102",
            "train",
            'query: @placeholder won entities: Bo, Cy passage: He said "so." Bo won',
            "Bo",
            0,
        ),
        (
            "super_glue_wsc_v102_simple_train",
            "train",
            "The dog chased the cat because *it* was angry .",
            "The dog",
            0,
        ),
        (
            "glue_wnli_v002_simple_eval",
            "test",
            "The fish ate the worm. *It* was tasty.",
            "The worm",
            0,
        ),
        ("dpr_v001_simple", "train", "Bob asked Tom if *he* can pay.", "Tom", 0),
        (
            "squad_v010_allanswers",
            "train",
            "question: Who ' s first ? context: Ann ( a nurse ) won .",
            "Ann",
            0,
        ),
        (
            "squad_v010_allanswers_span",
            "train",
            "question: Who ' s first ? context: Ann ( a nurse ) won .",
            "start: 0 end: 0",
            0,
        ),
        ("squad_v010_context_free", "test", "question: Who ' s first ?", "Ann", 0),
        ("wmt14_ende_v003", "train", "Good day", "Gut", 0),
    ],
)
def test_texts_by_hand(every_source, task_id, split, text, target, options):
    example = read(every_source[task_id], split)[0]
    assert (example.input, example.target) == (text, target)
    assert len(example.options or ()) == options
    assert example.instruction == instructions("t5")[task_id]


def test_the_sentence_stands_before_the_fields_and_after_a_long_text(every_source):
    config = PromptConfig(delimiter="\nA:")
    (example,) = read(every_source["glue_sst2_v002"])
    assert render(example, [], "instance", config).source() == (
        f"{instructions('t5')['glue_sst2_v002']}\nsentence: a joy\nA:"
    )
    (example,) = read(every_source["cnn_dailymail_v002"])
    assert render(example, [], "instance", config).source() == (
        f"Rain fell.\n{instructions('t5')['cnn_dailymail_v002']}\nA:"
    )


def test_one_record_for_each_answer_of_record_and_each_alias_in_a_trivia_context(every_source):
    record = read(every_source["super_glue_record_v102"])
    assert [(e.target, e.references) for e in record] == [
        ("Bo", ("Bo", "Cy")),
        ("Cy", ("Cy", "Bo")),
    ]
    assert len({e.example_id for e in record}) == 2
    trivia = read(every_source["trivia_qa_v010"])
    assert [e.target for e in trivia] == ["oslo", "kristiania"]


def test_all_answers_of_squad_are_references_but_not_of_positions(every_source):
    (text,) = read(every_source["squad_v010_allanswers"])
    (span,) = read(every_source["squad_v010_allanswers_span"])
    assert text.references == ("Ann", "Ann ( a nurse )")
    assert span.references == ("start: 0 end: 0",)


def test_long_contexts_are_cut_around_the_answer_and_keep_the_question():
    words = [f"w{i}" for i in range(100)]
    text = f"question: Who? context: {' '.join(words)}"
    assert near_answer(text, "W50", 5) == "question: Who? context: w48 w49 w50 w51 w52"
    assert near_answer(text, "w0", 3) == "question: Who? context: w0 w1 w2"
    assert near_answer(text, "w99", 200) == text
    assert near_answer(text, "nowhere", 2) == "question: Who? context: w0 w1"


def test_unlabelled_damaged_and_repeated_rows_are_counted(tmp_path):
    good = {"sentence": "a joy", "label": 1, "idx": 0}
    write(
        *(tmp_path, "glue/sst2", "train", good, {**good, "idx": 1}, {**good, "label": -1}),
        *({**good, "label": 2}, {**good, "label": "1"}, {**good, "label": True}),
        *({"label": 1, "idx": 2}, {**good, "sentence": None}, {**good, "sentence": "x\ufffd"}),
        *({**good, "sentence": "\ud800"}, {**good, "sentence": "zwölf", "extra": "unread"}),
    )
    (source,) = find_tasks(tmp_path, MANIFEST)
    drops = Drops()
    assert [e.input for e in read(source, drops=drops)] == ["sentence: a joy", "sentence: zwölf"]
    assert drops == {
        "duplicate": 1,
        "no label (-1)": 1,
        "unknown label": 1,
        "malformed record": 5,
        "NUL or U+FFFD": 1,
    }


def test_numbers_in_columns_of_text_keep_their_spelling_and_whole_ones_are_labels(tmp_path):
    bad = ["NaN, 1", "Infinity, 1", '["a", "b"], 1', '{"a": "b"}, 1', '"a", 0.5', '"b", NaN']
    pairs = (pair.rpartition(", ") for pair in ("16777217.0, 1.0", "1.50, 0", *bad))
    rows = [f'{{"sentence": {text}, "label": {label}, "idx": 0}}\n' for text, _, label in pairs]
    write(tmp_path, "glue/sst2", "train", *rows)
    (source,), drops = find_tasks(tmp_path, MANIFEST), Drops()
    found = [f"{e.input} {e.target}" for e in read(source, drops=drops)]
    assert found == ["sentence: 16777217.0 positive", "sentence: 1.50 negative"]
    assert drops == {"malformed record": len(bad)}


def test_rows_are_read_as_they_are_needed(tmp_path):
    rows = [{"sentence": f"joy {i}", "label": 1, "idx": i} for i in range(3000)]
    write(tmp_path, "glue/sst2", "train", *rows, "{cut off\n")
    (source,) = find_tasks(tmp_path, MANIFEST)
    examples = source.read("train", Drops())
    assert next(examples).input == "sentence: joy 0"  # the broken line is far away
    examples.close()
    assert len(source.demonstrations()) == 1000


def test_wrong_referents_are_no_answers(tmp_path):
    unlike = {**WSC, "label": 0, "text": WSC["text"] + "!"}
    write(tmp_path, "super_glue/wsc.fixed", "train", WSC, unlike)
    wrong = {**WSC, "label": 0, "span1_text": "the cat"}
    write(tmp_path, "super_glue/wsc.fixed", "validation", WSC, wrong)
    evaluation, training = find_tasks(tmp_path, MANIFEST)
    assert (evaluation.splits, training.splits) == (("test",), ("train",))
    drops = Drops()
    assert [e.target for e in read(evaluation, "test", drops)] == ["The dog"]
    assert drops == {"target is a wrong answer": 1}
    assert len(read(training)) == len(training.demonstrations()) == 1
    assert evaluation.demonstrations() == []


def test_errors_are_one_line_and_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere; give a folder with data"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    with pytest.raises(UserError, match=r"no data set of benchmark 't5' in .*glue/ax"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path, "glue/sst2", "train", {"sentence": "a", "label": 1, "idx": 0}, "{cut off\n")
    (source,) = find_tasks(tmp_path, MANIFEST)
    with pytest.raises(UserError, match=r"sst2/train.jsonl, line 2: not valid JSON"):
        read(source)
    write(tmp_path, "glue/sst2", "train", {"sentence": "a", "label": -1, "idx": 0})
    with pytest.raises(UserError, match=r"no usable record for .*train.jsonl \(1 no label"):
        read(source)
    write(tmp_path, "super_glue/wsc.fixed", "train", {**WSC, "span2_text": "she"})
    training = find_tasks(tmp_path, MANIFEST)[-1]
    with pytest.raises(UserError, match=r"t5\.data cannot read a row of super_glue/wsc\.fixed"):
        read(training)
    (tmp_path / "instructions.yaml").write_text('glue_riddles: "Solve it."\n')
    with pytest.raises(UserError, match=r"'glue_riddles': no task of t5\.data"):
        find_tasks(tmp_path, MANIFEST)


def test_the_reader_imports_t5_only_where_it_is_used():
    code = "import sys, tasks.t5; assert not {'t5', 'seqio', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_that_tfds_prepared_are_read_from_its_folder(tmp_path):
    import tensorflow_datasets as tfds

    class Glue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """GLUE's CoLA, as far as two rows go."""

        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="cola")]  # noqa: RUF012

        def _info(self):
            features = {
                "sentence": tfds.features.Text(),
                "label": tfds.features.ClassLabel(num_classes=2),
                "idx": np.int32,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {s: self._generate_examples() for s in ("train", "validation")}

        def _generate_examples(self):
            yield 0, {"sentence": "Größe zählt.", "label": 1, "idx": 0}

    Glue(config="cola", data_dir=str(tmp_path)).download_and_prepare()
    (source,) = find_tasks(tmp_path, MANIFEST)
    assert source.splits == ("train", "test")
    (example,) = read(source)
    assert (example.input, example.target) == ("sentence: Größe zählt.", "acceptable")
    assert any(".tfrecord" in file for file in source.files)


def test_the_real_rows_are_read_whole_and_as_upstream_renders_them(real_data):
    import tensorflow as tf

    counts, drops = {}, Drops()
    sources = find_tasks(real_data / "datasets", MANIFEST)
    for source in sources:
        counts[source.name.split("/")[1]] = [len(read(source, s, drops)) for s in source.splits]
    assert counts == {
        "glue_mnli_v002": [3000, 1500],
        "glue_qqp_v002": [2000, 1500],
        "super_glue_boolq_v102": [1000, 800],
        "super_glue_cb_v102": [250, 56],
        "super_glue_copa_v102": [400, 100],
        "super_glue_multirc_v102": [400, 100],
        "super_glue_rte_v102": [1998, 277],
    }
    assert drops == {"duplicate": 2}  # lines of rte/train.jsonl; README counts 2,000 rows
    for source in sources[3:6]:  # CB, COPA, MultiRC
        task_id = source.name.split("/")[1]
        (file,) = {f for f in source.files if "validation" in f}
        kinds = facts()["sources"][source.read.__self__.dataset]["fields"]
        with open(file, encoding="utf-8") as f:
            rows = [fields_of(json.loads(line), kinds) for line in f]
        dataset = tf.data.Dataset.from_tensor_slices(columns(rows))
        prefix = facts()["prefixes"][task_id]
        theirs = [(t.removeprefix(prefix), y) for t, y in upstream_texts(task_id, dataset)]
        ours = [(e.input, e.target) for e in read(source, "test")]
        assert ours == [(text.strip(), target) for text, target in theirs]
    copy = pickle.loads(pickle.dumps(sources[3]))
    assert read(copy, "test") == read(sources[3], "test")
