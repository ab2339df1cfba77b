"""What the config.json of a model folder may state, checked field by field before anything is made of it.

Transformers makes an attribute of whatever a config.json states, and takes from some of them code to import, kernels to
fetch or other files to read. So it is given the fields that the model type itself declares, and nothing else.
"""

import math
import reprlib
from contextlib import contextmanager
from dataclasses import fields
from importlib import metadata
from types import SimpleNamespace

from editscale.files import read_json
from editscale.models.anatomy import family_of
from editscale.models.hidden_states import is_out_of_memory

AGAIN = "get it again"
# Fields that a model type reads without declaring them, as older files have them.
OLDER = (
    "rope_theta",
    "rope_scaling",
    "rotary_emb_base",
    "rotary_pct",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "sliding_window_pattern",
)
# Fields that make another kind of model: what they mean.
UNSUPPORTED = {
    "quantization_config": "quantized weights; an edit needs the full-precision weights",
    "compression_config": "compressed weights; an edit needs the full-precision weights",
    "per_layer_config": "layers that differ from each other, which are not supported",
}


def _is_number(x):
    return type(x) in (int, float)


def _is_activation(x):
    from transformers.activations import ACT2FN

    return type(x) is str and x in ACT2FN


def _is_rope_type(x):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return type(x) is str and x in ("default", *ROPE_INIT_FUNCTIONS)


def _is_token(x):
    return type(x) is int and -1 <= x < 2**31


def _is_kind(x):
    return x in ("full_attention", "sliding_attention")


def _are(is_one):
    return lambda x: type(x) is list and all(map(is_one, x))


_SIZE = "a whole number from 1 to 2^24", lambda x: type(x) is int and 1 <= x <= 2**24
_COUNT = "a whole number from 0 to 2^24", lambda x: type(x) is int and 0 <= x <= 2**24
_SHARE = "a number from 0 to 1", lambda x: _is_number(x) and 0 <= x <= 1
_POSITIVE = "a number above 0", lambda x: _is_number(x) and 0 < x < math.inf
_FLAG = "true or false", lambda x: type(x) is bool
_FALSE = "false", lambda x: x is False
_ACTIVATION = "the name of an activation in transformers", _is_activation
_ROPE_TYPE = "the name of a kind of rotary positions in transformers", _is_rope_type
_TOKEN = "a token's number", _is_token
_TOKENS = "a token's number, or a list of them", lambda x: _is_token(x) or _are(_is_token)(x)
_OBJECT = "an object", lambda x: type(x) is dict
_FACTORS = "a list of numbers above 0", _are(_POSITIVE[1])
_KINDS = 'a list of "full_attention" and "sliding_attention"', _are(_is_kind)

# What a field holds, where it is stated and not null, in words and as a test.
RULES = {
    name: rule
    for rule, names in {
        _SIZE: "vocab_size n_positions n_embd n_layer n_head n_inner rotary_dim hidden_size intermediate_size "
        "num_hidden_layers num_attention_heads num_key_value_heads head_dim max_position_embeddings sliding_window "
        "sliding_window_pattern query_pre_attn_scalar original_max_position_embeddings",
        _COUNT: "max_window_layers",
        _SHARE: "layer_norm_epsilon layer_norm_eps rms_norm_eps rotary_pct partial_rotary_factor attn_pdrop embd_pdrop "
        "resid_pdrop attention_dropout hidden_dropout classifier_dropout summary_first_dropout initializer_range",
        _POSITIVE: "rope_theta rotary_emb_base rope_local_base_freq final_logit_softcapping attn_logit_softcapping "
        "factor attention_factor beta_fast beta_slow low_freq_factor high_freq_factor mscale mscale_all_dim",
        _FLAG: "tie_word_embeddings attention_bias mlp_bias use_parallel_residual scale_attn_weights "
        "use_sliding_window scale_attn_by_inverse_layer_idx reorder_and_upcast_attn use_bidirectional_attention "
        "truncate",
        _FALSE: "add_cross_attention",
        _ACTIVATION: "activation_function hidden_act hidden_activation",
        _ROPE_TYPE: "rope_type type",
        _TOKEN: "bos_token_id pad_token_id",
        _TOKENS: "eos_token_id",
        _OBJECT: "rope_scaling rope_parameters full_attention sliding_attention",
        _FACTORS: "short_factor long_factor",
        _KINDS: "layer_types",
    }.items()
    for name in names.split()
}


