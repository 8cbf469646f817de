"""Action tokenizers: chunks of joint targets to token ids and back.

`SCHEMES` maps a scheme's name (as in a bundle's manifest) to its class; `load` reads any saved one.
A new scheme is one module with a `Tokenizer` subclass, added to `SCHEMES`.
"""

import json
from pathlib import Path

from robotd_policies.tokenizers.base import ChunkLayout, Tokenizer
from robotd_policies.tokenizers.bins import DctBins, UniformBins

__all__ = ["SCHEMES", "ChunkLayout", "DctBins", "Tokenizer", "UniformBins", "load"]

SCHEMES: dict[str, type[Tokenizer]] = {cls.scheme: cls for cls in (UniformBins, DctBins)}


def load(path: Path) -> Tokenizer:
    """Read a tokenizer saved by `Tokenizer.save`. Raises ValueError for an unknown scheme."""
    fields = json.loads(path.read_text())
    scheme = fields.get("scheme")
    if scheme not in SCHEMES:
        raise ValueError(f"{path}: scheme {scheme!r} is unknown; known: {sorted(SCHEMES)}")
    return SCHEMES[scheme].from_fields(fields)
