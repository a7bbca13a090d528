"""A server that speaks as vLLM 0.32 does, as far as srlm asks; what the real one said is in `vllm-0.32.0.json`.

It samples from a tiny model in this process, slowly and by definition: the whole text anew for every token.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

LOCK = threading.Lock()  # one request at a time is computed: draws come from one stream


def served_model() -> LlamaForCausalLM:
    """Tiny, with heads that vLLM takes: the model of the recording."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


class FakeVllm:
    """dev, lora: are those endpoints there? deaf: takes weights and goes on with the old ones. mode: of log-probs."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        name: str = "served",
        dev: bool = True,
        lora: bool = True,
        deaf: bool = False,
        key: str | None = None,
        mode: str = "raw_logprobs",
        device: str = "cpu",
        most: int = 256,
    ) -> None:
        self.folder, self.name, self.dev, self.lora, self.deaf, self.key = folder, name, dev, lora, deaf, key
        self.mode, self.device, self.most = mode, device, most
        self.base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.adapters: dict[str, Any] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.started = time.time()
        self.asked: list[tuple[str, Any, str | None]] = []  # path, body, Authorization
        self.dies_after: int | None = None  # completions; then it answers nothing more
        self.dead = False
        self.mangle: Any = lambda answer: answer
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeVllm:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.dead = True
        self._server.shutdown()
        self._server.server_close()

    def completions(self) -> list[dict[str, Any]]:
        return [body for path, body, _ in self.asked if path == "/v1/completions"]

    # What it answers: status, JSON or text

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        bare = path.partition("?")[0]
        routes = {
            ("GET", "/version"): lambda: (200, {"version": "0.32.0"}),
            ("GET", "/v1/models"): lambda: (200, self._models()),
            ("GET", "/metrics"): lambda: (200, f"# HELP\nprocess_start_time_seconds {self.started}\n"),
            ("POST", "/v1/completions"): lambda: self._completions(body),
        }
        if self.dev:
            info = {"model_config": {"logprobs_mode": self.mode}, "device_config": {"device": self.device}}
            routes[("GET", "/server_info")] = lambda: (200, {"vllm_config": info})
            routes[("POST", "/collective_rpc")] = lambda: self._rpc(body)
        if self.lora:
            routes[("POST", "/v1/load_lora_adapter")] = lambda: self._load(body)
            routes[("POST", "/v1/unload_lora_adapter")] = lambda: self._unload(body)
        if (method, bare) not in routes:
            return 404, {"detail": "Not Found"}
        return routes[method, bare]()

    def _models(self) -> Any:
        own = {"id": self.name, "object": "model", "root": self.name, "parent": None, "max_model_len": self.most}
        more = [{"id": name, "object": "model", "root": "", "parent": self.name} for name in self.adapters]
        return {"object": "list", "data": [own, *more]}

    def _rpc(self, body: Any) -> tuple[int, Any]:
        if "method" not in body:
            return error(400, "Missing 'method' in request body")
        assert body["method"] == "reload_weights"
        file = Path(body["kwargs"]["weights_path"]) / "model.safetensors"
        if not file.is_file():
            return error(500, "Call to collective_rpc method failed: Worker failed with error")
        if not self.deaf:
            self.base.load_state_dict(safetensors.torch.load_file(file), strict=False)
        return 200, {"results": [None]}

    def _load(self, body: Any) -> tuple[int, Any]:
        if "lora_name" not in body:
            return error(400, "2 validation errors:\n  {'type': 'missing', 'loc': 'body.lora_name'}")
        name, folder = body["lora_name"], Path(body["lora_path"])
        if not (folder / "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        if json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]:
            return error(400, "vLLM only supports modules_to_save being None.")
        model = copy.deepcopy(self.base)
        try:
            self.adapters[name] = model if self.deaf else PeftModel.from_pretrained(model, folder).merge_and_unload()
        except RuntimeError as misfit:
            return error(400, str(misfit))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: Any) -> tuple[int, Any]:
        name = body["lora_name"]
        if name not in self.adapters:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _completions(self, body: Any) -> tuple[int, Any]:
        name, prompt, number, most = body["model"], body["prompt"], body["n"], body["max_tokens"]
        if name != self.name and name not in self.adapters:
            return error(404, f"The model `{name}` does not exist. Valid aliases: {self.name}.")
        if not prompt:
            return error(400, "You must pass at least one prompt")
        if len(body["stop"]) > 4:
            return error(400, "2 validation errors:\n  {'type': 'string_type', 'loc': 'body.stop'}")
        if most > self.most:
            return error(400, f"max_tokens={most} cannot be greater than max_model_len={self.most}.")
        if wrong := [i for i in prompt if i >= self.base.config.vocab_size]:
            return error(400, f"Token id {wrong[0]} is out of vocabulary")
        if not body["temperature"] and number > 1:
            return error(400, f"n must be 1 when using greedy sampling, got {number}.")
        assert "seed" not in body or self.device == "cuda"  # there the engine would die
        with LOCK:
            choices = [self._choice(k, body) for k in range(number)]
        return 200, self.mangle({"id": "cmpl-1", "object": "text_completion", "model": name, "choices": choices})

    @torch.no_grad()
    def _choice(self, index: int, body: Any) -> dict[str, Any]:
        model = self.adapters.get(body["model"], self.base)
        ids, said, log_probs = list(body["prompt"]), [], []
        reason, why = "length", None
        for _ in range(body["max_tokens"]):
            logits = model(torch.tensor([ids])).logits[0, -1].float()
            word, log_prob = self._word(logits, body)
            ids.append(word)
            said.append(word)
            log_probs.append(log_prob)
            if word in body["stop_token_ids"]:
                reason, why = "stop", word
                break
            text = self.tokenizer.decode(said, skip_special_tokens=body["skip_special_tokens"])
            if found := [stop for stop in body["stop"] if stop in text]:
                reason, why = "stop", found[0]
                break
        names = [f"token_id:{i}" for i in said]
        return {
            "index": index,
            "text": self.tokenizer.decode(said),
            "logprobs": {"token_logprobs": log_probs, "tokens": names},
            "finish_reason": reason,
            "stop_reason": why,
            "token_ids": said,
            "prompt_token_ids": body["prompt"],
        }

    def _word(self, logits: torch.Tensor, body: Any) -> tuple[int, float]:
        raw = torch.log_softmax(logits, -1)
        if not body["temperature"]:
            word = int(raw.argmax())
            return word, float(raw[word])
        processed = torch.log_softmax(logits / body["temperature"], -1)
        ordered, words = processed.sort(descending=True)
        if body.get("top_k"):
            ordered = torch.log_softmax(ordered[: body["top_k"]], -1)
        outside = ordered.exp().cumsum(-1) - ordered.exp() >= body["top_p"]
        outside = torch.cat([outside, torch.ones(len(words) - len(outside), dtype=torch.bool)])
        processed = torch.log_softmax(processed.index_fill(0, words[outside], -torch.inf), -1)
        word = int(torch.multinomial(processed.exp(), 1, generator=self.generator))
        return word, float((raw if self.mode == "raw_logprobs" else processed)[word])


def error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "Error", "param": None, "code": status}}


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self._respond(None)

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._respond(json.loads(text) if text else None)

        def _respond(self, body: Any) -> None:
            if self.path == "/v1/completions" and fake.dies_after is not None:
                fake.dies_after -= 1
                fake.dead |= fake.dies_after < 0
            if fake.dead:
                self.connection.close()
                return
            fake.asked.append((self.path, body, self.headers.get("Authorization")))
            if fake.key is not None and self.headers.get("Authorization") != f"Bearer {fake.key}":
                status, answer = 401, {"error": "Unauthorized"}
            else:
                status, answer = fake.answer(self.command, self.path, body)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass

    return Handler
