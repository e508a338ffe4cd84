"""The fixed world that every document speaks about: regions, towns, trades, beasts, families and persons.

All attributes are drawn once from one seed, so they are facts a model can learn but never derive from word frequency.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

WORLD_SEED = 20240
FAMILY_COUNT = 40
FAMILY_SIZE = 8
TOWN_COUNT = 40
THEME = 20


def _words(text: str) -> list[str]:
    return text.split()


_ONSETS = _words("b br d dr f g gr h k kl l m n p r s st t th v w z")
_VOWELS = _words("a e i o u ae ei ou")
_CODAS = _words("n r l s m th k rd nd sk")

COLOUR_WORDS = _words("red blue green grey white black yellow brown violet silver golden crimson")
MONTH_WORDS = _words("thaw seed rain bloom sun hay corn vine leaf mist frost snow")
DISH_WORDS = _words(
    "porridge dumplings lentils mackerel oatcakes chestnuts turnips custard pickles barley plums cheese honey "
    "mushrooms pancakes walnuts"
)
FEATURE_WORDS = _words("marshes hills forests cliffs plains lakes dunes moors")
COIN_WORDS = _words("marks crowns pennies florins shillings ducats talers groats")
LANDMARK_WORDS = _words("bridge tower mill fountain gate lighthouse chapel market well archway granary wall")
KIND_WORDS = _words("village port fortress hamlet city borough")
HABITAT_WORDS = _words("river cave meadow orchard cellar ridge")
FOOD_WORDS = _words("clover berries minnows beetles acorns roots moths reeds")
ADJECTIVES = _words(
    "old plain heavy bright quiet crooked narrow famous broken humble hollow rough smooth noble curious faded sturdy "
    "delicate crude sacred dusty gentle solid strange simple costly modest ragged splendid worn clever stern "
    "brave calm cheerful bitter bold brisk careful cold dark deep dry faint fierce fresh grand grim happy harsh "
    "jolly keen lively lonely loud mild pale proud rare sharp shy swift warm wise weary"
)
THINGS = _words(
    "song feather stone willow thread ladder winter kettle promise shadow candlestick harvest thimble needlework drum "
    "apple mirror thunder basket wagon whisper pillow riddle chain garden wheel letter summer fiddle bottle ribbon "
    "anchor pebble dance saddlebag lamp secret orchard button sail kitchen rumour pocket cradle window blossom "
    "wedding sword ink carpet whistle debt pear spoon echo gown key story hammock rainbow dream quarrel jar hill "
    "journey trumpet bread snowflake barn puzzle oath rose crown mask tunnel prayer fog coal shoe veil pearl "
    "bucket stall fern dove fence stream bonfire joke chair pipe island goblet prize"
)
ADVERBS = _words(
    "often seldom always never sometimes gladly slowly proudly secretly openly daily rarely quickly quietly eagerly "
    "kindly loudly neatly calmly gravely"
)

# noun, tool, workplace, craft verb (third person), ware (singular and plural)
_TRADES = """
weaver loom shed weaves blanket blankets
potter wheel kiln shapes jug jugs
smith hammer forge forges hinge hinges
baker oven bakery bakes loaf loaves
cooper adze yard joins barrel barrels
tanner scraper pit cures saddle saddles
glazier pipe furnace blows lantern lanterns
carver chisel loft carves flute flutes
mason trowel quarry cuts slab slabs
tailor needle parlour sews cloak cloaks
chandler ladle pantry pours candle candles
roper hook walkway twists rope ropes
printer press garret prints almanac almanacs
brewer vat brewhouse brews ale ales
cutler grindstone smithy grinds knife knives
hatter block backroom presses hat hats
joiner plane workshop planes cabinet cabinets
painter brush studio paints panel panels
netter shuttle boathouse knots net nets
founder mould foundry casts bell bells
""".strip().splitlines()

# singular, plural, class, voice (third person)
_BEASTS = """
heron herons bird croaks
badger badgers beast growls
otter otters beast whistles
raven ravens bird caws
adder adders snake hisses
stoat stoats beast chatters
owl owls bird hoots
toad toads frog grunts
goat goats beast bleats
goose geese bird honks
hound hounds beast howls
lynx lynxes beast snarls
finch finches bird chirps
newt newts frog squeaks
marten martens beast yelps
crane cranes bird trumpets
viper vipers snake rattles
boar boars beast snorts
wren wrens bird trills
hare hares beast thumps
falcon falcons bird screams
mole moles beast mutters
cricket crickets insect sings
ferret ferrets beast squeals
""".strip().splitlines()


@dataclass(eq=False)
class Word:
    """One thing of the world: the tokens that name it and whatever facts hang on it."""

    text: str
    facts: dict[str, object] = field(default_factory=dict)

    def get(self, name: str) -> object:
        return self.facts[name]


@dataclass
class World:
    """Everything the generator may name, by pool."""

    pools: dict[str, list[Word]]

    def __getitem__(self, name: str) -> list[Word]:
        return self.pools[name]


def pick(rng: Random, items: list[Word]) -> Word:
    """Uniform draw through random() alone, whose stream Python promises to keep stable."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: list[Word]) -> list[Word]:
    """A shuffled copy, again through random() alone."""
    return [items[i] for _, i in sorted((rng.random(), i) for i in range(len(items)))]


