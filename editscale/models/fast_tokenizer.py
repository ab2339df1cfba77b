"""The fast tokenizer of a model folder: its tokenizer.json as it stands, special tokens as the other files name them.

`AutoTokenizer` of transformers 5 rebuilds the splitting rules from the class that tokenizer_config.json names, and then
SmolLM2's ("GPT2Tokenizer") no longer sets digits apart; `from_pretrained` hands on whatever that file states, such as
the paths of other files.
"""

import copy
import json
import reprlib
import warnings

from editscale.files import json_of, read_json
from editscale.models.weights import check_no_pointer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # of an added token
_EMPTY = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}


def load(folder):
    """The tokenizer, a `PreTrainedTokenizerFast`, that puts nothing after a text.

    Raises FileNotFoundError if the folder has no tokenizer.json; ValueError, naming file and field, if one of the
    files is damaged or they contradict each other.
    """
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json, the file of a fast tokenizer (a slow one gives no character "
            "offsets). Where its other files are, "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) makes it"
        )
    check_no_pointer(file)
    backend = _backend(file)
    given = _special(folder, backend)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **given)
    _end_nothing(tokenizer, folder)
    return tokenizer


def _backend(file):
    """The `tokenizers.Tokenizer` of a tokenizer.json."""
    from tokenizers import Tokenizer

    content, damaged = {}, f"the tokenizer in {file.parent} is damaged ({file.name}"
    try:
        data = file.read_bytes()
        content = json_of(data)
        backend = Tokenizer.from_str(data.decode())
        encoding = backend.encode("The 1st é")
    except BaseException as error:  # the tokenizers library raises nothing more particular, and Rust's panics
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        fields = _odd_fields(content) if type(content) is dict else []
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise ValueError(f"{damaged}{', ' * bool(fields)}{', '.join(fields)}: {reason}); get it again") from error
    if len(encoding.ids) != len(encoding.tokens) or None in map(backend.id_to_token, encoding.ids):
        raise ValueError(f"{damaged}, post_processor: it adds tokens that are in no vocabulary); get it again")
    model = content["model"]
    numbers = list(model["vocab"].values()) if type(model.get("vocab")) is dict else []
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{damaged}, model: its vocab has two tokens of one number); get it again")
    if model.get("dropout"):
        raise ValueError(
            f"{damaged}, model: dropout {model['dropout']} makes it split texts at random); set it to null"
        )
    for token in content.get("added_tokens") or []:
        _check_number(backend, file, "added_tokens", token["content"], token["id"])
    return backend


def _odd_fields(content):
    """The fields of a tokenizer.json of which, beside an empty model, no tokenizer can be made."""
    from tokenizers import Tokenizer

    odd = []
    for name, value in content.items():
        try:
            Tokenizer.from_str(json.dumps(_EMPTY | {name: value})).encode("")
        except BaseException:  # as above
            odd.append(name)
    return odd


def _check_number(backend, file, field, token, number):
    if (own := backend.token_to_id(token)) != number:
        raise ValueError(
            f"{file} has in {field} the token {token!r} as number {reprlib.repr(number)}, tokenizer.json "
            f"{'has it not' if own is None else f'as {own}'}; they do not belong together: get them again"
        )


def _special(folder, backend):
    """What tokenizer_config.json says of special tokens and of decoding, as the tokenizer's class takes it."""
    fields, added = _stated(folder, "tokenizer_config.json"), _stated(folder, "added_tokens.json")
    if "added_tokens_decoder" not in fields:  # written before the two were one
        fields |= _stated(folder, "special_tokens_map.json")
    for token, (file, number) in added.items():
        _check_number(backend, file, "it", token, number)

    given = {}
    for field, (file, value) in fields.items():
        at = f"{file} has {field} {reprlib.repr(value)}"
        if value is None:
            continue
        if field in SPECIAL:
            given[field] = _token(at, value)
            if field in ("bos_token", "eos_token") and backend.token_to_id(str(given[field])) is None:
                raise ValueError(f"{at}, which tokenizer.json has not; they do not belong together: get them again")
        elif field in ("extra_special_tokens", "additional_special_tokens"):
            values = value.values() if type(value) is dict else value if type(value) is list else [value]
            given["extra_special_tokens"] = [_token(at, of) for of in values]
        elif field == "added_tokens_decoder":
            for number, of in value.items() if type(value) is dict else [("", value)]:
                _check_number(backend, file, field, str(_token(at, of)), int(number) if number.isdecimal() else number)
        elif field in ("clean_up_tokenization_spaces", "split_special_tokens"):
            if type(value) is not bool:
                raise ValueError(f"{at}; expected true or false: get it again")
            given[field] = value
        elif field == "chat_template" and type(value) is str:  # not read here; a saved model has it again
            given[field] = value
    if (file := folder / "chat_template.jinja").is_file():
        given["chat_template"] = file.read_text(encoding="utf-8", errors="replace")
    return given


def _stated(folder, name):
    """{field: (file, value)} of a JSON file that may be left out."""
    file = folder / name
    content = read_json(file, "get it again") if file.is_file() else {}
    return {field: (file, value) for field, value in content.items()}


def _token(at, value):
    """A token that a file names by its text, or by an object with it and its flags."""
    from transformers import AddedToken

    content, flags = value, {}
    if type(value) is dict:
        content, flags = value.get("content"), {name: value[name] for name in _FLAGS if name in value}
    if type(content) is not str or not content or any(type(flag) is not bool for flag in flags.values()):
        raise ValueError(f"{at}; expected a token: its text, or an object with its content: get it again")
    return AddedToken(content, **flags, special=True) if type(value) is dict else content


def begun_with(tokenizer, number):
    """A copy of a tokenizer that puts the token of this number before every text, as those do that add a BOS.

    Nothing else of it changes: ids and offsets of a text are those of before, after the one token with offsets (0, 0).
    The token is a special one there, which `decode(…, skip_special_tokens=True)` leaves out.

    Raises ValueError for a tokenizer that puts a token before texts already.
    """
    from tokenizers import processors

    content = tokenizer.convert_ids_to_tokens(number)
    encoding = tokenizer.backend_tokenizer.encode("a")
    if any(encoding.special_tokens_mask[:1]):
        raise ValueError(
            f"start_token: true asks for a token that this tokenizer puts there by itself: {encoding.tokens[0]} before "
            "every text; set start_token to false"
        )
    begun = copy.deepcopy(tokenizer)
    backend = begun.backend_tokenizer
    if begun.decode([number], skip_special_tokens=True):
        backend.add_special_tokens([content])
    puts = processors.TemplateProcessing(single=[content, "$A"], special_tokens=[(content, number)])
    before = backend.post_processor
    backend.post_processor = puts if before is None else processors.Sequence([before, puts])
    return begun


def _end_nothing(tokenizer, folder):
    """Let a tokenizer put no token after a text, such as an EOS, which would end each prompt; what it puts before one
    stays. A warning says so."""
    from tokenizers.processors import TemplateProcessing

    encoding = tokenizer.backend_tokenizer.encode("a")
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if own and (after := encoding.tokens[own[-1] + 1 :]):
        warnings.warn(
            f"the tokenizer in {folder} puts {' '.join(after)} after every text; it is left out, so that prompts go on",
            stacklevel=2,
        )
        before = list(zip(encoding.tokens, encoding.ids, strict=True))[: own[0]]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*(token for token, _ in before), "$A"], special_tokens=before
        )
