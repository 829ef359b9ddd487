"""Word pools, part one: shared pools, how a domain is written down, the first seven subreddits.

Events are past tense verb phrases whose subject is the person, questions are verb phrases whose
subject is the narrator; both carry their gerund after a slash (`read/reading my diary`).
Complications are clauses: with `verb/gerund`, or with a plain `is`, `are`, `keep` or `keeps`, which
the short form leaves out (`the vet is closed`, `with the vet closed`). Values are separated by `;`.
No two values of a domain share a wording, so that what is mentioned can be told exactly.
"""

from dataclasses import dataclass

NARRATORS = (
    "nurse driver baker waiter painter farmer chef barber plumber clerk singer dancer writer pilot "
    "cashier tailor welder gardener student soldier"
)
FEELINGS = (
    "angry sad ashamed lonely jealous tired hopeful proud nervous confused relieved bitter "
    "worried calm embarrassed guilty scared annoyed"
)
PERSON_MODIFIERS = (
    "bossy nosy lazy clumsy grumpy chatty stubborn charming moody shy cheerful reckless"
)
PERSON_HEADS = (
    "brother sister cousin uncle aunt friend boss coworker neighbour roommate nephew niece "
    "stepfather godmother"
)
SETTING_MODIFIERS = "tiny busy dusty fancy cold noisy shabby dark"
MONEY = ("40 60 90 150 200 250 300 400 500 700 800 900", "dollars euros pounds")
TIME = ("2 3 4 5 6 7 8 9 10 11 12 14", "days weeks months")
AGE = ("2 3 4 5 6 7 8 9 10 11 12 14", "weeks months years")


@dataclass(frozen=True, slots=True)
class DomainWords:
    """The words of one subreddit; `amount` names an entry of `wordings.AMOUNTS`."""

    name: str
    amount: str
    rooms: str
    flavour: tuple[str, ...]
    events: str
    complications: str
    questions: str


