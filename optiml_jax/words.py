"""Numbers in messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun: "1 run", "2 runs", "1,204 runs".

    Args:
      number: how many there are.
      noun: in the singular; of several words the last one is put into the plural.
      plural: where it is not the noun with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
