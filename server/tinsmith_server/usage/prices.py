"""What a token and a gigabyte cost, if the operator says so. Unset is unknown, not free."""

from dataclasses import dataclass, fields
from typing import Self

HOURS_PER_MONTH = 720
BYTES_PER_GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars per million tokens; storage per gigabyte and month of 720 hours."""

    training: float | None = None
    sampling_prefill: float | None = None
    sampling_prefill_cached: float | None = None
    sampling_sample: float | None = None
    storage: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`training=0.4,storage=0.1`; raises ValueError with a sentence."""
        known = {field.name for field in fields(cls)}
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, price = part.partition("=")
            if name not in known or not price.replace(".", "", 1).isdigit():
                raise ValueError(f"{part!r} is not one of {', '.join(sorted(known))} = a price.")
            found[name] = float(price)
        return cls(**found)

    def tokens(self, kind: str) -> float | None:
        price: float | None = getattr(self, kind)
        return price


UNPRICED = Prices()


def cost(rate: float | None, quantity: float) -> float | None:
    return None if rate is None else rate * quantity
