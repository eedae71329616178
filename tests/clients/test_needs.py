"""C1–C19 with the Python SDK: each thing that it requires or breaks on. A real answer of the
server is spoilt on its way, and the SDK must fail as the specification says; unspoilt, it must pass. When an update of
the SDK makes one of these fail, the requirement has changed: look it up before touching the expectation."""

import json
import re
import time

import anthropic
import httpx2
import pytest

from kit import ask, tool

TEXT = {"text": "Hello there.", "pieces": 3}
TOOL = {"tools": [{"id": "tooluse_1", "name": "f", "input": {"path": "a", "text": "lo"}, "pieces": 4}]}
THOUGHT = {"thinking": "Hm.", "signature": "sig", "text": "Yes."}


class Spoil(httpx2.BaseTransport):
    """Passes requests on and gives back what `change` makes of the events."""

    def __init__(self, change):
        self.change = change
        self.inner = httpx2.HTTPTransport()

    def handle_request(self, request):
        response = self.inner.handle_request(request)
        text = response.read().decode()
        events = re.findall(r"event: (.*)\ndata: (.*)\n\n", text)
        assert len(events) > 4
        changed = self.change([(name, json.loads(data)) for name, data in events])
        lines = ((f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n" for name, data in changed)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content="".join(lines).encode())

    def close(self):
        self.inner.close()


@pytest.fixture
def spoiled(serve):
    def send(scenario, change):
        house = serve()
        house.script(scenario, scenario)
        request = ask("Go.", tools=[tool("f")], thinking={"type": "adaptive"})
        # First as it is: what the change breaks must have been whole.
        with house.client().messages.stream(**request) as stream:
            assert stream.get_final_message().stop_reason
        with house.client(http_client=httpx2.Client(transport=Spoil(change))) as client:
            with client.messages.stream(**request) as stream:
                return stream.get_final_message()

    return send


def edited(name, edit):
    """Edits the data of the first event called `name`."""

    def change(events):
        edit(next(data for event, data in events if event == name))
        return events

    return change


def without(*names):
    return lambda events: [event for event in events if event[0] not in names]


def tool_pieces(*pieces):
    """Other pieces of tool input."""

    def change(events):
        deltas = [
            (
                "content_block_delta",
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "input_json_delta", "partial_json": piece},
                },
            )
            for piece in pieces
        ]
        return events[:2] + deltas + [event for event in events[2:] if event[0] != "content_block_delta"]

    return change


def test_a_block_without_an_event_line_fails_c1(spoiled):
    with pytest.raises(AssertionError):
        spoiled(TEXT, lambda events: [(None, data) for _, data in events])


@pytest.mark.parametrize("member", ["content", "usage"])
def test_message_start_without_content_or_usage_fails_c2(spoiled, member):
    with pytest.raises((AttributeError, TypeError)):
        spoiled(TEXT, edited("message_start", lambda data: data["message"].pop(member)))


def test_message_delta_without_usage_fails_c4(spoiled):
    with pytest.raises(AttributeError):
        spoiled(TEXT, edited("message_delta", lambda data: data.pop("usage")))


def test_without_message_stop_it_returns_the_torso_c5(spoiled):
    assert spoiled(TEXT, without("message_stop", "message_delta")).content[0].text == TEXT["text"]


def test_without_message_delta_there_is_no_stop_reason_c6(spoiled):
    assert spoiled(TEXT, without("message_delta")).stop_reason is None


def test_a_gap_in_the_indices_fails_c7(spoiled):
    def shift(events):
        for _, data in events:
            if "index" in data:
                data["index"] += 1
        return events

    with pytest.raises(IndexError):
        spoiled(TEXT, shift)
    with pytest.raises(IndexError):
        spoiled(TEXT, without("content_block_start"))


@pytest.mark.parametrize(("scenario", "member"), [(TEXT, "text"), (THOUGHT, "thinking")])
def test_a_block_start_without_its_text_fails_c8(spoiled, scenario, member):
    with pytest.raises(TypeError):
        spoiled(scenario, edited("content_block_start", lambda data: data["content_block"].pop(member)))


def test_a_tool_start_without_input_gives_none_c9(spoiled):
    def change(events):
        edited("content_block_start", lambda data: data["content_block"].pop("input"))(events)
        return without("content_block_delta")(events)

    message = spoiled({"tools": [{"id": "tooluse_1", "name": "f"}]}, change)
    assert "input" not in message.content[0].to_dict()


def test_wrong_tool_json_raises_and_cut_json_is_a_part_c10(spoiled):
    with pytest.raises(ValueError, match="Unable to parse tool parameter JSON"):
        spoiled(TOOL, tool_pieces('{"path":', "nonsense"))
    assert spoiled(TOOL, tool_pieces('{"path":"a","te')).content[0].input in ({}, {"path": "a"})


