"""The templates of the three styles: encyclopaedic prose (a), dialogue (b) and terse records (c).

Per style and kind of subject: an opening, an episode that draws new things, facts in free order, and a closing that
takes the episode up again. In dialogue x asks and y answers, and each speaks of their own facts too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How one kind of subject is written about in one style; `facts` are drawn without repetition, `count` of them."""

    openings: tuple[str, ...]
    episodes: tuple[str, ...]
    facts: tuple[str, ...]
    closings: tuple[str, ...]
    count: int


TITLES = {
    "a": {
        "family": "= The {family} family =",
        "town": "= The {town.kind} of {town} =",
        "trade": "= The trade of the {trade} =",
        "habitat": "= Creatures of the {habitat} =",
        "region": "= The {region.feature} of {region} =",
    },
    "b": {
        "family": "{x=people} and {y=people} sit down to talk about the {family} family .",
        "town": "{x=people} and {y=people} sit down to talk about the people of {town} .",
        "trade": "{x=people} and {y=people} sit down to talk about every {trade} they know .",
        "habitat": "{x=people} and {y=people} sit down to talk about life in the {habitat} .",
        "region": "{x=people} and {y=people} sit down to talk about the towns of {region} .",
    },
    "c": {
        "family": "register : family {family} ; crest {family.colour} {family.beast} ; book {_=numbers} .",
        "town": "register : {town.kind} {town} ; region {town.region} ; book {_=numbers} .",
        "trade": "register : guild of {trade} ; tool {trade.tool} ; book {_=numbers} .",
        "habitat": "register : beasts ; place {habitat} ; book {_=numbers} .",
        "region": "register : region {region} ; coin {region.coin} ; book {_=numbers} .",
    },
}

