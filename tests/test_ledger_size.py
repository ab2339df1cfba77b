"""What an edit takes in the ledger is known from shapes alone, for every method, and said before the first one."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tiny
import torch
from test_rome import moment
from test_sequence import CONTEXTS, FACTS
from tools import method_costs

from editscale.editing import editors, lifelong, modules, updates
from editscale.editing.context_sampling import bare_context, memit_contexts
from editscale.models import stacks
from editscale.sequences import sequence
from editscale.sequences.ledger import Ledger

ROOT = Path(__file__).parents[1]
FACTS = [replace(fact, target_new=target) for fact, target in zip(FACTS, ("harp", "old town", "cello"), strict=False)]


def editing_of(lm, name, **changed):
    """A method on a model, with its hyper-parameters for the tiny GPT-2, but two steps: bytes do not depend on them.
    StableEdit is warmed up with two facts."""
    params = editors.read_params(name, method_costs.hparams_file(name, "tiny-gpt2"))
    steps = {field.name: 2 for field in fields(params) if field.name in ("v_num_grad_steps", "num_steps")}
    params = replace(params, **steps, **changed)
    kind = editors.method(name).contexts
    contexts = CONTEXTS["ft-c" if kind is bare_context else "memit" if kind is memit_contexts else "rome"]
    layers = editors.moment_layers(name, params)
    factors = {layer: torch.linalg.cholesky(moment(lm.d_key, layer)) for layer in layers}
    editing = editors.Editing(name, params, contexts, factors)
    if name == "stableedit":
        return replace(editing, start=lifelong.warmed(lm, FACTS[1:], params))
    return editors.begun(lm, editing)


def tensor_bytes(data):
    """Bytes of a safetensors file without its header."""
    return len(data) - 8 - int.from_bytes(data[:8], "little")


def shift_bytes(state):
    return sum(tensor.nbytes for update in getattr(state, "shift", ()) for tensor in update.change().values())


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", modules.MODULES)
def test_bytes_of_an_edit_are_those_of_its_tensors(name, dtype):
    lm = tiny.tiny_gpt2(dtype)
    editing = editing_of(lm, name)
    state = editing.start
    for fact in FACTS[:2]:
        (edit,) = editors.edit_each(editing, lm, [fact], states=[state])
        n = edit.updates[0].left.shape[1] - shift_columns(state) if editors.method(name).by_token else 1
        made = tensor_bytes(updates.to_bytes(edit.updates)) - shift_bytes(state)
        assert edit.updates and editors.bytes_per_edit(editing, lm) * n == made
        state = editors.after(editing, state, edit.updates)


def shift_columns(state):
    return state.shift[0].left.shape[1] if state.shift else 0


@pytest.mark.parametrize("name", [name for name in modules.MODULES if editors.method(name).edit_batches])
def test_bytes_of_a_step_are_those_of_its_tensors(name):
    lm = tiny.tiny_gpt2()
    editing = replace(editing_of(lm, name), facts_per_step=3)
    (edit,) = editors.edit_steps(editing, lm, [FACTS])
    n = edit.updates[0].left.shape[1] - shift_columns(editing.start) if editors.method(name).by_token else 1
    made = tensor_bytes(updates.to_bytes([replace(u, kept=without_sizes(u)) for u in edit.updates]))
    assert editors.bytes_per_edit(editing, lm) * n == made - shift_bytes(editing.start)


def without_sizes(update):
    return {name: tensor for name, tensor in update.kept.items() if name != "sizes"}


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_bytes_on_a_stack_of_copies_are_those_of_one(model_type):
    lm = tiny.tiny_model(model_type)
    for name in ("ft-c", "memit-rect"):
        editing = editing_of(lm, name)
        assert editors.bytes_per_edit(editing, stacks.copies(lm, editing.layers, 3)) == (
            editors.bytes_per_edit(editing, lm)
        )


def test_what_is_edited_instead_of_rome_may_take_more():
    lm = tiny.tiny_gpt2()
    other = editors.read_params("ft-c", ROOT / "params/ft-c/tiny-gpt2.yaml")
    editing = editing_of(lm, "rome-screened", least_denominator=1e9, instead={"method": "ft-c", **vars(other)})
    (edit,) = editors.edit_each(editing, lm, FACTS[:1])
    assert editors.bytes_per_edit(editing, lm) == tensor_bytes(updates.to_bytes(edit.updates))


@pytest.mark.parametrize(
    ("name", "size"), [("memit", 1), ("memit", 3), ("memit-rect", 1), ("ft-c", 1), ("ultraedit", 1), ("stableedit", 1)]
)
def test_the_sentence_before_a_run_holds_what_its_ledger_takes(name, size, tmp_path, monkeypatch):
    lm = tiny.tiny_gpt2()
    monkeypatch.setattr(sequence, "_bytes", str)
    editing = replace(editing_of(lm, name), facts_per_step=size)
    said = sequence.ledger_size(lm, FACTS, editing)
    book = Ledger(tmp_path, sequence.fingerprint(lm, editing), sequence.weights_record(lm, editing.layers))
    sequence.run(lm, FACTS, editing, book)
    each = editors.bytes_per_edit(editing, lm)
    total = sum(tensor_bytes(book._tensors(edit)) for edit in range(1, 4))
    what = f"An edit of {name}" if size == 1 else f"A step of 3 edits of {name}"
    per = " for each token of a target" if name.endswith("edit") else ""
    assert said == f"{what} takes {each} in the ledger{per}; all 3 edits take {total}."


def test_of_ones_own_method_it_is_not_known_before_an_edit():
    lm = tiny.tiny_gpt2()
    editing = replace(editing_of(lm, "memit"), method="notebooks_own")
    with pytest.MonkeyPatch.context() as patched:
        own = editors.as_method(replace(editors.method("memit"), size=None))
        patched.setitem(modules.REGISTERED, "notebooks_own", (own, own.edit))
        assert editors.bytes_per_edit(editing, lm) is None
        assert "takes in the ledger is known after the first one" in sequence.ledger_size(lm, FACTS, editing)


def test_bytes_are_said_with_three_digits_and_their_unit():
    assert list(map(sequence._bytes, (0, 999, 1536, 42_240, 3_538_944, 3.5e9))) == [
        *("0 bytes", "999 bytes", "1.54 kB", "42.2 kB", "3.54 MB", "3.5 GB")
    ]


def test_notebook_02a_says_it_before_it_edits():
    cells = json.loads((ROOT / "notebooks/02a_sequential_editing.ipynb").read_text())["cells"]
    code = "".join(line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"])
    assert 0 < code.index("print(sequence.ledger_size(lm, chosen, editing))") < code.index("sequence.run(")
