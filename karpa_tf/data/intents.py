"""Sentences people say to a smart home, each with its intent and its slots: data that needs no network.

The English templates of the PyPI package `home-assistant-intents` (Apache-2.0, The Home Assistant
Authors, https://github.com/OHF-Voice/intents) are parsed by `hassil` (Apache-2.0, the same authors) and
sampled here. Names of devices, areas, timers and the like, which a home brings with it, are ours.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    TextChunk,
)
from hassil.intents import Intents, RangeSlotList, TextSlotList
from hassil.numbers import get_rbnf_engine
from hassil.parse_expression import parse_sentence
from home_assistant_intents import get_intents

from karpa_tf.data.sources import SPLITS, Split
from karpa_tf.lines import InALine

# The sentences are part of the data, not of a run: they must not change with the run's seed.
_SEED = 20
# The most sentences of one intent: the large intents have a hundred templates, the small ones three.
_LARGEST: dict[Split, int] = {"train": 220, "validation": 30, "test": 30}
# The most sentences of one template, and the tries in a row that may bring nothing new.
_A_TEMPLATE = 40
_TRIES = 150

_T = TypeVar("_T")


@dataclass(frozen=True, repr=False)
class IntentSentence(InALine):
    """A sentence with what it asks for.

    Attributes:
        words: the sentence as a person writes it, split at spaces.
        tags: IOB2, one a word: `B-area`, `I-area`, `O`. A word that holds a slot's value and more, as
            `50%` or `5-minute`, belongs to the slot.
        intent: Home Assistant's name of what is asked for, as `HassTurnOn`.
        split: `train`, `validation` or `test`.
        template: what the sentence was made from; all sentences of one template are in one split.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    intent: str
    split: Split
    template: str = field(default="", repr=False, compare=False)


def embedded_intents() -> list[IntentSentence]:
    """Returns about 6,000 sentences in random order, the same ones at each call.

    They depend on the versions of the two packages alone. Of each intent's templates about 80% are in
    train, 10% in validation and 10% in test, at least one in each. Left out are:

    - intents with fewer than three templates, or with no sentence in one of the splits;
    - templates with a list for which neither the package nor this file has values;
    - a sentence that another template made before; train comes first, so no text is in two splits;
    - the worst of what the templates accept and no one says, as "all of the my lights".

    Example:
        >>> sentence = embedded_intents()[0]
        >>> list(zip(sentence.words, sentence.tags))
        [('guest', 'B-area'), ('room', 'I-area'), ('timers', 'O'), ('status', 'O')]
    """
    return list(_sampled())


# --- Values ---------------------------------------------------------------------------------------

# `{name}` by the domain of the devices a template is about. No name may be what another list holds, or
# two templates would give one sentence different tags: a cover is a "roller shutter", no "shutter".
_NAMES: dict[str, tuple[str, ...]] = {
    "binary_sensor": ("motion sensor", "mailbox", "patio window", "smoke detector", "driveway sensor"),
    "button": ("doorbell", "restart button", "panic button", "garage remote"),
    "climate": ("thermostat", "heat pump", "air conditioner", "radiator", "boiler", "floor heating"),
    "cover": ("roller shutter", "skylight", "venetian blind", "pergola roof", "sun sail", "projector screen"),
    "fan": ("ceiling fan", "tower fan", "extractor", "ventilator", "air purifier"),
    "input_boolean": ("vacation mode", "guest mode", "alarm", "quiet hours"),
    "input_button": ("feed the cat", "open sesame", "reset counter"),
    "lawn_mower": ("automower", "grass cutter", "lawn robot", "husqvarna"),
    "light": ("desk lamp", "chandelier", "bedside lamp", "led strip", "spotlights", "aquarium", "mirror"),
    "lock": ("front door", "back door", "cellar door", "side entrance", "safe"),
    "media_player": ("tv", "radio", "soundbar", "stereo", "record player", "smart speaker", "projector"),
    "person": ("grandma", "grandpa", "mom", "dad", "sister", "brother", "daughter", "son"),
    "scene": ("movie night", "good morning", "romantic dinner", "party", "bedtime", "relax", "sunset"),
    "script": ("morning routine", "water the plants", "goodnight", "leaving home", "wake up call"),
    "sensor": ("outdoor humidity", "water meter", "air quality", "energy usage", "battery level"),
    "switch": ("coffee machine", "kettle", "dishwasher", "washing machine", "sprinkler", "router", "heater"),
    "vacuum": ("roomba", "robot vacuum", "hoover", "dust buster", "floor sweeper"),
    "valve": ("main water valve", "gas valve", "irrigation valve", "radiator valve"),
    "weather": ("city", "beach", "cabin", "airport", "mountains", "summer house", "village", "coast"),
}

