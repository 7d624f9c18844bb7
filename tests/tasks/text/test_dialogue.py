import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from tasks.splits import Manifest
from tasks.text.dialogue import find_tasks

MANIFEST = Manifest.load()


def write(path, *records) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")


def read(folder, drops=None) -> list:
    (source,) = find_tasks(folder, MANIFEST)
    return list(source.read("train", Drops() if drops is None else drops))


def test_the_turns_stand_on_lines_without_speakers_or_persona(tmp_path):
    turns = [{"speaker": "A", "text": " Hi \n there. "}, {"speaker": "B", "text": "Hello!"}]
    write(
        tmp_path / "chat.jsonl",
        {"id": "c1", "source": "web", "persona": ["I bowl."], "turns": turns},
        {"turns": ["one", "two", "three"]},
    )
    first, second = read(tmp_path)
    assert (first.example_id, first.source_dataset) == ("c1", "web")
    assert (first.input, first.target) == ("", "Hi there.\nHello!")
    assert second.target == "one\ntwo\nthree"
    assert first.category == "Dialogue Generation"
    prompt = render(second, [], "instance", PromptConfig())
    assert (prompt.source(), prompt.target) == ("", "one\ntwo\nthree")


def test_a_turn_of_spaces_is_read_in_time_linear_in_it(tmp_path):
    write(tmp_path / "chat.jsonl", {"turns": ["a" + " " * 400_000 + "b \n \n c", " \n ", "d"]})
    (example,) = read(tmp_path)
    assert example.target == "a" + " " * 400_000 + "b c\nd"


def test_parlai_files_give_each_turn_once(tmp_path):
    lines = [
        "text:your persona: I bowl.\\nHi\tlabels:Hello!\tlabel_candidates:x|y",
        "text:How are you?\tlabels:Fine|Well\tepisode_done:True",
        "text:Hi\teval_labels:Hello!\tepisode_done:False",
        "text:Hi\\nHello!\\nHow are you?\tlabels:Fine\tepisode_done:True",
        "text:cut off\tlabels:here",
    ]
    (tmp_path / "chat.txt").write_text("\n".join(lines) + "\n")
    drops = Drops()
    assert [e.target for e in read(tmp_path, drops)] == [
        "Hi\nHello!\nHow are you?\nFine",
        "cut off\nhere",
    ]
    assert drops == {"duplicate": 1, "warning: last episode without its end": 1}


def test_a_parlai_file_that_was_cut_inside_a_label_loses_that_episode_and_is_named(
    tmp_path, caplog
):
    whole = "text:Hi\tlabels:Hello!\tepisode_done:True\ntext:Bye\tlabels:See you\tepisode_done:True"
    path = tmp_path / "chat.txt"
    path.write_text(whole)  # only the end of the last line is gone
    drops = Drops()
    assert len(read(tmp_path, drops)) == 2
    assert not drops
    path.write_text(whole[: whole.index("you")])
    assert [e.target for e in read(tmp_path, drops)] == ["Hi\nHello!"]
    assert drops == {"episode cut off": 1}
    assert f"{path}: its last episode and line have no end: the file was cut" in caplog.text


def test_numbers_among_the_turns_keep_their_spelling_and_lines_without_text_are_counted(tmp_path):
    (tmp_path / "chat.jsonl").write_text('{"turns": ["how many?", 1.50]}\n{"turns": ["a", NaN]}\n')
    drops = Drops()
    assert [e.target for e in read(tmp_path, drops)] == ["how many?\n1.50"]
    assert drops == {"malformed dialogue": 1}
    (tmp_path / "chat.jsonl").unlink()
    lines = "text:Hi\tlabels:Hello!\tepisode_done:True\nan error message\n"
    (tmp_path / "chat.txt").write_text(lines)
    drops = Drops()
    assert len(read(tmp_path, drops)) == 1
    assert drops == {"line without text": 1}


def test_repeated_and_malformed_dialogues_are_counted(tmp_path):
    write(
        tmp_path / "chat.jsonl",
        {"id": "1", "turns": ["a", "b"]},
        {"id": "2", "turns": ["a", "b"]},
        {"id": "1", "turns": ["a", " ", "c"]},
        {"id": "4", "turns": []},
        {"id": "5", "turns": ["a", None]},
        {"id": "6"},
        {"id": "7", "turns": {"speaker": "A"}},
    )
    drops = Drops()
    examples = read(tmp_path, drops)
    assert [e.target for e in examples] == ["a\nb", "a\nc"]
    assert examples[0].example_id == "1" != examples[1].example_id
    assert drops == {
        "duplicate": 1,
        "warning: empty turn left out": 1,
        "warning: repeated id": 1,
        "empty target": 1,
        "malformed dialogue": 3,
    }


def test_bad_folders_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    with pytest.raises(UserError, match=r"no file \(\*.jsonl or \*.txt\) of benchmark 'dialogue'"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path / "chat.jsonl", {"text": "a"})
    with pytest.raises(UserError, match=r"no usable dialogue in .*chat.jsonl \(1 malformed"):
        read(tmp_path)


def test_a_test_task_of_the_paper_is_excluded():
    assert MANIFEST.lookup("dialogue/blended_skill_talk", None).role == ("exclude",)
    assert MANIFEST.lookup("dialogue/casino", None).role == ("train",)


def test_the_real_dialogues_are_read_whole(real_data):
    counts = {}
    for source in find_tasks(real_data / "dialogue", MANIFEST):
        drops = Drops()
        counts[source.name] = sum(1 for _ in source.read("train", drops))
        assert not drops
    assert counts == {
        "dialogue/casino": 330,
        "dialogue/personachat": 600,
        "dialogue/schema_guided": 400,
    }
