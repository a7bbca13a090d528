"""One vLLM server: what is asked of it over HTTP, and what it answers."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from srlm.errors import UserError

KEY = "SRLM_ENGINE_KEY"
MOST_STOPS = 4  # stop strings that a request may have; responses are cut at any others afterwards
SECONDS = 3600.0  # until a server that says nothing at all is given up
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds of silence, between tries, tries
LOAD_SECONDS = 600.0
ASK_SECONDS = 20.0
INFO_SECONDS = 120.0  # a server that is asked about itself for the first time looks through its whole machine


@dataclass(frozen=True)
class Asked:
    """Responses to one prompt, as token ids; sampled from softmax(logits / temperature) cut to top k (all for 0) and
    nucleus. They end with one of `eos`, with a stop string, or with their token number `most`."""

    prompt: Sequence[int]
    number: int
    most: int
    temperature: float
    top_p: float
    eos: frozenset[int]
    stop: tuple[str, ...]
    seed: int | None
    top_k: int = 0


@dataclass(frozen=True)
class Said:
    """A response: token ids, the one that ended it included, and the log-prob that the engine gave each."""

    tokens: list[int]
    log_prob: list[float]


class Gone(Exception):
    """The server does not answer, or not any more."""


class Failed(Gone):
    """It answers that it failed."""


class Server:
    """url: http(s)://host[:port][/path]. The token in the environment variable SRLM_ENGINE_KEY goes along.

    start: when it began to serve, by its own clock; a server that was started anew has lost its weights.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self._secure, self._host, self._path = parts.scheme == "https", parts.netloc, parts.path
        self._token = _token()
        self.model = ""  # what it serves
        self.name = ""  # what responses are asked of: the model, or an adapter on it
        self.context = math.inf  # most tokens of a prompt and its response
        self.log_probs = ""  # raw_logprobs, processed_logprobs; not every server says
        self.seeds = False  # may a request bring its own? On CPUs that ends vLLM's engine
        self.start: float | None = None
        self.lock = threading.Lock()
        self.doubts: list[None] = []  # one of each hand that got no answer and has not found out why

    # What it is

    def meet(self) -> None:
        """
        Raises:
            UserError: it is not there, is not vLLM, or refuses us.
        """
        try:
            version = self._ask("GET", "/version")
            models = self._ask("GET", "/v1/models")["data"]
            if not isinstance(version["version"], str):
                raise TypeError
            own = [model for model in models if not model.get("parent")]
            self.model = self.name = own[0]["id"]
            self.context = float(own[0].get("max_model_len") or math.inf)
            self._look_closer()
            self.start = self.started()
        except Gone as gone:
            raise self.absent(gone) from gone
        except (Refused, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError) and not isinstance(error, Refused):
                raise
            raise UserError(
                f"--engine names {self.url}, which answers but not as vLLM does: give the address of `vllm serve`"
            ) from error

    def _look_closer(self) -> None:
        """As far as it tells (VLLM_SERVER_DEV_MODE=1)."""
        try:
            info = self._ask("GET", "/server_info?config_format=json", seconds=INFO_SECONDS)
            config = info["vllm_config"]
            self.log_probs = str(config["model_config"]["logprobs_mode"])
            self.seeds = config["device_config"]["device"] == "cuda"
        except (Refused, KeyError, TypeError, ValueError):
            self.log_probs, self.seeds = "", False

    def started(self) -> float | None:
        """By its own clock, in seconds; None where it does not say."""
        try:
            text = self._ask("GET", "/metrics", parse=False)
        except Refused:
            return None
        found = re.search(r"^process_start_time_seconds ([\d.e+]+)\s*$", text, re.MULTILINE)
        return None if found is None else float(found[1])

    def absent(self, gone: Gone) -> UserError:
        return UserError(
            f"--engine names {self.url}, which does not answer ({gone}): start the server, or correct the address"
        )

    # Weights

    def offers(self, path: str) -> bool:
        """Is there such an endpoint? Asked in vain, so that nothing happens."""
        try:
            self._ask("POST", path, {}, seconds=ASK_SECONDS)
        except Refused as error:
            return error.status not in (404, 405)
        except Gone as gone:
            raise self.absent(gone) from gone
        return True

    def reload(self, folder: str) -> None:
        """Serve the weights in `folder`, which the server reads itself."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self._ask("POST", "/collective_rpc", body, seconds=LOAD_SECONDS)
        self.name = self.model

    def load_adapter(self, name: str, folder: str) -> None:
        """Serve a LoRA adapter in `folder` under a name of its own, in place of the last one."""
        if self.name != self.model:
            with suppress(Refused):  # a server that was started anew has none
                self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": self.name}, parse=False)
            self.name = self.model
        body = {"lora_name": name, "lora_path": folder}
        self._ask("POST", "/v1/load_lora_adapter", body, parse=False, seconds=LOAD_SECONDS)
        self.name = name

    # Responses

    def complete(self, asked: Asked, salt: str) -> list[Said]:
        """salt: what is cached under one is not used under another.

        Raises:
            UserError: it answers something else than was asked.
            Gone: it does not answer.
        """
        body = request(asked, self.name, salt, seeds=self.seeds)
        text = self._ask("POST", "/v1/completions", body, parse=False, seconds=SECONDS)
        try:
            answer = json.loads(text)
        except ValueError:  # by something between that speaks for it
            answer = None
        return read(answer, asked, self.url)

    def _ask(
        self, method: str, path: str, body: Any = None, *, parse: bool = True, seconds: float = ASK_SECONDS
    ) -> Any:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = None
        try:
            connection = kind(self._host, timeout=seconds)
            connection.connect()
            _keep_alive(connection.sock)
            connection.request(method, self._path + path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Gone(" ".join(str(error).split()) or type(error).__name__) from error
        finally:
            if connection is not None:
                connection.close()
        if answer.status in (401, 403):
            raise UserError(
                f"the engine at {self.url} refuses our token ({answer.status}): set {KEY} to what it was started with "
                "(--api-key)"
            )
        if answer.status >= 500:
            raise Failed(f"{answer.status}: {_message(text)}")
        if answer.status >= 400:
            raise Refused(self.url, path, answer.status, _message(text))
        return json.loads(text) if parse and text else text


def _keep_alive(connection: socket.socket) -> None:
    """While a server computes it says nothing; its machine still answers this, and what lies between does not take the
    connection for idle. One that is lost is noticed in a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _token() -> str:
    """
    Raises:
        UserError: no header can hold it; http.client would say so with the token in its words.
    """
    token = os.environ.get(KEY, "").strip()  # one that was read from a file brings the end of its line along
    if not token.isprintable() or not all(character <= "\xff" for character in token):
        raise UserError(
            f"{KEY} holds a control character, or one beyond Latin-1, expected a token that an HTTP header can hold: "
            "set it to what the engine was started with (--api-key)"
        )
    return token