# Lists that hold what is said; by the name of the list.
_VALUES: dict[str, tuple[str, ...]] = {
    "area": (
        *("living room", "kitchen", "bedroom", "bathroom", "dining room", "hallway", "office", "garage"),
        *("nursery", "guest room", "laundry room", "conservatory", "garden", "patio", "porch", "studio"),
        *("kids room", "walk-in closet", "library", "gym"),
    ),
    "floor": (
        *("ground floor", "first floor", "second floor", "third floor", "top floor", "upstairs"),
        *("downstairs", "basement", "attic", "mezzanine"),
    ),
    "search_query": (
        *("bohemian rhapsody", "the beatles", "jazz", "moonlight sonata", "miles davis", "the four seasons"),
        *("johnny cash", "daft punk", "classical piano", "nina simone", "abbey road", "the godfather"),
        *("rain sounds", "david bowie", "hotel california", "workout mix", "star wars", "bossa nova"),
    ),
    "timer_command": (
        *("turn off the lights", "open the blinds", "lock the front door", "start the dishwasher"),
        *("turn on the radio", "close the garage door", "stop the music", "turn the heating down"),
        *("turn off the tv", "water the garden", "switch on the kettle", "pause the movie"),
    ),
    "timer_name": (
        *("pizza", "tea", "laundry", "egg", "pasta", "workout", "nap", "bread", "chicken", "homework"),
        *("meditation", "cookie", "roast beef", "rice", "parking", "screen time", "soft boiled egg"),
    ),
    "zone": ("home", "work", "school", "town", "university", "supermarket", "football practice", "park"),
}


# --- Sampling -------------------------------------------------------------------------------------

# A piece of text with the slot it belongs to: the slot's name and a number of its own.
_Slot = tuple[str, int]
_Piece = tuple[str, _Slot | None]

