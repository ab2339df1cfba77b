"""Relations of facts whose file names none, from records that name theirs: by the prompt's template, then the objects.

Files in EasyEdit's form have CounterFact's prompts without its relation ids. A template belongs to one relation or to
few ("{} is located in" asks for a city, a country or a continent); of these a fact has the one whose facts hold its two
objects most often.
"""

from collections import Counter, defaultdict


def relations(facts, known):
    """The relation of each fact: case_id ↦ relation_id, "" where no record has its template.

    Args:
        facts: `Fact` values without relation ids, or with some, which are kept.
        known: facts with relation ids, such as records of CounterFact in its original form.

    Of several relations of a template that is taken whose facts, those of `known` and those of `facts` with a template
    of one relation, hold the new and the true object most often, both counted together; of equal ones the one with most
    records of this template, then the first by name.

    Raises ValueError for records without relation ids.
    """
    of_template, objects = defaultdict(Counter), defaultdict(Counter)
    for fact in known:
        if not fact.relation_id:
            raise ValueError(
                f"the record of case {fact.case_id} names no relation; give records with requested_rewrite.relation_id"
            )
        of_template[fact.prompt][fact.relation_id] += 1
        objects[fact.relation_id].update((fact.target_new, fact.target_true))
    taken = {fact.case_id for fact in known}
    for fact in facts:
        if fact.case_id not in taken and len(names := of_template.get(fact.prompt, ())) == 1:
            objects[next(iter(names))].update((fact.target_new, fact.target_true))

    def one(fact):
        if fact.relation_id:
            return fact.relation_id
        counts = of_template.get(fact.prompt, {})
        held = {name: objects[name][fact.target_new] + objects[name][fact.target_true] for name in counts}
        return min(counts, key=lambda name: (-held[name], -counts[name], name), default="")

    return {fact.case_id: one(fact) for fact in facts}
