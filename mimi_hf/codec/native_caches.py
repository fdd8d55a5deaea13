"""Streams in calls of transformers' native style, which thread caches through `encode` and `decode`.

Ours thread the stream itself. An empty cache of transformers that a caller made in advance is accepted as well: a
stream begins and is attached to it, as native code would fill it in place. (Resetting such a cache does not reset the
stream: make a new one.)
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .streaming import Stream

_ATTRIBUTE = "mimi_stream"  # of a cache of transformers that carries a stream

AnyStream = TypeVar("AnyStream", bound=Stream)


def find_stream(
    codec: Any, kind: type[AnyStream], carriers: Sequence[Any], wanted: bool | None, make: Callable[[], AnyStream]
) -> AnyStream | None:
    """The stream that a call goes on with; None if the call does not stream.

    Args:
        codec: whose call it is.
        kind: [`EncoderStream`] or [`DecoderStream`].
        carriers: what was passed as caches, None among them.
        wanted: begin a stream if there is none yet.
        make: makes that stream.

    Raises:
        TypeError, ValueError: for a cache that carries another kind of stream, that of another model, or native state.
    """
    carriers = [carrier for carrier in carriers if carrier is not None]
    if not carriers and not wanted:
        return None
    found = [carrier if isinstance(carrier, Stream) else getattr(carrier, _ATTRIBUTE, None) for carrier in carriers]
    streams = list({id(stream): stream for stream in found if stream is not None}.values())
    if len(streams) > 1:
        raise ValueError("The caches carry different streams. Pass those that one call returned.")
    stream = streams[0] if streams else make()
    if not isinstance(stream, kind):
        raise TypeError(f"A {type(stream).__name__} was passed where a {kind.__name__} belongs.")
    if stream.model is not codec:
        raise ValueError("The cache carries a stream of another model. Begin a stream with this one.")
    for carrier, carried in zip(carriers, found, strict=True):
        if carried is None:
            _attach(stream, carrier)
    return stream


def _attach(stream: Stream, carrier: Any) -> None:
    """Let an empty cache of transformers carry `stream`."""
    name = type(carrier).__name__
    if not hasattr(carrier, "__dict__"):
        raise TypeError(f"A cache of type {name} can carry no stream. Pass what the last call returned.")
    filled = any(part is not None for part in getattr(carrier, "padding_cache", ()))
    if filled or getattr(carrier, "get_seq_length", int)() > 0:
        raise ValueError(
            f"The {name} was filled by another model. Pass what this model's last call returned, or an empty cache."
        )
    setattr(carrier, _ATTRIBUTE, stream)


def refuse_in_stream(recorder: Any, *masks: Tensor | None) -> None:
    """Refuse what a call that streams cannot do: masks that mark padding, and a [`Recorder`]."""
    for mask in masks:
        if mask is not None and not torch.as_tensor(mask).all():
            raise ValueError("The mask marks padding, but a stream has none. Push real samples alone.")
    if recorder is not None:
        raise ValueError("Hidden states and attentions are shown of whole recordings. Ask for them without a stream.")