def _coin_names(rng: Random, count: int, tail: str, taken: set[str]) -> list[str]:
    """Invent `count` new capitalised names that end in `tail`."""
    names: list[str] = []
    while len(names) < count:
        parts = [_ONSETS, _VOWELS, _CODAS, _VOWELS] if not tail else [_ONSETS, _VOWELS, _CODAS]
        name = "".join(p[int(rng.random() * len(p))] for p in parts) + tail
        if name not in taken:
            taken.add(name)
            names.append(name.capitalize())
    return names


def _subset(rng: Random, items: list[Word], count: int) -> list[Word]:
    return shuffled(rng, items)[:count]


def _cycle(words: list[Word]) -> list[Word]:
    """Give every word its successor, so that `next` is a learnable function."""
    for i, word in enumerate(words):
        word.facts["next"] = words[(i + 1) % len(words)]
    return words


def _plain_pools() -> dict[str, list[Word]]:
    lists = {
        "colours": COLOUR_WORDS,
        "dishes": DISH_WORDS,
        "landmarks": LANDMARK_WORDS,
        "kinds": KIND_WORDS,
        "foods": FOOD_WORDS,
        "adjectives": ADJECTIVES,
        "adverbs": ADVERBS,
        "things": THINGS,
    }
    pools = {name: [Word(w) for w in words] for name, words in lists.items()}
    pools["months"] = _cycle([Word(w) for w in MONTH_WORDS])
    pools["numbers"] = [Word(str(n), {"value": n}) for n in range(2, 12)]
    pools["habitats"] = [Word(w) for w in HABITAT_WORDS]
    return pools


def _add_beasts(rng: Random, pools: dict[str, list[Word]]) -> None:
    beasts: list[Word] = []
    for i, row in enumerate(_BEASTS):
        one, many, kind, voice = row.split()
        facts: dict[str, object] = {"pl": Word(many), "kind": Word(kind), "voice": Word(voice)}
        facts |= {"food": pick(rng, pools["foods"]), "colour": pick(rng, pools["colours"])}
        facts |= {"month": pick(rng, pools["months"]), "habitat": pools["habitats"][i % len(pools["habitats"])]}
        beasts.append(Word(one, facts))
    enemies = shuffled(rng, beasts)
    for i, beast in enumerate(enemies):
        beast.facts["enemy"] = enemies[(i + 1) % len(enemies)]
    for habitat in pools["habitats"]:
        habitat.facts["beasts"] = [b for b in beasts if b.facts["habitat"] is habitat]
    pools["beasts"] = beasts


def _add_trades(rng: Random, pools: dict[str, list[Word]]) -> None:
    trades, wares = [], []
    for row in _TRADES:
        noun, tool, place, verb, one, many = row.split()
        ware = Word(one, {"pl": Word(many)})
        facts: dict[str, object] = {"tool": Word(tool), "place": Word(place), "verb": Word(verb), "ware": ware}
        facts |= {"colour": pick(rng, pools["colours"]), "beast": pick(rng, pools["beasts"]), "people": []}
        trades.append(Word(noun, facts))
        wares.append(ware)
    pools["trades"], pools["wares"] = trades, wares


