"""Sentences for the voices to say, put together from parts that were written for this: no text needs a licence."""

import random

# When, who, did what, where, and sentences that stand alone, for other tunes.
_PARTS = (
    "early in the morning|after the long winter|on a quiet Thursday|just before midnight|in the summer of 1987|"
    "while the kettle boiled|at half past three|when the rain stopped|for the third time this week|years later|"
    "without a word|during the storm|at the very end of the road|as usual|to everyone's surprise",
    "the old lighthouse keeper|a young violin teacher|my neighbour's daughter|the judge|a group of hikers|"
    "our cheerful postman|the engineer from Bristol|nobody in the village|her youngest cousin|the night nurse|"
    "a stubborn grey donkey|the choir|Professor Whitfield|the boy with the yellow kite|every fisherman",
    "counted seventeen small boats|shut the heavy oak door|bought fresh bread and ginger jam|"
    "asked for a cheaper ticket|measured the width of the bridge|laughed at the judge's wig|"
    "painted the fence blue|forgot the password again|chose a thick woollen jumper|"
    "explained how the engine works|hid the jewels under a floorboard|found a treasure map|"
    "pushed the cart through deep mud|whistled a cheerful tune|fixed the church clock|"
    "threw five oranges over the wall|shared the last piece of chocolate cake",
    "near the harbour|in the village square|behind the museum|on the third floor|beyond the wheat fields|"
    "at the edge of the forest|under the railway arch|beside the frozen lake|in the shadow of the castle|"
    "by the garden gate|at the airport|in a dusty room full of books",
    "Would you mind closing the window?|What a strange noise that was!|Which of these roads leads to the sea?|"
    "She said yes, no, and then perhaps.|Please wait, I am not ready yet.|How much does the smaller one cost?|"
    "Thank you very much for your patience.|Six, seven, eight, and one more makes nine.|"
    "The chef's azure shoes made the judge chuckle.|Nothing beats a good joke, does it?|"
    "I'd rather walk than wait for that bus!|Vague measures usually cause confusion.",
)


def sentence(chance: random.Random) -> str:
    """A sentence drawn with `chance`: one in six stands alone, the others are put together."""
    when, who, what, where, alone = (part.split("|") for part in _PARTS)
    if chance.random() < 1 / 6:
        return chance.choice(alone)
    start, person, deed, place = (chance.choice(part) for part in (when, who, what, where))
    deeds = f"{person} {deed}"
    text = chance.choice((f"{start}, {deeds} {place}.", f"{deeds} {place}, {start}.", f"{deeds}."))
    return text[0].upper() + text[1:]
