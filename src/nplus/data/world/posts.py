"""Writing a post, a title or a news article from a fact sheet."""

from nplus.data.world import lexicon_news, wordings
from nplus.data.world.dice import Dice
from nplus.data.world.facts import FactSheet, domains, fields
from nplus.data.world.wordings import AMOUNTS, SENTENCES


def _sentence(options: tuple[str, ...], slot: str, sheet: FactSheet, dice: Dice) -> str:
    """One of the training wordings, or the held-out one if the sheet asks for it."""
    if f"wording:{slot}" in sheet.heldout:
        return options[-1]
    return dice.choose(options[:-1])


def _story(sheet: FactSheet, dice: Dice) -> list[str]:
    """The person and what they did, in one sentence or in two that stay together."""
    two = "wording:person" in sheet.heldout or (
        "wording:event" not in sheet.heldout and dice.chance(0.3)
    )
    if two:
        person = _sentence(wordings.PERSON, "person", sheet, dice)
        return [f"{person} {_sentence(wordings.THEY, 'event', sheet, dice)}"]
    return [_sentence(wordings.STORY, "event", sheet, dice)]


def _feeling_and_question(sheet: FactSheet, dice: Dice) -> tuple[list[str], list[str]]:
    asked = {"wording:feeling", "wording:question"}.intersection(sheet.heldout)
    if not asked and dice.chance(0.2):
        return [], [dice.choose(wordings.FEELING_QUESTION)]
    both = (_sentence(SENTENCES[slot], slot, sheet, dice) for slot in ("feeling", "question"))
    feeling, question = both
    return [feeling], [question]


def _distractors(sheet: FactSheet, dice: Dice) -> list[str]:
    by_name = domains()[sheet.domain].by_name
    return [
        dice.choose(wordings.DISTRACTORS[slot]).format_map(dict(by_name[slot, value].wordings))
        for slot, value in sheet.distractors
    ]


def _order(blocks: tuple[list[str], ...], dice: Dice) -> list[str]:
    """Mostly background, story, aftermath, question; the story or the question may come first."""
    background, story, aftermath, question = blocks
    order = [*dice.shuffled(background), *story, *dice.shuffled(aftermath)]
    if dice.chance(0.4):
        order = [*story, *dice.shuffled(background + aftermath)]
    return [*question, *order] if dice.chance(0.2) else [*order, *question]


def render_post(sheet: FactSheet, dice: Dice) -> str:
    """The body of a post: every fact once, distractors, flavour and small talk."""
    domain = domains()[sheet.domain]
    feeling, question = _feeling_and_question(sheet, dice)
    amount = _sentence(AMOUNTS[domain.amount].post, "amount", sheet, dice)
    single = {
        slot: _sentence(SENTENCES[slot], slot, sheet, dice)
        for slot in ("narrator", "setting", "complication")
    }
    background = [single["narrator"], single["setting"]]
    aftermath = [single["complication"], amount, *feeling]
    order = _order((background, _story(sheet, dice), aftermath, question), dice)
    values = fields(sheet)
    lines = [template.format_map(values) for template in order]
    for extra in _distractors(sheet, dice):
        lines.insert(1 + int(dice.unit() * len(lines)), extra)
    if dice.chance(0.3):
        lines.insert(int(dice.unit() * len(lines)), dice.choose(domain.flavour))
    if dice.chance(0.3):
        lines.insert(0, dice.choose(wordings.SMALL_TALK))
    if dice.chance(0.3):
        lines.append(dice.choose(wordings.CLOSINGS))
    if dice.chance(0.3):
        cut = 2 + int(dice.unit() * (len(lines) - 3))
        return f"{' '.join(lines[:cut])}\n\n{' '.join(lines[cut:])}"
    return " ".join(lines)


def render_title(sheet: FactSheet, dice: Dice) -> str:
    """A short title built from the event or the question."""
    return dice.choose(wordings.TITLES).format_map(fields(sheet))


def render_article(sheet: FactSheet, dice: Dice) -> tuple[str, str]:
    """Title and text of a news article: the event first, the rest in any order, some padding."""
    rest = [
        dice.choose(lexicon_news.ARTICLE[slot]) for slot in ("place", "cause", "number", "reaction")
    ]
    padding = dice.shuffled(lexicon_news.PADDING)[: 1 + int(dice.unit() * 3)]
    lines = [dice.choose(lexicon_news.ARTICLE["event"]), *dice.shuffled([*rest, *padding])]
    values = fields(sheet)
    title = dice.choose(lexicon_news.TITLES).format_map(values)
    return title, " ".join(lines).format_map(values)