def _add_places(rng: Random, pools: dict[str, list[Word]], taken: set[str]) -> None:
    regions = []
    for i, name in enumerate(_coin_names(rng, len(FEATURE_WORDS), "mark", taken)):
        facts: dict[str, object] = {"feature": Word(FEATURE_WORDS[i]), "coin": Word(COIN_WORDS[i]), "towns": []}
        facts |= {"month": pick(rng, pools["months"]), "dish": pick(rng, pools["dishes"])}
        facts |= {"adjs": _subset(rng, pools["adjectives"], 16)}
        regions.append(Word(name, facts))
    rivers = [Word(n) for n in _coin_names(rng, 16, "water", taken)]
    towns = []
    for i, name in enumerate(_coin_names(rng, TOWN_COUNT, "", taken)):
        region = regions[i % len(regions)]
        facts = {"region": region, "river": pick(rng, rivers), "kind": pick(rng, pools["kinds"]), "people": []}
        facts |= {"landmark": pick(rng, pools["landmarks"]), "ware": pick(rng, pools["wares"])}
        facts |= {"colour": pick(rng, pools["colours"])}
        town = Word(name, facts)
        towns.append(town)
        region.facts["towns"].append(town)  # type: ignore[attr-defined]
    for i, town in enumerate(towns):
        town.facts["neighbour"] = towns[(i * 7 + 3) % len(towns)]
    pools["regions"], pools["rivers"], pools["towns"] = regions, rivers, towns


def _add_people(rng: Random, pools: dict[str, list[Word]], taken: set[str]) -> None:
    given = _coin_names(rng, FAMILY_COUNT, "", taken)
    slots = [(town, trade) for town, trade in zip(pools["towns"] * FAMILY_SIZE, pools["trades"] * 16, strict=True)]
    towns = shuffled(rng, [s[0] for s in slots])
    trades = shuffled(rng, [s[1] for s in slots])
    families, people = [], []
    for f, name in enumerate(_coin_names(rng, FAMILY_COUNT, "", taken)):
        facts: dict[str, object] = {"colour": pick(rng, pools["colours"]), "beast": pick(rng, pools["beasts"])}
        facts |= {"hues": _subset(rng, pools["colours"], 4), "ways": _subset(rng, pools["adverbs"], 8), "people": []}
        family = Word(name, facts)
        families.append(family)
        for k in range(FAMILY_SIZE):
            first = given[(f * 5 + k * 11) % len(given)]
            person = _person(rng, pools, first, family, (towns.pop(), trades.pop()))
            people.append(person)
    for person in people:
        for role in ("teacher", "friend", "debtor"):
            other = person
            while other is person:
                other = pick(rng, people)
            person.facts[role] = other
    for town in pools["towns"]:
        town.facts["mayor"] = pick(rng, people)
    pools["families"], pools["people"] = families, people


def _person(rng: Random, pools: dict[str, list[Word]], first: str, family: Word, place: tuple[Word, Word]) -> Word:
    town, trade = place
    male = sum(map(ord, first)) % 2 == 0
    forms = _words("he He his His him") if male else _words("she She her Her her")
    pronouns = dict(zip(_words("he He his His him"), map(Word, forms), strict=True))
    facts: dict[str, object] = {**pronouns, "given": Word(first), "family": family, "town": town, "trade": trade}
    for role, pool in (("dish", "dishes"), ("beast", "beasts"), ("month", "months"), ("colour", "colours")):
        facts[role] = pick(rng, pools[pool])
    person = Word(f"{first} {family.text}", facts)
    for group in (family, town, trade):
        group.facts["people"].append(person)  # type: ignore[attr-defined]
    return person


def build_world(seed: int = WORLD_SEED) -> World:
    """Draw the world; the same seed gives the same facts for ever."""
    rng = Random(seed)
    taken: set[str] = set()
    pools = _plain_pools()
    _add_beasts(rng, pools)
    _add_trades(rng, pools)
    _add_places(rng, pools, taken)
    _add_people(rng, pools, taken)
    for topic in ("families", "towns", "trades", "regions", "habitats"):
        for word in pools[topic]:
            word.facts["theme"] = _subset(rng, pools["things"], THEME)
    return World(pools)
