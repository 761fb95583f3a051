"""The affinity of a conversation: the same from turn to turn, different between two, cheap and never an error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.wire.affinity import conversation_affinity
from tresor.wire.json_members import parse_members

SYSTEM = {"role": "system", "content": "You are brief."}
FIRST = {"role": "user", "content": "What is a lease?"}
PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "What is"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
}


def affinity(**members: Any) -> bytes:
    return conversation_affinity(parse_members(json.dumps(members).encode()))


@pytest.mark.parametrize("first", [FIRST, PARTS])
def test_later_turns_of_a_conversation_have_its_affinity(first: dict[str, Any]) -> None:
    turn = affinity(model="m", messages=[SYSTEM, first])
    later = [SYSTEM, first, {"role": "assistant", "content": "A contract."}, {"role": "user", "content": "And rent?"}]
    assert affinity(messages=later, model="other", temperature=1, stream=True) == turn
    assert len(turn) == 16


@pytest.mark.parametrize(
    "messages",
    [
        [FIRST],
        [SYSTEM, {"role": "user", "content": "What is rent?"}],
        [{"role": "developer", "content": "You are brief."}, FIRST],
        [SYSTEM, {"role": "assistant", "content": "Yes?"}, FIRST],
        [SYSTEM, PARTS],
    ],
)
def test_another_beginning_is_another_conversation(messages: list[Any]) -> None:
    assert affinity(messages=messages) != affinity(messages=[SYSTEM, FIRST])


def test_a_cache_key_decides_alone() -> None:
    assert affinity(prompt_cache_key="k", messages=[FIRST]) == affinity(
        prompt_cache_key="k", messages=[SYSTEM], user="u"
    )
    assert affinity(prompt_cache_key="k", messages=[FIRST]) != affinity(prompt_cache_key="l", messages=[FIRST])


@pytest.mark.parametrize("key", ["", None, 7, ["k"]])
def test_what_is_no_cache_key_is_passed_over(key: Any) -> None:
    assert affinity(prompt_cache_key=key, messages=[FIRST]) == affinity(messages=[FIRST])


def test_one_prompt_of_two_users_is_two_conversations() -> None:
    assert len({affinity(user=user, messages=[FIRST]) for user in ("a", "b", None)}) == 3


def test_marks_that_move_do_not_count() -> None:
    def content(**mark: Any) -> list[Any]:
        return [{"role": "user", "content": [{"type": "text", "text": "x"} | mark]}]

    assert affinity(messages=content(cache_control={"type": "ephemeral"})) == affinity(messages=content())


def test_inputs_of_embeddings() -> None:
    assert affinity(input="a") == affinity(input="a", model="m")
    assert affinity(input=["a", "b"]) != affinity(input=["a", "c"])


def test_long_texts_differ_by_their_ends_and_their_length() -> None:
    texts = ["x" * 10_000, "x" * 10_001, "y" + "x" * 9_999, "x" * 9_999 + "y"]
    assert len({affinity(messages=[{"role": "user", "content": text}]) for text in texts}) == 4


def test_a_long_system_prompt_hides_no_user() -> None:
    system = {"role": "system", "content": "x" * 1_000_000}
    assert affinity(messages=[system, FIRST]) != affinity(messages=[system, {"role": "user", "content": "Rent?"}])


def test_only_the_beginning_is_looked_at() -> None:
    beginning = [{"role": "assistant", "content": "x"}] * 32
    assert affinity(messages=[*beginning, FIRST]) == affinity(messages=[*beginning, PARTS])
    assert affinity(messages=[*beginning[1:], FIRST]) != affinity(messages=[*beginning[1:], PARTS])


def test_lone_surrogates_and_deep_nesting() -> None:
    assert affinity(messages=[{"role": "user", "content": "\ud800"}])
    deep = b'{"messages":[{"role":"user","content":' + b"[" * 500 + b"]" * 500 + b"}]}"
    assert conversation_affinity(parse_members(deep))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
messages = st.dictionaries(st.sampled_from(["role", "content", "name"]), json_values | st.just("user"))


@given(
    body=st.dictionaries(
        st.sampled_from(["messages", "input", "user", "prompt_cache_key"]),
        json_values | st.lists(messages | json_values),
    )
)
def test_any_body_has_one_affinity(body: dict[str, Any]) -> None:
    assert len(affinity(**body)) == 16
    assert affinity(**body) == affinity(**body)