_THE = "(the|my|our)"
_ONE = "(light|lamp|fan|switch|door|window|lock|gate|shutter|awning|blind|curtain|shade)"
_MANY = f"({_ONE}|room|area|floor)e?s"
_DEVICE = "|".join(re.escape(name) for names in _NAMES.values() for name in names)
_STATE = "(on|off|open|opening|closed|closing|shut|shutting|locked|unlocked|securely)"
# The templates are made to recognize and accept much that no one says; this is the worst of it.
_NOBODY_SAYS = re.compile(
    rf"""
    # a word twice, articles in the wrong place
    \b(\w+)\ \1\b | \b{_THE}\ ({_THE}|any|some|all|every|each)\b
    | \b(any|some|every|each|single|many|which|what)\ {_THE}\b | \bwhat\ of\b
    | \b(is|are)\ ({_THE}|there|of)\ {_STATE}\b | ^(is|are)\ there\ (?!any|some)
    | (?<!\bin\ ){_THE}\ (room|area|space)\b
    # one and many
    | \b(every|each|single)\ (\w+\ )?({_MANY})\b
    | \b(all|many)\ (of\ )?({_THE}\ )?({_ONE}|room|area|floor)\b(?!\ door)
    | \b({_MANY})\ is\b | \bis\ (.*\ )?({_MANY})\b | \b{_ONE}\ are\b | \bare\ (.*\ )?{_ONE}\b
    | ^are\ ({_THE}\ )?({_DEVICE})\b
    # "5 minutes", but "1 minute" and "a 5 minute timer"
    | (?<![\w-])(1|one)[ -](hour|minute|second|degree)s\b | -(hour|minute|second)s\b
    | (hour|minute|second)s\ timer
    | (?<!\b1)(?<!(?<![\w-])one)(?<!\ban)(?<!\ba)[ -](hour|minute|second|degree)\b(?!\ timer)
    | \ban?\ (hours|minutes|seconds|1/2)\b | \band\ half\b | 1/2\ an?\b
    | \ban\ (?!8|1[18]\b|e|hour) | \ba\ (8|1[18]\b|ei|el)
    # "50%" or "fifty percent"
    | [a-z]\ ?[%°] | \ [%°] | [a-z]\ k\b | [dn]k\b
    # verbs and nouns with what does not belong to them
    | ^(change|bring)\ (?!.*\bto\b).*\b(on|off|out)\b | \bturn\ (in|de)crease | \b(lower|shut)\ up\b
    | (lamp|lights)\ (light|lamp) | (stairs|attic|basement|mezzanine)\ floor
    | \b(in|at|of|across|around|throughout)\ (up|down)stairs
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Template:
    text: str
    expression: Expression
    names: Sequence[str]


@cache
def _sampled() -> tuple[IntentSentence, ...]:
    data = get_intents("en")
    assert data is not None, "home-assistant-intents comes with English"
    rng = np.random.default_rng(_SEED)
    sampler = _Sampler(Intents.from_dict(data), rng)
    dealt = {
        intent: _deal(templates, rng)
        for intent, templates in sampler.templates().items()
        if len(templates) >= len(SPLITS)
    }
    sentences: list[IntentSentence] = []
    for split in SPLITS:
        for intent, templates in dealt.items():
            sentences += sampler.sentences(intent, split, templates[split])
    filled = {(sentence.intent, sentence.split) for sentence in sentences}
    kept = [x for x in sentences if all((x.intent, split) in filled for split in SPLITS)]
    # A trainer that does not shuffle learns nothing from rows in the order of their classes.
    return tuple(kept[i] for i in rng.permutation(len(kept)))


def _deal(templates: list[_Template], rng: np.random.Generator) -> dict[Split, list[_Template]]:
    """Gives a tenth of the templates, and at least one, to validation and to test.

    The first stays in train: where there are three, train would be too small without it.
    """
    tenth = max(1, round(len(templates) / 10))
    rest = [templates[1 + i] for i in rng.permutation(len(templates) - 1)]
    train = templates[:1] + rest[2 * tenth :]
    return {"train": train, "validation": rest[:tenth], "test": rest[tenth : 2 * tenth]}


class _Sampler:
    """Makes sentences of templates by chance; hassil's own sampler does not say where the slots are."""

    def __init__(self, intents: Intents, rng: np.random.Generator) -> None:
        self._intents = intents
        self._rng = rng
        self._rules = {name: rule.expression for name, rule in intents.expansion_rules.items()}
        self._lists: dict[str, Sequence[str | Expression]] = dict(_VALUES)
        for name, values in intents.slot_lists.items():
            if isinstance(values, TextSlotList):
                self._lists[name] = [value.text_in for value in values.values]
            elif isinstance(values, RangeSlotList):
                self._lists[name] = _numbers(values)
        self._slots = itertools.count()
        self._seen: set[str] = set()

    def templates(self) -> dict[str, list[_Template]]:
        """Returns the templates of each intent that can be filled, those that say the most first."""
        found = {}
        for intent in self._intents.intents.values():
            names: dict[str, list[str]] = {}
            for block in intent.data:
                domains = block.requires_context.get("domain", list(_NAMES))
                domains = [domains] if isinstance(domains, str) else domains
                for text in block.sentence_texts:
                    # The same words in a block for covers and in one for valves are one template.
                    names.setdefault(text, []).extend(x for domain in domains for x in _NAMES.get(domain, ()))
            templates = [_Template(text, parse_sentence(text).expression, names[text]) for text in names]
            variety = {x.text: self._variety(x.expression, x.names) for x in templates}
            fillable = [x for x in templates if variety[x.text]]
            found[intent.name] = sorted(fillable, key=lambda x: variety[x.text], reverse=True)
        return found

    def sentences(self, intent: str, split: Split, templates: list[_Template]) -> Iterator[IntentSentence]:
        """Takes a sentence of each template in turn until there are enough or no new ones."""
        streams = deque((template.text, self._stream(template)) for template in templates)
        count = 0
        while streams and count < _LARGEST[split]:
            text, stream = streams.popleft()
            for words, tags in itertools.islice(stream, 1):
                yield IntentSentence(words, tags, intent, split, text)
                streams.append((text, stream))
                count += 1

    def _stream(self, template: _Template) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Yields words and tags of sentences that no template made before."""
        count = misses = 0
        while count < _A_TEMPLATE and misses < _TRIES:
            said: list[_Piece] = []
            self._say(template.expression, template.names, None, said)
            words, tags = _tagged(said)
            text = " ".join(words)
            if text in self._seen or _NOBODY_SAYS.search(text):
                misses += 1
                continue
            self._seen.add(text)
            yield words, tags
            count, misses = count + 1, 0

    def _say(
        self, expression: Expression, names: Sequence[str], slot: _Slot | None, said: list[_Piece]
    ) -> None:
        """Appends to `said` what one way through the expression says."""
        match expression:
            case TextChunk(text=text):
                said.append((text, slot))
            case Alternative(items=items):
                self._say(self._choice(items), names, slot, said)
            case Permutation(items=items):
                for i in self._rng.permutation(len(items)):
                    self._say(items[i], names, slot, said)
            case Group(items=items):
                for item in items:
                    self._say(item, names, slot, said)
            case RuleReference(rule_name=name):
                self._say(self._rules[name], names, slot, said)
            case ListReference(list_name=name, slot_name=slot_name):
                value = self._choice(self._list(name, names))
                slot = slot or (slot_name, next(self._slots))
                if isinstance(value, str):
                    said.append((value, slot))
                else:
                    self._say(value, names, slot, said)

    def _variety(self, expression: Expression, names: Sequence[str]) -> int:
        """Counts the ways to fill a template, roughly; 0: it holds an unknown list or rule."""
        match expression:
            case Group(items=items):
                counts = [self._variety(item, names) for item in items]
                ways = math.prod(counts)
                return sum(counts) if ways and isinstance(expression, Alternative) else ways
            case RuleReference(rule_name=name):
                return self._variety(self._rules[name], names) if name in self._rules else 0
            case ListReference(list_name=name):
                return len(self._list(name, names))
        return 1

    def _list(self, name: str, names: Sequence[str]) -> Sequence[str | Expression]:
        return names if name == "name" else self._lists.get(name, ())

    def _choice(self, items: Sequence[_T]) -> _T:
        return items[int(self._rng.random() * len(items))]


def _numbers(values: RangeSlotList) -> list[str]:
    """Writes the numbers of a list, round ones more often, and three times in digits to once in words."""
    numbers = list(values.get_numbers())
    numbers += [number for number in numbers if number % 5 == 0] * 4
    digits = [f"{number:g}" for number in numbers] if values.digits else []
    words = [_spelled(number) for number in numbers] if values.words else []
    return 3 * digits + words


@cache
def _spelled(number: float) -> str:
    return get_rbnf_engine("en").format_number(number).text


def _tagged(said: list[_Piece]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits what is said at spaces; a word belongs to the first slot that has a part in it."""
    ends = list(itertools.accumulate(len(text) for text, _ in said))
    spans = [
        (end - len(text), end, slot) for end, (text, slot) in zip(ends, said, strict=True) if text and slot
    ]
    words, tags, last = [], [], None
    for match in re.finditer(r"\S+", "".join(text for text, _ in said)):
        slot = next((slot for start, end, slot in spans if start < match.end() and match.start() < end), None)
        words.append(match[0])
        tags.append("O" if slot is None else f"I-{slot[0]}" if slot == last else f"B-{slot[0]}")
        last = slot
    return tuple(words), tuple(tags)
