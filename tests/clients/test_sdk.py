"""anthropic, the official Python SDK: what a program sees of answers."""

import json

import anthropic
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from kit import KEY, MODEL, PDF, PNG, ask, tool

WEATHER = tool("get_weather", {"city": {"type": "string"}}, ["city"])
CLOCK = tool("get_time", {"zone": {"type": "string"}})
# Everything that has ever been cut, decoded or escaped wrongly.
AWKWARD = (
    'ha ha  é 你好 😀👩‍👩‍👧 \u2028 \u2029 \u0085 \ufeff \x0b \x0c \x1c \u007f "quoted" \\back\\ <b>&amp;</b>'
    " tab\t cr\r lf\n\n event: ping\ndata: {} \n end"
)
MODES = pytest.mark.parametrize("mode", ["stream", "create"])


def send(client, mode, request):
    if mode == "create":
        return client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        return stream.get_final_message()


def blocks(message):
    """The content without the members that only newer answers fill."""
    return [block.model_dump(exclude_none=True) for block in message.content]


def results(*pairs):
    return [{"type": "tool_result", "tool_use_id": id, "content": content} for id, content in pairs]


def turn(house, n):
    return house.requests()[n]["conversationState"]


@pytest.mark.parametrize(
    "way",
    [
        {"pieces": 1},
        {"pieces": 40, "write_bytes": 1},
        {"pieces": 40, "write_bytes": 7, "gap_ms": 1},
        {"pieces": 40, "burst": 16},
    ],
    ids=str,
)
def test_text_equals_what_upstream_sent(serve, way):
    house = serve()
    client = house.client()
    house.script({"text": AWKWARD, **way}, {"text": AWKWARD, **way})
    with client.messages.stream(**ask("Say something.")) as stream:
        assert "".join(stream.text_stream) == AWKWARD
        streamed = stream.get_final_message()
    whole = client.messages.create(**ask("Say something."))
    for message in (streamed, whole):
        assert blocks(message) == [{"type": "text", "text": AWKWARD}]
        assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, MODEL)
    assert streamed.usage == whole.usage


@pytest.mark.anyio
async def test_async_text_and_tools_arrive_whole(serve):
    house = serve()
    house.script(
        {"text": AWKWARD, "pieces": 20, "tools": [{"id": "t1", "name": "get_time", "input": {"zone": "東京"}}]}
    )
    async with house.async_client() as client:
        async with client.messages.stream(**ask("Go.", tools=[CLOCK])) as stream:
            message = await stream.get_final_message()
    assert [block["type"] for block in blocks(message)] == ["text", "tool_use"]
    assert message.content[0].text == AWKWARD
    assert message.content[1].input == {"zone": "東京"}


def test_usage_has_the_four_final_counts(serve):
    house = serve()
    usage = {
        "uncachedInputTokens": 200,
        "outputTokens": 7,
        "totalTokens": 1000,
        "cacheReadInputTokens": 700,
        "cacheWriteInputTokens": 93,
    }
    answer = {"text": "Hi", "steps": [{"event": "metadataEvent", "payload": {"tokenUsage": usage}}]}
    house.script(answer, answer)
    for mode in ("stream", "create"):
        counts = send(house.client(), mode, ask("Hi")).usage
        assert (counts.input_tokens, counts.cache_creation_input_tokens, counts.cache_read_input_tokens) == (
            200,
            93,
            700,
        )
        assert counts.output_tokens == 7


@MODES
@pytest.mark.parametrize("interleave", [False, True])
def test_two_parallel_tools_arrive_whole(serve, mode, interleave):
    house = serve()
    paris = {
        "id": "tooluse_A",
        "name": "get_weather",
        "input": {"city": 'Paris "é" \u2028', "n": 12.5, "deep": [{"a": None}]},
    }
    tokyo = {"id": "tooluse_B", "name": "get_time", "input": {"zone": "Asia/Tokyo 東京"}}
    house.script(
        {"text": "Let me look.", "tools": [{**paris, "pieces": 9}, {**tokyo, "pieces": 9}], "interleave": interleave}
    )
    message = send(house.client(), mode, ask("Weather and time?", tools=[WEATHER, CLOCK]))
    assert message.stop_reason == "tool_use"
    # model_dump(exclude_none) would reach into the input.
    assert message.content[0].text == "Let me look."
    assert [(use.id, use.name, use.input) for use in message.content[1:]] == [
        tuple(paris.values()),
        tuple(tokyo.values()),
    ]


