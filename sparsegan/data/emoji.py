"""Groups emoji by base item, so that a split keeps all skin tones, genders and sequences of an item together."""

from __future__ import annotations

JOINERS = {"200D", "FE0F", "FE0E"}
SKIN_TONES = {f"1F3F{i}" for i in "BCDEF"}
PERSON = {"1F468", "1F469", "1F9D1"}  # man, woman, person: in a sequence, the code points after them name the item
SIGNS = {"2640", "2642"}  # female and male sign

#: code point -> the code point of the same thing in another gender or number
SAME = {
    "1F466": "1F9D2",  # boy, girl: child; a family's sequence ends in children
    "1F467": "1F9D2",
    "1F46A": "1F9D2",
    "1F474": "1F9D3",  # old man, old woman: old person
    "1F475": "1F9D3",
    "1F934": "1F478",  # prince, princess
    "1F936": "1F385",  # Mrs. Claus, Santa
    "1F57A": "1F483",  # dancing man, woman
    "1F935": "1F470",  # in tuxedo, with veil
    "1F46B": "1F91D",  # couples holding hands, whose sequences have a handshake
    "1F46C": "1F91D",
    "1F46D": "1F91D",
    "1F48F": "2764",  # kiss, couple with heart, whose sequences have a heart
    "1F491": "2764",
}


def plain_name(name: str) -> str:
    """Returns the code points in capitals, without variation selectors: 2764-fe0f-200d-1f525 -> 2764-200D-1F525."""
    return "-".join(part for part in name.upper().split("-") if part not in ("FE0F", "FE0E"))


def has_skin_tone(name: str) -> bool:
    """Returns whether the code points of `name` contain a skin tone."""
    return bool(SKIN_TONES & set(name.upper().split("-")))


def base_item(name: str) -> str:
    """Returns the base item of an emoji. `name`: code points in hexadecimal; 1F468-1F3FB-200D-1F33E (farmer) -> 1F33E.

    The base item is the first code point that is left without skin tones, joiners and the gender of people. For flags,
    which are two letters, it is both letters.
    """
    parts = [SAME.get(part, part) for part in name.upper().split("-") if part not in JOINERS | SKIN_TONES | SIGNS]
    if len(parts) == 2 and all("1F1E6" <= part <= "1F1FF" for part in parts):
        return "-".join(parts)
    things = [part for part in parts if part not in PERSON]
    return things[0] if things else "1F9D1"
