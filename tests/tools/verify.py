"""Agreement with the reference implementations, number by number: `python -m editscale verify FOLDER`.

FOLDER holds numbers that the released code of ROME, r-ROME and MEMIT produced on a small model with fixed inputs:
`setup.json` (records, context templates, hyper-parameters), `second_moments.npz` ("mom2.layer<l>"), one sub-folder with
model and tokenizer, and any of the array and metric files named in FILES and METRICS. tests/golden is such a folder and
its README describes every array. Everything that is there is recomputed and compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import click

from editscale.data import facts
from editscale.editing import editors, memit, rome, updates
from editscale.metrics import scoring
from editscale.models import loading
from tools import lifelong_numbers, mitigations, prune_numbers
from tools.plain import plain_forward

# File stem ↦ the ROME variant that made it, and what it changes in setup.json's hyper-parameters.
FILES = {
    "rome": ("rome", {}),
    "rrome_avgkey": ("r-rome", {}),
    "prome_promptkey": ("p-rome", {}),
    "rome_earlystop": ("rome", {"kl_factor": 0.0, "v_weight_decay": 0.001, "v_lr": 0.5}),
}
METRICS = {"metrics_rome_memit": ("rome", "memit"), "metrics_rrome": ("rrome_avgkey", "prome_promptkey")}

# Largest relative difference (Frobenius) accepted.
#   forward: what forward passes and the optimization give on the unedited model.
#   solve: what a solve with C gives. In float32 the reference takes an explicit inverse, itself 3e-5 off the exact one.
#   sequential: anything after earlier edits, which carry the difference of their solves into the later ones.
#   nll: scores, the absolute difference in nats; the reference sums them in float32 in both precisions.
TOLERANCE = {
    "float32": {"forward": 1e-5, "solve": 2e-4, "sequential": 2e-4, "nll": 2e-4},
    "float64": {"forward": 1e-9, "solve": 1e-9, "sequential": 1e-9, "nll": 2e-6},
}
# Where the released code's own float32 and float64 differ by more.
LOOSE_NLL = {
    ("rect_rome", "float32"): 5e-3,
    **{(method, "float32"): 1e-3 for method in ("nas_rome", "ultraedit", "stableedit")},
}
# What computes the numbers of editors against forgetting.
MITIGATIONS = (mitigations, lifelong_numbers, prune_numbers)
# Families that Hugging Face computes in float64 throughout. In the others a float64 model still computes RMSNorm,
# softmax or attention scores in float32, so the float32 tolerances hold.
FLOAT64_THROUGHOUT = ("gpt2",)


@dataclass(frozen=True)
class Difference:
    """The largest relative difference seen for one kind of array, and where; `flags` count wrong flags instead."""

    precision: str
    file: str
    kind: str
    largest: float
    allowed: float
    where: str

    @property
    def agrees(self):
        return self.largest <= self.allowed  # NaN does not agree


class _Worst:
    """Keeps the worst difference per kind of array of one file."""

    def __init__(self, lm, precision, file):
        self.precision, self.file, self.kinds = precision, file, {}
        exact = lm.model.config.model_type in FLOAT64_THROUGHOUT
        self.tolerance = TOLERANCE[precision if exact else "float32"]

    def see(self, kind, tolerance, where, ours, golden):
        import numpy as np

        ours, golden = (np.asarray(x, dtype=np.float64) for x in (ours, golden))
        kind = f"{kind}, sequential" if where.startswith("seq") else kind
        if ours.shape != golden.shape:
            raise ValueError(f"{self.file} {where}: {kind} has shape {golden.shape}, we compute {ours.shape}")
        difference = float(np.linalg.norm(ours - golden) / max(np.linalg.norm(golden), 1e-30))
        self.see_value(kind, self.tolerance[tolerance], where, difference)

    def see_within(self, kind, where, ours, golden, allowed):
        import numpy as np

        ours, golden = (np.asarray(x.cpu() if hasattr(x, "cpu") else x, dtype=np.float64) for x in (ours, golden))
        if ours.shape != golden.shape:
            raise ValueError(f"{self.file} {where}: {kind} has shape {golden.shape}, we compute {ours.shape}")
        self.see_value(kind, allowed, where, float(np.linalg.norm(ours - golden) / max(np.linalg.norm(golden), 1e-30)))

    def see_value(self, kind, allowed, where, difference):
        worst = self.kinds.get(kind)
        if worst is None or not difference <= worst.largest:
            self.kinds[kind] = Difference(self.precision, self.file, kind, difference, allowed, where)

    def differences(self):
        return list(self.kinds.values())


def verify(folder, *, device="cpu", forward=None, base=""):
    """Compare everything in `folder` with what this package computes.

    Args:
        base: for a folder of numbers of editors against forgetting (`mitigations`), that with records and model; by
            default the one that setup.json names.
        forward: way to optimize values, see `values.optimize`; both ways must agree with the reference.

    Returns:
        list of `Difference`, one per precision, file and kind of array.

    Raises FileNotFoundError or ValueError if the folder is not in the expected format or holds nothing to compare.
    """
    import numpy as np

    folder = Path(folder)
    if (folder / "setup.json").is_file() and not (folder / "second_moments.npz").is_file():
        return _mitigations(folder, device, base)
    for name in ("setup.json", "second_moments.npz"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; expected a folder like tests/golden")
    model_folders = [p.parent for p in folder.glob("*/config.json")]
    if len(model_folders) != 1:
        raise ValueError(
            f"{folder} must hold exactly one sub-folder with a model (config.json); found {len(model_folders)}"
        )
    setup, records, factors = _base(folder, device)
    found = []
    for precision, suffix in (("float32", "f32"), ("float64", "f64")):
        names = [n for n in (*FILES, "memit") if (folder / f"{n}_{suffix}.npz").is_file()]
        states = {}
        for name in names:
            lm = loading.load(str(model_folders[0]), device=device, dtype=precision)
            original = updates.saved_weights(lm, range(lm.n_layers))
            with np.load(folder / f"{name}_{suffix}.npz") as golden:
                golden = {key: golden[key] for key in golden.files}
            compare = _memit if name == "memit" else _rome
            worst, states[name] = compare(lm, name, precision, golden, setup, records, factors, original, forward)
            found += worst.differences()
        for name, edited in METRICS.items():
            path = folder / f"{name}_{suffix}.json"
            if path.is_file():
                lm = loading.load(str(model_folders[0]), device=device, dtype=precision)
                found += _metrics(
                    lm,
                    name,
                    precision,
                    json.loads(path.read_text()),
                    records,
                    {n: states[n] for n in edited if n in states},
                )
    if not found:
        raise ValueError(f"{folder} holds no array or metric files to compare with; expected e.g. rome_f32.npz")
    return found


def _base(folder, device):
    """setup.json, records, and Cholesky factors of the second moments of a folder."""
    import numpy as np
    import torch

    setup = json.loads((folder / "setup.json").read_text())
    records = facts.parse(setup["records"], source=str(folder / "setup.json"))
    with np.load(folder / "second_moments.npz") as file:
        moments = {int(k.removeprefix("mom2.layer")): torch.tensor(file[k], device=device) for k in file.files}
    return setup, records, editors.cholesky_factors(moments, device)


def _mitigations(folder, device, base):
    """`verify` of a folder of numbers of editors against forgetting."""
    import numpy as np

    setup = json.loads((folder / "setup.json").read_text())
    base = Path(base) if base else folder / setup.get("records_contexts_second_moments", "")
    if not (base / "second_moments.npz").is_file():
        raise FileNotFoundError(f"no second_moments.npz in {base}; give the folder of the records with --base")
    given, records, factors = _base(base, device)
    model, found = next(base.glob("*/config.json")).parent, []
    given |= {"facts": records, "folder": base}
    for precision, suffix in (("float32", "f32"), ("float64", "f64")):
        looks, path = {}, folder / f"metrics_{suffix}.json"
        recorded = json.loads(path.read_text()) if path.is_file() else {}
        wanted = {where for of_state in _states(recorded).values() for where in of_state}
        for file, home in {name: of for of in MITIGATIONS for name in of.FILES}.items():
            if (path := folder / f"{file}_{suffix}.npz").is_file():
                lm = loading.load(str(model), device=device, dtype=precision)
                worst = _Worst(lm, precision, file)
                with np.load(path) as arrays:
                    golden = {key: arrays[key] for key in arrays.files}

                def look(what, lm=lm, file=file, looks=looks, wanted=wanted):
                    if f"{file}.{what}" in wanted:
                        looks[f"{file}.{what}"] = scoring.score_facts(lm, records)

                home.compare(worst.see_within, file, lm, golden, setup, given, factors, look)
                found += worst.differences()
        if recorded:
            lm = loading.load(str(model), device=device, dtype=precision)
            looks["unedited"] = scoring.score_facts(lm, records)
            found += _looks(lm, precision, recorded, looks)
    if not found:
        raise ValueError(f"{folder} holds no arrays to compare with; expected e.g. alphaedit_f64.npz")
    return found


def _hparams(kind, given, **change):
    given = {**given, **change}
    if kind is rome.RomeParams:
        given["layer"] = given["layers"][0]
    names = kind.__dataclass_fields__
    return kind(**{name: given[name] for name in names})


def _same_orientation(lm, layer, golden, ours):
    """Our ΔW or W, (d_value, d_key), laid out as the file has it: as u vᵀ, or as the module stores it."""
    if ours.shape[0] != ours.shape[1]:
        return ours if golden.shape == ours.shape else ours.T
    return ours if lm.weight(layer).stride() == lm.projection(layer).weight.stride() else ours.T


def _rome(lm, name, precision, golden, setup, records, factors, original, forward):
    variant, change = FILES[name]
    params = _hparams(rome.RomeParams, setup["hparams_rome"], **change)
    worst, states = _Worst(lm, precision, name), []
    prefixes = sorted(
        {key.split(".")[0] for key in golden if not key.startswith("seq.")},
        key=lambda p: (p.startswith("seq"), int(p.lstrip("singleq"))),
    )
    for prefix in prefixes:
        number = int(prefix.lstrip("singleq"))
        sequential = prefix.startswith("seq")
        if not sequential or number == 0:
            updates.restore(lm, original)
        edit = rome.edit(
            lm, records[number], params, setup["context_templates_rome"], factors, variant=variant, forward=forward
        )
        trace, update = edit.trace, edit.updates[0]
        tolerance = "sequential" if sequential else "forward"  # keys excepted: their layer is the edited one
        keys = trace["keys"][:1] if variant == "p-rome" else trace["keys"]
        for kind, ours, allowed in (
            ("keys_per_context", keys, "forward"),
            ("key_mean", trace["key_mean"], "forward"),
            ("left_vector_u", trace["u"], "solve"),
            ("target_init", trace["init"], tolerance),
            ("losses", trace["losses"], tolerance),
            ("nll_per_prompt", trace["nll_per_prompt"], tolerance),
            ("delta_opt", trace["delta"], tolerance),
            ("target_v_star", trace["init"] + trace["delta"], tolerance),
            ("cur_input", trace["key"], "forward"),
            ("cur_output", trace["value"], tolerance),
            ("right_vector_v", update.left[:, 0], "solve"),
            (
                "delta_weight",
                _same_orientation(lm, params.layer, golden[f"{prefix}.delta_weight"], update.matrix()),
                "solve",
            ),
        ):
            worst.see(kind, allowed, prefix, ours.cpu(), golden[f"{prefix}.{kind}"])
        updates.apply(lm, edit.updates)
        states.append((("sequential" if sequential else "single"), number, updates.saved_weights(lm, [params.layer])))
    if "seq.final_weight" in golden:
        ours = lm.weight(params.layer)
        worst.see(
            "final_weight",
            "solve",
            "seq",
            _same_orientation(lm, params.layer, golden["seq.final_weight"], ours).cpu(),
            golden["seq.final_weight"],
        )
    return worst, states


def _memit(lm, name, precision, golden, setup, records, factors, original, forward):
    params = _hparams(memit.MemitParams, setup["hparams_memit"])
    worst, states = _Worst(lm, precision, name), []
    prefixes = sorted({key.split(".")[0] for key in golden} - {"seq"}, key=lambda p: (p != "batch", p))
    for prefix in prefixes:
        sequential = prefix != "batch"
        requests = [records[int(prefix.removeprefix("seq"))]] if sequential else records
        if prefix in ("batch", "seq0"):
            updates.restore(lm, original)
        edit = memit.edit(lm, requests, params, setup["context_templates_memit"], factors, forward=forward)
        trace, tolerance = edit.trace, "sequential" if sequential else "forward"
        compared = [
            ("zs", "zs", trace["z"], tolerance),
            ("z_target_init", "z_target_init", trace["init"], tolerance),
            ("z_delta_opt", "z_delta_opt", trace["delta"], tolerance),
        ]
        for j in range(len(requests)):
            compared += [
                ("losses", f"req{j}.losses", trace["losses"][j], tolerance),
                ("nll_per_prompt", f"req{j}.nll_per_prompt", trace["nll_per_prompt"][j], tolerance),
            ]
        for update in edit.updates:
            at, seen = f"layer{update.layer}", trace[update.layer]
            matrix = _same_orientation(lm, update.layer, golden[f"{prefix}.{at}.update"], update.matrix())
            compared += [
                ("ks", f"{at}.ks", seen["keys"], tolerance),
                ("cur_zs", f"{at}.cur_zs", seen["current"], tolerance),
                ("adj_k", f"{at}.adj_k", seen["solved"], "solve"),
                ("resid", f"{at}.resid", seen["residual"], "solve"),
                ("update", f"{at}.update", matrix, "solve"),
            ]
        for kind, key, ours, allowed in compared:
            worst.see(kind, allowed, f"{prefix}.{key}", ours.cpu(), golden[f"{prefix}.{key}"])
        updates.apply(lm, edit.updates)
        states.append(
            (
                ("sequential" if sequential else "batch"),
                len(states) - 1 if sequential else 0,
                updates.saved_weights(lm, params.layers),
            )
        )
    for layer in params.layers:
        key = f"seq.final_weight.layer{layer}"
        if key in golden:
            worst.see(
                "final_weight",
                "solve",
                key,
                _same_orientation(lm, layer, golden[key], lm.weight(layer)).cpu(),
                golden[key],
            )
    return worst, states


def _see_scores(worst, where, scored, results, allowed, of=""):
    """Note how the scores of all records differ from recorded results. NLL differences are absolute, in nats."""
    for result, by_kind in zip(results, scored, strict=True):
        for kind, key in (("efficacy", "rewrite"), ("paraphrase", "paraphrase"), ("neighborhood", "neighborhood")):
            if f"{key}_prompts_probs" not in result:
                continue
            expected = result[f"{key}_prompts_probs"]
            for score, nll, flag in zip(by_kind[kind], expected, result[f"{key}_prompts_correct"], strict=True):
                off = max(abs(score.nll_new - nll["target_new"]), abs(score.nll_true - nll["target_true"]))
                worst.see_value(f"nll{of}", allowed, where, off)
                ours = score.correct_true if kind == "neighborhood" else score.correct_new
                worst.see_value(f"wrong flags{of}", 0, where, float(ours != flag))


def _states(golden):
    """Recorded results of a folder of editors against forgetting: name ↦ {name of a state: results}."""
    found = {}
    for name, entry in golden.items():
        method, _, what = name.partition(".")
        if what == "sequential":
            found[name] = {f"{method}.sequential {one['after_edit']}": _of_rewrites(one["rewrite"]) for one in entry}
        elif what == "sequential_final":
            found[name] = {f"{method}.sequential {len(golden['unedited']) - 1}": entry["results"]}
        else:
            found[name] = {name.replace("prune_", "prune."): entry["results"] if what else entry}
    return found


def _looks(lm, precision, golden, looks):
    """Compare recorded results of a folder of editors against forgetting with `looks`, name of a state ↦ scores."""
    worst = _Worst(lm, precision, "metrics")
    for name, of_states in _states(golden).items():
        method, _, what = name.partition(".")
        for where, results in of_states.items():
            if where not in looks:
                raise ValueError(f"metrics: nothing here computes {where}")
            allowed = LOOSE_NLL.get((method, precision), worst.tolerance["nll"])
            _see_scores(worst, where, looks[where], results, allowed, f" of {method}" if what else "")
    return worst.differences()


def _of_rewrites(rewrites):
    """Recorded results of the rewrite prompts alone, in the form of those of all prompts."""
    return [{"rewrite_prompts_probs": [one["probs"]], "rewrite_prompts_correct": [one["correct"]]} for one in rewrites]


def _metrics(lm, name, precision, golden, records, states):
    """Compare scores on the unedited model and after every recorded state."""
    worst = _Worst(lm, precision, name)

    def see(where, results):
        _see_scores(worst, where, scoring.score_facts(lm, records), results, worst.tolerance["nll"])

    see("unedited", golden["unedited"])
    for edited, recorded in states.items():
        for protocol, number, weights in recorded:
            entry = golden.get(f"{edited}.{protocol}")
            if entry is None:
                continue
            updates.restore(lm, weights)
            see(f"{edited}.{protocol} {number}", (entry if protocol == "batch" else entry[number])["results"])
    return worst.differences()


def table(differences):
    """The differences as text, one line each."""
    lines = [f"{'precision':9}  {'file':18}  {'array':28}  {'largest':>8}  {'allowed':>8}  where"]
    for d in differences:
        lines.append(
            f"{d.precision:9}  {d.file:18}  {d.kind:28}  {d.largest:8.1e}  {d.allowed:8.1e}  "
            f"{'' if d.agrees else 'DIFFERS '}{d.where}"
        )
    return "\n".join(lines)


@click.command()
@click.argument("folder")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--plain", is_flag=True, help="Optimize values by full forwards instead of cached ones.")
@click.option("--base", default="", metavar="FOLDER", help="Records and model of editors against forgetting.")
def main(folder, device, plain, base):
    """Compare with recorded numbers of the reference implementations.

    FOLDER holds them in the format of tests/golden. The exit status is 0 if everything agrees, 1 if something differs,
    2 if there is nothing to compare.
    """
    differences = verify(folder, device=device, forward=plain_forward if plain else None, base=base)
    print(table(differences))
    n_agreeing = sum(d.agrees for d in differences)
    print(f"{n_agreeing} of {len(differences)} kinds of numbers agree")
    return 0 if n_agreeing == len(differences) else 1
