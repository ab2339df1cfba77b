"""CUDA graphs of optimization steps give what the same steps give one kernel at a time, and what the CPU gives."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_copies import CONTEXTS, FACTS, MEMIT, ROME

from editscale.editing import finetune, memit, rome, suffix, updates, values
from editscale.editing.descent import Descent, descend
from editscale.kernels import cuda_graphs
from editscale.metrics import scoring
from editscale.models import decoding, stacks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def on_gpu(model_type, dtype=torch.float64):
    lm = tiny.tiny_model(model_type, dtype=dtype)
    return replace(lm, model=lm.model.cuda(), graphs={})


@pytest.mark.parametrize("at", ("mlp", "block"))
@pytest.mark.parametrize("model_type", ("gpt2", "gptj", "llama", "qwen3", "gemma", "gemma2"))
def test_recorded_steps_are_the_steps(model_type, at):
    lm, cpu = on_gpu(model_type), tiny.tiny_model(model_type, dtype=torch.float64)
    tolerance = 1e-9 if model_type == "gpt2" else 5e-4
    for facts in ([FACTS[0]], [FACTS[1]], FACTS):
        rows = [values.target_rows(lm, fact, CONTEXTS) for fact in facts]
        init, _, _, cached = suffix.cached_forward(lm, rows, 1, at)
        eager = Descent(init, ROME, len(CONTEXTS), lm.n_vocabulary)
        descend(cached, eager)
        recorded = cuda_graphs.descend(lm, cached, Descent(init, ROME, len(CONTEXTS), lm.n_vocabulary))
        for one, two in zip(recorded.results(), eager.results(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        on_cpu = values.optimize(cpu, facts, CONTEXTS, 1, ROME, at=at)
        for one, two in zip(recorded.results(), on_cpu, strict=True):
            scale = two.delta.norm().item()
            torch.testing.assert_close(one[0].cpu(), two.delta, rtol=0, atol=tolerance * scale)
            torch.testing.assert_close(one[1].cpu(), two.losses, rtol=tolerance, atol=tolerance)


def test_a_graph_reads_the_weights_as_they_are_now_and_serves_every_fact_of_its_shape():
    lm = on_gpu("gpt2")
    factors = {layer: torch.eye(lm.d_key, dtype=torch.float64, device="cuda") for layer in (0, 1, 2)}
    for _ in range(2):
        (edit,) = rome.edit_each(lm, [FACTS[0]], ROME, CONTEXTS, factors)
        n = len(lm.graphs["recorded"])
        lm.weight(1).add_(edit.updates[0].matrix())
        lm.weight(3).mul_(1.1)
        cpu = tiny.tiny_model("gpt2", dtype=torch.float64)
        cpu.weight(1).copy_(lm.weight(1).cpu())
        cpu.weight(3).copy_(lm.weight(3).cpu())
        (again,) = rome.edit_each(lm, [FACTS[0]], ROME, CONTEXTS, factors)
        assert len(lm.graphs["recorded"]) == n
        (oracle,) = rome.edit_each(cpu, [FACTS[0]], ROME, CONTEXTS, {k: f.cpu() for k, f in factors.items()})
        expected = oracle.updates[0].matrix()
        torch.testing.assert_close(
            again.updates[0].matrix().cpu(), expected, rtol=0, atol=1e-9 * expected.norm().item()
        )


@pytest.mark.parametrize("layers", ([0, 1], [1, 2]))
def test_what_memit_spreads_is_that_of_the_cpu_on_the_weights_as_they_are_now(layers):
    lm, cpu = on_gpu("gpt2"), tiny.tiny_model("gpt2", dtype=torch.float64)
    params, contexts, recorded = replace(MEMIT, layers=layers), [["{}"], CONTEXTS[1:]], None
    factors = {layer: torch.eye(lm.d_key, dtype=torch.float64) for layer in layers}
    on_cuda = {layer: factor.cuda() for layer, factor in factors.items()}
    for _ in range(2):
        found = memit.edit_each(lm, FACTS, params, contexts, on_cuda)
        assert recorded in (None, len(lm.graphs["recorded"]))
        recorded = len(lm.graphs["recorded"])
        assert any(name.startswith("spread") for name, *_ in lm.graphs["recorded"])
        for one, two in zip(found, memit.edit_each(cpu, FACTS, params, contexts, factors), strict=True):
            for a, b in zip(one.updates, two.updates, strict=True):
                expected = b.matrix()
                torch.testing.assert_close(a.matrix().cpu(), expected, rtol=0, atol=1e-8 * expected.norm().item())
        for model in (lm, cpu):
            updates.apply(model, [update.to(model.device) for update in found[0].updates])


def test_facts_stop_by_themselves_in_a_graph():
    """A quadratic instead of a model: no block, only the arithmetic of the descent."""
    lm = on_gpu("gpt2")
    params = replace(ROME, v_num_grad_steps=40, v_weight_decay=0.0)
    targets = torch.tensor([[0.3], [3.0], [90.0]], dtype=torch.float64, device="cuda").expand(3, 3).contiguous()
    init, log_p = torch.ones_like(targets), torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64)).cuda()

    class Quadratic(suffix.SuffixSteps):
        def __call__(self, delta):
            distance = ((delta - self.tensors["targets"]) ** 2).sum(dim=1, keepdim=True)
            return distance, log_p.expand(len(delta), 2)

    steps = Quadratic(0, None, None, None, {"targets": targets})
    eager = Descent(init, params, 1, 2)
    descend(steps, eager)
    recorded = cuda_graphs.descend(lm, steps, Descent(init, params, 1, 2))
    lengths = [len(losses) for _, losses, _ in recorded.results()]
    assert lengths[0] < lengths[1] < lengths[2] == 40
    for one, two in zip(recorded.results(), eager.results(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("method", ("rome", "memit"))
def test_orders_on_a_gpu_are_edited_as_on_the_cpu(method):
    edits = []
    for lm in (on_gpu("gpt2"), tiny.tiny_model("gpt2", dtype=torch.float64)):
        stack = stacks.copies(lm, (0, 1, 2), 3)
        for i in range(3):
            stack.weight(1)[i].mul_(1 + 0.1 * i)
        factors = {layer: torch.eye(lm.d_key, dtype=torch.float64, device=lm.device) for layer in (0, 1, 2)}
        if method == "memit":
            edits.append(memit.edit_each(stack, FACTS, MEMIT, [["{}"], CONTEXTS[1:]], factors))
        else:
            edits.append(rome.edit_each(stack, FACTS, ROME, CONTEXTS, factors))
    for one, two in zip(*edits, strict=True):
        for ours, expected in zip(one.updates, two.updates, strict=True):
            tolerance = 1e-9 * expected.matrix().norm().item()
            torch.testing.assert_close(ours.matrix().cpu(), expected.matrix(), rtol=0, atol=tolerance)


def test_only_so_many_graphs_are_kept(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "KEPT", 2)
    lm = on_gpu("gpt2")
    alone = values.optimize(on_gpu("gpt2"), FACTS[:1], CONTEXTS, 1, ROME, at="mlp")[0]
    for n in (1, 2, 3, 1):
        together = values.optimize(lm, FACTS[:n], CONTEXTS, 1, ROME, at="mlp")
        torch.testing.assert_close(together[0].delta, alone.delta, rtol=0, atol=1e-9 * alone.delta.norm().item())
    assert len(lm.graphs["recorded"]) == 2


@pytest.mark.parametrize("model_type", ("gpt2", "llama"))
def test_scores_on_a_gpu_are_those_on_the_cpu_also_after_an_edit(model_type):
    lm, cpu = on_gpu(model_type), tiny.tiny_model(model_type, dtype=torch.float64)
    for scale in (1.0, 1.2):
        for one in (lm, cpu):
            one.weight(1).mul_(scale)
        for facts in (FACTS[:1], FACTS):
            for ours, expected in zip(scoring.score_facts(lm, facts), scoring.score_facts(cpu, facts), strict=True):
                pairs = [(a, b) for kind in scoring.KINDS for a, b in zip(ours[kind], expected[kind], strict=True)]
                assert all(a.nll_new == pytest.approx(b.nll_new, rel=1e-5) for a, b in pairs)
    assert len(lm.graphs["recorded"]) <= 2


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma2"))
def test_fine_tuning_on_a_gpu_is_that_on_the_cpu_and_serves_every_fact_of_its_shape(model_type):
    lm, cpu = on_gpu(model_type), tiny.tiny_model(model_type, dtype=torch.float64)
    params = finetune.FtParams(1, 6, 5e-3, 0.0, 0.012)
    for facts in (FACTS[:1], FACTS, FACTS[1:2], FACTS[:1]):
        edits = (finetune.edit_each(one, facts, params, ["{}"], {}) for one in (lm, cpu))
        for ours, expected in zip(*edits, strict=True):
            pairs = zip(ours.updates[0].tensors().values(), expected.updates[0].tensors().values(), strict=True)
            for a, b in pairs:
                assert (a.cpu() - b).norm() <= (1e-9 if model_type == "gpt2" else 2e-2) * b.norm()
    assert len(lm.graphs["recorded"]) <= 3


def test_fine_tuning_copies_on_a_gpu_is_that_on_the_cpu():
    edits = []
    for lm in (on_gpu("gpt2"), tiny.tiny_model("gpt2", dtype=torch.float64)):
        stack = stacks.copies(lm, (0,), 3)
        for i in range(3):
            stack.weight(0)[i].mul_(1 + 0.1 * i)
        edits.append(finetune.edit_each(stack, FACTS, finetune.FtParams(0, 6, 5e-3, 0.0, 0.012), ["{}"], {}))
    for one, two in zip(*edits, strict=True):
        expected = two.updates[0].left
        assert (one.updates[0].left.cpu() - expected).norm() <= 1e-9 * expected.norm()
        assert len(one.trace["losses"]) == len(two.trace["losses"])


@pytest.mark.parametrize("room", (0, 10**8))
def test_prompts_are_continued_by_graphs_as_without_along_edits(room):
    lm, gpu = tiny.tiny_model("llama", dtype=torch.float64), on_gpu("llama")
    prompts = [(5, 6, 7, 8), (5, 6, 9), (5, 6, 7, 10, 11)]
    here, there = (decoding.Greedy(model, prompts, 3, layer=2, max_bytes=room) for model in (lm, gpu))
    for _ in range(3):
        assert there() == here()
        for model in (lm, gpu):
            model.weight(2).mul_(-0.9)
