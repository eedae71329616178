"""TS42, D24-D27 for the tool runner of the Python SDK: no half tool is run, whatever upstream ends in."""

import json

import pytest
from anthropic import beta_tool
from kit import ask

WHOLE = '{"path":"/x","mode":"all"}'


def half(text, number=1):
    return {"id": f"tooluse_{number}", "name": "remove", "input": text, "stop": "never"}


def done(number=1):
    return {"id": f"tooluse_{number}", "name": "remove", "input": WHOLE, "pieces": 3}


# What upstream sends, and how many calls are whole at a clean end and at a fault.
CUTS = {
    "D24 before the first piece": ([half("")], 0, 0),
    "D25 inside of it": ([half('{"path":"/x"')], 0, 0),
    "D25 where half of it reads like all of it": ([half('{"path":"/x","mode":"a')], 0, 0),
    "D26 inside of the second": ([done(), half('{"path":"/', 2)], 1, 1),
    "D26 before the second": ([done(), half("", 2)], 1, 1),
    "D27 after the last byte": ([half(WHOLE)], 1, 0),
    "TS42 inside of the first, a second behind it": ([half('{"path":"/x"'), done(2)], 0, 0),
}


@pytest.mark.parametrize("end", ["cut", "clean"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("settings", [{"stream": True}, {"stream": True, "run_tools_eagerly": True}, {"stream": False}])
def test_no_half_tool_is_run_ts42(serve, settings, cut, end):
    tools, whole, at_fault = CUTS[cut]
    house = serve()
    house.script(
        {"steps": [{"text": "I do it."}, *({"tool": tool} for tool in tools)], "end": end},
        *[{"text": "Done."}] * 6,
    )
    ran = []

    @beta_tool
    def remove(path: str = "", mode: str = "") -> str:
        """Removes."""
        ran.append({"path": path, "mode": mode})
        return "removed"

    try:
        house.client().beta.messages.tool_runner(**ask("Remove it.", tools=[remove], **settings)).until_done()
    except Exception as error:  # whatever it makes of a failure, it must not have run anything
        assert end == "cut", error
    assert all(call == json.loads(WHOLE) for call in ran), ran
    assert len(ran) <= (whole if end == "clean" else at_fault)
