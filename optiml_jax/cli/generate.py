"""`optiml generate`: continues a prompt, the prompts of a file, or typed ones."""

import contextlib
import pathlib
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.checkpoints import load_model
from optiml_jax.cli.settings import Evaluate, Generate, Run, configured, expand
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data import chat
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.decoding import Sampling
from optiml_jax.evaluate.runner import check_vocabulary
from optiml_jax.exchange.generation import Generator, TextAnswer, TextPrompt, read_prompts
from optiml_jax.exchange.request_files import json_line
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.paths import plain_path
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.words import counted

_HELP = "Ctrl-C stops an answer, /clear starts a new conversation, Ctrl-D exits"


def main() -> None:
    settings = Generate()
    generator = make_generator(configured(Run), settings)
    default = TextPrompt("", settings.max_new_tokens, settings.stop, settings.seed)
    if settings.prompts is not None:
        answer_file(generator, settings, default)
    elif settings.prompt is not None:
        show_answer(generator, _with_text(default, settings.prompt))
    else:
        converse(generator, settings, default)


def make_generator(run: Run, settings: Generate) -> Generator:
    """The model of the run, on the configured mesh."""
    config, place = MeshConfig(), str(settings.checkpoint)
    if place.isdigit():
        place = f"{run.run_dir}/checkpoints/{place}"
    place = expand(place, "Generate.checkpoint")
    vocabulary = load_run_vocabulary(run, (place,))
    mesh = make_mesh(config)
    model = load_model(run, Evaluate(), place, mesh, config.preset)
    check_vocabulary(vocabulary, model.config, model.metadata)
    engine = Engine(
        model.graphdef,
        model.params,
        model.config,
        model.metadata.get("bos_id", model.config.bos_id),
        EvalConfig().tokens_per_batch,
        mesh,
        config.preset,
    )
    return Generator(engine, vocabulary, Sampling(settings.temperature, settings.top_p))


def answer_file(generator: Generator, settings: Generate, default: TextPrompt) -> None:
    """Answers all prompts of a file, in order."""
    output = plain_path(expand(settings.output, "Generate.output"), "Generate.output")
    prompts = plain_path(expand(settings.prompts, "Generate.prompts"), "Generate.prompts")
    number = cut = 0
    with (
        disk_errors(output, "answers"),
        atomic_path(output) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        for batch in read_prompts(prompts, default, PromptConfig().chat):
            for prompt, answer in zip(batch, generator.answers(batch), strict=True):
                row = {"id": prompt.id, "text": answer.text, "finished": answer.finished}
                row |= {"num_tokens": answer.num_tokens, "logprob": answer.logprob}
                file.write(json_line(row))
                number, cut = number + 1, cut + (answer.num_cut > 0)
    note = f", {counted(cut, 'prompt')} truncated on the left" if cut else ""
    print(f"{counted(number, 'answer')}: {output}{note}")


def show_answer(generator: Generator, prompt: TextPrompt) -> TextAnswer:
    """Prints the answer while it is generated."""
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        text = text.rstrip("\ufffd")  # the first bytes of a character
        print(text[shown:], end="", flush=True)
        shown = max(shown, len(text))

    (answer,) = generator.answers([prompt], show)
    print(answer.text[shown:], flush=True)
    if answer.num_cut:
        cut = counted(answer.num_cut, "token")
        print(f"(the prompt was truncated by {cut} on the left)", file=sys.stderr)
    return answer


def converse(generator: Generator, settings: Generate, default: TextPrompt) -> None:
    """Reads prompts until the input ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and earlier lines
    print(_HELP, file=sys.stderr)
    said: list[str] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            continue
        if line.strip() == "/clear":
            said.clear()
            continue
        if not line.strip():
            continue
        prompt = settings.separator.join([*said, line]) if settings.history else line
        try:
            answer = show_answer(generator, _with_text(default, prompt))
            said.append(line + answer.text)
        except KeyboardInterrupt:
            print(" (stopped)")


def _with_text(default: TextPrompt, text: str) -> TextPrompt:
    framed = chat.put_in(PromptConfig().chat, text)
    return TextPrompt(framed, default.max_new_tokens, default.stop, default.seed)


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
