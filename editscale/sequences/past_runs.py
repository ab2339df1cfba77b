"""What a model still knows along a recorded run: its ledger is replayed, and the model looked at on the way.

Checkpoints are places in the ledger, not copies of the model: the recorded updates are added to the unedited weights
one after another, which gives the bits the run had (scalable-model-editing/gradual-catastrophic-forgetting
`experiments/evaluate_history.py` saves and reloads whole models instead).
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from editscale.columns import method_label
from editscale.data.orders import in_order, open_set
from editscale.editing import editors, modules, updates
from editscale.files import read_record, sha256_file
from editscale.metrics import scoring, written
from editscale.models.hidden_states import BATCH_TOKENS
from editscale.sequences import sequence

# What of notebook 02a's parameters its runs are reopened with.
PARAMETERS = {
    **dict.fromkeys(("method", "label", "model", "revision", "dtype", "fact_set"), str),
    **{"order": int, "n_edits": int, "reverse": bool, "tf32": bool, "start_token": bool},
}
LATER = {"label": "", "start_token": False}  # of a run from before there were these
# Entries of a fingerprint in which a run may be looked at with others than it was made with.
MACHINE = ("device", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class PastRun:
    """A finished run of notebook 02a, reopened.

    Attributes:
        folder: where its ledger is.
        parameters: what notebook 02a was given.
        lm: its model, unedited.
        facts: its facts, in the order they were edited.
        ledger: its `Ledger`, open for reading.
    """

    folder: Path
    parameters: dict
    lm: object
    facts: list
    ledger: object

    @property
    def layers(self):
        """The layers that the run edited, ascending."""
        return sorted(map(int, self.ledger.weights))

    @property
    def facts_per_step(self):
        """How many edits a step of the run has; there is a model only after whole ones."""
        return self.ledger.facts_per_step

    @property
    def key(self):
        """The columns that name a run in every table: method, order, reversed."""
        return {
            "method": modules.called(self.parameters["method"], self.parameters.get("label", "")),
            "order": self.parameters["order"],
            "reversed": self.parameters["reverse"],
        }


def record_of(folder):
    """The record that notebook 02a left in a run's folder. Raises FileNotFoundError if the run has not finished."""
    path = Path(folder) / "done.json"
    if not path.is_file() and (path.parent / "ledger.json").is_file():
        raise FileNotFoundError(
            f"{folder} has a ledger, but no done.json with what its run was asked for; run notebook 02a with the same "
            f"parameters and out={folder} again: it edits only what the ledger lacks"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no finished run in {folder}; run notebook 02a with out={folder} first")
    record = read_record(path, remedy := f"run notebook 02a again with the same parameters and out={folder}")
    given = record.get("parameters")
    if type(given) is dict:
        for name, value in LATER.items():
            given.setdefault(name, value)
    for name, kind in PARAMETERS.items():
        if type(given) is not dict or type(given.get(name)) is not kind:
            value = repr(given[name]) if type(given) is dict and name in given else "missing"
            raise ValueError(f"{path}: parameter {name} is {value}, not a {kind.__name__}; {remedy}")
    return record


def reopen_all(folders, *, device="cpu", model_cache="runs/models"):
    """Name ↦ `PastRun`, for a dict of names and folders. Runs that name the same model share one, loaded once: four
    times GPT-J would not fit a GPU.

    Raises what `reopen` raises.
    """
    from editscale.models import loading

    load = functools.cache(loading.load)
    return {name: reopen(path, device=device, model_cache=model_cache, load=load) for name, path in folders.items()}


def reopen(folder, *, device="cpu", model_cache="runs/models", load=None):
    """The `PastRun` in a folder, its model loaded as it was before the first edit.

    Args:
        load: in place of `loading.load`, None for that.

    Raises FileNotFoundError if the run has not finished; ValueError if the ledger is no longer the one it finished
    with, or the model's weights or the facts are no longer those of the ledger.
    """
    from editscale.models import loading
    from editscale.sequences import ledger

    record, book = record_of(folder), ledger.Ledger(folder)
    parameters = record["parameters"]
    finished = {Path(name).name: sha256 for name, sha256 in record["files"].items()}
    if book.dropped:
        raise ValueError(
            f"{book.log} has lost edits: {book.dropped}; run notebook 02a again with the same parameters, and it makes "
            "them again"
        )
    for name in ("ledger.json", "edits.jsonl", "unedited.jsonl"):
        if not (path := book.folder / name).is_file() or sha256_file(path) != finished.get(name):
            raise ValueError(
                f"{name} in {folder}, of {len(book)} edits, is not the one that done.json there names: it is damaged, "
                "or the run has gone on since; run notebook 02a again with the same parameters"
            )
    asked = {name: parameters[name] for name in ("method", "dtype", "together", "on_collapse") if name in parameters}
    steps = parameters.get("facts_per_step", 1)
    asked["facts_per_step"] = None if steps == 1 else steps  # as in a fingerprint
    asked["after_start_token"] = parameters["start_token"] or None
    elsewhere = f"{folder}/done.json says otherwise; run notebook 02a again with the parameters of the ledger"
    book.check({**asked, "tf32_steps": parameters["tf32"]}, {*book.fingerprint} - {*asked, "tf32_steps"}, elsewhere)
    chosen = in_order(
        open_set(parameters["fact_set"]),
        parameters["order"],
        parameters["n_edits"],
        reverse=parameters["reverse"],
    )[: len(book)]  # a run may have stopped at its collapse
    if len(chosen) < len(book):
        raise ValueError(f"{folder} has {len(book)} edits, and done.json there asks for {parameters['n_edits']} facts")
    for row, fact in zip(book.rows, chosen, strict=True):
        if row["fact_sha256"] != fact.identity:
            raise ValueError(
                f"edit {row['edit']} of {folder} is case {row['case_id']}, but {parameters['fact_set']} now has case "
                f"{fact.case_id} there; run notebook 02a again with another out folder"
            )
    lm = (load or loading.load)(
        parameters["model"],
        revision=parameters["revision"],
        device=device,
        dtype=parameters["dtype"],
        cache=model_cache,
        tf32_steps=parameters["tf32"],
        start_token=parameters["start_token"],
    )
    for name, what in (("weights_sha256", "weights"), ("config_sha256", "config or tokenizer")):
        now, then = lm.identity[name], book.fingerprint.get(name)
        if then not in (None, now):
            raise ValueError(
                f"{parameters['model']} has another {what} than the model that {folder} edited (sha256 {now[:12]}, not "
                f"{then[:12]}); restore it, or run notebook 02a again with another out folder"
            )
    return PastRun(Path(folder), parameters, lm, chosen, book)


def checkpoints(n_edits, every, facts_per_step=1):
    """The numbers of edits every, 2·every, … up to n_edits, those of them that end a step.

    Raises ValueError if there is none.
    """
    found = [place for place in range(every, n_edits + 1, every) if place % facts_per_step == 0] if every > 0 else []
    if not found:
        raise ValueError(
            f"a checkpoint every {every} edits does not fit a run of {n_edits} in steps of {facts_per_step}; choose a "
            f"number from 1 to {n_edits} with a multiple that ends a step"
        )
    return found


def check_places(places, facts_per_step):
    """Raise ValueError for a number of edits that is not one of whole steps: there was no such model."""
    for place in places:
        if place % facts_per_step:
            raise ValueError(
                f"{place} edits end inside a step of the run, which edits {facts_per_step} facts at a time; give "
                f"multiples of {facts_per_step}"
            )


def replayed(run, places):
    """Yield each number of edits in `places`, ascending, with the model as it was then; 0 is the unedited model.

    A bar shows how far it is.
    Applies the ledger's updates to `run.lm`, and takes them off again, bit for bit, at the end. Of a method
    that scores other weights than it edits (`Method.evaluated`), the model has those.

    Raises ValueError if the places do not ascend, go beyond the ledger, or as `check_places`.
    """
    places = list(places)
    check_places(places, run.facts_per_step)
    if places != sorted(set(places)) or not 0 <= min(places, default=-1) <= max(places, default=0) <= len(run.ledger):
        raise ValueError(
            f"checkpoints must ascend within 0 … {len(run.ledger)}, the edits of {run.folder}, not {places}"
        )
    from tqdm import tqdm

    done, editing = 0, looking_at(run)
    state = editing.start
    with updates.put_back(run.lm, run.layers):
        for checkpoint in tqdm(places, desc="replay", unit="checkpoint"):
            sequence.replay(run.lm, run.ledger, checkpoint, after=done)
            state = sequence.state_after(run.lm, editing, run.ledger, checkpoint, after=done, state=state)
            done = checkpoint
            with editors.looked_at([editing], run.lm, [state]):
                yield checkpoint


def looking_at(run):
    """What a run is looked at with, see `editors.of_record`; its model must be unedited."""
    return editors.of_record(run.lm, run.ledger.fingerprint["method"], run.ledger.fingerprint["params"])


def recall_rows(run, n_edits, *, batch_tokens=BATCH_TOKENS, kept=None, n_written=0):
    """One row per fact among the first `n_edits`, scored after its rewrite prompt on the model as it stands.

    Keys: edits, edit (the fact's place, from 1), case_id, efficacy, efficacy_magnitude, efficacy_accuracy; and with
    n_written, written_exact and written_begins.

    Args:
        batch_tokens, kept: see `scoring.score_prompts`. Neither changes the result.
        n_written: most tokens that the model writes freely after each prompt (`written.answers`); 0: none.
    """
    facts = run.facts[:n_edits]
    prompts = [(fact.rewrite_prompt, fact.target_new, fact.target_true) for fact in facts]
    found, rows = scoring.score_prompts(run.lm, prompts, batch_tokens=batch_tokens, kept=kept), []
    for edit, (fact, score) in enumerate(zip(facts, found, strict=True), start=1):
        scores = scoring.fact_scores({"efficacy": [score], "paraphrase": [], "neighborhood": []})
        names = ("efficacy", "efficacy_magnitude", "efficacy_accuracy")
        rows.append({"edits": n_edits, "edit": edit, "case_id": fact.case_id, **{k: scores[k] for k in names}})
    if n_written:
        free = written.answers(run.lm, asked_of(facts), n_written, batch_tokens=batch_tokens)
        for row, answer in zip(rows, free, strict=True):
            row |= {"written_exact": float(answer.exact), "written_begins": float(answer.begins)}
    return rows


def asked_of(facts):
    """The rewrite prompt of each fact with its new object: what `written` asks."""
    return [(fact.rewrite_prompt, fact.target_new) for fact in facts]


def singular_values(weight):
    """Singular values of a matrix, descending, float64: roots of the eigenvalues of the smaller of WWᵀ and WᵀW.

    On a GPU much faster than a decomposition of W. Relative error about 1e-16 (σ₁/σ)²: values below 1e-8 of the
    largest are noise.
    """
    import torch

    weight = weight.double()
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def spectrum_rows(run, n_edits):
    """The singular values of each edited projection as it stands, descending: rows of edits, layer, index, value."""
    return [
        {"edits": n_edits, "layer": layer, "index": i, "singular_value": value}
        for layer in run.layers
        for i, value in enumerate(singular_values(run.lm.weight(layer)).tolist())
    ]


def forward_runs(folders, methods=()):
    """method ↦ the folder, among those of several runs, of its forward run on the lowest order.

    Args:
        methods: the methods or labels wanted, in this order; none means all.

    Raises ValueError if one of them has no forward run.
    """
    found, methods = {}, [method_label(method) for method in methods]
    for folder in folders:
        given = record_of(folder)["parameters"]
        method = modules.called(given["method"], given["label"])
        if not given["reverse"] and given["order"] < found.get(method, (float("inf"), ""))[0]:
            found[method] = given["order"], folder
    for method in methods or found or ["any method"]:
        if method not in found:
            raise ValueError(f"no forward run of {method} among {', '.join(folders)}; runs are of {', '.join(found)}")
    return {method: found[method][1] for method in methods or found}


def with_facts(run, case_ids, others=()):
    """The run's facts, then those of its fact set with these case ids that it did not edit.

    Args:
        others: folders of runs that edited them.

    Raises ValueError if the fact set lacks one, or has another fact there than one of the others edited.
    """
    from editscale.sequences import ledger

    missing = [case for case in case_ids if case not in {fact.case_id for fact in run.facts}]
    if not missing:
        return run.facts
    of_set = {fact.case_id: fact for fact in open_set(run.parameters["fact_set"])}
    for case in missing:
        if case not in of_set:
            raise ValueError(f"{run.parameters['fact_set']}, the fact set of {run.folder}, has no case {case}")
    for folder in others if missing else ():
        for row in ledger.Ledger(folder).rows:
            if row["case_id"] in missing and row["fact_sha256"] != of_set[row["case_id"]].identity:
                raise ValueError(
                    f"case {row['case_id']} in {run.parameters['fact_set']} is another fact than the one that {folder} "
                    "edited; restore that file"
                )
    return [*run.facts, *(of_set[case] for case in missing)]


def contexts_of(run, *, seed=None, words=None):
    """The context templates of the run, made again; with another seed, or begun with other words, those it would have
    had then (`words` None: those of the run; they mean nothing to MEMIT, whose words are fixed)."""
    return editors.sample_contexts(run.lm, run.parameters["method"], **_sampling(run, seed, words))


def _sampling(run, seed=None, words=None):
    """How the run sampled its contexts, as `editors.sample_contexts` takes it."""
    given = run.parameters
    return {
        "prefix_seeds": given["prefix_seeds"] if words is None else words,
        "n_short": given["n_short_prefixes"],
        "n_long": given["n_long_prefixes"],
        "seed": given["seed"] if seed is None else seed,
    }


def other_contexts(run, seeds, words):
    """Contexts to edit with, those of the run and others: a list of (kind, seed, templates), none of them twice.

    Kinds: "run", the run's own; "seed", sampled with one of `seeds`; "words", sampled after `words` with the run's
    seed (none if there are no words); "bare", the bare prompt alone, of seed None. What samples no contexts has "run"
    only.
    """
    own = run.parameters["seed"]
    choices = [("run", own, contexts_of(run))]
    choices += [("seed", seed, contexts_of(run, seed=seed)) for seed in seeds]
    choices += [("words", own, contexts_of(run, words=words))] if words else []
    choices += [("bare", None, choices[0][2][:1])]
    return [choice for i, choice in enumerate(choices) if choice[2] not in [of for *_, of in choices[:i]]]


def editing_of(run):
    """What the run edited with, made again: its `editors.Editing`.

    Raises ValueError, naming it, if one of these or the code of the method is no longer that of the ledger.
    """
    given = run.parameters
    sampling = _sampling(run) | {"facts_per_step": run.facts_per_step}
    editing = editors.prepare(run.lm, given["method"], given["hparams"], given["moments"], **sampling)
    now = sequence.fingerprint(run.lm, editing, given["together"], given["on_collapse"])
    run.ledger.check(now, MACHINE, "undo that, or run notebook 02a again with another out folder")
    return editing
