"""Agreement of editors against forgetting with their authors' code: what `verify` does with a folder of their numbers.

FOLDER has setup.json and <method>_f32.npz, <method>_f64.npz; model, records, contexts and second moments are those of
another folder in the format of tests/golden, which setup.json names from there (`records_contexts_second_moments`).
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.data.facts import Fact
from editscale.editing import editors, memit, norm_anchor, rome, updates, values
from editscale.editing.memit import MemitParams
from editscale.editing.suffix import cached_forward

# Arrays of the reference's own layout of tokens, which this package has no counterpart of.
LAYOUT = ("input_ids", "attention_mask", "labels", "rewriting_targets", "lookup_idxs")


@dataclass(frozen=True)
class Of:
    """A file: the method that its numbers are of, and the largest relative difference accepted."""

    method: str
    float32: float
    float64: float = 1e-9


FILES = {
    "memit_seq": Of("memit-seq", 5e-5),
    "encore": Of("encore", 5e-5),
    "alphaedit": Of("alphaedit", 1e-4),
    "emmet": Of("emmet", 5e-5),
    "rect_memit": Of("memit-rect", 5e-5),
    "rect_rome": Of("rome-rect", 5e-4),
    "nas_memit": Of("memit-nas", 5e-5),
    "nas_alphaedit": Of("alphaedit-nas", 1e-4),
    "nas_rome": Of("rome-nas", 5e-4),
}
ANCHORS = 1e-5  # of norms that are optimized one by one here, and in groups there
# In float32 a bit of a mask may differ, and all that follows from it.
FLOAT64_ONLY = {"rect_rome": ("final_weight", "kept_mask", "kept_count")}


def compare(see, file, lm, golden, setup, base, factors, look):
    """Compare a file's arrays, given as {name: array}.

    Args:
        see: (kind, where, ours, golden, allowed) notes a difference.
        setup, base: setup.json of the folder, and of the one with the records, which also names its "folder", and has
            the records as "facts". factors: Cholesky factors of C.
        look: called with the name of each state of the model that may have been scored, the model in it.

    Raises ValueError for an array that this compares with nothing.
    """
    of, precision = FILES[file], str(lm.dtype).removeprefix("torch.")
    ours = _Ours(lm, file, of.method, setup, base, factors, golden, look)
    left_out = LAYOUT + (FLOAT64_ONLY.get(file, ()) if precision == "float32" else ())
    for where, value in golden.items():
        kind = kind_of(where)
        if kind in left_out:
            continue
        allowed = ANCHORS if where == "anchor.norms" else getattr(of, precision)
        see(kind, where, ours.of(where), value, 0.0 if kind in ("changed_mask", "kept_mask") else allowed)


def kind_of(where):
    """The kind of an array, its name without edit, request and layer."""
    parts = [part for part in where.split(".") if not part.removeprefix("layer").isdigit()]
    return parts[-1]


class _Ours:
    """The arrays of a file as this package computes them, calls in their order."""

    def __init__(self, lm, file, method, setup, base, factors, golden, look):
        self.lm, self.file, self.method, self.setup, self.base, self.look = lm, file, method, setup, base, look
        self.factors, self.records, self.found = factors, base["facts"], {}
        self.of_rome = method.startswith("rome")
        self.contexts = base["context_templates_rome" if self.of_rome else "context_templates_memit"]
        if file == "encore":
            self.contexts = setup["context_templates_encore"]
        if file.startswith("nas"):
            self.anchor = next(float(value) for where, value in golden.items() if where.endswith("anchor_norm"))
        self.original = updates.saved_weights(lm, range(lm.n_layers))
        prefixes = dict.fromkeys(where.split(".")[0] for where in golden)
        for prefix in sorted(prefixes, key=lambda name: (name.startswith("seq"), name)):
            if prefix == "anchor":
                self._anchors()
            elif prefix.startswith("P"):
                self._projections(self._params(file))
            elif prefix != "seq":
                self._call(prefix)
        if "seq" in prefixes:
            self._after("seq")

    def of(self, where):
        if where not in self.found:
            raise ValueError(f"{self.file}: nothing here computes {where}")
        return self.found[where]

    def _params(self, name):
        given = {"stop_tokens": "five", "anchor_norm": getattr(self, "anchor", 0.0), **self.setup["hparams"][name]}
        given |= {"layer": given["layers"][0]}
        given.setdefault("zeroed_fraction", 1 - given.get("k_percent", 0) / 100)
        kind = editors.method(self.method).params
        return kind(**{field: given[field] for field in kind.__dataclass_fields__})

    def _anchors(self):
        params = self.base["hparams_memit"]
        params = MemitParams(**{field: params[field] for field in MemitParams.__dataclass_fields__})
        pool = [fact_of(i, request) for i, request in enumerate(self.setup["nas_pool"])]
        updates.restore(self.lm, self.original)
        layers = self.setup["hparams"][self.file]["layers"]
        last = max(layers) if len(layers) > 1 else max(params.layers)
        self.found["anchor.norms"] = norm_anchor.norms(self.lm, pool, last, params)

    def _projections(self, params):
        import torch

        start = editors.method(self.method).start(self.lm, params, self.contexts, self.factors)
        eye = torch.eye(self.lm.d_key, dtype=torch.float64, device=self.lm.device)
        projections = torch.stack([params.L2 * start[layer].times(eye) for layer in sorted(start)])
        self.found |= {"P": projections, "P_rank": projections.diagonal(dim1=1, dim2=2).sum(1)}

    def _call(self, prefix):
        """The edit of one call of the reference, and what it says of it."""
        name = {"batch_ml": "emmet_batch_ml", "extra": "encore_extra", "probcut": "encore_probcut0"}
        params = self._params(name.get(prefix.rstrip("0123456789"), self.file))
        method = editors.method(self.method)
        if not prefix.startswith("seq") or prefix == "seq0":
            updates.restore(self.lm, self.original)
            self.state = method.start and method.start(self.lm, params, self.contexts, self.factors)
            self.keys = {layer: [] for layer in params.layers}
        facts, self.values, self.first = self._facts(prefix), [], {}
        edit = self._edit(facts, params)
        updates.apply(self.lm, edit.updates)
        if self.state is not None:
            self.state = method.after(self.state, edit.updates)
        self.params = params
        if self.of_rome:
            self._of_rome(prefix, edit)
        else:
            self._of_memit(prefix, edit, facts)
        if prefix.startswith("batch"):
            self._after(prefix)
        self.look(prefix.replace("seq", "sequential "))

    def _facts(self, prefix):
        number = int(prefix.lstrip("abcdefghijklmnopqrstuvwxyz_") or 0)
        if prefix.startswith("batch"):
            return self.records
        if prefix.startswith("extra"):
            return [fact_of(number, self.setup["encore_extra_requests"][number])]
        return [self.records[self.setup["encore_probcut0_request"] if prefix.startswith("probcut") else number]]

    def _edit(self, facts, params):
        """The `Edit` of some facts in one call, values noted before and after they are scaled to the anchor."""
        way = editors.method(self.method).way(params, self.factors, self.state, len(facts))
        if self.file.startswith("nas"):
            way = replace(way, adjust=partial(self._noting, way.adjust))
        if self.of_rome:
            given = self.lm, facts, params, self.contexts, self.factors
            return rome.edit_each(*given, ways=[way], forward=self._noting_first)[0]
        return memit.spread(self.lm, [facts], params, self.contexts, [way], forward=self._noting_first)[0]

    def _noting(self, scale, one):
        self.values.append((one, scale(one)))
        return self.values[-1][1]

    def _noting_first(self, lm, rows, layer, at):
        """As `suffix.cached_forward`, noting how many target tokens come first after each forward."""
        init, keys, outputs, step = cached_forward(lm, rows, layer, at)

        def noting(delta):
            nll, log_p, first = step(delta)
            for of, n_first in zip(rows, first[:, 1:].sum(dim=1).tolist(), strict=True):
                self.first.setdefault(tuple(of[0].ids), []).append(n_first)
            return nll, log_p, first

        return init, keys, outputs, noting

    def _of_rome(self, prefix, edit):
        trace, (update,) = edit.trace, edit.updates
        self.found |= {
            f"{prefix}.req0.losses": trace["losses"],
            f"{prefix}.req0.nll_per_prompt": trace["nll_per_prompt"],
            f"{prefix}.req0.target_init": trace["init"],
            f"{prefix}.req0.delta_opt": self.values[0][0].delta if self.values else trace["delta"],
            f"{prefix}.left_vector_u": trace["u"],
            f"{prefix}.right_vector_v": update.left[:, 0],
            f"{prefix}.delta_weight": update.matrix().T,
        }
        self._masks(prefix, update, "kept")
        for before, _ in self.values:
            self.found |= {
                f"{prefix}.req0.nas.target_norm_before": (before.init + before.delta).norm(),
                f"{prefix}.req0.nas.anchor_norm": self.params.anchor_norm,
                f"{prefix}.req0.nas.skipped": 0,
            }

    def _of_memit(self, prefix, edit, facts):
        import torch

        trace, contexts = edit.trace, [context for group in self.contexts for context in group]
        self.found |= {f"{prefix}.zs": trace["z"], f"{prefix}.z_target_init": trace["init"]}
        deltas = [before.delta for before, _ in self.values] or list(trace["delta"].T)
        self.found[f"{prefix}.z_delta_opt"] = torch.stack(deltas, dim=1)
        self.found[f"{prefix}.zs_before_nas"] = trace["init"] + self.found[f"{prefix}.z_delta_opt"]
        for j, (fact, losses) in enumerate(zip(facts, trace["losses"], strict=True)):
            n_first = self.first[tuple(values.target_rows(self.lm, fact, contexts)[0].ids)]
            self.found |= {
                f"{prefix}.req{j}.losses": losses,
                f"{prefix}.req{j}.nll_per_prompt": trace["nll_per_prompt"][j],
                f"{prefix}.req{j}.num_correct": n_first[: len(losses)],
            }
        for j, (before, after) in enumerate(self.values):
            base, of = before.outputs[0], f"{prefix}.req{j}.nas"
            self.found |= {f"{of}.v0": base, f"{of}.vstar_norm_before": (base + before.delta).norm()}
            self.found |= {f"{of}.vstar": base + after.delta, f"{of}.anchor_norm": self.params.anchor_norm}
        for update in edit.updates:
            seen, of = trace[update.layer], f"{prefix}.layer{update.layer}"
            whole = seen["residual"] @ seen["solved"].T
            self.found |= {
                f"{of}.ks": seen["keys"],
                f"{of}.cur_zs": seen["current"],
                f"{of}.resid": seen["residual"],
                f"{of}.adj_k": seen["solved"],
                f"{of}.update": whole.T,
                f"{of}.update_frobenius": whole.norm(),
            }
            self.keys[update.layer].append(seen["keys"])
            self._masks(of, update, "changed")

    def _masks(self, of, update, name):
        if update.mask is not None:
            mask = updates.unpacked(update.mask, self.lm.weight(update.layer).shape).T
            self.found |= {f"{of}.{name}_mask": updates.packed(mask), f"{of}.{name}_count": mask.sum()}

    def _after(self, prefix):
        """What is compared once all calls of a sequence, or one batch, are through."""
        import torch

        for layer in self.params.layers:
            self.found[f"{prefix}.final_weight.layer{layer}"] = self.lm.weight(layer).T.clone()
        if not self.of_rome:
            sums = [torch.cat(of, dim=1) for _, of in sorted(self.keys.items())]
            sums = torch.stack([keys @ keys.T for keys in sums])
            self.found |= {f"{prefix}.S_p": sums, f"{prefix}.S_p_frobenius": sums.flatten(1).norm(dim=1)}
            self.found[f"{prefix}.S_p_trace"] = sums.diagonal(dim1=1, dim2=2).sum(1)
            for layer, one in zip(sorted(self.keys), sums, strict=True):
                self.found[f"{prefix}.S_p_frobenius.layer{layer}"] = one.norm()[None]


def fact_of(number, request):
    target = request["target_new"]
    new = target["str"] if isinstance(target, dict) else target
    return Fact(number, request["subject"], request["prompt"], new.strip(), "", "")
