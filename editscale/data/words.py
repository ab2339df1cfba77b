"""Where a word stands in a text, in scripts that put spaces between words and in those that do not."""

import unicodedata

# First and last characters of blocks whose scripts put no space between words, or none before an ending: Thai and Lao,
# Burmese, Khmer, kana and Chinese characters, Hangul, and Chinese characters beyond the basic plane.
_UNSPACED = ("\u0e00\u0eff", "\u1000\u109f", "\u1780\u17ff", "\u2e80\u9fff", "\uac00\ud7af", "\U00020000\U0003ffff")


def place(text, word):
    """Index of the first place where `word` stands in `text` as a whole, with no letter, digit or accent that would
    go on with it on either side; -1 if there is none. "No" is not in "Nothing", and "東京" is in "東京です"."""
    at = text.find(word) if word else -1
    while at >= 0 and (_one_word(text[at - 1 : at], word[0]) or _one_word(word[-1], text[at + len(word) :][:1])):
        at = text.find(word, at + 1)
    return at


def _one_word(left, right):
    return bool(left and right) and _of_word(left) and _of_word(right)


def _of_word(character):
    spaced = not any(first <= character <= last for first, last in _UNSPACED)
    return spaced and unicodedata.category(character)[0] in "LMN"
