"""The benchmark: both paths of every part agree on tiny models, and its tables say what was measured."""

import functools
import json
from dataclasses import replace

import pytest
import synthetic
import tiny
import torch
from tools import bench, costs, parts

from editscale.data.facts import Fact
from editscale.editing import editors
from editscale.kernels import cuda_graphs
from editscale.models import tokens
from editscale.workflow import cli

SIZE = parts.Size(
    repeats=1,
    peak=32,
    steps=3,
    n_records=3,
    n_history=3,
    tasks=("reviews",),
    n_examples=4,
    n_tokens=300,
    batch_tokens=1024,
    n_edits=(2, 4),
    n_prompt=(5, 12),
    n_orders=(1, 3),
)
PARAMS = {name: editors.read_params(name, f"params/{name}/tiny-gpt2.yaml") for name in ("rome", "memit")}
FACTS = [
    Fact(i, subject, prompt, new, true, paraphrase_prompts=(f"The river. {subject} is",), neighborhood_prompts=others)
    for i, (subject, prompt, new, true, others) in enumerate(
        [
            ("Ada Example", "{} plays the", "old harp", "cello", ("Bo Sample plays the", "Lund is in")),
            ("Bo Sample", "The mother tongue of {} is", "Swedish", "Danish", ("Ada Example speaks",)),
            ("Lund", "There is a river in the town of {}", "Denmark", "Sweden", ()),
        ]
    )
]
COMPARED = {"rome", "memit", "record", "glue", "history", "moments", "rome-orders", "memit-orders"}


@functools.cache
def tiny_case(model_type, dtype):
    lm = tiny.tiny_model(model_type, dtype=dtype)
    lm.model.config.max_position_embeddings = 2048  # the tasks' prompts are long in tokens of the tiny tokenizer
    if model_type == "gpt2":
        positions = torch.randn(2048, lm.d_model, generator=torch.Generator().manual_seed(1))
        lm.model.transformer.wpe.weight.data = positions.to(dtype)
    return parts.case("tiny", lm, FACTS, PARAMS, SIZE)


@pytest.mark.parametrize("part", parts.PARTS)
def test_rows_are_whole_and_the_model_is_left_as_it_was(part):
    case = tiny_case("gpt2", torch.float64)
    before = {name: weight.clone() for name, weight in case.lm.model.state_dict().items()}
    rows = list(bench.measure(case, part, 0.5))
    for row in rows:
        assert tuple(row) == costs.FIELDS
        assert (row["shape"], row["precision"]) == ("tiny", "float32") and row["fast_s"] > 0
        assert row["share_of_peak"] == pytest.approx(row["tflops"] / 0.5, rel=1e-3)
        numbers = [row[name] for name in ("plain_s", "ratio", "max_rel_diff")]
        assert (None not in numbers) if part in COMPARED else set(numbers) == {None}
    assert len({row["part"] for row in rows}) == len(rows) > 0
    assert all(torch.equal(weight, before[name]) for name, weight in case.lm.model.state_dict().items())


@pytest.mark.parametrize("part", sorted(COMPARED))
@pytest.mark.parametrize(
    ("model_type", "dtype", "tolerance"),
    [
        ("gpt2", torch.float64, 1e-10),
        ("gpt2", torch.float32, 1e-4),
        ("llama", torch.float32, 1e-4),
        ("gemma", torch.float32, 1e-4),
    ],
)
def test_plain_and_fast_path_agree(part, model_type, dtype, tolerance):
    """In float32 an update is a small difference of large states, and Adam follows the sign of small gradients."""
    for row in bench.measure(tiny_case(model_type, dtype), part, 1.0):
        assert row["max_rel_diff"] <= tolerance, row["part"]


def test_the_differences_are_those_of_the_results():
    case = tiny_case("gpt2", torch.float64)
    other = replace(case, facts=[replace(fact, target_new="cello") for fact in case.facts])
    for part in ("rome", "memit", "record", "history"):
        ((slow, ways, differ),), ((_, others, _),) = (list(parts.PARTS[part](of))[:1] for of in (case, other))
        assert differ(slow(), others[0]()) > 1e-3 > differ(slow(), ways[0]()), part


def test_answers_differ_by_the_share_of_those_that_do():
    assert parts._answers_differ([(1, 2), (3,), (4,), ()], [(1, 2), (3, 3), (4,), (5,)]) == 0.5


def test_an_edit_that_stops_early_is_no_measurement():
    case = tiny_case("gpt2", torch.float32)
    rewarded = replace(PARAMS["rome"], v_weight_decay=-1e6)  # any δ has a loss below the threshold
    edit = parts.edit_way(replace(case, params={"rome": rewarded}), "ROME edit", "rome", FACTS[:1], 20)
    with pytest.raises(ValueError, match="case 0 stopped after 2 of 20 steps; give a smaller v_lr"):
        edit()


def test_the_first_fact_is_the_one_with_the_median_number_of_tokens_from_its_subject_on():
    tokenizer = tiny.tiny_tokenizer()
    first, *others = parts.typical_first(tokenizer, FACTS)
    lengths = [
        len(row.ids) - row.subject_last
        for fact in FACTS
        for row in tokens.context_rows(tokenizer, ["{}"], fact.prompt, fact.subject, fact.target_new)
    ]
    assert len(set(lengths)) == 3 and lengths[FACTS.index(first)] == sorted(lengths)[1]
    assert others == [fact for fact in FACTS if fact != first]


def test_too_few_facts_are_named():
    with pytest.raises(ValueError, match="2 facts are too few to measure with; 3 are needed"):
        parts.case("tiny", tiny.tiny_model("gpt2"), FACTS[:2], PARAMS, SIZE)