class Refused(UserError):
    """The server answers, and says no."""

    def __init__(self, url: str, path: str, status: int, message: str) -> None:
        super().__init__(
            f"the engine at {url} refuses {path} ({status}: {message}): start it with what docs/engines.md says"
        )
        self.status = status


def request(asked: Asked, model: str, salt: str, *, seeds: bool) -> dict[str, Any]:
    """The body of a request to /v1/completions. Everything is said, since a server's defaults come from the model's
    generation_config."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(map(int, asked.prompt)),
        "n": asked.number,
        "max_tokens": asked.most,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # ours are in stop_token_ids, all of them and no other
        "stop_token_ids": sorted(asked.eos),
        "stop": list(asked.stop[:MOST_STOPS]),
        "skip_special_tokens": False,  # a stop string may be one
        "spaces_between_special_tokens": False,
        "logprobs": 0,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        "add_special_tokens": False,
        "cache_salt": salt,
    }
    if seeds and asked.seed is not None:
        body["seed"] = asked.seed
    return body


def read(answer: Any, asked: Asked, url: str) -> list[Said]:
    """
    Raises:
        UserError: that is no answer to it.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if any(list(choice["prompt_token_ids"]) != list(asked.prompt) for choice in choices[:1]):
            raise UserError(
                f"the engine at {url} read other token ids than it was sent: it must take ids as they are; use vLLM "
                "0.32 or later, and nothing between that rewrites prompts"
            )
        said = [Said(list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"])) for choice in choices]
        if [choice["index"] for choice in choices] != list(range(asked.number)):
            raise ValueError
        if any(not 0 < len(one.tokens) == len(one.log_prob) or len(one.tokens) > asked.most for one in said):
            raise ValueError
        if any(type(token) is not int or token < 0 for one in said for token in one.tokens):
            raise ValueError
        if not all(math.isfinite(value) for one in said for value in one.log_prob):
            raise ValueError
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the engine at {url} answers without {asked.number} responses as token ids with their log-probs: use "
            "vLLM 0.32 or later, with log-probs allowed"
        ) from error
    return said


def _message(text: str) -> str:
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found.get("detail", found)) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300].rstrip(".") or "no reason given"
