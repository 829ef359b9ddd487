"""Sentence templates of posts and clause templates of summaries; pure data.

Fields: `{person} {setting} {amount} {feeling} {narrator}` are the values as they stand; `{event}`
is past tense and `{event_ing}` its gerund; `{comp}` is a clause and `{comp_short}` its form after
"with"; `{question}` is a bare verb phrase and `{question_ing}` its gerund. In every tuple of post
sentences the LAST template is held out of training.
"""

from dataclasses import dataclass

# One sentence with person and event, used by most posts.
STORY = (
    "last week my {person} {event}.",
    "yesterday my {person} {event}.",
    "so my {person} {event}, no joke.",
    "out of nowhere my {person} {event}.",
    "I just found out that my {person} {event}.",
    "it turns out my {person} {event}.",
    "I caught my {person} {event_ing}.",
    "everyone saw my {person} {event_ing}.",
    "it began when my {person} {event}.",
    "believe it or not, my {person} {event}.",
)
# Two sentences: the person first, the event right after it.
PERSON = (
    "this is about my {person}.",
    "the problem is my {person}.",
    "let me tell you about my {person}.",
    "I see my {person} a lot.",
    "I always trusted my {person}.",
    "my {person} is the reason for this post.",
)
THEY = (
    "last night they {event}.",
    "then they {event}.",
    "this morning they {event}.",
    "a few days ago they {event}.",
    "I caught them {event_ing}.",
    "without asking they {event}.",
)
SENTENCES: dict[str, tuple[str, ...]] = {
    "narrator": (
        "I am a {narrator}.",
        "I work as a {narrator}.",
        "{narrator} here.",
        "as a {narrator} I have little free time.",
        "for context, I am a {narrator}.",
        "some background, I am a {narrator}.",
        "being a {narrator} keeps me busy.",
        "by day I am a {narrator}.",
    ),
    "setting": (
        "this was in a {setting}.",
        "it all happened in a {setting}.",
        "we were in a {setting} at the time.",
        "picture a {setting}.",
        "the place was a {setting}.",
        "we met in a {setting}.",
        "think of a {setting} and you know the place.",
    ),
    "complication": (
        "on top of that, {comp}.",
        "to make it worse, {comp}.",
        "the trouble is that {comp}.",
        "meanwhile {comp}.",
        "sadly {comp}.",
        "also, {comp}.",
        "with {comp_short}, things are hard.",
        "it does not help that {comp}.",
    ),
    "feeling": (
        "I feel {feeling}.",
        "honestly I am {feeling}.",
        "I have been {feeling} ever since.",
        "it left me {feeling}.",
        "I am so {feeling} right now.",
        "I woke up {feeling} today.",
        "I have never been this {feeling}.",
    ),
    "question": (
        "should I {question}?",
        "do I {question}?",
        "I wonder if I should {question}.",
        "is it wrong to {question}?",
        "would you {question}?",
        "I keep thinking about {question_ing}.",
        "is {question_ing} the right thing?",
        "is it time to {question}?",
    ),
}
# One sentence that carries a feeling and the question.
FEELING_QUESTION = (
    "I feel {feeling} and wonder if I should {question}.",
    "I am {feeling}, so should I {question}?",
    "being {feeling}, I keep thinking about {question_ing}.",
)
# Other values of a slot, clearly not facts of this post.
DISTRACTORS: dict[str, tuple[str, ...]] = {
    "narrator": ("my partner is a {narrator}.", "people think I am a {narrator}, I am not."),
    "person": ("my {person} says hi.", "my {person} has no part in this."),
    "setting": (
        "last year I was in a {setting}, that was nicer.",
        "it was no {setting}, at least.",
    ),
    "event": ("at least nobody {event}.", "I once knew someone who {event}."),
    "complication": ("it is not true that {comp}.", "someone online wrote that {comp}, not here."),
    "amount": (
        "someone online wrote {amount}, not my case.",
        "a stranger guessed {amount}, which is wrong.",
    ),
    "feeling": ("others would be {feeling}, not me.", "my partner is just {feeling}."),
    "question": ("please do not tell me to {question}.", "I will not {question}, so do not ask."),
}
SMALL_TALK = (
    "sorry for the long post.",
    "english is not my first language.",
    "this is a throwaway account.",
    "I am typing on my phone.",
    "please be gentle.",
    "I did not sleep much.",
    "there is more to it, but I will keep it short.",
    "I never post here.",
)
CLOSINGS = (
    "thanks for reading.",
    "any advice helps.",
    "what would you do?",
    "edit: thanks for the kind replies.",
    "edit: fixed some words.",
    "I will update you.",
)
TITLES = (
    "someone {event}",
    "they {event}, what now?",
    "help, they {event}",
    "should I {question}?",
    "is {question_ing} wrong?",
    "advice on {question_ing}",
    "do I {question}?",
)