FIRST = (
    DomainWords(
        name="relationships",
        amount="together",
        rooms="kitchen bedroom hallway cafe cinema park",
        flavour=("love is not easy.", "we used to be so close."),
        events="read/reading my diary; forgot/forgetting my birthday; kissed/kissing my ex; "
        "hid/hiding a phone; "
        "cancelled/cancelling our trip; lied/lying about money; shared/sharing my secret; "
        "ignored/ignoring my calls; "
        "broke/breaking my vase; skipped/skipping our dinner; mocked/mocking my accent; "
        "deleted/deleting our photos",
        complications="we share/sharing a lease; the family takes/taking sides; the wedding "
        "comes/coming soon; "
        "rumours keep spreading; nobody believes/believing me; trust is gone; we work/working "
        "together; "
        "calls keep coming; summer starts/starting soon; a baby is due; "
        "old habits come/coming back; the house feels/feeling empty",
        questions="end/ending things; forgive/forgiving them; ask/asking for space; move/moving "
        "out; "
        "talk/talking it over; see/seeing a counsellor; return/returning the ring; tell/telling my "
        "parents; "
        "block/blocking their number; wait/waiting it out; demand/demanding an apology; "
        "give/giving one more chance",
    ),
    DomainWords(
        name="personalfinance",
        amount="debt",
        rooms="bank office lobby study shop market",
        flavour=("I was never good with money.", "numbers make my head spin."),
        events="maxed/maxing out my card; lost/losing my savings; opened/opening a loan; "
        "forged/forging a cheque; "
        "missed/missing a payment; bought/buying a boat; hid/hiding the bills; sold/selling my "
        "shares; "
        "closed/closing our account; used/using my pay; ignored/ignoring the taxes; "
        "signed/signing a bad contract",
        complications="interest keeps rising; the bank wants/wanting proof; banks call/calling me; "
        "my credit is bad; payday is far away; fees pile/piling up; the card is frozen; "
        "winter bills are due; my pay drops/dropping; nothing is in writing; the offer ends/ending "
        "friday; "
        "prices go/going up",
        questions="declare/declaring bankruptcy; close/closing the card; join/joining the loans; "
        "cut/cutting my spending; sell/selling the car; hire/hiring an advisor; freeze/freezing my "
        "credit; "
        "take/taking a second job; pay/paying in full; set/setting a budget; report/reporting the "
        "fraud; "
        "use/using my emergency fund",
    ),
    DomainWords(
        name="jobs",
        amount="decide",
        rooms="office warehouse factory lobby canteen workshop",
        flavour=("work has been hard.", "I need this job."),
        events="stole/stealing my idea; blocked/blocking my promotion; read/reading my emails; "
        "took/taking my desk; "
        "leaked/leaking my salary; missed/missing the deadline; blamed/blaming me for errors; "
        "cancelled/cancelling my leave; lost/losing our biggest client; changed/changing my "
        "shifts; "
        "faked/faking the report; shouted/shouting at me",
        complications="job cuts start/starting soon; the manager looks/looking away; another firm "
        "pays/paying more; "
        "my contract ends/ending; the top stays/staying silent; half the team quits/quitting; "
        "bonus season is near; my visa depends/depending on it; the union is on strike; "
        "training starts/starting monday; the server keeps crashing; the mood is low",
        questions="quit/quitting now; ask/asking for a raise; complain/complaining in writing; "
        "change/changing teams; "
        "take/taking the offer; take/taking sick leave; keep/keeping quiet; find/finding a new "
        "job; "
        "call/calling a meeting; record/recording everything; start/starting my own business; "
        "work/working from home",
    ),
    DomainWords(
        name="pets",
        amount="pet",
        rooms="garden kitchen park clinic barn shed",
        flavour=("pets are family to me.", "I grew up with pets."),
        events="fed/feeding my dog chocolate; left/leaving the gate open; shaved/shaving my cat; "
        "lost/losing the leash; "
        "sold/selling my rabbit; let/letting my bird out; chased/chasing the puppy; "
        "bought/buying a third cat; forgot/forgetting the fish; stepped/stepping on my hamster; "
        "hid/hiding the vet bill; painted/painting my dog pink",
        complications="the vet is closed; the limp gets/getting worse; the barking never "
        "stops/stopping; "
        "fleas are everywhere; the home is full; the medicine runs/running out; a storm is near; "
        "the food is gone; the kids keep crying; the cage is broken; my eyes get/getting red; "
        "the owner wants/wanting it back",
        questions="call/calling the vet; find/finding a new home; buy/buying a crate; hire/hiring "
        "a trainer; "
        "change/changing the diet; get/getting a second opinion; put/putting up posters; "
        "build/building a fence; "
        "ban/banning visitors; try/trying pills; wait/waiting until monday; install/installing a "
        "camera",
    ),
    DomainWords(
        name="travel",
        amount="trip",
        rooms="hotel hostel station cabin van lounge",
        flavour=("we planned this for ages.", "I love to see new places."),
        events="lost/losing my passport; missed/missing the flight; booked/booking the wrong city; "
        "cancelled/cancelling the booking; dropped/dropping my camera; spilled/spilling wine on "
        "me; "
        "left/leaving me behind; insulted/insulting our guide; forgot/forgetting my bags; "
        "crashed/crashing the rental; ate/eating my snacks; invited/inviting ten strangers",
        complications="the border is closed; strikes are planned; my insurance is void; a storm is "
        "near; "
        "the visa takes/taking forever; flights fill/filling up; the office is slow; our group is "
        "split; "
        "refunds are refused; nobody speaks/speaking english; my phone is dead; the last train is "
        "gone",
        questions="cancel/cancelling everything; go/going alone; rent/renting a car; fly/flying "
        "home; "
        "ask/asking for a refund; change/changing the route; buy/buying new insurance; "
        "stay/staying longer; "
        "switch/switching airlines; sue/suing the agency; share/sharing the costs; take/taking the "
        "bus",
    ),
    DomainWords(
        name="legaladvice",
        amount="fine",
        rooms="courtroom office bar shop garage hallway",
        flavour=("I am not good with laws.", "I have never been in trouble before."),
        events="sued/suing me; forged/forging my signature; hit/hitting my fence; filmed/filming "
        "me secretly; "
        "broke/breaking the contract; stole/stealing my bike; cut/cutting down my tree; "
        "sent/sending fake bills; "
        "called/calling the police; sold/selling my land; shared/sharing my records; "
        "parked/parking on my lawn",
        complications="the deadline is near; the witness is abroad; my lawyer is away; the proof "
        "is lost; "
        "the judge is strict; police refuse/refusing to help; the hearing is tomorrow; "
        "a camera shows/showing everything; the law is unclear; my insurance says/saying no; "
        "the other side is rich; the papers are wrong",
        questions="go/going to court; give/giving up; find/finding a new lawyer; "
        "contest/contesting it; "
        "write/writing a letter; file/filing a complaint; pay/paying in full; drop/dropping the "
        "case; "
        "ask/asking for mediation; call/calling the city; talk/talking to reporters; "
        "request/requesting a jury",
    ),
    DomainWords(
        name="roommates",
        amount="rent",
        rooms="flat kitchen bathroom hallway basement attic",
        flavour=("living together is hard.", "I only wanted a quiet home."),
        events="ate/eating my food; skipped/skipping the rent; threw/throwing a party; "
        "broke/breaking the oven; "
        "took/taking in a cat; painted/painting my door; used/using my towel; locked/locking me "
        "out; "
        "flooded/flooding the floor; smoked/smoking inside; rented/renting out my bed; "
        "sold/selling my console",
        complications="the lease ends/ending soon; the deposit is at risk; mould keeps spreading; "
        "exams start/starting soon; the heating is broken; guests keep coming; the walls are thin; "
        "the agency stays/staying silent; a new tenant is near; the sink is blocked; the contract "
        "is mine; "
        "mice are back",
        questions="move/moving out; lock/locking my room; tell/telling the landlord; "
        "split/splitting the bills; "
        "write/writing house rules; keep/keeping the deposit; buy/buying a fridge; call/calling a "
        "meeting; "
        "find/finding someone new; wear/wearing earplugs; end/ending this now; hire/hiring a "
        "cleaner",
    ),
)
