import time

import jinja2
import pytest

from tasks.templates.budget import LimitError
from tasks.templates.sandbox import Choices, Environment

GROW = "{% set ns = namespace(s=SEED) %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}"


def grow(seed: str, step: str, use: str = "{{ ns.s }}") -> str:
    return GROW.replace("SEED", seed).replace("STEP", step) + use


def rendered(text: str, key: str = "k", strict: bool = False, **fields) -> str:
    environment = Environment(strict)
    size = sum(len(v) for v in fields.values() if isinstance(v, str))
    return environment.render(environment.compile_text(text), fields, Choices(key), size)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ x['__class__'] }}",
        "{{ x['format']('{0.__class__}') }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ range.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ x.encode | string }}",
        "{{ x['en' ~ 'code']() }}",
        "{{ x | map(attribute='__class__') | first | length }}{{ x.zfill(9) }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in x recursive %}{{ loop(x) }}{% endfor %}",
        "{{ x | attr('__class__') }}",
        "{{ lipsum(n=1000000) }}",
    ],
)
def test_what_templates_have_no_business_with_is_refused(text):
    with pytest.raises((LimitError, jinja2.TemplateError)):
        rendered(text, x="abc")


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set l = [0] %}{% for i in l %}{% if l.append(1) %}{% endif %}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{{ 'x' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}{{ (9 ** 999) ** 9999 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%(a)1000000000d' % {'a': 1} }}",
        "{{ '%(a(b)c)1000000000d' % {'a(b)c': 1} }}",
        "{{ '%.1000000000f' | format(1.5) }}",
        "{{ 1 | round(1000000000) }}",
        grow("'x'", "ns.s + ns.s"),
        grow("'x'", "ns.s ~ ns.s"),
        grow("'x'", "ns.s.replace('x', 'xx')"),
        grow("'x'", "ns.s | replace('x', 'xx')"),
        grow("'xx'", "ns.s.join(ns.s)"),
        grow("'xx'", "ns.s | join(ns.s)"),
        grow("['x']", "ns.s + ns.s"),
        grow("['x']", "[ns.s, ns.s]"),
        grow("['x']", "[ns.s, ns.s]", "{{ ns.s == [ns.s] }}"),
        grow("(1,)", "(ns.s, ns.s)", "{% set d = {ns.s: 1} %}"),
        grow("3", "ns.s * ns.s"),
        "{% set l = [] %}{% for i in range(99999) %}{% if l.append('y' * 99999) %}{% endif %}"
        "{% endfor %}",
        "{% for i in range(99999) %}{{ 'y' * 9999 }}{% endfor %}",
        "{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}",
        "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
        "{{ 1" + " + 1" * 24000 + " }}",
        "y" * 200_000,
    ],
)
def test_what_takes_too_much_is_refused_within_seconds(text):
    start = time.thread_time()
    with pytest.raises((LimitError, RecursionError, MemoryError)):
        rendered(text)
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("field", ["%(", "%((((", "%.", "% ", ")%("])
def test_a_long_format_is_checked_in_time_linear_in_it(field):
    start = time.thread_time()
    for text in (
        f"{{{{ ('{field}' * 400000) % 1 }}}}",
        f"{{{{ '{field}' * 400000 | format(1) }}}}",
    ):
        with pytest.raises((TypeError, ValueError)):
            rendered(text)
    assert time.thread_time() - start < 10


def test_widths_of_real_templates_are_allowed():
    assert rendered("{{ '%5.1f%%, (%s) 5000' % (2.5, 'x') }}") == "  2.5%, (x) 5000"
    assert rendered("{{ '%(a)3d (of 9)' % {'a': 7} }}") == "  7 (of 9)"


def test_the_language_of_real_templates_is_allowed():
    text = (
        "{% set ns = namespace(n=0) %}{% set words = [] %}"
        "{% for a, b in zip(x.split(' '), [3, 1]) %}"
        "{% if loop.first or b < 3 %}{% set ns.n = ns.n + b %}{% endif %}"
        "{{ words.append(a | upper) or '' }}{% endfor %}"
        "{{ words | join(', ') }};{{ ns.n }};{{ {'k': 'v'}.k }};{{ [0.25 * 3] | first | round(1) }}"
        ";{{ ['b', 'a', 'b'] | most_frequent | first }};{{ 7 % 4 }};{{ 'a' in x }}"
    )
    assert rendered(text, x="one two") == "ONE, TWO;4;v;0.8;b;3;False"


def test_lists_that_grow_by_addition_in_a_loop_are_allowed():
    text = (
        "{% set ns = namespace(all=[]) %}{% for t in x.split() %}{% set ns.all = ns.all + [t] %}"
        "{% endfor %}{{ ns.all | length }}"
    )
    assert rendered(text, x="word " * 3000) == "3000"


def test_draws_depend_on_their_key_and_position_alone():
    text = "{{ [1, 2, 3, 4, 5, 6] | choice }}{{ 'abcdef' | random }}"
    drawn = [rendered(text, key=str(k)) for k in range(40)]
    assert drawn == [rendered(text, key=str(k)) for k in range(40)]
    assert {d[0] for d in drawn} == set("123456")
    assert {d[1] for d in drawn} == set("abcdef")
    assert len(set(drawn)) > 15


def test_an_undefined_variable_is_empty_or_with_strictness_an_error():
    assert rendered("a{{ nothing }}b") == "ab"
    with pytest.raises(jinja2.UndefinedError):
        rendered("a{{ nothing }}b", strict=True)