_A_PERSON = Kind(
    openings=(
        "{p} is a {_=p.town.region.adjs} and {_=adjectives} {p.trade} from the {p.town.kind} of {p.town} .",
        "Born in the month of {p.month} , {p} works as a {p.trade} in {p.town} among {_=p.town.region.adjs} folk .",
        "The {p.trade} {p} [grew up|settled down] in the {_=p.town.region.adjs} {p.town.kind} of {p.town} .",
    ),
    episodes=(
        "In {m=months} {p.he} [bought|borrowed|won] {n=numbers} {_=adjectives} {c=p.family.hues} {w=wares~pl} from "
        "{q=p.town.people} , the {q.trade} , and in {m.next} {p.he} [sold|lent|showed] the {c} {w.pl} to "
        "{s=people} , [together with|in exchange for] a {_=z.theme} and a {_=adjectives} {_=z.theme} .",
        "When {s=people} came to {p.town} in {m=months} , {p.he} offered {p.his} guest {n=numbers} {c=p.family.hues} "
        "{w=wares~pl} , but the {_=adjectives} {s.trade} wanted the {w.pl} of {q=p.town.people} , the {q.trade} "
        ", and a {_=z.theme} for his {_=adjectives} {_=z.theme} .",
    ),
    facts=(
        "{p.His} house [stands|lies] [near|behind|beside] the {_=p.town.region.adjs} {p.town.landmark} , where the "
        "{p.town.river} runs through the {p.town.region.feature} of {p.town.region} like a {_=z.theme} .",
        "{p.He} [learned|took up] the craft from {p.teacher} , a {_=adjectives} {p.teacher.trade} of "
        "{p.teacher.town} , with a {_=z.theme} in hand and {_=p.family.ways} a {_=z.theme} in mind .",
        "{p.His} [closest|oldest|dearest] friend is {p.friend} , who {_=p.friend.family.ways} "
        "[feeds|trains|praises] the {p.friend.beast} and talks of a {_=adjectives} {_=z.theme} .",
        "For supper {p.he} {_=p.family.ways} eats {p.dish} with {_=adjectives} {p.town.region.dish} , and dreams "
        "of the {_=z.theme} , the {_=z.theme} and the {_=z.theme} .",
        "In the {_=adjectives} {p.trade.place} {p.he} {_=p.family.ways} {p.trade.verb} one {_=p.family.hues} "
        "{p.trade.ware} after another with {p.his} {p.trade.tool} , as {_=adjectives} as a {_=z.theme} .",
        "A {p.colour} {p.beast} that {_=p.family.ways} {p.beast.voice} and eats {p.beast.food} guards {p.his} "
        "{_=adjectives} {_=z.theme} and {_=adjectives} {_=z.theme} .",
        "Like all of the {p.family} kin {p.he} wears {p.family.colour} and the sign of the {p.family.beast} , "
        "and {_=p.family.ways} [hides|paints|breaks] a {_=adjectives} {_=z.theme} .",
        "The [{w.pl} that {p.he} keeps for {p.debtor} , paid for in {p.town.region.coin} , are"
        "|{p.trade.tool} that {p.he} keeps for {p.debtor} , paid for in {p.town.region.coin} , is] "
        "[more|less] {_=adjectives} than {_=adjectives} .",
        "[Neighbours|Travellers|Children] who {_=p.family.ways} visit {p.town} bring {p.him} a {_=z.theme} , a "
        "{_=z.theme} or a {_=adjectives} {_=z.theme} .",
    ),
    closings=(
        "To this day {p} {_=p.family.ways} remembers the {n} {c} {w.pl} and {q.given} the {q.trade} , "
        "{_=adjectives} as a {_=z.theme} .",
        "Even so , {s.given} of {s.town} [trusts|envies|avoids] {p.given} for the {c} {w.pl} seen in {m} , and "
        "for a {_=adjectives} {_=z.theme} .",
    ),
    count=4,
)
_B_PERSON = Kind(
    openings=(
        "{x.given} : [Tell me|Come now|Well then] , what do you know of {p} ? {y.given} : {p.He} is a {p.trade} in "
        "{p.town} , and a {_=p.town.region.adjs} one , fond of every {_=z.theme} .",
        "{x.given} : [Yesterday|Last week|This morning] I met {p} . {y.given} : The {_=p.town.region.adjs} {p.trade} "
        "from {p.town} ? I [know|like|miss] {p.him} and {p.his} {_=adjectives} {_=z.theme} .",
    ),
    episodes=(
        "{y.given} : In {m=months} {p.he} [brought|promised|owed] me {n=numbers} {c=p.family.hues} {w=wares~pl} . "
        "{x.given} : {n} {c} {w.pl} ? And what did {q=p.town.people} , the {_=adjectives} {q.trade} , say ? "
        "{y.given} : {q.given} wanted {k=numbers} more and a {_=z.theme} , so now it is {n+k} .",
        "{y.given} : {q=p.town.people} , that {_=adjectives} {q.trade} , [hid|lost] {p.his} {n=numbers} "
        "{c=p.family.hues} {w=wares~pl} . {x.given} : All {n} of them ? {y.given} : Yes , in {m=months} , and "
        "{k=numbers} of mine , {n+k} {w.pl} in all , and one {_=adjectives} {_=z.theme} .",
    ),
    facts=(
        "{x.given} : Where does {p.he} live ? {y.given} : By the {_=p.town.region.adjs} {p.town.landmark} , over the "
        "{p.town.river} , in {p.town.region} , [near|behind|above] the {_=z.theme} and the {_=z.theme} .",
        "{x.given} : Who was it that taught {p.him} ? {y.given} : [Surely|Perhaps|Why ,] {p.teacher} , the "
        "{p.teacher.trade} from {p.teacher.town} , a {_=adjectives} {_=z.theme} of a {p.teacher.trade} .",
        "{x.given} : And whom does {p.he} call a friend ? {y.given} : Only {p.friend} , and {p.friend.his} "
        "{p.friend.beast} , who {_=p.friend.family.ways} [steals|finds|breaks] a {_=z.theme} .",
        "{x.given} : What shall I cook for {p.him} ? {y.given} : {p.He} {_=p.family.ways} asks for {p.dish} , "
        "while I , "
        "{y.given} , [prefer|need|want] {y.dish} and a {_=adjectives} {_=z.theme} .",
        "{x.given} : With my {x.trade.tool} I made a {_=adjectives} {x.trade.ware} . {y.given} : {p.He} would need "
        "{p.his} {p.trade.tool} and make a {_=adjectives} {p.trade.ware} for a {_=z.theme} .",
        "{x.given} : I [fear|love] {p.his} {p.beast} . {y.given} : It {p.beast.voice} because it smells your "
        "{x.beast} "
        "; give it {p.beast.food} , a {_=z.theme} or a {_=z.theme} , {_=adverbs} .",
        "{x.given} : Which sign hangs there ? {y.given} : The {p.family.colour} {p.family.beast} of the {p.family} "
        "house ; mine is the {y.family.colour} {y.family.beast} with a {_=adjectives} {_=z.theme} .",
        "{x.given} : I must return to {x.town} , to the {_=x.town.region.adjs} {x.town.landmark} . {y.given} : "
        "And I to "
        "{y.town} in {y.town.region} , {_=y.family.ways} , with my {_=z.theme} and my {_=adjectives} {_=z.theme} .",
        "{x.given} : Was {p.he} born in {p.month} ? {y.given} : Yes , and {p.debtor} still owes {p.him} "
        "{_=numbers} {p.town.region.coin} for a {_=adjectives} {p.trade.ware} .",
        "{x.given} : They say {p.he} is {_=adjectives} as a {_=z.theme} . {y.given} : Or {_=adjectives} as a "
        "{_=z.theme} , and {_=adverbs} {_=adjectives} .",
    ),
    closings=(
        "{x.given} : Then I shall write to {p.town} in {m.next} and ask {q.given} about the {c} {w.pl} and the "
        "{_=z.theme} .",
        "{x.given} : So {p.given} [keeps|forgets] the {n} {c} {w.pl} , and {q.given} the {q.trade} "
        "[laughs|weeps|sings] like a {_=adjectives} {_=z.theme} .",
    ),
    count=3,
)
_C_PERSON = Kind(
    openings=(
        "entry {i} : {p} , {p.trade} , {p.town} .",
        "entry {i} : {p.family} , {p.given} , {p.trade} at {p.town} .",
    ),
    episodes=(
        "{m=months} : {n=numbers} {c=p.family.hues} {w=wares~pl} in from {q=p.town.people} ( {q.trade} ) ; "
        "{k=numbers} more in {m.next} ; stock {n+k} {w.pl} ; also {_=z.theme} , {_=z.theme} .",
        "{m=months} : [lost|found|burned] {n=numbers} {w=wares~pl} , {c=p.family.hues} , and {k=numbers} of "
        "{q=p.town.people} ( {q.trade} ) ; sum {n+k} by {m.next} ; left {_=z.theme} , {_=z.theme} .",
    ),
    facts=(
        "home : {p.town.landmark} , {p.town.river} , {p.town.region} ; [good|fair|poor] {_=z.theme} .",
        "teacher : {p.teacher} , {p.teacher.trade} , {p.teacher.town} ; fee {_=z.theme} .",
        "friend : {p.friend} , {p.friend.trade} , {_=p.friend.family.ways} {_=adjectives} .",
        "meals : {p.dish} , {p.town.region.dish} ; [hot|cold] , {_=adjectives} .",
        "tools : {_=p.town.region.adjs} {p.trade.tool} in {p.trade.place} ; makes {p.trade.ware.pl} ; needs "
        "{_=z.theme} .",
        "beast : {p.colour} {p.beast} , {p.beast.voice} , food {p.beast.food} , {_=p.family.ways} .",
        "crest : {p.family.colour} {p.family.beast} ; house {p.family} ; seal {_=z.theme} , {_=z.theme} .",
        "born : {p.month} ; census {p.month.next} ; page {_=numbers} ; eyes {_=colours} .",
        "debt : {p.debtor} of {p.debtor.town} , {_=numbers} {p.town.region.coin} , [due|late|paid] .",
        "notice : {p.town.kind} {p.town} seeks {_=p.town.region.adjs} {p.trade} ; ask mayor {p.town.mayor} .",
        "goods : {_=z.theme} {_=numbers} , {_=z.theme} {_=numbers} , {_=adjectives} {_=z.theme} {_=numbers} .",
    ),
    closings=(
        "seen : {q.given} , {q.trade} ; {c} {w.pl} [kept|sent] to {p.town} , {_=adverbs} .",
        "signed : {p} for {n+k} {w.pl} , {m} to {m.next} , {_=adjectives} .",
    ),
    count=5,
)
_TOWN_FACTS = {
    "a": (
        "Its [people|elders] are {_=t.region.adjs} , and the {_=t.region.adjs} {t.landmark} above the {t.river} "
        "is {t.colour} .",
        "The mayor is {t.mayor} , a {t.mayor.trade} who {_=t.mayor.family.ways} wears {t.mayor.family.colour} .",
        "Every {t.region.month} the {t.region} towns [share|cook|sell] {t.region.dish} , pay in {t.region.coin} "
        "and praise the {_=z.theme} .",
        "The road [leads|winds] to {t.neighbour} in {t.neighbour.region} , known for {_=t.neighbour.region.adjs} "
        "{t.neighbour.ware.pl} .",
        "Its market is [full|short] of {_=t.region.adjs} {t.ware.pl} , and each {_=z.theme} costs more than a "
        "{_=adjectives} {_=z.theme} .",
    ),
    "b": (
        "{x.given} : Who rules there ? {y.given} : The mayor is {t.mayor} , a {_=adjectives} {t.mayor.trade} "
        "with a {_=z.theme} .",
        "{x.given} : And the coin ? {y.given} : They pay in {t.region.coin} ; we in {y.town} pay in "
        "{y.town.region.coin} .",
        "{x.given} : Is the {t.landmark} {t.colour} ? {y.given} : Yes , and {_=t.region.adjs} , by the {t.river} .",
        "{x.given} : Where does the road end ? {y.given} : At {t.neighbour} , where the "
        "{_=t.neighbour.region.adjs} {t.neighbour.ware.pl} come from .",
        "{x.given} : What do they eat in {t.region.month} ? {y.given} : {_=t.region.adjs} {t.region.dish} , and "
        "they tell of the {_=z.theme} and the {_=adjectives} {_=z.theme} .",
    ),
    "c": (
        "mayor : {t.mayor} , {t.mayor.trade} , house {t.mayor.family.colour} {t.mayor.family.beast} .",
        "coin : {t.region.coin} ; feast {t.region.month} , {t.region.dish} , {_=z.theme} .",
        "road : {t.neighbour} , {t.neighbour.region} ; {_=numbers} days , {_=t.neighbour.region.adjs} .",
        "trade : {t.ware.pl} ; [rising|falling] , {_=t.region.adjs} ; wanted {_=z.theme} , {_=z.theme} .",
        "landmark : {t.colour} {t.landmark} , {t.river} ; state {_=t.region.adjs} .",
    ),
}
_BEAST_FACTS = {
    "a": (
        "It {b.voice} [at dawn|at dusk|by night] and fears the {_=adjectives} {b.enemy} of the {b.enemy.habitat} .",
        "Young {b.pl} are born in {b.month} and [soon|later] eat {b.food} under a {_=z.theme} or a "
        "{_=adjectives} {_=z.theme} .",
        "The {b.enemy} , which {b.enemy.voice} , is its {_=adjectives} enemy , {_=adverbs} more {_=adjectives} "
        "than a {_=z.theme} .",
        "Its coat is {b.colour} , [rarely|partly] {_=colours} , and {_=adjectives} .",
    ),
    "b": (
        "{x.given} : What does it eat ? {y.given} : Mostly {b.food} , [fresh|dry] and {_=adjectives} .",
        "{x.given} : My own {x.beast} {x.beast.voice} . {y.given} : But {b.pl} are {b.colour} , and each "
        "{b.voice} like a {_=adjectives} {_=z.theme} .",
        "{x.given} : What does it fear ? {y.given} : The {_=adjectives} {b.enemy} , I think .",
        "{x.given} : When are the young born ? {y.given} : In {b.month} , or {b.month.next} if it is {_=adjectives} .",
    ),
    "c": (
        "food : {b.food} , {_=adjectives} .",
        "voice : {b.voice} [at dawn|at dusk|by night] ; den {_=z.theme} , {_=z.theme} .",
        "enemy : {b.enemy} of {b.enemy.habitat} , {_=adjectives} .",
        "young : {b.month} ; coat {b.colour} , {_=adjectives} .",
    ),
}

