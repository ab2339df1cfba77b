"""make audit says what is known, and "not audited" whenever not all was looked up."""

import json

import pytest
from tools import audit

PINS = {"numpy": "2.4.6", "torch": "2.13.0"}
FLAW = {"id": "GHSA-0", "aliases": ["CVE-0"], "fix_versions": ["3"], "description": "…"}
LOOKED_UP = {"name": audit.KNOWN[0], "version": audit.KNOWN[1], "vulns": [FLAW]}
NUMPY, TORCH = ({"name": name, "version": version, "vulns": []} for name, version in PINS.items())


@pytest.fixture
def audited(tmp_path, monkeypatch, capsys):
    """main's exit status and what it prints, with a pip-audit that gives a recorded answer."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/constraints.txt").write_text("".join(f"{name}=={PINS[name]}\n" for name in PINS))
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(answer, error=""):
        code = f"""
            import sys
            assert sys.stdin.read().split() == {[f"{n}=={v}" for n, v in [*PINS.items(), audit.KNOWN]]}
            assert sys.argv[sys.argv.index("--osv-url") + 1] == {audit.URL!r}
            print({answer!r})
            sys.exit({error!r} or 1)
        """
        (tmp_path / "pip_audit.py").write_text("\n".join(line.strip() for line in code.splitlines()))
        return audit.main([]), capsys.readouterr()

    return run


def answer(*dependencies):
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_nothing_is_known_of_versions_that_were_all_looked_up(audited):
    status, printed = audited(answer(NUMPY, TORCH, LOOKED_UP))
    assert (status, printed.out, printed.err) == (0, "known vulnerabilities in 2 packages: none\n", "")


def test_what_is_known_is_listed(audited):
    status, printed = audited(answer(NUMPY, {**TORCH, "vulns": [FLAW]}, LOOKED_UP))
    listed = "torch 2.13.0: GHSA-0, CVE-0; fixed in 3\nknown vulnerabilities in 2 packages: 1\n"
    assert (status, printed.out) == (1, listed)


@pytest.mark.parametrize(
    "given, error, reason",
    [
        ("", "Traceback:\nConnectionError: no route to api.osv.dev", "ConnectionError: no route to api.osv.dev"),
        ("<html>log in</html>", "", "pip-audit says: nothing"),
        (answer(NUMPY, TORCH, {**LOOKED_UP, "vulns": []}), "", "knows nothing of django==2.0"),
        (answer(NUMPY, TORCH), "", "django: no answer"),
        (answer(NUMPY, LOOKED_UP), "", "torch: no answer"),
        (answer(NUMPY, {"name": "torch", "skip_reason": "not found"}, LOOKED_UP), "", "torch: not found"),
        (answer(NUMPY, {**TORCH, "version": "1.0"}, LOOKED_UP), "", "torch: no answer"),
    ],
)
def test_versions_that_were_not_looked_up_are_not_audited(audited, given, error, reason):
    status, printed = audited(given, error)
    assert (status, printed.out) == (2, "")
    assert printed.err.startswith("not audited: ") and reason in printed.err


def test_the_package_with_known_vulnerabilities_is_not_one_of_ours():
    assert f"\n{audit.KNOWN[0]}==" not in (audit.ROOT / ".ci/constraints.txt").read_text()
