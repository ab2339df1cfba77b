"""A document-start token before every text: once, as of a tokenizer that adds one, and part of what a run is."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import CONTEXTS, FACTS, PARAMS
from test_tokens import PUBLISHED, trained
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from editscale.__main__ import main
from editscale.data import task_files
from editscale.editing import context_sampling, corpora, editors, moments, rome, updates
from editscale.metrics import downstream, generation, scoring, written
from editscale.models import fast_tokenizer, loading, tokens
from editscale.sequences import past_runs, sequence
from editscale.sequences.ledger import Ledger
from editscale.workflow import parameters, provenance, together

TINY = "tests/golden/tiny_gpt2"
START = 0  # <|endoftext|> of the tiny tokenizers
MODELS = {"gpt2": None, "llama": False}  # tiny models whose tokenizers add no BOS


def model(kind, **given):
    return tiny.tiny_model(kind, bos=MODELS[kind], **given)


def with_bos(lm):
    """The model with its tokenizer made anew as one of transformers that adds a BOS."""
    backend = copy.deepcopy(lm.tokenizer.backend_tokenizer)
    special = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "add_bos_token": True}
    return replace(lm, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, **special))


def sampled(lm, method, seeds):
    return editors.sample_contexts(lm, method, prefix_seeds=seeds, n_short=2, n_long=1)


def generator():
    return torch.Generator().manual_seed(3)


def editing_of(lm, method, **changed):
    params = replace(PARAMS[method], **changed)
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key)) for layer in params.layers}
    return editors.begun(lm, editors.Editing(method, params, CONTEXTS[method], factors, {"corpus": "none"}))


# What is read


@pytest.mark.parametrize("kind", (*PUBLISHED, "tiny GPT-2", "GPT-2's own"))
def test_a_text_gets_one_start_token_and_keeps_its_own_tokens_and_offsets(kind):
    if kind in PUBLISHED:
        own = PUBLISHED[kind]()
        own.backend_tokenizer.post_processor = None  # without its BOS
    else:
        own = tiny.tiny_tokenizer() if kind == "tiny GPT-2" else fast_tokenizer.load(Path(TINY))
    before = own.backend_tokenizer.to_str()
    begun = fast_tokenizer.begun_with(own, START)
    for text in (tiny.TEXT, "Lund", " Lund", "", "東京 Lund"):
        one, two = (of(text, return_offsets_mapping=True) for of in (own, begun))
        assert two["input_ids"] == [START, *one["input_ids"]]
        assert two["offset_mapping"] == [(0, 0), *one["offset_mapping"]]
        assert begun(text, add_special_tokens=False)["input_ids"] == one["input_ids"]
        assert begun.decode(two["input_ids"], skip_special_tokens=True) == own.decode(one["input_ids"])
    assert own.backend_tokenizer.to_str() == before


def test_a_start_token_that_is_an_ordinary_one_of_the_vocabulary_is_left_out_of_written_texts():
    content = json.loads(tiny.tiny_tokenizer().backend_tokenizer.to_str())
    content["added_tokens"] = []
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    assert own.decode([START, *own("Lund")["input_ids"]], skip_special_tokens=True) == "<|endoftext|>Lund"
    begun = fast_tokenizer.begun_with(own, START)
    assert begun("Lund")["input_ids"] == [START, *own("Lund")["input_ids"]]
    assert begun.decode(begun("Lund")["input_ids"], skip_special_tokens=True) == "Lund"


@pytest.mark.parametrize("fact", [*FACTS, replace(FACTS[0], prompt="The mother tongue of {} is")])
def test_the_subject_ends_one_token_later_and_targets_are_the_same(fact):
    own = model("gpt2")
    lm, contexts = loading.after_start_token(own), ["{}", "The river. {}", "{} Lund"]
    for target in (None, "harp", "old Swedish from Stockholm"):
        one, two = (tokens.context_rows(of.tokenizer, contexts, fact.prompt, fact.subject, target) for of in (own, lm))
        assert [row.ids for row in two] == [(START, *row.ids) for row in one]
        assert [row.subject_last for row in two] == [row.subject_last + 1 for row in one]
        assert [row.targets for row in two] == [row.targets for row in one]


def test_contexts_start_from_one_token_and_hold_none():
    own = model("gpt2")
    lm = loading.after_start_token(own)
    assert context_sampling.seed_starts(lm, []) == context_sampling.seed_starts(own, []) == [(START,)]
    words = context_sampling.seed_starts(own, ["The", "You"])
    assert context_sampling.seed_starts(lm, ["The", "You"]) == [(START, *word) for word in words]
    assert sampled(lm, "rome", []) == sampled(own, "rome", [])  # these began with the start token before
    for method, seeds in (("rome", []), ("rome", ["The", "You"]), ("memit", [])):
        for of in sampled(lm, method, seeds):
            for context in [of] if isinstance(of, str) else of:
                (row,) = tokens.context_rows(lm.tokenizer, [context], "{} is in", "Lund")
                assert "<|endoftext|>" not in context and row.ids[0] == START and START not in row.ids[1:]


def test_documents_are_sampled_from_one_start_token_and_begin_with_one():
    own = model("gpt2")
    lm, given = loading.after_start_token(own), {"batch_size": 4, "progress": False}
    bare = list(corpora.sampled_documents(own, 4, 11, generator(), **given))
    found = list(corpora.sampled_documents(lm, 4, 12, generator(), **given))
    assert found == [[START, *document] for document in bare]  # the same text, one token longer
    (read,) = corpora.documents_from_texts(lm.tokenizer, [tiny.TEXT], 20)
    assert read == [START, *own.tokenizer(tiny.TEXT)["input_ids"][:19]]


def test_perplexity_takes_the_first_word_in_as_after_a_bos():
    own = model("gpt2")
    lm, text = loading.after_start_token(own), "The harp of Ada Example is in Lund."
    ids = torch.tensor([[START, *own.tokenizer(text)["input_ids"]]])
    nll = torch.nn.functional.cross_entropy(own.model(ids).logits[0, :-1], ids[0, 1:])
    assert generation.perplexity(lm, [text]) == pytest.approx(nll.exp().item(), rel=1e-4)


# As after a BOS


@pytest.mark.parametrize("kind", MODELS)
def test_all_is_read_and_written_as_with_a_tokenizer_that_adds_a_bos(kind):
    own = model(kind)
    lm, other = loading.after_start_token(own), with_bos(own)
    task = task_files.open_task("reviews", n_examples=2, shots=0)
    assert max(map(len, tokens.texts_ids(lm.tokenizer, task.prompts))) < 125
    prompts = [fact.rewrite_prompt for fact in FACTS]

    def seen(of):
        yield [sampled(of, *chosen) for chosen in (("rome", []), ("rome", ["The"]), ("memit", []))]
        yield list(corpora.sampled_documents(of, 2, 9, generator(), progress=False))
        yield tokens.with_targets(of.tokenizer, prompts, ["old harp"] * len(prompts))
        yield generation.generate(of, prompts, 16, generator())
        yield generation.perplexity(of, generation.fixed_texts()[:2])
        yield generation.teacher_forced_texts(of, FACTS[0])
        yield scoring.score_facts(of, FACTS)
        yield written.answers(of, [(prompt, "harp") for prompt in prompts], 6)
        yield downstream.TaskPrompts(of, task).answers()

    for one, two in zip(seen(lm), seen(other), strict=True):
        assert one == two
    assert generation.generate(lm, prompts, 16, generator())[0].text.startswith(prompts[0])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ("rome", "memit", "ft-c", "ultraedit"))
def test_edits_are_those_with_a_tokenizer_that_adds_a_bos(method, kind):
    own = model(kind)
    edits = []
    for lm in (loading.after_start_token(own), with_bos(own)):
        (edit,) = editors.edit_each(editing_of(lm, method), lm, FACTS[:1])
        edits.append([update.matrix() for update in edit.updates])
    assert all(torch.equal(one, two) for one, two in zip(*edits, strict=True)) and len(edits[0])
    (bare,) = editors.edit_each(editing_of(own, method), own, FACTS[:1])
    assert not torch.equal(bare.updates[0].matrix(), edits[0][0])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ("rome", "memit"))
def test_an_edit_takes(method, kind):
    """In the last layer, of a prompt that ends with its subject: what is left of the loss is what the value left."""
    lm, fact = loading.after_start_token(model(kind)), replace(FACTS[2], prompt="The town of {}", target_new="Danish")
    given = {"layer": 3} if method == "rome" else {"layers": [3], "mom2_update_weight": 1e-6}
    given |= {"v_num_grad_steps": 20, "v_weight_decay": 0.0, "clamp_norm_factor": 20.0, "kl_factor": 0.0}
    editing = replace(editing_of(lm, method, **given), contexts=["{}"] if method == "rome" else [["{}"]])
    asked = [(fact.rewrite_prompt, fact.target_new, fact.target_true)]
    (before,) = scoring.score_prompts(lm, asked)
    (edit,) = editors.edit_each(editing, lm, [fact])
    updates.apply(lm, edit.updates)
    (after,) = scoring.score_prompts(lm, asked)
    assert not before.correct_new and after.correct_new
    assert after.nll_new == pytest.approx(editors.summary(edit)["nll_last"], abs=1e-3)


# What it is for


def test_a_key_at_the_first_position_is_an_attention_sinks_and_after_a_start_token_a_subjects():
    """With a planted sink, a position embedding that drowns the token, all subjects that open a prompt have one key."""
    own = model("gpt2", dtype=torch.float64)
    own.model.transformer.wpe.weight.data[0] *= 300
    lm, subjects = loading.after_start_token(own), ("A", "L", "S", "D")
    assert {len(own.tokenizer(subject)["input_ids"]) for subject in subjects} == {1}
    factor, alike, denominators = torch.linalg.cholesky(moment(own.d_key)), {}, {}
    for of in (own, lm):
        keys, made = [], []
        for subject in subjects:
            fact = replace(FACTS[0], subject=subject)
            edit = rome.edit(of, fact, PARAMS["rome"], CONTEXTS["rome"], {1: factor}, variant="rome")
            keys.append(edit.trace["keys"][0])
            made.append(edit.trace["denominator"].item())
        cosines = torch.nn.functional.cosine_similarity(torch.stack(keys)[:, None], torch.stack(keys)[None], dim=-1)
        alike[of is lm], denominators[of is lm] = cosines.min().item(), made
    assert alike[False] > 0.99 and alike[True] < 0.9
    assert all(abs(one - two) > 1e-3 for one, two in zip(denominators[False], denominators[True], strict=True))


# What is recorded


@pytest.mark.parametrize("method", ("rome", "memit"))
def test_a_run_has_another_fingerprint_only_with_it(method):
    own = model("gpt2")
    lm = loading.after_start_token(own)
    before, after = (sequence.fingerprint(of, editing_of(of, method)) for of in (own, lm))
    assert "after_start_token" not in before
    assert after == before | {"after_start_token": True} and after["start_token"] == START


def test_a_run_is_not_continued_with_another_value(tmp_path):
    own = model("gpt2")
    made = {
        of is not own: sequence.fingerprint(of, editing_of(of, "rome")) for of in (own, loading.after_start_token(own))
    }
    for value, says in ((False, "ledger None, now True"), (True, "ledger True, now None")):
        Ledger(tmp_path / str(value), made[value], {})
        Ledger(tmp_path / str(value), made[value], {})
        with pytest.raises(ValueError, match=f"other conditions .after_start_token: {says}.; choose another out"):
            Ledger(tmp_path / str(value), made[not value], {})


def test_second_moments_say_so_only_with_it_and_are_used_with_the_same_value(tmp_path):
    own = model("gpt2")
    lm, documents = loading.after_start_token(own), [[START, 5, 9, 40], [START, 7]]
    for of, name in ((own, "own"), (lm, "after")):
        moments.save(moments.collect(of, documents, [1], progress=False), tmp_path / name)
    one, two = (moments.load(tmp_path / name, of, [1]) for of, name in ((own, "own"), (lm, "after")))
    assert two.identity == one.identity | {"after_start_token": "true"} and "after_start_token" not in one.identity
    with pytest.raises(
        ValueError, match=r"own are of texts without a start token, .* run notebook 01 with the same start_token .true"
    ):
        moments.load(tmp_path / "own", lm, [1])
    with pytest.raises(ValueError, match=r"after are of texts after a start token, .* the same start_token .false"):
        moments.load(tmp_path / "after", own, [1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What notebook 02a was given and the folder of its run, edited as of a batch and recorded as it records."""
    folder = tmp_path_factory.mktemp("start")
    lm = loading.load(TINY, start_token=True)
    documents = [
        [START, *range(1, 60)],
        [START, *range(100, 160)],
        [START, *range(200, 290)],
        [START, *range(290, 380)],
    ]
    collected = moments.collect(lm, documents, [2], progress=False)
    collected.moments[2].diagonal().add_(0.1)
    moments.save(collected, folder / "moments.safetensors")
    given = {name: one.default for name, one in parameters.notebook_parameters(together.NOTEBOOK).items()}
    given |= {"n_edits": 2, "moments": str(folder / "moments.safetensors"), "n_short_prefixes": 1, "n_long_prefixes": 0}
    given |= {"start_token": True, "together": ["rome/order-0"]}
    line = {name: given[name] for name in ("method", "hparams", "order", "reverse")}
    out = folder / "rome/order-0"
    together.edit(given, [line], [out])
    provenance.finish(out, Ledger(out).files, provenance.made_with(given, "0" * 64))
    return given, out


