"""vLLM servers: prompts go to whoever is free; one that dies costs what it had not finished."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from srlm.errors import UserError
from srlm.policies.transformer.engines.vllm import Carrier, Report
from srlm.policies.transformer.engines.wire import Asked, Failed, Gone, Refused, Said, Server

AT_ONCE = 32  # requests that a server has at a time: enough for it to choose from
TRIES = 3  # of a server that does not answer, before the others do its work
PAUSE = 1.0  # seconds before the first try after a failure; twice as long before each further one
MOST = 5  # times that a request may be lost with a server before the request is taken for the cause


class Servers:
    """carrier: folder, adapter, or auto, which takes what all servers can: whole models, if they have the endpoint."""

    def __init__(self, urls: Sequence[str], carrier: str, say: Report) -> None:
        self.servers = [Server(url) for url in urls]
        for server in self.servers:
            server.meet()
            if server.start is None:
                say(
                    f"the engine at {server.url} does not say when it was started (/metrics): it is given the weights "
                    "anew before every stage, since it may have lost them"
                )
        self.carrier = self._agreed(carrier)
        self.name = ", ".join(urls)
        self._say = say
        self._put: Callable[[Server], None] | None = None
        self._salt = "srlm"
        self._away: set[str] = set()  # did not answer the last time

    def _agreed(self, wanted: str) -> Carrier:
        """
        Raises:
            UserError: there is a server without the endpoint.
        """
        offered = {
            "folder": ("/collective_rpc", "VLLM_SERVER_DEV_MODE=1"),
            "adapter": ("/v1/load_lora_adapter", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"),
        }
        asked: tuple[Carrier, ...] = ("folder", "adapter") if wanted == "auto" else (_carrier(wanted),)
        lacking = ""
        for one in asked:
            path, remedy = offered[one]
            without = [server.url for server in self.servers if not server.offers(path)]
            if not without:
                return one
            lacking += f"{' nor' if lacking else ''} {path} ({remedy})"
        raise UserError(
            f"the engine at {without[0]} has no endpoint to take new weights:{' neither' if len(asked) > 1 else ' no'}"
            f"{lacking}: start it as docs/engines.md says"
        )

    @property
    def log_probs(self) -> str:
        """Which log-probs all of them give, raw_logprobs or processed_logprobs; empty if they differ or do not say."""
        kinds = {server.log_probs for server in self.servers}
        return kinds.pop() if len(kinds) == 1 else ""

    @property
    def context(self) -> float:
        return min(server.context for server in self.servers)

    def put(self, folder: Path, version: str) -> None:
        """Weights in `folder` into every server.

        Raises:
            UserError: one that is there cannot take them, or none is there.
        """

        def put(server: Server) -> None:
            try:
                if self.carrier == "folder":
                    server.reload(str(folder))
                else:
                    server.load_adapter(version, str(folder))
            except (Refused, Failed) as error:
                server.started()  # is it there?
                raise UserError(
                    f"the engine at {server.url} does not take the weights in {folder} ({error}): it has to see this "
                    "folder under the same path, and to serve this model"
                ) from error
            server.start = server.started()

        self._put, self._salt = put, version
        self._away.clear()
        for server in self.servers:
            try:
                put(server)
            except Gone as gone:
                self._lost(server, gone)
        if not self._present():
            raise UserError(
                f"no engine of {self.name} answers any more: see what they logged, start them again and go on with "
                "--resume"
            )

    def complete(self, asked: Sequence[Asked], progress: Callable[[int], object]) -> list[list[Said]]:
        """
        Raises:
            UserError: no server is left, or one does not answer what it was asked.
        """
        work = _Work(asked, progress)
        for server in self._present():  # none may have been started anew since it was given its weights
            self._revive(server, Gone("it was started anew"), work)
        present = self._present()
        hands = min(AT_ONCE, -(-len(asked) // max(len(present), 1)))
        threads = [
            threading.Thread(target=self._serve, args=(server, work), daemon=True)
            for _ in range(hands)  # in turn, so that few prompts are shared too
            for server in present
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if work.error is not None:
            raise work.error
        if work.left:
            raise UserError(
                f"no engine is left of {self.name}; {work.left} of {len(asked)} prompts are unanswered: start them "
                "again and go on with --resume"
            )
        return work.answers

    def _present(self) -> list[Server]:
        return [server for server in self.servers if server.url not in self._away]

    def _serve(self, server: Server, work: _Work) -> None:
        """One of the hands that keep a server busy."""
        while (taken := work.take(lambda: server.url not in self._away, lambda: not server.doubts)) is not None:
            number, waited = taken
            try:
                if waited and self._put is not None and server.start is not None and not self._kept(server):
                    raise Gone("it was started anew")
                work.put(number, server.complete(work.asked[number], self._salt))
            except Gone as gone:
                with self._doubted(server):
                    lost = work.give_back(number, gone)
                    self._revive(server, gone, work)
                if work.error is None:  # it may be there and busy
                    time.sleep(PAUSE * 2 ** (lost - 1))
            except Refused as error:
                if error.status == 404 and self._restarted(server):  # it does not know the adapter any more
                    anew = Gone("it was started anew")
                    with self._doubted(server):
                        work.give_back(number, anew)
                        self._revive(server, anew, work)
                else:
                    work.fail(error)
            except Exception as error:
                work.fail(error)

    @staticmethod
    @contextmanager
    def _doubted(server: Server) -> Iterator[None]:
        """Until it is known to be there with its weights no idle hand sends it anything: each would lose the prompt."""
        server.doubts.append(None)
        try:
            yield
        finally:
            server.doubts.pop()

    @staticmethod
    def _kept(server: Server) -> bool:
        """Has it still what it was given? One that does not say when it was started may have been started anew."""
        now = server.started()
        return now is not None and now == server.start

    def _restarted(self, server: Server) -> bool:
        try:
            return not self._kept(server)
        except Gone:
            return True

    def _revive(self, server: Server, gone: Gone, work: _Work) -> None:
        """It is asked again if it comes back with the weights that it had, or takes them anew; else no more."""
        with server.lock:
            if server.url in self._away:
                return
            for attempt in range(TRIES):
                try:
                    if self._put is not None and not self._kept(server):
                        self._put(server)  # it came back without them
                    return
                except Gone as still:
                    gone = still
                except UserError as error:
                    work.fail(error)
                    return
                time.sleep(PAUSE * 2**attempt)
            self._lost(server, gone)

    def _lost(self, server: Server, gone: Gone) -> None:
        self._away.add(server.url)
        self._say(f"the engine at {server.url} does not answer ({gone}): the others do its work until the next round")

    def close(self) -> None:
        pass


def _carrier(name: str) -> Carrier:
    return "adapter" if name == "adapter" else "folder"


class _Work:
    """Prompts and their answers, shared by the hands."""

    def __init__(self, asked: Sequence[Asked], progress: Callable[[int], object]) -> None:
        self.asked, self._progress = asked, progress
        self.answers: list[list[Said]] = [[] for _ in asked]
        self.left = len(asked)
        self.error: Exception | None = None
        self._waiting = deque(range(len(asked)))
        self._lost = [0] * len(asked)
        self._changed = threading.Condition()

    def take(self, there: Callable[[], bool], ready: Callable[[], bool]) -> tuple[int, bool] | None:
        """The next prompt, as soon as there is one, for a server that is there and ready, and whether it was waited
        for; None: nothing more is to be done."""
        waited = False
        with self._changed:
            while self.left and self.error is None and there():
                if self._waiting and ready():
                    return self._waiting.popleft(), waited
                self._changed.wait(0.1)
                waited = True
            return None

    def put(self, number: int, said: list[Said]) -> None:
        with self._changed:
            self.answers[number] = said
            self.left -= 1
            self._progress(len(self.asked) - self.left)
            self._changed.notify_all()

    def give_back(self, number: int, gone: Gone) -> int:
        """Its server did not answer; how often that was."""
        with self._changed:
            self._lost[number] += 1
            self._waiting.appendleft(number)
            self._changed.notify_all()
        if self._lost[number] >= MOST:
            self.fail(
                UserError(
                    f"{MOST} times in a row one prompt, of {len(self.asked[number].prompt)} tokens, got no answer "
                    f"({gone}): see what the engines logged; a smaller --max-model-len or fewer sequences at once need "
                    "less memory"
                )
            )
        return self._lost[number]

    def fail(self, error: Exception) -> None:
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()
