"""What the requests of one conversation have in common, so that they can go to the upstream that has its prefix cached.

Only a hint for routing: it decides nothing that a caller or a receipt relies on, and a caller that sends other members
than most changes only where its own requests go.
"""

from hashlib import blake2b
from itertools import islice
from typing import Final

from tresor.encodings import JsonValue
from tresor.wire.json_members import Members

__all__ = ["conversation_affinity"]

_DIGEST_BYTES: Final = 16
_MAX_MESSAGES: Final = 32
_MAX_VALUES: Final = 128
_MAX_CHARS: Final = 512
_PASSED_OVER: Final = frozenset({"cache_control"})  # callers move this mark from message to message


def conversation_affinity(members: Members) -> bytes:
    """Return 16 bytes that stay the same from turn to turn of a conversation, and mostly differ between two.

    They are made from `prompt_cache_key` where it is given; else from `user` and the messages up to and with the first
    of role `user`; of a body without messages from its `input`.  Never raises, whatever the members are, and looks at
    no more than 128 values and at both ends of each string, so that large prompts cost no more than small ones.

    Args:
        members: the body of a request.
    """
    cache_key = members.values.get("prompt_cache_key")
    if isinstance(cache_key, str) and cache_key:
        return _digest([cache_key])
    messages = members.values.get("messages")
    if not isinstance(messages, list):
        return _digest([members.values.get("input"), members.values.get("user")])
    beginning: list[JsonValue] = [members.values.get("user")]
    for message in messages[:_MAX_MESSAGES]:
        if not isinstance(message, dict):
            beginning.append(message)
            continue
        role = message.get("role")
        beginning += (role, message.get("content"))
        if role == "user":
            break
    return _digest(beginning)


def _digest(values: list[JsonValue]) -> bytes:
    """Hash the leaves of `values` in their order, as far as they are looked at; without recursion, for any depth."""
    leaves: list[str] = []
    rest = values[::-1]
    for _ in range(_MAX_VALUES):
        if not rest:
            break
        match rest.pop():
            case str() as text:
                leaves.append(
                    text if len(text) <= 2 * _MAX_CHARS else f"{text[:_MAX_CHARS]}{text[-_MAX_CHARS:]}{len(text)}"
                )
            case list() as items:
                rest += items[:_MAX_VALUES][::-1]
            case dict() as members:
                kept = islice(members.items(), _MAX_VALUES)
                rest += [value for name, value in kept if name not in _PASSED_OVER][::-1]
            case value:
                leaves.append(repr(value))
    return blake2b("\0".join(leaves).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
