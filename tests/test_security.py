"""No secret is committed, nothing here unpickles or runs what a file says, and what is downloaded is pinned."""

import ast
import json
import pickle
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from test_repository import committed_files

from editscale.models import loading
from editscale.workflow.parameters import read_notebook

ROOT = Path(__file__).parents[1]
# What a secret looks like; words, in small letters, of which a text that holds one has some, so that few are searched;
# and a secret, in two parts, so that this file holds none.
SECRETS = {
    "a private key": (r"-----BEGIN [A-Z ]*PRIVATE KEY-----", ("private key",), ("-----BEGIN RSA PRIV", "ATE KEY-----")),
    "a Hugging Face token": (r"\bhf_[A-Za-z0-9]{30,}", ("hf_",), ("hf", "_" + "aB3" * 12)),
    "a GitHub token": (
        r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50})",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        ("gh", "p_" + "aB3" * 12),
    ),
    "a GitLab token": (r"\bglpat-[\w-]{20}", ("glpat-",), ("gl", "pat-" + "aB3x" * 5)),
    "an AWS key": (r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", ("akia", "asia"), ("AK", "IA" + "ABCD" * 4)),
    "an API key": (r"\bsk-[A-Za-z0-9_-]{32,}", ("sk-",), ("s", "k-" + "aB3x" * 9)),
    "a Google key": (r"\bAIza[\w-]{35}", ("aiza",), ("AI", "za" + "aB3x5" * 7)),
    "a Slack token": (
        r"\bxox[abprs]-[\w-]{10,}",
        ("xoxa-", "xoxb-", "xoxp-", "xoxr-", "xoxs-"),
        ("xo", "xb-" + "12345-" * 3),
    ),
    "a PyPI token": (r"\bpypi-[\w-]{50,}", ("pypi-",), ("py", "pi-" + "aB3x5" * 11)),
    "a web token": (
        r"\beyJ[\w-]{15,}\.eyJ[\w-]{15,}\.",
        (".eyj",),
        ("ey", "J" + "aB3x" * 5 + ".ey" + "J" + "aB3x" * 5 + "."),
    ),
    "a password in an address": (
        r"\b[a-z]+://[^\s/:@{}<>]+:[^\s/:@{}<>]{3,}@",
        ("://",),
        ("https://me", ":secret@host"),
    ),
    "a value that is named as secret": (
        r"(?i)\b(password|passwd|secret|api_?key|auth_?token)\b[\"']?\s*[:=]\s*[\"'][^\"'{}$<>\s]{8,}[\"']",
        ("password", "passwd", "secret", "apikey", "api_key", "authtoken", "auth_token"),
        ("pass", 'word = "correct-horse"'),
    ),
}


def secrets_in(text):
    small = text.lower()
    return [
        name
        for name, (pattern, held, _) in SECRETS.items()
        if any(word in small for word in held) and re.search(pattern, text)
    ]


def test_no_committed_file_holds_a_secret():
    found = {}
    for path in committed_files():
        data = path.read_bytes()
        names = [] if b"\0" in data else secrets_in(data.decode("utf-8", errors="replace"))  # pictures and arrays
        if names:
            found[path.relative_to(ROOT).as_posix()] = names
    assert found == {}


@pytest.mark.parametrize("name", SECRETS)
def test_each_kind_of_secret_would_be_noticed(name):
    assert name in secrets_in(f"a line\n{''.join(SECRETS[name][2])}\n")


def calls(source):
    """Dotted names of all calls, with their keyword arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def sources():
    """The code of the package and of the notebooks, by path."""
    for path in sorted((ROOT / "editscale").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield path.name, "\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "code")


FORBIDDEN = (
    r"(eval|exec|compile|__import__|input|os\.system|os\.popen|(.*\.)?pickle\..*|torch\.load|joblib\.load|dill\..*)"
)


@pytest.mark.parametrize(("name", "source"), list(sources()), ids=lambda value: value if len(value) < 60 else "")
def test_nothing_unpickles_or_runs_what_a_file_says(name, source):
    for call, options in calls(source):
        assert not re.fullmatch(FORBIDDEN, call), f"{name} calls {call}"
        assert options.get("trust_remote_code", "False") == "False", f"{name}: {call}"
        assert options.get("allow_pickle", "False") == "False" and options.get("shell", "False") == "False", name


@pytest.mark.parametrize("source", ("eval('1')", "import torch\ntorch.load(x)", "a.pickle.loads(b)", "os.system(x)"))
def test_a_call_that_would_is_noticed(source):
    assert [call for call, _ in calls(source) if re.fullmatch(FORBIDDEN, call)]


def test_a_model_folder_has_nothing_fetched_imported_or_unpickled(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a model folder decided this")

    folder = shutil.copytree(Path(__file__).parent / "golden" / "tiny_gpt2", tmp_path / "model")
    expected = loading.load(folder)
    repository, code = "kernels-community/flash-attn", "owner/name--evil.Evil"
    fields = {
        "config.json": {
            **dict.fromkeys(("_attn_implementation", "attn_implementation", "experts_implementation"), repository),
            "auto_map": {"AutoConfig": code, "AutoModelForCausalLM": code},
            "custom_pipelines": {"text-generation": {"impl": code}},
            "configuration_files": ["config.1.0.0.json"],
            "transformers_weights": "../model.bin",
            "fusion_config": {"patch_embeddings": True},
            "use_kernels": True,
            "kernel_config": {"GPT2MLP": repository},
            "_name_or_path": "owner/name",
        },
        "generation_config.json": {"custom_generate": "owner/name", "assistant_model": "owner/name"},
        "tokenizer_config.json": {
            "auto_map": {"AutoTokenizer": [code, code]},
            "fast_tokenizer_files": ["tokenizer.1.json"],
            "tokenizer_file": "/etc/passwd",
            "vocab_file": "/etc/passwd",
            "name_or_path": "owner/name",
        },
    }
    for file, stated in fields.items():
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | stated))
    for file in ("adapter_config.json", "custom_generate/generate.py", "evil.py", ".metadata", "model.distcp"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("raise SystemExit")
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, forbidden)
    loaded = loading.load(folder)
    ids = loaded.tokenizer("The harp of Ada", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded.model(ids).logits, expected.model(ids).logits)
    assert not [name for name in sys.modules if name.startswith("transformers_modules")]


def test_every_download_is_over_tls_and_of_a_pinned_revision():
    downloads = []
    for name, source in sources():
        assert not re.search(r"[\"']http://", source), f"{name} names an address without TLS"
        for call, options in calls(source):
            if call.split(".")[-1] in ("snapshot_download", "hf_hub_download", "load_dataset"):
                downloads.append(call)
                assert options.get("revision"), f"{name}: {call} without a revision"
            if call.split(".")[-1] == "urlopen":
                downloads.append(call)
                assert "_SHA256" in source and "_BYTES" in source, f"{name}: {call} without size and hash"
    assert len(downloads) >= 3
