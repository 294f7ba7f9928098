"""What the clause extractor knows of English: connectives, openings, closings, and when words belong together."""

from __future__ import annotations

import re

_LINKS = (
    r"and (?:is |are |was )?(?:then )?(?:is |are )?(?:immediately |shortly |quickly |finally )?followed by",
    r"(?:which is |immediately |shortly |quickly )?followed by",
    r"(?:as well as|together with|along with|accompanied by|mixed with|combined with|alongside)",
    r"(?:at the same time as|in addition to|on top of)",
    r"(?:after|before|during|while|as|with|by|over) which",
    r"and (?:then|while|as|with|after|before|finally|eventually|later|also)",
    r"(?:and|but|while|whilst|as|then|with|before|after|during|amid|amidst|among|over|plus|when|until|preceded by)",
)
CONNECTIVE = re.compile(
    rf"\s*[,;]\s*(?:{'|'.join(_LINKS)})\b\s*|\s*[,;.]\s+|\s+(?:{'|'.join(_LINKS)})\s+", re.I
)
"""A place where one sound may end and the next begin."""

EDGES = re.compile(
    r"^[\s,;.:!]+|[\s,;.:!]+$"
    rf"|^(?:{'|'.join(_LINKS)}|followed)(?:\s+|$)|(?:^|\s+)(?:and|but|while|as|then|with|before|after|over)$",
    re.I,
)
"""Marks and connectives at either end."""

OPENING = re.compile(
    r"^(?:(?:the |a )?(?:loud |faint |distant )?(?:sounds?|noises?|recording|audio|mixture|sound mixture)(?: clip)? of "
    r"(?=\S)"
    r"|(?:someone|somebody|one|you|we|i|a listener)(?: can)? hears? "
    r"|(?:there is|there are|there's|here is|here are|this is|we can hear) (?=\S))",
    re.I,
)
"""Words at the start that name no sound."""

_PLACES = (
    "background|backgrounds|distance|foreground|room|area|space|building|hall|house|kitchen|street|place|"
    "environment|vicinity"
)
CLOSING = re.compile(
    rf"\s+(?:(?:off |far |somewhere |close |up |very )?(?:in|at|from|into|inside|near|within) "
    rf"(?:the |a |an |some )?(?:[a-z]+ )?(?:{_PLACES})"
    r"|nearby|close by|far away|further away|at close range|all at once|at the same time|at once"
    r"|(?:is|are|was|were|being|can be) (?:heard|audible|present))$",
    re.I,
)
"""Words at the end that say where, or only that something is heard."""