def test_a_tool_without_input_is_empty_and_a_cut_one_is_a_part(serve):
    house = serve()
    request = ask("Go.", tools=[tool("list")])
    bare = {"tools": [{"id": "tooluse_A", "name": "list"}]}
    cut = {
        "text": "Writing.",
        "tools": [{"id": "tooluse_B", "name": "list", "input": '{"path":"a","te', "stop": "never"}],
    }
    house.script(bare, bare, cut, cut)
    for mode in ("stream", "create"):
        assert send(house.client(), mode, request).content[0].input == {}
    streamed = send(house.client(), "stream", request)
    assert (streamed.stop_reason, len(streamed.content)) == ("max_tokens", 2)
    whole = send(house.client(), "create", request)
    assert (whole.stop_reason, blocks(whole)) == ("max_tokens", [{"type": "text", "text": "Writing."}])


@MODES
def test_a_loop_of_three_turns_reaches_upstream_whole(serve, mode):
    house = serve()
    house.script(
        {
            "text": "First the weather.",
            "tools": [{"id": "tooluse_1", "name": "get_weather", "input": {"city": "Oslo"}}],
        },
        {
            "tools": [
                {"id": "tooluse_2", "name": "get_time"},
                {"id": "tooluse_3", "name": "get_weather", "input": {"city": "Rome"}},
            ]
        },
        {"text": "Oslo is cold, Rome is warm."},
    )
    messages = [{"role": "user", "content": "Compare."}]
    for _ in range(3):
        message = send(house.client(), mode, ask(messages, tools=[WEATHER, CLOCK], system="Be brief."))
        messages.append({"role": "assistant", "content": message.content})
        uses = [block for block in message.content if block.type == "tool_use"]
        if uses:
            messages.append({"role": "user", "content": results(*((use.id, f"result of {use.name}") for use in uses))})
    assert messages[-1]["content"][0].text == "Oslo is cold, Rome is warm."
    third = turn(house, 2)
    uses = [use for entry in third["history"] for use in entry.get("assistantResponseMessage", {}).get("toolUses", [])]
    assert uses == [
        {"toolUseId": "tooluse_1", "name": "get_weather", "input": {"city": "Oslo"}},
        {"toolUseId": "tooluse_2", "name": "get_time", "input": {}},
        {"toolUseId": "tooluse_3", "name": "get_weather", "input": {"city": "Rome"}},
    ]
    context = third["currentMessage"]["userInputMessage"]["userInputMessageContext"]
    assert context["toolResults"] == [
        {"toolUseId": "tooluse_2", "content": [{"text": "result of get_time"}], "status": "success"},
        {"toolUseId": "tooluse_3", "content": [{"text": "result of get_weather"}], "status": "success"},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_goes_through_three_turns(serve, stream):
    """The runner asks for a message thread first (M68)."""
    house = serve()
    house.script(
        {"tools": [{"id": "tooluse_1", "name": "add", "input": {"a": 1, "b": 2}}]},
        {"text": "And again.", "tools": [{"id": "tooluse_2", "name": "add", "input": {"a": 3, "b": 4}}]},
        {"text": "The sum is 7."},
    )
    calls = []

    @beta_tool
    def add(a: int, b: int) -> str:
        """Adds two numbers."""
        calls.append((a, b))
        return str(a + b)

    runner = house.client().beta.messages.tool_runner(**ask("1 + 2 + 4?", tools=[add], stream=stream))
    last = runner.until_done()
    assert calls == [(1, 2), (3, 4)]
    assert last.content[0].text == "The sum is 7."
    third = turn(house, 2)
    assert len(third["history"]) == 4, "the whole conversation, not only what is new"
    assert third["currentMessage"]["userInputMessage"]["userInputMessageContext"]["toolResults"] == [
        {"toolUseId": "tooluse_2", "content": [{"text": "7"}], "status": "success"}
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_runner_adds_and_removes_tools_on_its_way_m69(serve, stream):
    """It tells of them in system messages."""
    house = serve()
    house.script(
        {"tools": [{"id": "tooluse_1", "name": "first", "input": {"a": 1}}]},
        {"tools": [{"id": "tooluse_2", "name": "second", "input": {"a": 2}}]},
        {"text": "Done."},
    )

    @beta_tool
    def first(a: int) -> str:
        """What first does."""
        return f"first of {a}"

    @beta_tool
    def second(a: int) -> str:
        """What second does."""
        return f"second of {a}"

    runner = house.client().beta.messages.tool_runner(**ask("Go on.", tools=[first], stream=stream))
    seen = []
    for step in runner:
        message = step.get_final_message() if stream else step
        block = message.content[0]
        seen.append(block.name if block.type == "tool_use" else block.text)
        if seen[-1] == "first":
            runner.add_tools(second)
        if seen[-1] == "second":
            runner.remove_tools("first")
    assert seen == ["first", "second", "Done."]
    contexts = [turn(house, n)["currentMessage"]["userInputMessage"]["userInputMessageContext"] for n in range(3)]
    declared = [
        [(tool["toolSpecification"]["name"], tool["toolSpecification"]["description"]) for tool in context["tools"]]
        for context in contexts
    ]
    one = ("first", "What first does.")
    assert declared == [
        [one],
        [one, ("second", "What second does.")],
        # Its use in the history still has to be declared.
        [("second", "What second does."), ("first", "Tool used earlier in this conversation.")],
    ]
    assert [context["toolResults"][0]["content"] for context in contexts[1:]] == [
        [{"text": "first of 1"}],
        [{"text": "second of 2"}],
    ]


def test_a_message_thread_is_refused_by_its_code(serve):
    house = serve()
    thread = house.client().beta.messages.thread(model=MODEL, max_tokens=100)
    with pytest.raises(anthropic.BadRequestError) as caught:
        thread.send("Hello")
    assert caught.value.error_code == "thread_unsupported_request"
    assert house.calls() == 0


@MODES
def test_a_thought_whose_text_is_omitted_has_its_signature_alone_a110(serve, mode):
    house = serve()
    house.script({"signature": "c2lnbmF0dXJl", "signature_pieces": 3, "text": "Done."})
    more = {"model": "claude-opus-5", "thinking": {"type": "adaptive", "display": "omitted"}}
    message = send(house.client(), mode, ask("Think.", **more))
    assert blocks(message) == [
        {"type": "thinking", "thinking": "", "signature": "c2lnbmF0dXJl"},
        {"type": "text", "text": "Done."},
    ]
    fields = house.requests()[0]["additionalModelRequestFields"]
    assert fields["thinking"] == {"type": "adaptive", "display": "omitted"}


@MODES
def test_thinking_with_signature_comes_back(serve, mode):
    house = serve()
    signature = "EqoBCkgIARAB" + "x" * 300 + "=="
    thought = {"thinking": "I should look it up. “é”", "signature": signature, "signature_pieces": 5, "pieces": 6}
    house.script(
        {
            **thought,
            "text": "Looking.",
            "tools": [{"id": "tooluse_1", "name": "get_weather", "input": {"city": "Oslo"}}],
        },
        {"redacted": "c2VjcmV0", "text": "Cold."},
        {"text": "Fine."},
    )
    more = {"tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 4096}
    messages = [{"role": "user", "content": "Weather?"}]
    first = send(house.client(), mode, ask(messages, **more))
    assert blocks(first) == [
        {"type": "thinking", "thinking": thought["thinking"], "signature": signature},
        {"type": "text", "text": "Looking."},
        {"type": "tool_use", "id": "tooluse_1", "name": "get_weather", "input": {"city": "Oslo"}},
    ]
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results(("tooluse_1", "-3 °C"))},
    ]
    second = send(house.client(), mode, ask(messages, **more))
    assert blocks(second) == [{"type": "redacted_thinking", "data": "c2VjcmV0"}, {"type": "text", "text": "Cold."}]
    messages += [{"role": "assistant", "content": second.content}, {"role": "user", "content": "Thanks."}]
    send(house.client(), mode, ask(messages, **more))
    sent = [entry["assistantResponseMessage"].get("reasoningContent") for entry in turn(house, 2)["history"][1::2]]
    assert sent == [
        None,
        {"reasoningText": {"text": thought["thinking"], "signature": signature}},
        {"redactedContent": "c2VjcmV0"},
    ]


def test_images_and_documents_arrive(serve):
    house = serve()
    house.script({"text": "A dot and a page."}, {"text": "A dot."})
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    document = {
        "type": "document",
        "title": "page.pdf",
        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
    }
    notes = {
        "type": "document",
        "title": "notes.txt",
        "source": {"type": "text", "media_type": "text/plain", "data": "hello"},
    }
    message = house.client().messages.create(
        **ask([{"type": "text", "text": "What are these?"}, image, document, notes])
    )
    assert message.content[0].text == "A dot and a page."
    sent = turn(house, 0)["currentMessage"]["userInputMessage"]
    assert sent["images"] == [{"format": "png", "source": {"bytes": PNG}}]
    assert sent["documents"] == [{"name": "page", "format": "pdf", "source": {"bytes": PDF}}]
    assert sent["content"] == "What are these?\n[document: notes.txt]\nhello"

    shot = [
        {"role": "user", "content": "Take a screenshot."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "tooluse_1", "name": "shot", "input": {}}]},
        {"role": "user", "content": results(("tooluse_1", [image]))},
    ]
    house.client().messages.create(**ask(shot, tools=[tool("shot")]))
    assert turn(house, 1)["currentMessage"]["userInputMessage"]["images"] == [
        {"format": "png", "source": {"bytes": PNG}}
    ]


