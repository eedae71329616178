"""What every Python suite here stands on, kit.mjs in Python: a kiro-server of its own behind each test, with a
simulated upstream whose answers the test sets and whose requests it can read."""

import base64
import json
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
import uuid

import anthropic

MODEL = "claude-haiku-4-5"
KEY = "clients-key-1"
LISTENING_SECONDS = 10
STOPPED_SECONDS = 5

# A PNG of one red pixel, whole and valid.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
# A PDF of one empty page.
PDF = base64.b64encode(
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
).decode()


def ask(content, **more):
    """Arguments for messages.create and its kind."""
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return {"model": MODEL, "max_tokens": 1024, "messages": messages, **more}


def tool(name, properties=None, required=()):
    """A declared tool."""
    schema = {"type": "object", "properties": properties or {}, "required": list(required)}
    return {"name": name, "description": f"What {name} does.", "input_schema": schema}


class Process:
    """One kiro-server, as a server or as the simulated upstream. It logs where it listens."""

    def __init__(self, arguments, environment):
        # Nothing of the caller's own set-up may reach the server.
        clean = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"(GO_)?KIRO_|REDIS_|.*_proxy$", name, re.IGNORECASE)
        }
        self.process = subprocess.Popen(
            [os.environ["CLIENTS_KIRO_SERVER"], *arguments],
            env={**clean, "KIRO_LOG_FORMAT": "json", **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        address = queue.Queue()
        self.reader = threading.Thread(target=self._listen, args=[address], daemon=True)
        self.reader.start()
        try:
            found = address.get(timeout=LISTENING_SECONDS)
        except queue.Empty:
            found = None
        if not found:
            self.process.kill()
            raise RuntimeError(f"kiro-server {arguments} does not listen:\n{''.join(self.said)}")
        self.url = f"http://{found}"

    def _listen(self, address):
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r'"address":"([^"]+)"', line):
                address.put(found[1])
        address.put(None)

    def stop(self):
        self.process.terminate()
        try:
            code = self.process.wait(STOPPED_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reader.join()
        self.process.stderr.close()
        return code


class House:
    """A server and its upstream. `accounts` are access tokens: one that begins with `sim-` chooses what the simulator
    answers to every request of that account; one that doesn't takes the answers that `script` queues. `environment`
    are settings of docs/configuration.md."""

    def __init__(self, accounts=("account-0",), environment=None):
        self.accounts = list(accounts)
        self.home = tempfile.mkdtemp(prefix="kiro-clients-")
        store = os.path.join(self.home, "accounts.json")
        with open(store, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(self._records(), file)
        self.upstream = Process(["simulate", "--listen", "127.0.0.1:0"], {})
        settings = {
            "KIRO_PORT": "0",
            "KIRO_API_KEY": KEY,
            "KIRO_STORE": f"file:{store}",
            "KIRO_STORE_WAIT": "5s",
            "KIRO_UPSTREAM_URL": f"{self.upstream.url}/generateAssistantResponse",
            "KIRO_SOCIAL_REFRESH_URL": f"{self.upstream.url}/refreshToken",
            "KIRO_GRACEFUL_TIMEOUT": "1s",
            **(environment or {}),
        }
        try:
            self.server = Process([], settings)
        except RuntimeError:
            self.upstream.stop()
            raise
        self.url = self.server.url

    def _records(self):
        accounts, tokens = {}, {}
        for n, token in enumerate(self.accounts):
            # In the order of the tokens: accounts are asked in the order of their ids (R36).
            name = f"{n:02x}{str(uuid.uuid4())[2:]}"
            accounts[name] = {"uuid": name, "isHealthy": True}
            tokens[name] = {
                "accessToken": token,
                "refreshToken": f"refresh-{token}",
                "expiresAt": "2099-01-01T00:00:00.000Z",
                "authMethod": "social",
                "profileArn": "arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED",
            }
        return {"accounts": accounts, "tokens": tokens}

    def close(self):
        try:
            refused = self._refused_by_upstream()
        except OSError as error:
            refused = error
        ends = [self.server.stop(), self.upstream.stop()]
        shutil.rmtree(self.home)
        said = "".join(self.server.said + self.upstream.said)
        assert ends == [0, 0], f"the server or the simulated upstream ended badly:\n{said}"
        assert refused == [], "Kiro would refuse what was sent"

    def _refused_by_upstream(self):
        """Queued answers are given to any request: sends each again to a place that checks it."""
        refused = []
        for body in self.requests():
            request = urllib.request.Request(
                f"{self.upstream.url}/generateAssistantResponse",
                data=json.dumps(body).encode(),
                headers={"authorization": "Bearer sim-any-client", "content-type": "application/json"},
            )
            try:
                urllib.request.urlopen(request).close()
            except urllib.error.HTTPError as error:
                refused.append(error.read().decode())
        return refused

    def client(self, **options):
        """The Python SDK, without retries unless `options` says otherwise."""
        return anthropic.Anthropic(**{"base_url": self.url, "api_key": KEY, "max_retries": 0, **options})

    def async_client(self, **options):
        return anthropic.AsyncAnthropic(**{"base_url": self.url, "api_key": KEY, "max_retries": 0, **options})

    def script(self, *scenarios, token=None):
        """Queues answers for the next requests with an account, in order."""
        self._control({"token": token or self.accounts[0], "scenarios": list(scenarios)})

    def script_refresh(self, token, answer):
        """What the next refresh of an account gives, whose access token is `token` now."""
        self._control({"refresh_token": f"refresh-{token}", "answers": [answer]})

    def _control(self, script):
        request = urllib.request.Request(f"{self.upstream.url}/_sim/script", data=json.dumps(script).encode())
        urllib.request.urlopen(request).close()

    def stats(self):
        with urllib.request.urlopen(f"{self.upstream.url}/_sim/stats?bodies=1") as answer:
            return json.load(answer)

    def calls(self):
        """How many chat requests upstream got."""
        return self.stats()["requests"].get("POST /generateAssistantResponse", 0)

    def requests(self):
        """The chat requests that upstream got, parsed, oldest first."""
        return [
            json.loads(request["body"])
            for request in self.stats()["last"]
            if request["target"] == "/generateAssistantResponse"
        ]

    def closes(self, count, within):
        """Waits until upstream has seen `count` streams closed by us."""
        deadline = time.monotonic() + within
        while len(self.stats()["closed_by_client"]) < count:
            assert time.monotonic() < deadline, f"fewer than {count} upstream streams closed within {within} s"
            time.sleep(0.005)