_PAIRS = (
    "on and off|off and on|back and forth|up and down|over and over|again and again|more and more|in and out|"
    "black and white|loud and clear|left and right|to and fro|stone and metal|pots and pans|stop and go|"
    "plates and glasses|food and oil|"
    "dishes and silverware|bread and butter|rise and fall|near and far|louder and louder|closer and closer"
)
_PAIR = re.compile(rf"\b(?:{_PAIRS})\b", re.I)
_ODD_AS = re.compile(r"\b(?:such as|as if|as though|as soon as|as much as|just as)\b", re.I)
_OVER_GROUND = re.compile(
    r"\b(?:\w+ing|drives?|rolls?|runs?|walks?|flows?|flew|flies|passes|travels?|moves?|speaks?|talks?|rides?)"
    r" over (?:(?:the|a|an|some|rough|wet|hard|dry|its|their) )*"
    r"(?:gravel|rocks?|roads?|snow|tracks?|ground|pavement|bumps?|surface|city|head|heads|intercom|"
    r"loudspeakers?|speakers?|radio|phone|microphone|railroad|rails|sand|dirt|grass|bridge|stones?|pebbles)\b",
    re.I,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WITH_PEOPLE = re.compile(
    r"\b(?:talk|speak|communicat|convers|chat|interact|argu)\w* with (?:(?:a|an|the|another|some|other|his|her) )*"
    r"(?:man|men|woman|women|boys?|girls?|child|children|people|persons?|crowd|dog|baby|group)\b",
    re.I,
)

_PEOPLE = _words(
    """
    adult adults babies baby boy boys child children crowd female females girl girls guy guys infant kid
    kids ladies lady male males man men people person teenager teenagers toddler woman women
    """
)
_VERBS = _words(
    """
    accelerate approach bark beat beep bleat blow boil bubble burp burst buzz cackle call cheer chirp
    chuckle clang clank clap clatter click clink clop close cluck continue coo cough crack crackle crank
    crash creak crinkle croak crow cry drip drive drop fade fall fart fizz flap flow fly gallop gasp giggle
    gobble groan growl grunt gurgle gush hiss hit honk hoot howl hum idle increase jingle knock laugh meow
    moan moo move neigh oink open pant pass play pop pour purr quack rattle rev ring ripple roar roll rumble
    run rush rustle scrape scream screech shout shuffle shut sing siren sizzle slam slosh slow smack snap
    sneeze sniff snore snort speak spin splash splatter spray sputter squawk squeak squeal start stir stop
    strike stutter swish talk tap thump tick toot trickle trot turn tweet vibrate vroom wail walk warble
    wheeze whimper whine whinny whir whirr whisper whistle whoosh wind yap yell yelp zoom
    """
)
_FINITE = (
    {f"{verb}s" for verb in _VERBS}
    | {f"{verb}es" for verb in _VERBS if verb.endswith(("s", "sh", "ch", "x", "z"))}
    | {f"{verb[:-1]}ies" for verb in _VERBS if verb.endswith("y")}
)
_LOWER_NOUNS = {
    "winds",
    "beats",
    "beeps",
    "clicks",
    "taps",
    "drops",
    "cries",
    "knocks",
    "claps",
    "screams",
    "bubbles",
}
_AFTER_A_VERB = _words(
    """
    onto a again against along an around at away back by down fast for from in into loudly near off on out past
    quietly slowly softly the through to together up
    """
)
_EMPTY = _words(
    """
    a afterwards again all also an and another are at away background both brief briefly close constant
    continuous different distance each else far fast faster finally first four he here high in indoors
    inside is it later long loud louder low many mixed more nearby of on once one or others outdoors outside
    quiet repeatedly second several she short simultaneously slow slower so soft some something the them
    there they third this three times to together too twice two various very was were
    """
)
_PRONOUN = re.compile(r"^(?:it|they|he|she|its|his|her|their|this|that)\b(?:'s)?", re.I)


def guarded(text: str, cut: re.Match[str]) -> bool:
    """Whether a connective is part of a fixed expression, as in "on and off" or "driving over gravel".

    >>> text = "a car driving over gravel over a radio"
    >>> [guarded(text, cut) for cut in CONNECTIVE.finditer(text)]
    [True, False]
    """
    return any(
        whole.start() < cut.end() and cut.start() < whole.end()
        for expression in (_PAIR, _ODD_AS, _OVER_GROUND, _WITH_PEOPLE)
        for whole in expression.finditer(text)
    )


def names_a_sound(fragment: str) -> bool:
    """Whether a fragment can be a phrase: not empty, no lone adverb or participle, no mere pronoun with its verb.

    >>> [names_a_sound(text) for text in ("Thunder", "repeatedly", "Mixed", "it passes by", "")]
    [True, False, False, False, False]
    """
    tokens = [token.casefold() for token in re.findall(r"[^\s,;.]+", fragment)]
    if not any(character.isalpha() for character in fragment) or _PRONOUN.match(fragment):
        return False
    if CLOSING.fullmatch(f" {fragment}"):
        return False
    if all(token in _EMPTY or token.endswith("ly") for token in tokens):
        return False
    return len(tokens) > 1 or not tokens[0].endswith("ed")


def belongs_together(before: str, link: str, after: str) -> bool:
    """Whether two neighbours that a connective joins are one sound: people with one verb, verbs with one subject.

    >>> belongs_together("a man", "and", "a woman talking"), belongs_together("a dog barks", "and", "growls")
    (True, True)
    >>> belongs_together("a violin", "and", "a dog barking"), belongs_together("a man talks", "and", "birds")
    (False, False)
    """
    if link not in ("and", ",", "and then", "then"):
        return False
    left, right = before.casefold().split(), after.casefold().split()
    if _says_who(left) and link in ("and", ",") and any(word in _PEOPLE for word in right[:3]):
        return True
    if not any(_is_verb(word) for word in left):
        return False
    if right[0] in _FINITE and right[0] not in _LOWER_NOUNS:
        return True
    while right and right[0].endswith("ly"):
        right = right[1:]
    if not right:
        return False
    if right[0] in _FINITE and right[0] not in _LOWER_NOUNS:
        return True
    gerund = _is_gerund(right[0])
    return gerund and (len(right) == 1 or right[1].endswith("ly") or right[1] in _AFTER_A_VERB)


def _says_who(tokens: list[str]) -> bool:
    return len(tokens) <= 4 and tokens[-1] in _PEOPLE and "of" not in tokens


def _is_verb(word: str) -> bool:
    return word in _FINITE or _is_gerund(word)


def _is_gerund(word: str) -> bool:
    return (
        len(word) > 4 and word.endswith("ing") and word not in ("something", "morning", "evening", "ceiling")
    )