def test_count_tokens_equals_message_start(serve):
    house = serve()
    client = house.client()
    request = ask("How many tokens is this? 你好", system="Count.", tools=[WEATHER])
    counted = client.messages.count_tokens(**{name: value for name, value in request.items() if name != "max_tokens"})
    assert house.stats()["requests"] == {}
    with client.messages.create(**request, stream=True) as stream:
        usage = next(event for event in stream if event.type == "message_start").message.usage
    assert (
        counted.input_tokens == usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    )


@pytest.mark.anyio
async def test_models_are_paged_by_the_sdk(serve):
    house = serve()
    client = house.client()
    paged = list(client.models.list(limit=2))
    assert paged == client.models.list(limit=1000).data
    assert len({model.id for model in paged}) == len(paged) > 4
    async with house.async_client() as async_client:
        assert [model async for model in async_client.models.list(limit=3)] == paged
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-nope")
    with pytest.raises(anthropic.BadRequestError):
        client.models.list(after_id="x")


def test_structured_output_is_parsed(serve):
    house = serve()
    house.script({"text": '{"name":"Ada","age":36}', "pieces": 5})

    class Person(BaseModel):
        name: str
        age: int

    message = house.client().messages.parse(**ask("Who?", output_format=Person))
    assert message.parsed_output == Person(name="Ada", age=36)


