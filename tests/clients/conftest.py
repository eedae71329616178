import pytest

from kit import House


@pytest.fixture
def serve():
    """Starts servers that end with the test."""
    houses = []

    def start(accounts=("account-0",), **environment):
        houses.append(House(accounts, environment))
        return houses[-1]

    yield start
    for house in houses:
        house.close()


@pytest.fixture
def anyio_backend():
    return "asyncio"
