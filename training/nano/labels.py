"""Hand-written names for the CLINC150 intents that the nano model trains on, and the names that it must never see."""

# Left out of every part of the training, so that they measure what the model does with new labels.
HELD_OUT_INTENTS = (
    "travel_alert", "meal_suggestion", "cook_time", "flip_coin", "order_checks", "credit_limit_change",
    "change_accent", "tire_pressure", "smart_home", "pto_used", "traffic", "spelling", "next_holiday",
    "lost_luggage", "calories",
)

SNIPS_LABELS = (
    "add to playlist", "book restaurant", "get weather", "play music", "rate book", "search creative work",
    "search screening event",
)

FORBIDDEN_TASKS = (
    "task642_esnli_classification", "task1631_openpi_answer_generation", "task281_points_of_correspondence",
)

# intent: alternative names, separated by "|".
_NAMES = """
accept_reservations: accept reservations|does a place take bookings|can a table be reserved
account_blocked: account blocked|locked out of the account|why is my account on hold
alarm: alarm|set an alarm|wake me up
application_status: application status|how is my card application|check on an application
apr: apr|yearly interest on a card|annual percentage rate
are_you_a_bot: are you a bot|human or machine|ask if it is a robot
balance: balance|money in the account|check bank balance
bill_balance: bill balance|how much is the bill|amount owed on bills
bill_due: bill due|when must I pay|due date of a bill
book_flight: book flight|buy a plane ticket|fly somewhere|find flights
book_hotel: book hotel|reserve a room|find a place to stay
calculator: calculator|do some maths|work out a sum
calendar: calendar|what is on my schedule|look at my events
calendar_update: calendar update|put an event on the calendar|change an event
cancel: cancel|stop that|never mind
cancel_reservation: cancel reservation|drop a booking|call off a table
car_rental: car rental|rent a car|hire a vehicle
card_declined: card declined|card was refused|payment did not go through
carry_on: carry on|cabin bag rules|hand luggage
change_ai_name: change ai name|give the assistant a new name|rename you
change_language: change language|speak another language|switch language
change_speed: change speed|talk faster or slower|rate of speech
change_user_name: change user name|call me something else|new name for me
change_volume: change volume|louder or quieter|turn the sound up
confirm_reservation: confirm reservation|check a booking|is my table booked
credit_limit: credit limit|how much can I charge|card spending limit
credit_score: credit score|see my credit rating|how good is my credit
current_location: current location|where am I|find my position
damaged_card: damaged card|broken card|my card is bent
date: date|what day is it|today's date
definition: definition|what does a word mean|look up a word|word meaning
direct_deposit: direct deposit|have my pay sent to the bank|set up deposits
directions: directions|how to get there|show the way|find a route
distance: distance|how far is it|miles between places
do_you_have_pets: do you have pets|ask about its pets|any dogs or cats
exchange_rate: exchange rate|currency rates|dollars to other money
expiration_date: expiration date|when does the card expire|end date of a card
find_phone: find phone|locate my phone|lost my phone
flight_status: flight status|is the plane on time|track a flight
food_last: food last|how long does food keep|is it still good to eat
freeze_account: freeze account|lock my account|block the account
fun_fact: fun fact|tell something interesting|share trivia
gas: gas|fuel left in the tank|how much petrol
gas_type: gas type|which fuel to use|kind of petrol
goodbye: goodbye|say bye|see you later
greeting: greeting|say hello|hi there
how_busy: how busy|is a place crowded|waiting time at a restaurant
how_old_are_you: how old are you|ask its age|your birthday
improve_credit_score: improve credit score|raise my credit rating|better credit
income: income|how much do I earn|my salary
ingredient_substitution: ingredient substitution|swap an ingredient|use something else in a recipe
ingredients_list: ingredients list|what goes into a dish|things needed to cook
insurance: insurance|my health cover|what insurance do I have
insurance_change: insurance change|new insurance plan|switch cover
interest_rate: interest rate|what interest do I get|rate on savings
international_fees: international fees|charges abroad|foreign transaction cost
international_visa: international visa|do I need a visa|travel papers
jump_start: jump start|dead car battery|start a car with cables
last_maintenance: last maintenance|when was the car serviced|latest car check
make_call: make call|phone someone|dial a number|call a person
maybe: maybe|not sure|cannot decide
meaning_of_life: meaning of life|why are we here|purpose of living
measurement_conversion: measurement conversion|convert units|inches to centimetres
meeting_schedule: meeting schedule|which meetings do I have|list meetings
min_payment: min payment|smallest payment|least I can pay on a bill
mpg: mpg|fuel economy|miles to the gallon
new_card: new card|apply for a credit card|get another card
next_song: next song|skip this track|go to the next tune
no: no|say no|refuse
nutrition_info: nutrition info|is it healthy|what is in a food
oil_change_how: oil change how|steps to change oil|how to change car oil
oil_change_when: oil change when|time for new oil|when to change oil
order: order|buy something|purchase an item|shop online
order_status: order status|where is my package|track a delivery
pay_bill: pay bill|send money for a bill|settle an invoice
payday: payday|when do I get paid|next paycheck
pin_change: pin change|new pin number|reset the code of a card
play_music: put on a song|play a tune|start a track|listen to songs|hear an artist
plug_type: plug type|power adapter abroad|which socket
pto_balance: pto balance|holiday days left|how much vacation do I have
pto_request: pto request|ask for days off|book time off work
pto_request_status: pto request status|was my leave approved|check time off request
recipe: recipe|how to cook a dish|find a recipe
redeem_rewards: redeem rewards|use my points|cash in points
reminder: reminder|what was I to remember|list reminders
reminder_update: reminder update|remind me of something|set a reminder
repeat: repeat|say that again|what did you say
replacement_card_duration: replacement card duration|how long for a new card|when will my card arrive
report_fraud: report fraud|charge I did not make|someone stole from my account
report_lost_card: report lost card|my card is gone|lost credit card
reset_settings: reset settings|back to factory settings|restore the defaults
restaurant_reservation: restaurant reservation|reserve a table|dinner booking|get a table for people
restaurant_reviews: restaurant reviews|how good is a restaurant|opinions on a diner|rating of a place to eat
restaurant_suggestion: restaurant suggestion|where to eat|good places for food|find a restaurant
rewards_balance: rewards balance|how many points|points on my card
roll_dice: roll dice|throw a die|random roll
rollover_401k: rollover 401k|move my pension|transfer a retirement plan
routing: routing|bank routing number|number of the bank
schedule_maintenance: schedule maintenance|book a car service|take the car to the mechanic
schedule_meeting: schedule meeting|set up a meeting|arrange a talk with someone
share_location: share location|send where I am|tell a friend my position
shopping_list: shopping list|what do I need to buy|read my grocery list
shopping_list_update: shopping list update|add to the grocery list|put an item on the list
spending_history: spending history|how much did I spend|past spending
sync_device: sync device|connect my phone|pair a device
taxes: taxes|how much tax|state and federal tax
tell_joke: tell joke|make me laugh|something funny
text: text|send a message|write to someone
thank_you: thank you|say thanks|be grateful
time: time|what time is it|the hour now
timer: timer|count down minutes|start a timer
timezone: timezone|time zone of a place|which zone
tire_change: tire change|put on a new wheel|fix a flat tyre
todo_list: todo list|what are my tasks|read my to-do list
todo_list_update: todo list update|add a task|change my list of chores
transactions: transactions|recent purchases|list card payments
transfer: transfer|move money|send funds between accounts
translate: translate|say it in another language|word in a foreign tongue
travel_notification: travel notification|tell the bank I am travelling|notice of a trip
travel_suggestion: travel suggestion|what to see on a trip|places to visit|things to do in a city
uber: uber|get a ride|call a taxi|order a cab
update_playlist: update playlist|put a song on my list|save this track|add a tune to a collection|extend a mix of songs
user_name: user name|what is my name|who am I
vaccines: vaccines|shots before travel|which jabs
w2: w2|my wage tax form|where is the tax paper
weather: weather|forecast|rain or sun|how warm is it outside|will it rain
what_are_your_hobbies: what are your hobbies|what do you do for fun|its pastimes
what_can_i_ask_you: what can i ask you|what can you do|list of abilities
what_is_your_name: what is your name|ask what it is called|your name
what_song: what song|name of this tune|which track is this|identify a song
where_are_you_from: where are you from|your home|place of origin
whisper_mode: whisper mode|speak softly|low voice
who_do_you_work_for: who do you work for|your boss|which company owns you
who_made_you: who made you|your creator|who built the assistant
yes: yes|say yes|agree
"""