# Summaries: `MAIN` clauses can open a sentence; `TIED` ones hang on the clause before them.
STORY_MAIN: dict[str, tuple[str, ...]] = {
    "both": (
        "my {person} {event}",
        "{person} {event}",
        "found my {person} {event_ing}",
        "caught {person} {event_ing}",
        "a {person} {event}",
        "upset about my {person} {event_ing}",
        "it turns out my {person} {event}",
    ),
    "event": (
        "someone {event}",
        "they {event}",
        "caught them {event_ing}",
        "upset about someone {event_ing}",
        "someone close {event}",
    ),
    "person": (
        "problem with my {person}",
        "trouble with a {person}",
        "my {person} let me down",
        "upset with my {person}",
    ),
}
MAIN: dict[str, tuple[str, ...]] = {
    "complication": ("{comp}", "now {comp}", "also {comp}", "sadly {comp}", "meanwhile {comp}"),
    "feeling": ("I am {feeling}", "I feel {feeling}", "feeling {feeling}", "it left me {feeling}"),
    "question": (
        "should I {question}?",
        "do I {question}?",
        "is {question_ing} ok?",
        "wondering whether to {question}",
        "not sure if I should {question}",
        "is it right to {question}?",
        "thinking of {question_ing}",
        "need advice on {question_ing}",
    ),
    "narrator": ("I am a {narrator}", "{narrator} here", "I work as a {narrator}"),
    "setting": ("it happened in a {setting}", "this was in a {setting}"),
}
TIED: dict[str, tuple[str, ...]] = {
    "complication": ("but {comp}", "while {comp}", "with {comp_short}", "and {comp}"),
    "feeling": ("so I am {feeling}", "leaving me {feeling}", "and I feel {feeling}"),
    "question": ("so should I {question}?", "and I may {question}"),
    "setting": ("in a {setting}", "all in a {setting}"),
    "narrator": ("and I am a {narrator}",),
}
JOINERS = {"stop": ". ", "comma": ", ", "and": " and ", "semicolon": "; "}
FILLERS = (
    "long story short",
    "to be honest",
    "well",
    "as you can guess",
    "there is a lot to say here",
)


@dataclass(frozen=True, slots=True)
class AmountWording:
    """How one kind of amount is told; the last of `post` is held out of training."""

    money: str
    post: tuple[str, ...]
    main: tuple[str, ...]
    tied: tuple[str, ...]


def _kind(money: str, post: str, main: str, tied: str) -> AmountWording:
    sentences = tuple(f"{part.strip()}." for part in post.split("|"))
    split = (tuple(part.strip() for part in text.split("|")) for text in (main, tied))
    return AmountWording(money, sentences, *split)


