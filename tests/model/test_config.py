"""The configuration: published sizes, derived widths, one-line errors, gin."""

import dataclasses
import json
import pathlib
import re

import gin
import jax
import pytest

from optiml_jax.errors import UserError
from optiml_jax.model.architectures import config_from_dict, model_config
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.llama.config import SIZES as LLAMA_SIZES
from optiml_jax.model.llama.config import LlamaConfig
from optiml_jax.model.opt.config import SIZES, OPTConfig

ROOT = pathlib.Path(__file__).parents[2]

# OPT paper, table 1 (layers, heads, width), and the parameters of Hugging Face's models.
PUBLISHED = {
    "125m": (12, 12, 768, 125_239_296),
    "350m": (24, 16, 1024, 331_196_416),
    "1.3b": (24, 32, 2048, 1_315_758_080),
    "2.7b": (32, 32, 2560, 2_651_596_800),
    "6.7b": (32, 32, 4096, 6_658_473_984),
    "13b": (40, 40, 5120, 12_853_473_280),
    "30b": (48, 56, 7168, 29_974_540_288),
    "66b": (64, 72, 9216, 65_719_701_504),
    "175b": (96, 96, 12288, 174_604_468_224),
}

# The parameters of the published models, as the Hub counts them.
PUBLISHED_LLAMA = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("size", LLAMA_SIZES)
def test_sizes_of_llamas_kind_have_the_published_parameters(size):
    config = model_config(size)
    assert config.num_params == PUBLISHED_LLAMA[size]
    shapes = jax.tree.leaves(abstract_model(config)[1])
    assert sum(x.size for x in shapes) == config.num_params


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_are_the_published_ones(size):
    config = model_config(size)
    layers, heads, width, num_params = PUBLISHED[size]
    assert (config.num_layers, config.num_heads, config.d_model) == (layers, heads, width)
    assert (config.vocab_size, config.max_positions, config.position_offset) == (50272, 2048, 2)
    assert config.ffn_dim == 4 * width
    assert (config.dropout, config.attention_dropout) == (0.1, 0.0)
    assert config.embed_dim == (512 if size == "350m" else width)
    assert config.pre_layer_norm == config.final_layer_norm == (size != "350m")
    assert config.num_params == num_params
    shapes = jax.tree.leaves(abstract_model(config)[1])
    assert sum(x.size for x in shapes) == num_params


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_as_many_as_hugging_faces(size):
    reason = "torch is not installed; the numbers of the test above stand in"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    config = model_config(size)
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=config.d_model,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                ffn_dim=config.ffn_dim,
                word_embed_proj_dim=config.embed_dim,
                do_layer_norm_before=config.pre_layer_norm,
            )
        )
    assert model.num_parameters() == config.num_params


def test_a_configuration_survives_its_dict():
    config = model_config("350m", dropout=0.0, remat="full")
    values = json.loads(json.dumps(config.to_dict()))
    assert values["architecture"] == "opt"
    assert config_from_dict(values) == config


def test_a_configuration_without_an_architecture_is_opts():
    values = model_config("350m").to_dict()
    del values["architecture"], values["more_eos_ids"]  # as the first checkpoints say it
    assert config_from_dict(values) == model_config("350m")


def test_replaced_width_takes_the_derived_widths_along():
    config = model_config("125m", d_model=96)
    assert (config.ffn_dim, config.embed_dim, config.has_projections) == (384, 96, False)
    assert model_config("350m", d_model=96, num_heads=4).embed_dim == 512


# Gin appends lines of its own to what a configurable raises; the command line drops them.
_plain = model_config.__wrapped__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _plain("7b"), "unknown model size '7b'; choose one of 125m, 350m"),
        (lambda: _plain("125m", width=3), "unknown field 'width'"),
        (lambda: config_from_dict({"layers": 3}), "unknown field 'layers'"),
        (lambda: config_from_dict({"architecture": "rnn"}), "unknown architecture 'rnn'"),
        (lambda: OPTConfig(num_heads=7), "num_heads 7 does not divide d_model 768"),
        (
            lambda: OPTConfig(num_layers=0),
            r"num_layers = 0 \(int\) must be a whole number of at least 1",
        ),
        (lambda: OPTConfig(eos_id=[2, 3]), r"eos_id = \[2, 3\] \(list\) must be a whole number"),
        (lambda: OPTConfig(dtype="float8"), "dtype = 'float8' .* must be one of 'float32'"),
        (lambda: OPTConfig(remat="some"), "remat = 'some' .* one of 'none', 'dots', .* 'full'"),
        (lambda: _plain("llama-3.1-8b", "opt"), "'llama-3.1-8b' is of 'llama', not of 'opt'"),
        (lambda: LlamaConfig(num_kv_heads=5), "num_kv_heads 5 does not divide num_heads 12"),
        (lambda: LlamaConfig(head_dim=5), "head_dim 5 is odd"),
        (lambda: LlamaConfig(rope_type="yarn"), "'yarn' needs rope_original_positions"),
        (lambda: OPTConfig(dropout=1.0), r"dropout = 1.0 .* at least 0 and below 1"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [*SIZES, *LLAMA_SIZES])
def test_every_size_has_its_gin_file(size):
    name = f"opt_{size}" if size in SIZES else size
    file = ROOT / "gin" / "models" / f"{re.sub('[.-]', '_', name)}.gin"
    gin.parse_config_file(str(file))
    gin.bind_parameter("model_config.dropout", 0.5)
    assert model_config() == dataclasses.replace(_plain(size), dropout=0.5)