def test_prompts_grow_to_the_lengths_asked_for():
    case = replace(tiny_case("llama", torch.float32), size=replace(SIZE, n_prompt=(5, 30, 60)))
    ((_, ways, _),) = parts.PARTS["rome-prompt"](case)
    lengths = [int(way.part.split()[4]) for way in ways]
    assert lengths[0] < 15 and lengths[1:] == pytest.approx([30, 60], abs=3)


def test_orders_share_the_seconds_of_their_batch(monkeypatch):
    case = tiny_case("gpt2", torch.float64)
    monkeypatch.setattr(bench, "_timed", lambda run, device: (6.0, run()))
    one, three = bench.measure(case, "rome-orders", 1.0)
    assert [(row["orders"], row["plain_s"], row["fast_s"], row["ratio"]) for row in (one, three)] == [
        (1, 6.0, 6.0, 1.0),
        (3, 6.0, 2.0, 3.0),
    ]


def test_rounds_take_turns_and_none_begins_after_the_time_is_up(monkeypatch):
    case, ran = tiny_case("gpt2", torch.float64), []

    def run(lm):
        ran.append("count" if lm.graphs is None else "fast")

    way = parts.FastPath("part", run, case.lm, prepare=lambda: ran.append("prepare"))
    monkeypatch.setitem(parts.PARTS, "rome", lambda case: [(lambda: ran.append("plain"), [way], lambda a, b: 0.0)])
    assert len(list(bench.measure(case, "rome", 1.0, repeats=3))) == 1
    assert ran == ["prepare", "count", *["plain", "prepare", "fast"] * 3]
    ran.clear()
    list(bench.measure(case, "rome", 1.0, repeats=3, seconds=0.0))
    assert ran == ["prepare", "count", "plain", "prepare", "fast"]


def test_operations_of_a_product_are_counted():
    a, b = torch.randn(30, 40), torch.randn(40, 50)
    way = parts.FastPath("product", lambda _: a @ b, tiny.tiny_model("gpt2"))
    flops, peak_gb = bench._first_run(way, torch.device("cpu"))
    assert flops == 2 * 30 * 40 * 50
    assert peak_gb is None or peak_gb > 0.01


@pytest.mark.parametrize(("precision", "setting"), [("float32", "highest"), ("tf32", "high")])
def test_the_precision_holds_inside_and_is_put_back(precision, setting):
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), cuda_graphs.multiplying_in(precision):
        assert torch.get_float32_matmul_precision() == setting
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_shapes_are_those_of_the_published_models():
    """Parameters of GPT-2 small and XL, GPT-J and SmolLM2-135M, counted without making them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {}
    for name in ("gpt2-small", "gpt2-xl", "gpt-j", "smollm2"):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**bench.SHAPES[name].config))
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    expected = {"gpt2-small": 124_439_808, "gpt2-xl": 1_557_611_200, "gpt-j": 6_050_882_784, "smollm2": 134_515_008}
    assert sizes == expected


def test_a_shape_with_random_weights_is_loaded_with_its_layers(monkeypatch, tmp_path):
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    small = {**bench.SHAPES["gpt2-small"].config, "n_layer": 6, "n_embd": 32, "n_head": 4}
    monkeypatch.setitem(bench.SHAPES, "gpt2-small", replace(bench.SHAPES["gpt2-small"], config=small))
    lm, params = bench.load("gpt2-small", "cpu", str(tmp_path))
    assert (params["rome"].layer, params["memit"].layers) == (4, [0, 1, 2, 3, 4])
    assert params["rome"].v_lr == params["memit"].v_lr == bench.SHAPES["gpt2-small"].v_lr
    assert (lm.n_layers, lm.d_model, lm.dtype, lm.model.training) == (6, 32, torch.float32, False)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.model.config._attn_implementation == "eager"
    again, _ = bench.load("gpt2-small", "cpu", str(tmp_path))
    assert torch.equal(lm.weight(2), again.weight(2)) and lm.weight(2).std() > 0


def test_the_command_measures_what_it_is_asked_for_and_merges_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(parts.SIZES, "cpu", SIZE)
    monkeypatch.setattr(bench, "load", lambda *_: (tiny.tiny_model("llama"), PARAMS))
    (tmp_path / "facts.json").write_text(json.dumps([synthetic.to_record(fact) for fact in FACTS]))
    command = ["--shapes", "gpt2-xl", "--facts", str(tmp_path / "facts.json"), "--out", str(tmp_path / "cost")]
    assert cli.main(["bench", *command, "--parts", "record", "rome-orders", "--orders", "1", "2"]) == 0
    assert cli.main(["bench", *command, "--parts", "record", "--precisions", "float32"]) == 0
    (rows,) = costs.read(tmp_path / "cost").values()
    assert [(row["part"], row["shape"], row["orders"]) for row in rows] == [
        ("matmul peak", "32 x 32", 1),
        ("record evaluation", "gpt2-xl", 1),
        ("record evaluation, 3 records", "gpt2-xl", 1),
        ("ROME edits, 1 order, 3 steps", "gpt2-xl", 1),
        ("ROME edits, 2 orders, 3 steps", "gpt2-xl", 2),
    ]
    assert "ROME edits, 2 orders, 3 steps, model gpt2-xl, device " in capsys.readouterr().out
    assert cli.main(["bench", *command, "--parts", "--profile"]) == 0
    assert "aten::" in capsys.readouterr().out
    assert "## The recorded study" in (tmp_path / "cost/README.md").read_text()