AMOUNTS: dict[str, AmountWording] = {
    "together": _kind(
        "time",
        "we have known each other for {amount} | it took {amount} to get this far | we got close "
        "in {amount} | "
        "that is after {amount} | I gave this {amount} | we go back {amount}",
        "known them for {amount} | it took {amount} | we go back {amount}",
        "after {amount}",
    ),
    "debt": _kind(
        "money",
        "they owe me {amount} | I am out {amount} | I lost {amount} | that means {amount} less | "
        "I lent them {amount} before this | the debt is {amount} by now",
        "they owe me {amount} | I am out {amount} | the debt is {amount}",
        "and I lost {amount} | costing me {amount}",
    ),
    "decide": _kind(
        "time",
        "I have {amount} to decide | they want an answer in {amount} | it must be solved in "
        "{amount} | "
        "there are only {amount} left | they gave me {amount} | the deadline is in {amount}",
        "I have {amount} to decide | they gave me {amount} | only {amount} left",
        "with {amount} left",
    ),
    "pet": _kind(
        "age",
        "my pet is {amount} old | the little one is only {amount} old | we are talking about a pet "
        "of {amount} | "
        "my pet turned {amount} today | I have had my pet for {amount} | my pet has been here for "
        "{amount}",
        "pet is {amount} old | my pet turned {amount} | had my pet for {amount}",
        "with a pet of {amount}",
    ),
    "trip": _kind(
        "time",
        "the trip starts in {amount} | we travel for {amount} | we leave in {amount} | "
        "the trip should last {amount} | there are {amount} left | we are away for {amount}",
        "trip starts in {amount} | we leave in {amount} | only {amount} left",
        "with {amount} left",
    ),
    "fine": _kind(
        "money",
        "the fine is {amount} | they want {amount} from me | I would have to pay {amount} | "
        "the letter says {amount} | it may cost me {amount} | we are talking about {amount}",
        "fine is {amount} | they want {amount} | I may owe {amount}",
        "costing me {amount} | and they want {amount}",
    ),
    "rent": _kind(
        "money",
        "the rent is {amount} | I pay {amount} in rent | my share is {amount} | we pay {amount} "
        "each | "
        "living here costs {amount} | my room costs {amount}",
        "rent is {amount} | my share is {amount} | I pay {amount}",
        "and I pay {amount} | at {amount} rent",
    ),
    "budget": _kind(
        "money",
        "our budget is {amount} | we have {amount} to spend | we saved {amount} | the deposit was "
        "{amount} | "
        "we paid {amount} so far | we put {amount} aside",
        "budget is {amount} | we paid {amount} | we saved {amount}",
        "with {amount} to spend",
    ),
    "exam": _kind(
        "time",
        "the exam is in {amount} | I have {amount} to prepare | there are only {amount} left | "
        "the term ends in {amount} | we hand it in in {amount} | the test is {amount} away",
        "exam is in {amount} | I have {amount} left | only {amount} left",
        "with {amount} left",
    ),
    "repair": _kind(
        "money",
        "the repair costs {amount} | the bill says {amount} | they want {amount} for the repair | "
        "I would have to pay {amount} | someone guessed {amount} for this | it may cost me "
        "{amount}",
        "repair costs {amount} | the bill is {amount} | they want {amount}",
        "costing me {amount} | and I pay {amount}",
    ),
    "training": _kind(
        "time",
        "I have trained for {amount} | my plan takes {amount} | I put {amount} into this | "
        "it took {amount} to get here | I have been at it for {amount} | that is after {amount} of "
        "work",
        "trained for {amount} | it took {amount} | my plan takes {amount}",
        "after {amount}",
    ),
    "spent": _kind(
        "money",
        "I spent {amount} on it | the meal costs {amount} | I paid {amount} for food | that is "
        "{amount} in total | "
        "I put {amount} into this | we had {amount} to spend",
        "spent {amount} on it | meal costs {amount} | I paid {amount}",
        "costing me {amount} | and I paid {amount}",
    ),
    "child": _kind(
        "age",
        "my kid is {amount} old | the little one is only {amount} old | my child turned {amount} "
        "today | "
        "my child is {amount} now | we are talking about a child of {amount} | I have been a "
        "parent for {amount}",
        "kid is {amount} old | my child is {amount} | my child turned {amount}",
        "with a child of {amount}",
    ),
    "lasting": _kind(
        "time",
        "this has gone on for {amount} | it started {amount} ago | I have waited {amount} | "
        "we have lived here for {amount} | it has been {amount} now | I put up with it for "
        "{amount}",
        "it started {amount} ago | gone on for {amount} | I waited {amount}",
        "for {amount} now",
    ),
}