def test_what_looks_at_a_run_reads_as_the_run_did(run):
    replay = past_runs.reopen(run[1])
    assert replay.lm.after_start_token and replay.ledger.fingerprint["after_start_token"] is True
    assert tokens.prompt_ids(replay.lm.tokenizer, "Lund")[0] == START
    editing = past_runs.editing_of(replay)
    assert editing.contexts == past_runs.contexts_of(replay)
    for edits in past_runs.replayed(replay, [0, 1]):
        asked = past_runs.recall_rows(replay, 1) if edits else []
    (row,) = asked
    recorded = replay.ledger.rows[0]
    assert row["efficacy_magnitude"] == pytest.approx(recorded["efficacy_magnitude"], abs=1e-5)
    assert row["efficacy_accuracy"] == recorded["efficacy_accuracy"]


@pytest.mark.parametrize("value", (False, None))
def test_a_record_that_says_otherwise_than_its_ledger_is_refused(run, value):
    path = run[1] / "done.json"
    before = path.read_bytes()
    record = json.loads(before)
    del record["sha256"]
    record["parameters"]["start_token"] = value
    if value is None:  # as of a run from before there was the parameter
        del record["parameters"]["start_token"]
    try:
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="after_start_token: ledger True, now None"):
            past_runs.reopen(run[1])
    finally:
        path.write_bytes(before)


