"""What the worker does."""

from collections import Counter


def count_words(text):
    words = text.split()
    return {"words": len(words), "most_common": Counter(words).most_common(3)}
