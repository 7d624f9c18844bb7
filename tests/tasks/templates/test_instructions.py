import pytest

from optiml_jax.errors import UserError
from tasks.templates.instructions import instructions


def test_a_users_sentences_add_tasks_and_replace_ours(tmp_path):
    ours = instructions("crossfit")
    (tmp_path / "instructions.yaml").write_text(
        'ag_news: "Which section?"\nmine: "Größe?"\n', "utf-8"
    )
    assert instructions("crossfit", tmp_path) == {
        **ours,
        "ag_news": "Which section?",
        "mine": "Größe?",
    }
    assert instructions("crossfit", tmp_path / "nothing") == ours == instructions("crossfit")


def test_what_is_returned_may_be_changed():
    instructions("t5").clear()
    assert instructions("t5")


def test_every_sentence_is_the_only_one_of_its_kind():
    collections = ("crossfit", "exmix", "reasoning", "t5")
    sentences = [s for c in collections for s in instructions(c).values()]
    assert [len(instructions(c)) for c in collections] == [160, 14, 14, 36]
    assert len(set(sentences)) == len(sentences)
    assert all(len(s.split()) >= 6 and s[-1] in ".?!:" for s in sentences)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a: "b"\nc: [d', r"instructions\.yaml is not YAML: .*, line [23]: "),
        ("- a\n", "is not a mapping"),
        ("a: yes\n", "'a' must be the name of a task with one sentence in quotation marks, not Tr"),
        ("a: ' '\n", "'a' must be the name of a task"),
        ("1: one\n", "1 must be the name of a task"),
        ("a: !!python/object/apply:os.getcwd []\n", r"instructions\.yaml is not YAML: .*, line 1"),
        (b"a: \xff\n", r"instructions\.yaml is not UTF-8"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "instructions.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        instructions("exmix", tmp_path)
