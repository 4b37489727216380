"""Sentences for synthetic speech, made from this package's own words.

A sentence is a frame with open places and a word for each place. The training texts and the held-out texts have no
frame in common and no noun in common, so that a held-out sentence differs from all training sentences in more than one
word.
"""

from __future__ import annotations

import random

_NOUNS = {
    "train": (
        *(
            "the old miller",
            "a quiet teacher",
            "our neighbour",
            "the ship's doctor",
            "a young farmer",
            "the night nurse",
        ),
        *("my cousin George", "the choir", "a tall carpenter", "the weather office", "their uncle", "the night nurse"),
        *("the blue kettle", "a broken umbrella", "the village bridge", "seven wooden boxes", "a jar of honey"),
        *(
            "the garden wall",
            "a heavy leather coat",
            "three silver coins",
            "the railway timetable",
            "a bowl of cherries",
        ),
        *("the north harbour", "fresh bread", "a yellow bicycle", "the church tower", "an unusual fossil", "hot soup"),
    ),
    "test": (
        *("the watchmaker", "a cheerful baker", "your grandmother", "the chess champion", "a pair of judges"),
        *("the copper lamp", "a map of the valley", "eleven paper boats", "the oak staircase", "a measured answer"),
    ),
}
_FRAMES = {
    "train": (
        *("{} found {} behind {}.", "Why did {} carry {} through the rain?", "{} and {} were late again."),
        *("Please give {} to {} before noon.", "Nobody had seen {} since {} arrived.", "{} is larger than {}."),
        *("In winter, {} looks after {}.", "Without {}, there would be no {}.", "Could {} have broken {}?"),
        *("Yesterday {} measured {} twice.", "{} smiled, because {} was safe at last.", "Look at {}, not at {}!"),
        *("At half past five, {} opened the door for {}.", "{} asked whether {} could be repaired."),
        *("From the hill, {} could hear {}.", "We should thank {} for {}.", "{} never speaks about {}."),
        *("The letter mentions {}, {} and a journey to the coast.", "Under the table lay {}; {} did not notice."),
    ),
    "test": (
        *("Before sunrise, {} quietly moved {} upstairs.", "Which of them belongs to {}, and which to {}?"),
        *("{} joked that {} had vanished.", "If {} agrees, {} will be shown on Thursday.", "Both {} and {} survived."),
    ),
}
COUNTS = {"train": 600, "test": 60}


def sentences(split: str) -> list[str]:
    """The sentences of the split "train" or "test", always the same and all different.

    Numbers are added to some sentences, because digits have sounds of their own.
    """
    draws = random.Random(f"sentences/{split}")
    found: dict[str, None] = {}
    while len(found) < COUNTS[split]:
        frame = draws.choice(_FRAMES[split])
        words = draws.sample(_NOUNS[split], frame.count("{}"))
        text = frame.format(*words)
        if draws.random() < 0.1:
            text += f" The number is {draws.randrange(11, 1000)}."
        found[text[0].upper() + text[1:]] = None
    return list(found)