def test_a_key_as_bearer_is_right_and_the_request_id_is_shown(serve):
    house = serve()
    for options in (
        {"api_key": KEY},
        {"api_key": None, "auth_token": KEY},
        {"base_url": f"{house.url}/claude-kiro-oauth"},
    ):
        message = house.client(**options).messages.create(**ask("Hi"))
        assert message._request_id.startswith("req_")


def test_breaking_off_cancels_upstream(serve):
    house = serve()
    long = {"text": "{n} ", "count": 100_000, "gap_ms": 10}
    house.script(long, long)
    with house.client().messages.stream(**ask("Count.")) as stream:
        next(iter(stream.text_stream))
    house.closes(1, within=1)
    stream = house.client().messages.create(**ask("Count."), stream=True)
    next(stream)
    stream.close()
    house.closes(2, within=1)


def test_the_json_of_the_request_stays_as_it_is(serve):
    """The SDK writes non-ASCII raw, key order is kept, `<` stays `<`."""
    house = serve()
    house.script({"text": "ok"})
    schema = {
        "type": "object",
        "properties": {"z": {"description": "<é>&"}, "a": {"type": "number"}},
        "required": ["z", "a"],
    }
    house.client().messages.create(
        **ask("a && b <é> 会", tools=[{"name": "f", "description": "d", "input_schema": schema}])
    )
    sent = turn(house, 0)["currentMessage"]["userInputMessage"]
    assert sent["content"] == "a && b <é> 会"
    assert json.dumps(
        sent["userInputMessageContext"]["tools"][0]["toolSpecification"]["inputSchema"]["json"]
    ) == json.dumps(schema)
