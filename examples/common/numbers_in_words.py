"""Numbers in German and in English words: translation in small, with words that change places."""

import numpy as np

ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ENGLISH += [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
GERMAN = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
GERMAN += ["zehn", "elf", "zwölf", "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"]
GERMAN_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]


def number_pairs(count: int) -> tuple[list[list[str]], list[list[str]]]:
    """Different numbers below a million, short ones as often as there are any, in German and in English, shuffled.

    42,130: zwei und vierzig tausend ein hundert dreißig; forty two thousand one hundred thirty.
    """
    random = np.random.default_rng(0)
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        numbers[int(random.integers(1, 10 ** random.integers(1, 7)))] = None
    numbers = dict.fromkeys(random.permutation(list(numbers)).tolist())
    return [german(number) for number in numbers], [english(number) for number in numbers]


def german(number: int) -> list[str]:
    """The words of a number from 1 to 999,999; the ones stand before the tens."""
    thousands, rest = divmod(number, 1000)
    return [
        *_german_below_thousand(thousands, "ein"),
        *["tausend"] * (thousands > 0),
        *_german_below_thousand(rest, "eins"),
    ]


def _german_below_thousand(number: int, one: str) -> list[str]:
    hundreds, rest = divmod(number, 100)
    words = [*_unit(hundreds, "ein"), "hundert"] if hundreds else []
    if rest < 20:
        return words + _unit(rest, one)
    tens, ones = divmod(rest, 10)
    return [*words, *[*_unit(ones, "ein"), "und"][: 2 * (ones > 0)], GERMAN_TENS[tens - 2]]


def _unit(number: int, one: str) -> list[str]:
    return [] if number == 0 else [one if number == 1 else GERMAN[number - 1]]


def english(number: int) -> list[str]:
    """The words of a number from 1 to 999,999."""
    thousands, rest = divmod(number, 1000)
    return [*_english_below_thousand(thousands), *["thousand"] * (thousands > 0), *_english_below_thousand(rest)]


def _english_below_thousand(number: int) -> list[str]:
    hundreds, rest = divmod(number, 100)
    words = [ENGLISH[hundreds - 1], "hundred"] if hundreds else []
    if rest < 20:
        return words + ([ENGLISH[rest - 1]] if rest else [])
    tens, ones = divmod(rest, 10)
    return [*words, ENGLISH_TENS[tens - 2], *([ENGLISH[ones - 1]] if ones else [])]
