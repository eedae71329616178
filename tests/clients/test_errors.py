"""Failures as the Python SDK shows them. The table in errors.json is also read by errors.test.mjs."""

import json
import pathlib
import re

import anthropic
import pytest

from kit import KEY, ask, tool

CASES = json.loads(pathlib.Path(__file__).with_name("errors.json").read_text())
CLASSES = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    404: anthropic.NotFoundError,
    413: anthropic.ContentTooLargeError,
    429: anthropic.RateLimitError,
    500: anthropic.InternalServerError,
    503: anthropic.ServiceUnavailableError,
    504: anthropic.GatewayTimeoutError,
    529: anthropic.OverloadedError,
}
# Those that a retry can't help (contract/messages.md).
FINAL = (400, 401, 404, 413)


def request_of(case):
    request = {**ask("Hi"), **case.get("request", {})}
    if "system" in request:
        request["system"] = "x" * int(request["system"].rstrip("+"))
    return request


def check(error, case):
    assert type(error) is CLASSES[case["status"]]
    assert error.status_code == case["status"]
    assert error.type == case["type"]
    assert re.fullmatch("req_[0-9A-Za-z]{24}", error.request_id)
    assert error.body["request_id"] == error.request_id
    assert re.search(case.get("message", r"\w.*\w"), error.api_message)
    assert not re.search(case.get("not_message", r"arn:aws|sim-|127\.0\.0\.1"), error.api_message)
    headers = error.response.headers
    assert headers.get("x-should-retry") == ("false" if case["status"] in FINAL or case.get("lasting") else None)
    if "retry_after" in case:
        assert re.search(case["retry_after"], headers["retry-after"])


@pytest.mark.parametrize("mode", ["create", "stream"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['status']} {case['name']}")
def test_each_error_is_typed(serve, case, mode):
    house = serve(case.get("accounts", ["account-0"]), **case.get("env", {}))
    if "refresh" in case:
        house.script_refresh(case["accounts"][0], case["refresh"])
    client = house.client(api_key=case.get("key", KEY))
    with pytest.raises(anthropic.APIStatusError) as caught:
        if mode == "create":
            client.messages.create(**request_of(case))
        else:
            with client.messages.stream(**request_of(case)) as stream:
                stream.until_done()
    check(caught.value, case)
    assert house.calls() == case["calls"]


@pytest.mark.anyio
@pytest.mark.parametrize("status", sorted(CLASSES))
async def test_each_error_is_typed_async(serve, status):
    case = next(case for case in CASES if case["status"] == status)
    house = serve(case.get("accounts", ["account-0"]), **case.get("env", {}))
    async with house.async_client(api_key=case.get("key", KEY)) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**request_of(case))
    check(caught.value, case)


@pytest.mark.parametrize(
    ("scenario", "type", "status"),
    [
        ("cut", "api_error", 500),
        ("reset", "api_error", 500),
        ("corrupt-late", "api_error", 500),
        ("leftover", "api_error", 500),
        ("late-exception-InternalServerException", "api_error", 500),
        ("late-exception-ThrottlingException", "rate_limit_error", 429),
    ],
)
def test_a_failure_in_mid_text_raises(serve, scenario, type, status):
    house = serve(["a", "b"])
    client = house.client()
    for token in house.accounts:
        house.script(scenario, scenario, token=token)
    text = ""
    with pytest.raises(anthropic.APIStatusError) as caught:
        with client.messages.stream(**ask("Hi")) as stream:
            for piece in stream.text_stream:
                text += piece
    assert text.startswith("This answer")
    # C12: an error event has the status of the stream.
    assert (caught.value.status_code, caught.value.type) == (200, type)
    with pytest.raises(CLASSES[status]) as caught:
        client.messages.create(**ask("Hi"))
    assert caught.value.type == type
    assert house.calls() == 2, "no second account after content (M9)"


def test_a_failure_in_mid_tool_gives_no_torso(serve):
    house = serve()
    cut = {"tools": [{"name": "write", "input": '{"path":"a","te', "stop": "never"}], "end": "cut"}
    house.script(cut, cut)
    request = ask("Write.", tools=[tool("write")])
    with pytest.raises(anthropic.APIStatusError) as caught:
        with house.client().messages.stream(**request) as stream:
            stream.get_final_message()
    assert caught.value.type == "api_error"
    with pytest.raises(anthropic.InternalServerError):
        house.client().messages.create(**request)


def test_a_failover_is_not_seen(serve):
    house = serve(["sim-500", "sim-ok"])
    # Two conversations: an equal request would stay with the account that served it (TR46).
    for turn in ("First", "Second"):
        message = house.client().messages.create(**ask(f'{turn} [[sim {{"text":"Fine."}}]]'))
        assert message.content[0].text == "Fine."
    assert set(house.stats()["calls_by_token"]) == {"sim-500", "sim-ok"}


def test_pings_and_early_headers_disturb_nobody(serve):
    house = serve(KIRO_PING_INTERVAL="100ms", KIRO_EARLY_HEADERS="100ms")
    waits = {"steps": [{"text": "Wait"}, {"wait_ms": 370}, {"text": " for it."}, {"usage": True}]}
    house.script(
        waits, {"first_ms": 350, "text": "At last."}, {"first_ms": 350, "exception": "InternalServerException"}
    )
    for wanted in ("Wait for it.", "At last."):
        with house.client().messages.stream(**ask("Hi")) as stream:
            assert stream.get_final_text() == wanted
    with pytest.raises(anthropic.APIStatusError) as caught:
        with house.client().messages.stream(**ask("Hi")) as stream:
            stream.until_done()
    assert (caught.value.status_code, caught.value.type) == (200, "api_error")


def test_the_sdks_own_retries_get_the_answer(serve):
    house = serve()
    client = house.client(max_retries=2)
    house.script("529", "capacity", {"text": "Third time."}, "400")
    assert client.messages.create(**ask("Hi")).content[0].text == "Third time."
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**ask("Hi"))
    assert house.calls() == 4
