"""langchain-anthropic: ChatAnthropic against the server."""

import langchain_core.exceptions as core
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from kit import KEY, MODEL, PDF, PNG

THINKING = {"thinking": {"type": "enabled", "budget_tokens": 2048}}


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return {"Oslo": "cold", "Rome": "warm"}[city]


@tool
def clock() -> str:
    """The time."""
    return "noon"


@pytest.fixture
def chat(serve):
    def make(*scenarios, accounts=("account-0",), **options):
        house = serve(accounts)
        if scenarios:
            house.script(*scenarios)
        defaults = {"model": MODEL, "base_url": house.url, "api_key": KEY, "max_retries": 0, "max_tokens": 4096}
        return house, ChatAnthropic(**{**defaults, **options})

    return make


def gathered(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def test_text_invoked_and_streamed(chat):
    text = "Bonjour – “ça va” 你好 😀 \u2028 <b>&amp;</b>\n\nfin"
    usage = {
        "uncachedInputTokens": 200,
        "outputTokens": 7,
        "totalTokens": 1000,
        "cacheReadInputTokens": 700,
        "cacheWriteInputTokens": 93,
    }
    answer = {
        "text": text,
        "pieces": 12,
        "write_bytes": 11,
        "steps": [{"event": "metadataEvent", "payload": {"tokenUsage": usage}}],
    }
    house, model = chat(answer, answer)
    whole = model.invoke([SystemMessage("Be brief."), HumanMessage("Say something.")])
    streamed = gathered(model.stream([SystemMessage("Be brief."), HumanMessage("Say something.")]))
    for message in (whole, streamed):
        assert message.text == text
        assert message.response_metadata["stop_reason"] == "end_turn"
        assert message.response_metadata["model_name"] == MODEL
        assert message.usage_metadata["input_tokens"] == 993
        assert message.usage_metadata["output_tokens"] == 7
        assert message.usage_metadata["input_token_details"]["cache_read"] == 700
    contents = [body["conversationState"]["currentMessage"]["userInputMessage"]["content"] for body in house.requests()]
    assert contents == ["Say something."] * 2


@pytest.mark.anyio
async def test_an_async_stream_gives_the_text(chat):
    _, model = chat({"text": "One, two, three.", "pieces": 5}, {"text": "Whole."})
    pieces = [chunk.text async for chunk in model.astream("Count.")]
    assert "".join(pieces) == "One, two, three."
    assert len([piece for piece in pieces if piece]) == 5
    assert (await model.ainvoke("Again.")).text == "Whole."


@pytest.mark.parametrize("mode", ["invoke", "stream"])
def test_an_agent_loop_of_three_turns_with_parallel_tools_ends(chat, mode):
    house, model = chat(
        {"text": "First.", "tools": [{"id": "tooluse_1", "name": "weather", "input": {"city": "Oslo"}, "pieces": 3}]},
        {
            "tools": [
                {"id": "tooluse_2", "name": "weather", "input": {"city": "Rome"}, "pieces": 3},
                {"id": "tooluse_3", "name": "clock"},
            ],
            "interleave": True,
        },
        {"text": "Oslo is cold, Rome is warm."},
    )
    bound = model.bind_tools([weather, clock])
    messages = [HumanMessage("Compare.")]
    for _ in range(3):
        answer = bound.invoke(messages) if mode == "invoke" else gathered(bound.stream(messages))
        messages.append(answer)
        for call in answer.tool_calls:
            messages.append({"weather": weather, "clock": clock}[call["name"]].invoke(call))
    assert messages[-1].text == "Oslo is cold, Rome is warm."
    assert [call["args"] for message in messages if isinstance(message, AIMessage) for call in message.tool_calls] == [
        {"city": "Oslo"},
        {"city": "Rome"},
        {},
    ]
    assert [message.content for message in messages if isinstance(message, ToolMessage)] == ["cold", "warm", "noon"]
    current = house.requests()[2]["conversationState"]["currentMessage"]["userInputMessage"]
    assert [result["toolUseId"] for result in current["userInputMessageContext"]["toolResults"]] == [
        "tooluse_2",
        "tooluse_3",
    ]


@pytest.mark.parametrize("mode", ["invoke", "stream"])
def test_thinking_with_signature_comes_back(chat, mode):
    signature = "EqoBCkgIARAB" * 20
    call = {"tools": [{"id": "tooluse_1", "name": "clock"}]}
    house, model = chat(
        {
            "thinking": "I should look.",
            "signature": signature,
            "signature_pieces": 3,
            "pieces": 4,
            "text": "Looking.",
            **call,
        },
        {"redacted": "c2VjcmV0", "text": "Noon."},
        {"text": "You are welcome."},
        **THINKING,
    )
    bound = model.bind_tools([clock])
    ask = bound.invoke if mode == "invoke" else lambda messages: gathered(bound.stream(messages))
    messages = [HumanMessage("What time?")]
    messages.append(ask(messages))
    thought = messages[-1].content[0]
    assert (thought["type"], thought["thinking"], thought["signature"]) == ("thinking", "I should look.", signature)
    messages.append(clock.invoke(messages[-1].tool_calls[0]))
    messages.append(ask(messages))
    assert messages[-1].content[0]["data"] == "c2VjcmV0"
    messages.append(HumanMessage("Thanks."))
    ask(messages)
    history = house.requests()[2]["conversationState"]["history"]
    sent = [turn["assistantResponseMessage"].get("reasoningContent") for turn in history[1::2]]
    assert sent[1:] == [
        {"reasoningText": {"text": "I should look.", "signature": signature}},
        {"redactedContent": "c2VjcmV0"},
    ]


def test_image_and_pdf_arrive_in_langchains_own_form(chat):
    house, model = chat({"text": "A dot and a page."})
    message = HumanMessage(
        [
            {"type": "text", "text": "What are these?"},
            {"type": "image", "base64": PNG, "mime_type": "image/png"},
            {"type": "file", "base64": PDF, "mime_type": "application/pdf"},
        ]
    )
    assert model.invoke([message]).text == "A dot and a page."
    sent = house.requests()[0]["conversationState"]["currentMessage"]["userInputMessage"]
    assert sent["images"] == [{"format": "png", "source": {"bytes": PNG}}]
    assert [(document["format"], document["source"]["bytes"]) for document in sent["documents"]] == [("pdf", PDF)]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_is_parsed(chat, method):
    class Person(BaseModel):
        """A person."""

        name: str
        age: int

    ada = {"name": "Ada", "age": 36}
    answers = {
        "function_calling": {"tools": [{"name": "Person", "input": ada}]},
        "json_schema": {"text": '{"name":"Ada","age":36}', "pieces": 3},
    }
    house, model = chat(answers[method])
    assert model.with_structured_output(Person, method=method).invoke("Who?") == Person(**ada)
    if method == "function_calling":
        content = house.requests()[0]["conversationState"]["currentMessage"]["userInputMessage"]["content"]
        assert content.endswith('\n\nYou must call the tool "Person" in your next reply.')


@pytest.mark.parametrize("mode", ["invoke", "stream"])
def test_a_search_and_its_results_come_back_in_the_next_turn_a134_a139(chat, mode):
    query = {"tools": [{"id": "tooluse_S1", "name": "web_search", "input": {"query": "herons"}}]}
    house, model = chat(query, {"text": "They fish.", "pieces": 3}, {"text": "Frogs too."})
    searching = model.bind_tools([{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}])
    asked = [HumanMessage("What do herons eat?")]
    found = searching.invoke(asked) if mode == "invoke" else gathered(searching.stream(asked))
    kinds = [block["type"] for block in found.content]
    assert kinds == ["server_tool_use", "web_search_tool_result", "text"]
    assert [result["url"] for result in found.content[1]["content"]] == [f"https://site{n}.test/herons" for n in (1, 2, 3)]
    searching.invoke([*asked, found, HumanMessage("Nothing else?")])
    history = house.requests()[2]["conversationState"]["history"]
    (result,) = history[2]["userInputMessage"]["userInputMessageContext"]["toolResults"]
    assert "What a simulated page 1 says about herons." in result["content"][0]["text"]


def test_tokens_are_counted(chat):
    house, model = chat()
    counted = model.get_num_tokens_from_messages([SystemMessage("Count."), HumanMessage("How many?")], tools=[weather])
    assert counted > 10
    assert house.stats()["requests"] == {}


@pytest.mark.parametrize(
    ("accounts", "options", "wanted"),
    [
        (["sim-400"], {}, core.ModelInvalidRequestError),
        (["sim-prompt-too-long"], {}, core.ContextOverflowError),
        (["sim-ok"], {"api_key": "wrong"}, core.ModelAuthenticationError),
        (["sim-ok"], {"model": "gpt-4o"}, core.ModelNotFoundError),
        (["sim-429-retry-after-7"], {}, core.ModelRateLimitError),
        (["sim-500"], {}, core.ModelAPIError),
        (["sim-529"], {}, core.ModelAPIError),
        ([], {}, core.ModelAPIError),
    ],
)
def test_errors_are_langchains_own(chat, accounts, options, wanted):
    _, model = chat(accounts=accounts, **options)
    with pytest.raises(wanted):
        model.invoke("Hi")


@pytest.mark.parametrize("scenario", ["cut", "late-exception-InternalServerException"])
def test_a_failure_in_mid_stream_raises(chat, scenario):
    _, model = chat(scenario)
    text = ""
    with pytest.raises(Exception) as caught:
        for chunk in model.stream("Hi"):
            text += chunk.text
    assert text.startswith("This answer")
    assert caught.value.type == "api_error"