def check(file, stated):
    """Raise ValueError, naming file and field, if a field that has a rule breaks it; also in objects within."""
    for name, value in stated.items():
        words, holds = RULES.get(name, ("", lambda _: True))
        if value is not None and not holds(value) or value is None and name in ("rope_theta", "rope_type", "factor"):
            raise ValueError(f"{file} has {name} {reprlib.repr(value)}; expected {words}: {AGAIN}")
        if words == _OBJECT[0] and value:
            check(file, value)


def model_config(folder, dtype):
    """The Hugging Face config of the model in a folder, of a model for texts and images that of its part for texts.

    Raises ValueError, naming file and field, for what no model that can be edited has.
    """
    import torch
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; a model folder holds config.json, *.safetensors and tokenizer.json"
        )
    whole = read_json(file, AGAIN)
    stated = whole["text_config"] if type(whole.get("text_config")) is dict else whole
    model_type = str(stated.get("model_type"))
    try:
        family_of(SimpleNamespace(model_type=model_type))
    except ValueError as error:
        raise ValueError(f"{file}, model_type: {error}") from None
    for name, meaning in UNSUPPORTED.items():
        if whole.get(name) or stated.get(name):
            raise ValueError(f"{file} has {name}: {meaning}")

    declared = {of.name for of in fields(CONFIG_MAPPING[model_type])} - {of.name for of in fields(PreTrainedConfig)}
    known = {*declared, *CONFIG_MAPPING[model_type].attribute_map, *OLDER}
    given = {name: value for name, value in stated.items() if name in known}
    check(file, given)
    with named(folder):
        if stated is not whole:  # where the weights are, decides
            outer = CONFIG_MAPPING[whole.get("model_type")]
            given["tie_word_embeddings"] = whole.get("tie_word_embeddings", outer.tie_word_embeddings)
            check(file, given)
        config = CONFIG_MAPPING[model_type](**given, dtype=getattr(torch, dtype))
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError(f"the model in {folder} attends to later tokens too; an edit needs a causal language model")
    n_rows, d_head = config.vocab_size, config.hidden_size // config.num_attention_heads
    if (pad := getattr(config, "pad_token_id", None)) is not None and pad >= n_rows:
        raise ValueError(f"{file} has pad_token_id {pad}, but embeddings of {n_rows} tokens only: {AGAIN}")
    if (rotary := getattr(config, "rotary_dim", None)) is not None and (rotary > d_head or rotary % 2):
        raise ValueError(f"{file} has rotary_dim {rotary}; expected an even number up to {d_head}, a head's: {AGAIN}")
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same as one kernel instead of eight; rounding differs
    return config


def end_tokens(folder, n_rows):
    """Tokens that end a text, as generation_config.json has them, or config.json where there is none: a number, a list
    or None. Raises ValueError, naming file and field, unless each is one of the n_rows that have embeddings."""
    file = folder / "generation_config.json"
    if not file.is_file():
        file = folder / "config.json"
    ends = read_json(file, AGAIN).get("eos_token_id")
    check(file, {"eos_token_id": ends})
    if not all(0 <= end < n_rows for end in (ends if type(ends) is list else [ends] * (ends is not None))):
        raise ValueError(f"{file} has eos_token_id {ends}; expected a token's number, 0 to {n_rows - 1}: {AGAIN}")
    return ends


def sizes(config):
    """The sizes that a config states or has by default, in words."""
    return ", ".join(
        f"{name} {vars(config)[name]}" for name, rule in RULES.items() if rule is _SIZE and name in vars(config)
    )


@contextmanager
def named(folder):
    """Raise what transformers makes of an odd config as a ValueError that names the folder."""
    try:
        yield
    except Exception as error:  # of many types: of validation, KeyError for an unknown name, RuntimeError for a size
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        version = metadata.version("transformers")
        raise ValueError(
            f"transformers {version} cannot make a model of the config in {folder} ({reason}); {AGAIN}"
        ) from error
