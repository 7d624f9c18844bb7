import collections
import json
import os

import pytest
from promptsource_bench import template, write_templates

from optiml_jax.errors import UserError
from tasks.promptsource.templates import (
    PromptSourceConfig,
    Renderer,
    RenderError,
    Template,
    read_templates,
)
from tasks.templates.sandbox import Choices

CONFIG = PromptSourceConfig()


@pytest.fixture
def read(tmp_path):
    """The templates of a file with the given ones."""

    def read(*templates: dict) -> list[Template]:
        return read_templates(write_templates(tmp_path, "set", templates))

    return read


@pytest.fixture
def render(read):
    """Renders one template on one row: (parts, options)."""

    def render(jinja, answer_choices=None, config=CONFIG, key="k", **fields):
        (one,) = read(template(jinja, answer_choices))
        return Renderer(one, config).render(fields, Choices(key))

    return render


def test_all_upstream_files_parse_with_their_known_counts(real_data):
    paths = sorted((real_data / "promptsource" / "templates").rglob("templates.yaml"))
    files = {path: read_templates(path) for path in paths}
    templates = [t for file in files.values() for t in file]
    assert (len(files), len(templates)) == (279, 2085)
    original = [sum(t.original_task for t in file) for file in files.values()]
    assert (sum(original), sum(n > 0 for n in original)) == (1535, 259)
    in_prompt = collections.Counter(t.choices_in_prompt for t in templates)
    assert in_prompt == {True: 841, False: 1209, None: 35}
    choices = [t.answer_choices for t in templates if t.answer_choices is not None]
    assert (len(choices), sum("{" in c for c in choices)) == (1145, 234)
    assert {t.languages for t in templates} == {("en",)}


@pytest.mark.parametrize("folder", ["[a-h]*", "[!a-h]*"])
def test_all_upstream_templates_compile_in_the_sandbox(real_data, folder):
    root = real_data / "promptsource" / "templates"
    paths = list(root.glob(f"{folder}/**/templates.yaml"))
    assert len(paths) > 100
    for path in paths:
        for one in read_templates(path):
            Renderer(one, CONFIG)


def test_rendering_equals_upstreams_own_output(real_data):
    renderers, rows, records = {}, {}, 0
    with open(real_data / "oracles" / "promptsource_rendered.jsonl", encoding="utf-8") as f:
        for record in map(json.loads, f):
            name = "/".join(filter(None, (record["dataset"], record["subset"])))
            if name not in renderers:
                path = real_data / "promptsource" / "templates" / name / "templates.yaml"
                renderers[name] = {t.id: Renderer(t, CONFIG) for t in read_templates(path)}
                with open(real_data / "datasets" / name / f"{record['split']}.jsonl") as lines:
                    rows[name] = [json.loads(next(lines)) for _ in range(25)]
            renderer = renderers[name][record["template_id"]]
            assert renderer.template.original_task == record["original_task"]
            result = renderer.render(rows[name][record["row"]], Choices(""))
            assert result == (record["rendered"], record["answer_choices"]), record
            records += 1
    assert records == 2850


def test_source_target_and_constant_options(render):
    parts, options = render(
        "Is {{x}} even?\n\n  |||\n{{ answer_choices[label] }} ", "Yes ||| No", x=4, label=0
    )
    assert parts == ["Is 4 even?", "Yes"]
    assert options == ["Yes", "No"]


def test_options_may_be_computed_from_the_row(render):
    parts, options = render(
        "{{q}} ||| {{answer_choices[1]}}", "{{ c | join('|||') }}", q="?", c="ab"
    )
    assert parts == ["?", "b"]
    assert options == ["a", "b"]


def test_a_separator_in_the_row_is_text(render):
    parts, options = render("{{x}} ||| {{y}}", "{{x}} ||| z", x="a|||b", y="c ||| d")
    assert parts == ["a|||b", "c ||| d"]
    assert options == ["a|||b", "z"]


def test_long_values_lose_their_tail_at_a_word_unless_told_otherwise(render):
    text = "word " * 1000
    (source, _), _ = render("{{x}} ||| y", x=text)
    assert source.endswith("word...")
    assert 2040 < len(source) <= 2048
    whole = PromptSourceConfig(max_value_length=None)
    assert render("{{x}} ||| y", config=whole, x=text)[0][0] == text.strip()


