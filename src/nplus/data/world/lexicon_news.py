"""Words and templates of the news domain: short articles about incidents, for evaluation only."""

ACTOR_MODIFIERS = "local retired young former"
ACTOR_HEADS = "doctor mayor teacher engineer sailor farmer officer guard"
PLACE_MODIFIERS = "northern southern coastal western"
PLACE_HEADS = "harbour village airport stadium hospital museum bridge market"
NUMBERS = ("2 3 4 5 6 7 8 9 10 11 12 14 40 60 90 150 200 300", "homes people cars boats")
EVENTS = (
    "rescued/rescuing a climber; crashed/crashing a bus; found/finding a bomb; stole/stealing a "
    "painting; "
    "stopped/stopping a fire; opened/opening a bridge; caused/causing a flood; closed/closing a "
    "school; "
    "lost/losing a plane; saved/saving two whales; started/starting a riot; won/winning a lottery; "
    "blocked/blocking the main road; sank/sinking a ferry"
)
CAUSES = (
    "heavy fog; a gas leak; strong wind; human error; black ice; a power cut; old wiring; bad "
    "planning; "
    "a loud bang; a computer bug; missing signs; faulty brakes"
)
REACTIONS = (
    "residents demand/demanding answers; police ask/asking for witnesses; the union calls/calling "
    "for strikes; "
    "ministers promise/promising money; critics blame/blaming the council; families thank/thanking "
    "the rescuers; "
    "experts warn/warning of more; tourists leave/leaving early; shops stay/staying shut; the "
    "court opens/opening a case; "
    "schools send/sending pupils away; trains are late"
)
SITES = ("dailyherald", "morningpost")

ARTICLE: dict[str, tuple[str, ...]] = {
    "event": (
        "a {actor} {event} on monday.",
        "on friday a {actor} {event}.",
        "a {actor} {event}, officials said.",
        "witnesses saw a {actor} {event_ing}.",
        "reports say that a {actor} {event}.",
    ),
    "place": (
        "it took place at a {place}.",
        "the scene was a {place}.",
        "it happened near a {place}.",
        "crowds gathered at a {place}.",
    ),
    "cause": (
        "officials believe {cause} was to blame.",
        "the cause was {cause}.",
        "first reports point to {cause}.",
        "an early study named {cause}.",
    ),
    "number": (
        "in all, {number} were affected.",
        "a spokesman counted {number}.",
        "the damage reached {number}.",
        "at least {number} were hit.",
    ),
    "reaction": (
        "since then {reaction}.",
        "meanwhile {reaction}.",
        "in response, {reaction}.",
        "as a result {reaction}.",
    ),
}
PADDING = (
    "the weather was mild for the season.",
    "it is the second such case this year.",
    "the story was first reported on the radio.",
    "no further details were known at noon.",
    "a statement is expected this week.",
    "similar cases were seen abroad.",
)
TITLES = ("{actor} in the news", "incident at {place}", "{number} affected", "what we know so far")
STORY_MAIN: dict[str, tuple[str, ...]] = {
    "both": ("a {actor} {event}", "{actor} {event}", "{actor} seen {event_ing}"),
    "event": ("someone {event}", "an incident with someone {event_ing}"),
    "actor": ("news about a {actor}", "a {actor} is in the news"),
}
MAIN: dict[str, tuple[str, ...]] = {
    "place": ("it happened at a {place}",),
    "cause": ("the cause was {cause}", "{cause} is to blame"),
    "number": ("{number} were affected", "it hit {number}"),
    "reaction": ("{reaction}", "now {reaction}"),
}
TIED: dict[str, tuple[str, ...]] = {
    "place": ("at a {place}", "near a {place}"),
    "cause": ("because of {cause}", "after {cause}"),
    "number": ("and {number} were affected", "with {number} affected"),
    "reaction": ("while {reaction}", "and {reaction}"),
}