def test_a_saved_model_reads_as_the_run_did_by_itself(run, tmp_path, capsys):
    out = tmp_path / "edited"
    assert main(["replay", str(run[1]), "--save", str(out)]) == 0, capsys.readouterr().err
    saved, behind = loading.load(out), loading.load(TINY, start_token=True)
    assert saved.tokenizer(tiny.TEXT)["input_ids"] == behind.tokenizer(tiny.TEXT)["input_ids"]
    with pytest.raises(ValueError, match="start_token: true asks for a token that this tokenizer puts there by itself"):
        loading.load(out, start_token=True)


# What is refused


@pytest.mark.parametrize("kind", tiny.BOS_FAMILIES)
def test_a_tokenizer_that_adds_a_bos_is_refused(kind):
    with pytest.raises(ValueError, match="asks for a token that this tokenizer puts there by itself: <s> before every"):
        loading.after_start_token(tiny.tiny_model(kind))


def test_a_model_without_a_token_to_begin_with_is_refused():
    lm = model("gpt2")
    lm.tokenizer = trained()
    lm.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="has no <|endoftext|>, BOS or EOS token to begin with"):
        loading.after_start_token(lm)


def test_the_model_given_is_left_as_it_is():
    own = model("gpt2")
    lm = loading.after_start_token(own)
    assert lm.after_start_token and not own.after_start_token and lm.model is own.model
    assert own.tokenizer("Lund")["input_ids"] == tiny.tiny_tokenizer()("Lund")["input_ids"]
