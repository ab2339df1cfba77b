"""Known vulnerabilities of the versions in .ci/constraints.txt, from osv.dev by pip-audit: `make audit`.

The names and versions are sent there, and that of one old package with known vulnerabilities: where an answer does not
name these, nothing was looked up. Exit status: 0 if nothing is known, 1 if something is, 2 for "not audited".
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KNOWN = "django", "2.0"  # CVE-2018-7536 and many more
URL = "https://api.osv.dev/v1/query"


class NotAudited(Exception):
    """Why nothing can be said of some versions."""


def vulnerabilities(pins, url=URL):
    """What is known of pins {name: version}: a list of (name, version, ids, versions with a fix).

    Raises NotAudited unless each of them was looked up."""
    pins = {**pins, KNOWN[0]: KNOWN[1]}
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--osv-url", url, "--no-deps"]
    command += ["--disable-pip", "--format", "json", "--progress-spinner", "off", "--requirement", "/dev/stdin"]
    given = "".join(f"{name}=={version}\n" for name, version in pins.items())
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    try:
        answered = {entry["name"]: entry for entry in json.loads(done.stdout)["dependencies"]}
    except ValueError:
        raise NotAudited(f"pip-audit says: {(done.stderr.strip() or 'nothing').splitlines()[-1]}") from None
    found = {n: answered[n]["vulns"] for n, version in pins.items() if answered.get(n, {}).get("version") == version}
    if missing := [name for name in pins if name not in found]:
        reasons = (f"{name}: {answered.get(name, {}).get('skip_reason', 'no answer')}" for name in missing)
        raise NotAudited("; ".join(reasons))
    if not found.pop(KNOWN[0]):
        raise NotAudited(f"{url} knows nothing of {'=='.join(KNOWN)}, which has vulnerabilities")
    return [
        (name, pins[name], [known["id"], *known["aliases"]], known["fix_versions"])
        for name, entries in found.items()
        for known in entries
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=URL, help="what to ask (default: %(default)s)")
    url = parser.parse_args(arguments).url
    pins = dict(line.split("==") for line in (ROOT / ".ci/constraints.txt").read_text().split())
    try:
        found = vulnerabilities(pins, url)
    except NotAudited as reason:
        print(f"not audited: {reason}", file=sys.stderr)
        return 2
    for name, version, ids, fixed in found:
        print(f"{name} {version}: {', '.join(ids)}; fixed in {', '.join(fixed) or 'no version'}")
    print(f"known vulnerabilities in {len(pins)} packages: {len(found) or 'none'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