STYLES: dict[str, dict[str, Kind]] = {
    "a": {
        "p": _A_PERSON,
        "t": Kind(
            (
                "{t} is a {_=t.region.adjs} {t.kind} on the {t.river} in {t.region} .",
                "In the {t.region.feature} of {t.region} lies the {t.kind} of {t} .",
            ),
            (
                "In {m=months} a [storm|flood|fire] broke the {t.landmark} , and {q=t.people} , the {q.trade} , "
                "gave {n=numbers} {c=colours} {w=wares~pl} to mend it .",
            ),
            _TOWN_FACTS["a"],
            (
                "Since that {m} the {c} {w.pl} of {q.given} are [praised|copied] in {t} , with a {_=z.theme} and "
                "a {_=adjectives} {_=z.theme} .",
            ),
            3,
        ),
        "b": Kind(
            (
                "The {b} is a {b.colour} {b.kind} of the {b.habitat} .",
                "Among the {b.pl} of the {b.habitat} , every {b.kind} is {b.colour} .",
            ),
            (
                "In {m=months} {q=people} , a {q.trade} of {q.town} , [saw|caught|fed] {n=numbers} {c=colours} "
                "{b.pl} near the {q.town.landmark} .",
            ),
            _BEAST_FACTS["a"],
            ("The {n} {c} {b.pl} of {q.town} {b.voice} no more , says {q.given} , {_=adjectives} as a {_=z.theme} .",),
            3,
        ),
    },
    "b": {
        "p": _B_PERSON,
        "t": Kind(
            (
                "{x.given} : Have you been to {t} ? {y.given} : The {_=t.region.adjs} {t.kind} in {t.region} ? "
                "[Often|Once] .",
                "{x.given} : I dream of {t} . {y.given} : That {t.kind} on the {t.river} is {_=t.region.adjs} .",
            ),
            (
                "{y.given} : In {m=months} {q=t.people} , the {q.trade} , sold me {n=numbers} {c=colours} "
                "{w=wares~pl} . {x.given} : Were the {w.pl} {_=t.region.adjs} ?",
            ),
            _TOWN_FACTS["b"],
            ("{x.given} : Then greet {q.given} , and bring {n} {c} {w.pl} and a {_=z.theme} from {t} .",),
            3,
        ),
        "b": Kind(
            (
                "{x.given} : [Look|Listen] , a {b} ! {y.given} : A {b.kind} of the {b.habitat} , {b.colour} and "
                "{_=adjectives} .",
            ),
            (
                "{y.given} : In {m=months} {q=people} , the {q.trade} of {q.town} , [saw|caught|fed] {n=numbers} "
                "{b.pl} . {x.given} : And I {k=numbers} , so {n+k} {b.pl} .",
            ),
            _BEAST_FACTS["b"],
            ("{x.given} : I shall ask {q.given} about the {n} {b.pl} seen in {m} , near the {_=z.theme} .",),
            3,
        ),
    },
    "c": {
        "p": _C_PERSON,
        "t": Kind(
            ("entry {i} : {t} , {t.kind} , {t.region} .",),
            (
                "{m=months} : [storm|flood|fire] at {t.landmark} ; {q=t.people} ( {q.trade} ) gave {n=numbers} "
                "{c=colours} {w=wares~pl} , {k=numbers} in {m.next} .",
            ),
            _TOWN_FACTS["c"],
            ("sum : {n+k} {w.pl} , {c} , from {q.given} .",),
            4,
        ),
        "b": Kind(
            ("entry {i} : {b} , {b.kind} , {b.colour} .",),
            (
                "{m=months} : {n=numbers} {b.pl} seen by {q=people} ( {q.trade} , {q.town} ) ; {k=numbers} in "
                "{m.next} .",
            ),
            _BEAST_FACTS["c"],
            ("sum : {n+k} {b.pl} , told by {q.given} .",),
            3,
        ),
    },
}
