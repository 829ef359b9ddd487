"""Word pools of the world, part two: the other seven subreddits."""

from nplus.data.world.lexicon import DomainWords

SECOND = (
    DomainWords(
        name="weddings",
        amount="budget",
        rooms="church barn garden hall vineyard ballroom",
        flavour=("this should be the best day ever.", "planning a wedding is a lot of work."),
        events="wore/wearing white; lost/losing the rings; invited/inviting my ex; "
        "cancelled/cancelling the band; "
        "ruined/ruining my dress; proposed/proposing during dinner; dropped/dropping the cake; "
        "skipped/skipping the rehearsal; mocked/mocking my vows; brought/bringing six kids; "
        "changed/changing the menu; insulted/insulting the priest",
        complications="invitations are sent; the venue is sold; the band is ill; rain is likely; "
        "the cook wants/wanting more; the flowers are late; half the guests say/saying no; "
        "the driver is late; the priest is strict; our parents stop/stopping talking; "
        "the ring is missing; the cake is wrong",
        questions="marry/marrying in secret; delay/delaying the wedding; cut/cutting the guest "
        "list; "
        "change/changing the venue; ban/banning phones; choose/choosing a new bridesmaid; "
        "serve/serving no alcohol; ask/asking for cash; wear/wearing a suit; write/writing new "
        "vows; "
        "refuse/refusing the money; seat/seating them far away",
    ),
    DomainWords(
        name="school",
        amount="exam",
        rooms="library classroom canteen gym hall laboratory",
        flavour=("this term is long.", "I try to get good grades."),
        events="stole/stealing my essay; lost/losing my notes; ruined/ruining our project; "
        "cheated/cheating on the test; took/taking my laptop; started/starting a rumour; "
        "skipped/skipping group work; deleted/deleting my slides; mocked/mocking my grades; "
        "blamed/blaming me for noise; ate/eating my lunch; broke/breaking the lamp",
        complications="finals are close; the professor is strict; my grant depends/depending on "
        "it; "
        "the grade is final; the dean is involved; classes are full; the site is down; "
        "my tutor quits/quitting; the group stays/staying silent; each class counts/counting "
        "double; "
        "the rules are unclear; graduation is near",
        questions="drop/dropping the class; tell/telling the dean; change/changing majors; "
        "repeat/repeating the year; "
        "find/finding a tutor; email/emailing the professor; report/reporting it; leave/leaving "
        "this school; "
        "ask/asking for more time; study/studying alone; switch/switching groups; take/taking a "
        "year off",
    ),
    DomainWords(
        name="cars",
        amount="repair",
        rooms="garage driveway tunnel yard workshop carpark",
        flavour=("I drive every day.", "I know little about engines."),
        events="painted/painting my door; crashed/crashing my truck; lost/losing my keys; "
        "drained/draining the battery; used/using the wrong fuel; cut/cutting my tyres; "
        "borrowed/borrowing my van; broke/breaking the mirror; spilled/spilling paint inside; "
        "towed/towing my car; sold/selling me a wreck; ran/running a red light",
        complications="the shop is slow; parts are rare; the engine smokes/smoking; the brakes "
        "squeak/squeaking; "
        "a check is due; the mechanic is away; rust keeps spreading; the dealer is rude; "
        "my licence is old; snow is near; the papers are missing; buses are slow",
        questions="fix/fixing it myself; sell/selling it; buy/buying a new one; sue/suing the "
        "dealer; "
        "call/calling my insurance; get/getting a second opinion; rent/renting one instead; "
        "give/giving it away; "
        "change/changing mechanics; ride/riding a bike; keep driving; install/installing a camera",
    ),
    DomainWords(
        name="fitness",
        amount="training",
        rooms="gym pool park studio basement yard",
        flavour=("getting fit is a long road.", "I want to be strong."),
        events="dropped/dropping a weight; broke/breaking my watch; skipped/skipping leg day; "
        "mocked/mocking my form; "
        "ate/eating my snacks; took/taking my locker; cancelled/cancelling our run; hurt/hurting "
        "my back; "
        "posted/posting my photo; quit/quitting our team; hid/hiding my shoes; cheated/cheating at "
        "the race",
        complications="my knee is weak; the big day is near; my trainer is gone; progress is slow; "
        "the coach costs/costing more; sleep is bad; the scale is stuck; my doctor says/saying no; "
        "the machines are broken; my energy is low; the heat is extreme; my back is weak",
        questions="take/taking a break; hire/hiring a coach; change/changing gyms; lift/lifting "
        "more; "
        "run/running slower; see/seeing a doctor; eat/eating more; join/joining a class; "
        "skip/skipping the season; "
        "try/trying yoga; buy/buying new gear; train/training at home",
    ),
    DomainWords(
        name="cooking",
        amount="spent",
        rooms="kitchen bakery restaurant cafe camper cellar",
        flavour=("I love good food.", "cooking is my hobby."),
        events="burned/burning the roast; ruined/ruining the dessert; dropped/dropping my knife; "
        "ate/eating the dough; "
        "broke/breaking my mixer; hid/hiding the recipe; swapped/swapping sugar for salt; "
        "invited/inviting twenty guests; sold/selling my pan; spilled/spilling the soup; "
        "mocked/mocking my food; froze/freezing the salad",
        complications="guests come/coming soon; the oven is broken; shops are closed; two guests "
        "are vegan; "
        "the butter is gone; the fridge is warm; the book is lost; smoke is everywhere; dishes "
        "pile/piling up; "
        "nuts are out; the gas is off; the timer is stuck",
        questions="start/starting over; order/ordering pizza; serve/serving it anyway; add/adding "
        "more spice; "
        "use/using a microwave; bake/baking bread instead; change/changing the menu; ask/asking "
        "for help; "
        "cook/cooking outside; buy/buying a cake; cancel/cancelling dinner; try/trying a grill",
    ),
    DomainWords(
        name="parenting",
        amount="child",
        rooms="nursery kitchen playground garden classroom minivan",
        flavour=("kids change everything.", "I try to be a good parent."),
        events="gave/giving my baby candy; woke/waking the twins; taught/teaching my kid swearing; "
        "missed/missing the recital; yelled/yelling at my toddler; lost/losing the toys; "
        "cut/cutting my kid's hair; ruined/ruining the dinner; forgot/forgetting the pickup; "
        "posted/posting baby photos; broke/breaking the crib; skipped/skipping the doctor",
        complications="daycare is full; the crying never stops/stopping; nobody sleeps/sleeping; "
        "my leave ends/ending; "
        "the nanny quits/quitting; school starts/starting soon; the doctor is away; my mum "
        "says/saying no; "
        "the fever is back; homework piles/piling up; bedtime takes/taking forever; "
        "the teacher complains/complaining",
        questions="set/setting firm rules; hire/hiring a nanny; change/changing schools; "
        "limit/limiting visits; "
        "stay/staying home; see/seeing a therapist; ban/banning screens; switch/switching daycare; "
        "say/saying sorry first; take/taking a night off; start/starting sleep training; "
        "talk/talking to the teacher",
    ),
    DomainWords(
        name="neighbours",
        amount="lasting",
        rooms="garden driveway hallway stairwell attic courtyard",
        flavour=("our home used to be quiet.", "I like my home."),
        events="played/playing drums; stole/stealing my mail; built/building a huge fence; "
        "burned/burning trash; blocked/blocking my gate; killed/killing my roses; flew/flying a "
        "drone; "
        "kept/keeping six roosters; broke/breaking my window; threw/throwing snow here; "
        "cut/cutting my hedge; "
        "filmed/filming my door",
        complications="police refuse/refusing to help; the council is slow; my baby wakes/waking "
        "nightly; "
        "the wall is broken; summer is near; the landlord is away; the smell gets/getting worse; "
        "other tenants stay/staying silent; the noise never stops/stopping; no rule is clear; "
        "the house is for sale; the walls are thin",
        questions="call/calling the police; build/building a wall; leave/leaving a note; "
        "sell/selling the house; "
        "wear/wearing earplugs; plant/planting trees; talk/talking it over; file/filing a "
        "complaint; "
        "install/installing a camera; move/moving away; ask/asking for quiet; hire/hiring a lawyer",
    ),
)
