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
def test_a_stop_sequence_ends_the_answer_m82(serve, mode):
    house = serve()
    house.script({"text": "alpha STOP beta", "pieces": 5})
    message = send(house, mode, ask("Say it.", stop_sequences=["STOP"]))
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == ("alpha ", "stop_sequence", "STOP")