@pytest.mark.parametrize(
    ("expression", "cut"),
    [("x", True), ("x if x else y", False), ("x or y", False), ("x + y", False), ("y + x", True)],
)
def test_behind_an_operator_only_the_last_operand_is_cut(render, expression, cut):
    (source, _), _ = render(f"{{{{ {expression} }}}} ||| t", x="word " * 1000, y="short")
    assert (len(source) < 2100) == cut


def test_a_template_without_separator_has_one_part(render):
    text = "{% if x %}{{x}} ||| yes{% endif %}"
    assert render(text, x=0)[0] == [""]
    assert render(text, x=1)[0] == ["1", "yes"]


def test_random_choices_are_functions_of_the_key(render):
    drawn = {
        key: render("a ||| {{ c | choice }}", key=key, c=list("abcdef"))[0][1] for key in "pqrstu"
    }
    assert len(set(drawn.values())) > 1
    for key, target in drawn.items():
        assert render("a ||| {{ c | choice }}", key=key, c=list("abcdef"))[0][1] == target


def test_a_template_does_not_change_the_row(render):
    words = ["a", "b"]
    for _ in range(2):
        parts, _ = render("{{ words.pop() }} ||| {{ words | length }}", words=words)
        assert parts == ["b", "1"]
    assert words == ["a", "b"]


def test_undefined_variables_follow_the_setting(render):
    strict = PromptSourceConfig(strict_undefined=True)
    assert render("a {{x}} ||| b")[0] == ["a", "b"]
    with pytest.raises(RenderError, match="'x' is undefined"):
        render("a {{x}} ||| b", config=strict)


def test_a_row_that_does_not_fit_is_no_fault_of_the_run(render):
    with pytest.raises(RenderError, match="TypeError"):
        render("{{ (x + 1) }} ||| b", x="text")


def test_a_column_called_answer_choices_is_refused(read):
    (one,) = read(template("a ||| b"))
    with pytest.raises(UserError, match="a column is called 'answer_choices'"):
        Renderer(one, CONFIG).render({"answer_choices": ["c"]}, Choices(""))


@pytest.mark.parametrize(
    ("jinja", "answer_choices", "message"),
    [
        ("{{ x.__class__.__mro__ }} ||| y", None, "private attribute"),
        ("{{ x['__class__'] }} ||| y", None, "reads '__class__' of a str"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            None,
            "sec",
        ),
        ("{{ ('x' * 1000000000) }} ||| y", None, "creates too much"),
        ("a ||| b", "{{ ('x' * 1000000000) }}", "creates too much"),
        ("{% include 'f' %} ||| y", None, "uses 'Include'"),
        ("{{ x | no_such_filter }} ||| y", None, "not valid: line 1: No filter named"),
        ("{{ x ||| y", None, "is not valid: line 1"),
    ],
)
def test_a_hostile_or_broken_template_is_one_line_with_its_id(
    render, jinja, answer_choices, message
):
    with pytest.raises(UserError, match=message) as e:
        render(jinja, answer_choices, x="abc")
    assert template(jinja, answer_choices)["id"] in str(e.value)
    assert "templates.yaml" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("!TemplateMetadata", "!!python/object/apply:os.mkdir [HERE]", "line"),
        ("!Template\n", "!!python/object/new:os.system\n", "could not determine a constructor"),
        ("templates:", "templates: [", "a template file is not YAML"),
        ("templates:", "other:", "no mapping `templates`"),
        ("    jinja: ", "    jinja_: ", "jinja is missing or of the wrong type"),
        ("original_task: true", "original_task: [1]", "metadata.original_task is missing or"),
    ],
)
def test_a_hostile_or_damaged_file_is_one_line_with_its_name(tmp_path, old, new, message):
    path = write_templates(tmp_path, "set", [template("{{x}} ||| y")])
    text = path.read_text()
    assert old in text
    harm = tmp_path / "harm"
    path.write_text(text.replace(old, new.replace("HERE", str(harm))))
    with pytest.raises(UserError, match=message) as e:
        read_templates(path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert not os.path.exists(harm)


def test_a_stray_field_is_ignored_and_the_rest_is_kept(read):
    (one,) = read(template("a ||| b", "b ||| c", name="n ", task_template=True))
    assert (one.name, one.jinja, one.answer_choices) == ("n ", "a ||| b", "b ||| c")
    assert (one.original_task, one.choices_in_prompt) == (True, False)
    assert (one.metrics, one.languages) == (("Accuracy",), ("en",))
