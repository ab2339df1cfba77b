"""MEMIT's family: the values and the spreading of MEMIT, and a solve that differs in three places.

    A = H K (c I + KᵀHK)⁻¹,  ΔW = R Aᵀ,  H = (B + S)⁻¹

| method | B | S: keys of earlier edits | c |
|---|---|---|---|
| memit | λC | no | 1 |
| memit-seq | λC | yes | 1 |
| encore | λC + ρI | yes | 1 |
| alphaedit | L₂I, where C has eigenvalues below a threshold | yes | 1 |
| emmet | λC + ρI | no | 0 for one fact, ε for several |

ENCORE's values also end earlier, as soon as they are learned (`descent`). Sources: jianghoucheng/AlphaEdit
`memit/memit_seq_main.py`, with the argument passed on that its wrapper forgets, and `AlphaEdit/` (arXiv:2410.02355);
scalable-model-editing/encore `encore/` (arXiv:2502.01636); scalable-model-editing/unified-model-editing `emmet/`
(arXiv:2403.14236). Where S counts, each edit keeps its keys, and the state of a run follows from these (`history`).
"""

from dataclasses import dataclass
from functools import partial

from editscale.editing import history, memit, updates
from editscale.editing.memit import MemitParams
from editscale.editing.method import Way


@dataclass(frozen=True)
class AlphaEditParams:
    """Hyper-parameters, named as in AlphaEdit `hparams/AlphaEdit`; params/alphaedit/*.yaml says what each means."""

    layers: list
    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    nullspace_threshold: float
    L2: float


@dataclass(frozen=True)
class EncoreParams(MemitParams):
    """Hyper-parameters, named as in encore `hparams/ENCORE`; params/encore/*.yaml says what each means."""

    update_norm_lambda: float
    prob_cutoff: float
    stop_tokens: str

    def __post_init__(self):
        if not self.prob_cutoff or self.prob_cutoff >= 1 or self.stop_tokens not in ("all", "five"):
            raise ValueError(
                f"prob_cutoff {self.prob_cutoff} and stop_tokens {self.stop_tokens!r}; expected −1, −2, … or a "
                "probability between 0 and 1, and all or five"
            )


@dataclass(frozen=True)
class EmmetParams(MemitParams):
    """Hyper-parameters, named as in unified-model-editing `hparams/EMMET`; params/emmet/*.yaml says what each means."""

    emmet_lambda: float
    update_norm_lambda: float


def with_moment(lm, params, contexts, factors):
    """The state of `memit-seq` before the first edit: layer ↦ `history.Inverse`."""
    return {x: history.of_moment(factors[x], params.mom2_update_weight) for x in sorted(params.layers)}


def with_ridge(lm, params, contexts, factors):
    """The state of `encore` before the first edit, and that of `emmet`, the same for a whole run."""
    ridge = params.update_norm_lambda
    return {x: history.of_moment(factors[x], params.mom2_update_weight, ridge) for x in sorted(params.layers)}


def in_null_space(lm, params, contexts, factors):
    """The state of `alphaedit` before the first edit."""
    return {x: history.of_null_space(factors[x], params.nullspace_threshold, params.L2) for x in sorted(params.layers)}


def with_keys(state, updates):
    """The state after an edit: its keys are among those edited before."""
    return state | {update.layer: state[update.layer].after(update.kept["keys"]) for update in updates}


def unchanged(state, updates):
    """The state, whatever was edited."""
    return state


def way(params, factors, state, n):
    """The `Way` of a method of the family in a state."""
    return Way(lambda keys, layer, bare: history.solve(state[layer], keys), keep=True)


def way_of_emmet(params, factors, state, n):
    """The `Way` of EMMET: constraints met exactly, or with ε where there are several, and no keys of earlier edits."""
    own = params.emmet_lambda if n > 1 else 0.0
    return Way(lambda keys, layer, bare: history.solve(state[layer], keys, own))


SIZE = partial(updates.low_rank_bytes, right=2)  # the keys are kept
METHODS = {
    "memit-seq": memit.method(MemitParams, way, start=with_moment, after=with_keys, size=SIZE),
    "alphaedit": memit.method(AlphaEditParams, way, start=in_null_space, after=with_keys, size=SIZE),
    "encore": memit.method(EncoreParams, way, start=with_ridge, after=with_keys, size=SIZE),
    "emmet": memit.method(EmmetParams, way_of_emmet, start=with_ridge, after=unchanged),
}
