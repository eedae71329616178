"""anthropic, the official Python SDK: searches, tools of Anthropic's that the client runs, structured output, context
editing, with the SDK's own helpers for each."""

import anthropic
import pytest
from anthropic import beta_tool
from anthropic.lib.tools._beta_builtin_memory_tool import BetaLocalFilesystemMemoryTool
from pydantic import BaseModel

from kit import ask, tool

SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
MODES = ["stream", "whole"]


def search(n, query):
    return {"id": f"tooluse_S{n}", "name": "web_search", "input": {"query": query}}


def send(house, mode, body):
    if mode == "whole":
        return house.client().messages.create(**body)
    with house.client().messages.stream(**body) as stream:
        return stream.get_final_message()


def current(body):
    return body["conversationState"]["currentMessage"]["userInputMessage"]


@beta_tool
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


@pytest.mark.parametrize("mode", MODES)
def test_a_search_within_one_message_and_its_results_in_the_next_turn_a134_a139(serve, mode):
    house = serve()
    house.script(
        {"text": "I look.", "tools": [search(1, "grey herons")]},
        {"text": "They fish.", "pieces": 3},
        {"text": "Frogs too."},
    )
    body = ask("What do grey herons eat?", tools=[SEARCH])
    message = send(house, mode, body)
    before, use, found, after = message.content
    assert (before.text, after.text, message.stop_reason) == ("I look.", "They fish.", "end_turn")
    assert (use.type, use.name, use.input) == ("server_tool_use", "web_search", {"query": "grey herons"})
    assert found.tool_use_id == use.id
    assert [(result.title, result.url, result.page_age) for result in found.content] == [
        (f"grey herons ({n})", f"https://site{n}.test/greyherons", f"October {6 - n}, 2026") for n in (1, 2, 3)
    ]
    assert message.usage.server_tool_use.web_search_requests == 1
    turns = [*body["messages"], {"role": "assistant", "content": message.content}]
    send(house, mode, {**body, "messages": [*turns, {"role": "user", "content": "Nothing else?"}]})
    _, second, third = house.requests()
    (result,) = current(second)["userInputMessageContext"]["toolResults"]
    assert "What a simulated page 1 says about grey herons." in result["content"][0]["text"]
    replayed = [
        result
        for turn in third["conversationState"]["history"]
        for result in turn.get("userInputMessage", {}).get("userInputMessageContext", {}).get("toolResults", [])
    ]
    assert replayed == [result], "the next turn says it in the same words"


@pytest.mark.parametrize("stream", [True, False])
def test_a_search_beside_a_tool_that_the_runner_runs_a138(serve, stream):
    house = serve()
    house.script(
        {"tools": [search(1, "herons"), {"id": "tooluse_1", "name": "add", "input": {"a": 1, "b": 2}}]},
        {"text": "Three herons."},
    )
    runner = house.client().beta.messages.tool_runner(**ask("How many?", tools=[SEARCH, add], stream=stream))
    assert runner.until_done().content[0].text == "Three herons."
    results = current(house.requests()[1])["userInputMessageContext"]["toolResults"]
    assert [result["toolUseId"] for result in results] == ["tooluse_S1", "tooluse_1"]
    assert "What a simulated page 1 says" in results[0]["content"][0]["text"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_search_that_pauses_is_taken_up_again_by_the_runner_a144(serve, stream):
    house = serve(KIRO_WEB_SEARCH_MAX_ROUNDS="2")
    house.script({"tools": [search(1, "herons")]}, {"tools": [search(2, "storks")]}, {"text": "Both are birds."})
    reasons = []
    for step in house.client().beta.messages.tool_runner(**ask("What are they?", tools=[SEARCH, add], stream=stream)):
        message = step.get_final_message() if stream else step
        reasons.append(message.stop_reason)
    assert reasons == ["pause_turn", "end_turn"]
    assert message.content[0].text == "Both are birds."


@pytest.mark.parametrize("mode", MODES)
def test_structured_output_is_the_json_alone_whatever_stands_around_it_a177_a178_a179(serve, mode):
    class Person(BaseModel):
        name: str
        age: int

    house = serve()
    ada = '{"name":"Ada","age":36}'

    def parsed(question):
        body = ask(question, output_format=Person)
        if mode == "whole":
            return house.client().messages.parse(**body).parsed_output
        with house.client().messages.stream(**body) as stream:
            return stream.get_final_message().parsed_output

    house.script({"text": f"Here it is:\n```json\n{ada}\n```", "pieces": 6})
    assert parsed("Who?") == Person(name="Ada", age=36)
    house.script({"text": "It was Ada."}, {"text": ada})
    assert parsed("Who was it?") == Person(name="Ada", age=36)
    house.script({"text": "It was Ada."}, {"text": '{"name":"Ada"}'})
    # A stream has begun by then, and has no status any more.
    expected = anthropic.InternalServerError if mode == "whole" else anthropic.APIStatusError
    with pytest.raises(expected) as failed:
        parsed("Who, then?")
    assert failed.value.body["error"]["type"] == "api_error"
    assert house.calls() == 5


@pytest.mark.parametrize("stream", [True, False])
def test_memory_is_kept_by_the_runner_in_a_folder_a161(serve, stream, tmp_path):
    house = serve()
    note = {"command": "create", "path": "/memories/bird.txt", "file_text": "heron"}
    house.script(
        {"tools": [{"id": "tooluse_1", "name": "memory", "input": note, "pieces": 3}]},
        {"tools": [{"id": "tooluse_2", "name": "memory", "input": {"command": "view", "path": "/memories/bird.txt"}}]},
        {"text": "Kept."},
    )
    memory = BetaLocalFilesystemMemoryTool(base_path=str(tmp_path))
    runner = house.client().beta.messages.tool_runner(**ask("Keep heron.", tools=[memory], stream=stream))
    assert runner.until_done().content[0].text == "Kept."
    assert [file.read_text() for file in tmp_path.rglob("bird.txt")] == ["heron"]
    (viewed,) = current(house.requests()[2])["userInputMessageContext"]["toolResults"]
    assert "heron" in viewed["content"][0]["text"]


@pytest.mark.parametrize("mode", MODES)
def test_context_editing_clears_old_results_and_says_so_a171_a176(serve, mode):
    house = serve()
    house.script({"text": "Done."})
    turns = [{"role": "user", "content": "Begin."}]
    for n in range(1, 6):
        use = {"type": "tool_use", "id": f"toolu_{n}", "name": "f", "input": {"n": n}}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{n}", "content": f"result {n} " * 40}
        turns += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    edit = {
        "type": "clear_tool_uses_20250919",
        "trigger": {"type": "tool_uses", "value": 4},
        "keep": {"type": "tool_uses", "value": 2},
    }
    body = ask(turns, tools=[tool("f")], context_management={"edits": [edit]}, betas=["context-management-2025-06-27"])
    messages = house.client().beta.messages
    if mode == "whole":
        message = messages.create(**body)
    else:
        with messages.stream(**body) as stream:
            message = stream.get_final_message()
    (applied,) = message.context_management.applied_edits
    assert (applied.type, applied.cleared_tool_uses) == ("clear_tool_uses_20250919", 3)
    del body["max_tokens"]
    counts = messages.count_tokens(**body)
    assert counts.context_management.original_input_tokens > counts.input_tokens


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_sequence_ends_the_answer_m82(serve, mode):
    house = serve()
    house.script({"text": "alpha STOP beta", "pieces": 5})
    message = send(house, mode, ask("Say it.", stop_sequences=["STOP"]))
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == ("alpha ", "stop_sequence", "STOP")
