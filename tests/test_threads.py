"""On the CPU every way to edit takes one thread, unless it is told how many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THEN = "import torch; print(torch.get_num_threads())"
SCRIPT = f"{THEN}; from editscale.models import loading; loading.load('tests/golden/tiny_gpt2'); {THEN}"
OTHER = f"import editscale; lm = editscale.load('tests/golden/tiny_gpt2'); {THEN}"
CHANGED = f"{OTHER}; torch.set_num_threads(3); editscale.load('tests/golden/tiny_gpt2'); {THEN}"
COMMAND = f"""
from editscale.workflow import cli
cli.main(["facts", "params/smoke/invented_facts.json", "--model", "tests/golden/tiny_gpt2"])
{THEN}
"""


# Each code in a process of its own, forked from one that has imported what all import and nothing of editscale.
EACH = """
import os, sys
import torch, transformers.models.gpt2.modeling_gpt2
for code in sys.argv[1:]:
    sys.stdout.flush()
    if not (child := os.fork()):
        exec(code, {})
        break
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    "codes, told, threads", [([SCRIPT], "2", ["2", "2"]), ([CHANGED, COMMAND], None, ["1", "3", "1"])]
)
def test_one_thread_is_taken_unless_one_is_told_how_many(codes, told, threads):
    """In processes of their own, in which torch alone would take two on any number of cores."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": told} if told else {"MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", EACH, *codes], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == threads, done.stderr


def test_no_command_has_another_way_to_a_model_than_the_function_that_sets_threads():
    """Those that need a run's files, together and replay, are not started above. What is converted has no weights."""
    package = {path: path.read_text() for path in (ROOT / "editscale").rglob("*.py")}
    made = {path.name for path, text in package.items() if "CausalLM.from_config" in text}
    assert made == {"loading.py", "gguf_model.py"}