def test_pings_and_unknown_events_and_deltas_are_ignored_c11(spoiled):
    def sprinkle(events):
        out = []
        for name, data in events:
            out += [(name, data), ("ping", {"type": "ping"}), ("telemetry", {"type": "telemetry", "n": 1})]
            if name == "content_block_delta":
                out.append((name, {**data, "delta": {"type": "glitter_delta", "glitter": 1}}))
        return out

    assert spoiled(TEXT, sprinkle).content[0].text == TEXT["text"]


def test_an_error_event_raises_with_its_type_c12(spoiled):
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}, "request_id": "req_x"}
    with pytest.raises(anthropic.APIStatusError) as caught:
        spoiled(TEXT, lambda events: [events[0], ("error", error)])
    assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")


def test_counts_of_message_delta_replace_those_of_the_start_c13(spoiled):
    def change(events):
        edited(
            "message_start", lambda data: data["message"]["usage"].update(input_tokens=1, cache_read_input_tokens=2)
        )(events)
        return edited(
            "message_delta",
            lambda data: data.update(usage={"input_tokens": 11, "cache_read_input_tokens": None, "output_tokens": 5}),
        )(events)

    usage = spoiled(TEXT, change).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (11, 2, 5)


def test_a_signature_delta_replaces_the_signature_c14(spoiled):
    def change(events):
        out = []
        for name, data in events:
            if data.get("delta", {}).get("type") == "signature_delta":
                out += [
                    (name, {**data, "delta": {"type": "signature_delta", "signature": piece}}) for piece in ("si", "g")
                ]
            else:
                out.append((name, data))
        return out

    assert spoiled(THOUGHT, change).content[0].signature == "g"


def test_an_error_body_with_200_is_taken_for_a_message_c15(serve):
    def answering(body, kind):
        transport = httpx2.MockTransport(
            lambda request: httpx2.Response(200, headers={"content-type": kind}, content=body)
        )
        return serve().client(http_client=httpx2.Client(transport=transport)).messages.create(**ask("Hi"))

    error = b'{"type":"error","error":{"type":"api_error","message":"x"}}'
    assert answering(error, "application/json").type == "error"
    # The TypeScript SDK gives a string here; this one tries JSON whatever the type says.
    assert answering(b'{"type":"message"}', "text/plain").type == "message"
    assert answering(b"<html>", "text/html") == "<html>"


def test_an_error_has_its_class_and_request_id_c16(serve):
    for accounts, wanted in (["sim-529"], anthropic.OverloadedError), ([], anthropic.ServiceUnavailableError):
        with pytest.raises(wanted) as caught:
            serve(accounts).client().messages.create(**ask("Hi"))
        assert caught.value.request_id == caught.value.response.headers["request-id"]


def test_x_should_retry_wins_and_retry_after_is_obeyed_c17(serve):
    def counted(**headers):
        calls = []

        def answer(request):
            calls.append(time.monotonic())
            content = b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}'
            return httpx2.Response(503, headers={"content-type": "application/json", **headers}, content=content)

        client = serve().client(http_client=httpx2.Client(transport=httpx2.MockTransport(answer)), max_retries=1)
        with pytest.raises(anthropic.ServiceUnavailableError):
            client.messages.create(**ask("Hi"))
        return calls

    assert len(counted(**{"x-should-retry": "false", "retry-after": "1"})) == 1
    first, second = counted(**{"retry-after": "1"})
    assert second - first >= 0.99


def test_long_rests_are_not_slept_through_c17(serve):
    client = serve(["sim-429-retry-after-1800"]).client(max_retries=2)
    began = time.monotonic()
    for wanted in (anthropic.RateLimitError, anthropic.InternalServerError):
        with pytest.raises(wanted) as caught:
            client.messages.create(**ask("Hi"))
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert 1790 < int(caught.value.response.headers["retry-after"]) <= 1800
    assert time.monotonic() - began < 5


def test_a_large_max_tokens_needs_a_stream_or_a_timeout_c18(serve):
    client = serve().client()
    with pytest.raises(ValueError, match="Streaming is required"):
        client.messages.create(**ask("Hi", max_tokens=21_334))
    with client.messages.stream(**ask("Hi", max_tokens=64_000)) as stream:
        stream.until_done()
    client.messages.create(**ask("Hi", max_tokens=1_000_000), timeout=10)


def test_line_separators_inside_json_split_no_line_c19(serve):
    house = serve()
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    house.script({"text": text})
    with house.client().messages.stream(**ask("Hi")) as stream:
        assert stream.get_final_text() == text