# Verbs and nouns whose pairs, matched to any text by sentence embedding, widen the labels that the model meets.
VERBS = (
    "find", "get", "check", "ask about", "buy", "sell", "order", "write", "read", "send", "open", "close", "start",
    "stop", "learn", "teach", "explain", "compare", "count", "name", "describe", "fix", "clean", "make", "cook",
    "eat", "watch", "look up", "show", "hear", "sing", "visit", "travel to", "reserve", "rent", "pay for", "review",
    "judge", "choose", "change", "remove", "save", "share", "plan", "cancel", "tell", "help with", "look for",
)
NOUNS = (
    "song", "album", "film", "television show", "story", "poem", "novel", "picture", "game", "theatre", "cinema",
    "ticket", "meal", "table", "dinner", "cafe", "drink", "fruit", "bread", "fish", "rain", "snow", "sun", "wind",
    "storm", "forecast", "temperature", "season", "city", "country", "river", "mountain", "sea", "island", "road",
    "train", "plane", "ship", "car", "bus", "horse", "dog", "cat", "bird", "insect", "farm", "garden", "tree",
    "flower", "house", "room", "door", "school", "teacher", "child", "mother", "father", "friend", "king", "queen",
    "soldier", "war", "battle", "peace", "law", "court", "crime", "police", "president", "election", "government",
    "tax", "bank", "card", "money", "price", "shop", "market", "job", "boss", "doctor", "illness", "medicine",
    "body", "food", "health", "sport", "football", "team", "player", "score", "stars", "points", "rating", "opinion",
    "music", "band", "singer", "dance", "list", "calendar", "meeting", "message", "phone", "computer", "program",
    "code", "number", "sum", "measure", "distance", "time", "day", "year", "birthday", "holiday", "word", "language",
    "letter", "author", "page", "library", "science", "energy", "light", "heat", "water", "stone", "metal", "gold",
    "planet", "star", "moon", "church", "god", "magic", "fear", "anger", "joy", "love", "death", "sleep", "dream",
    "clothes", "hat", "shoes", "battery", "engine", "tool", "machine", "weapon", "detective", "robot", "customer",
)


def intent_names() -> dict[str, list[str]]:
    """The names of each training intent, first the most literal."""
    lines = [line.split(":", 1) for line in _NAMES.strip().splitlines()]
    return {intent.strip(): [name.strip() for name in names.split("|")] for intent, names in lines}


def bank_phrases() -> list[str]:
    """Every noun, and every verb with every noun, save the names that must stay new."""
    pairs = [f"{verb} {noun}" for verb in VERBS for noun in NOUNS]
    barred = {*SNIPS_LABELS, *(intent.replace("_", " ") for intent in HELD_OUT_INTENTS)}
    return [phrase for phrase in [*NOUNS, *pairs] if phrase not in barred]
