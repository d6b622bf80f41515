"""The table of sections. A new one is a module with a SECTION, and its line here."""

from .._section import Section
from . import (
    attend,
    attend_step,
    backward,
    chunk,
    decode,
    fp8,
    memory,
    mixed,
    prefill,
    ragged,
    serving,
    tokens_per_step,
    topk,
    training,
)

SECTIONS: dict[str, Section] = {
    module.SECTION.name: module.SECTION
    for module in (
        prefill,
        attend,
        topk,
        ragged,
        chunk,
        fp8,
        decode,
        mixed,
        tokens_per_step,
        attend_step,
        serving,
        training,
        backward,
        memory,
    )
}
