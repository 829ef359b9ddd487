"""Questions to an OpenAI-compatible chat endpoint: in parallel, with retries, each asked once.

The only module that imports `openai` (the extra `judge`), and only to open a client.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from nplus.config.judge import JudgeConfig
from nplus.records import InputError
from nplus.seeding import uniforms

SYSTEM = "You are a helpful assistant."
"""Detail H2: a system line that says nothing about the task."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
"""Seconds of back-off: the first doubles with every try, none is longer than the last."""

NO_KEY = "no-key-wanted"

Send = Callable[[str], str]
"""From a prompt to a reply, once; raises `Transient` where a further try may help, else
`InputError`."""


class Transient(Exception):
    """A failure that may pass; `after` is how many seconds the endpoint asks to wait, or None."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


# --- replies on disk ----------------------------------------------------------------------------


class ReplyCache:
    """Replies in a JSONL file, appended as they come, so that a resumed judging goes on from them.

    A line is `{"key", "model", "reply"}`. A line torn by a process that died is passed over: its
    question is asked again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    row = json.loads(line)
                    self._replies[str(row["key"])] = str(row["reply"])
                except (ValueError, TypeError, KeyError, RecursionError):
                    continue

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> str | None:
        return self._replies.get(key)

    def put(self, key: str, model: str, reply: str) -> None:
        # ASCII: a reply may hold half of a surrogate pair, which UTF-8 cannot encode.
        line = json.dumps({"key": key, "model": model, "reply": reply}) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as out:
                if out.tell() and os.pread(out.fileno(), 1, out.tell() - 1) != b"\n":
                    line = "\n" + line
                out.write(line.encode())
            self._replies[key] = reply


def reply_key(model: str, prompt: str, system: str = SYSTEM) -> str:
    """Hash of what determines a reply as far as we know: model, system line and prompt."""
    return hashlib.sha256(json.dumps([model, system, prompt]).encode()).hexdigest()


# --- the client ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatClient:
    """Asks one model; a reply is a reply, whatever it says, and is kept before it is returned."""

    model: str
    send: Send
    cache: ReplyCache
    retries: int = 5
    max_parallel: int = 8
    system: str = SYSTEM
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)

    def ask(self, prompt: str) -> str:
        """The reply to `prompt`, from the cache where it was asked before.

        Raises `InputError` when the endpoint refuses the question, or fails `retries + 1` times.
        Safe to call from several threads.
        """
        key = reply_key(self.model, prompt, self.system)
        reply = self.cache.get(key)
        if reply is None:
            reply = self._send_until_it_works(prompt, key)
            self.cache.put(key, self.model, reply)
        return reply

    def each(self, ask: Callable[[str], str], prompts: Sequence[str]) -> list[str]:
        """`map(ask, prompts)` with at most `max_parallel` under way; replies in order of prompts.

        The first failure ends it: what is not begun is not asked, what is under way is waited for
        (and kept), and the failure is raised.
        """
        with ThreadPoolExecutor(self.max_parallel, thread_name_prefix="chat") as pool:
            futures = [pool.submit(ask, prompt) for prompt in prompts]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _send_until_it_works(self, prompt: str, key: str) -> str:
        for attempt in range(self.retries + 1):
            try:
                return self.send(prompt)
            except Transient as error:
                failure = error
            if attempt < self.retries:
                self.sleep(delay(attempt, key, failure.after))
        raise InputError(
            f"the endpoint of {self.model} failed {self.retries + 1} times: {failure}; see that it "
            "runs and that judge.base_url names it, or lower judge.max_parallel, and run again: "
            f"the {len(self.cache)} replies so far are kept in {self.cache.path}"
        ) from failure


def delay(attempt: int, key: str, after: float | None) -> float:
    """Seconds before the next try: doubling, half to all of it so that threads part, bounded.

    `after` is what the endpoint asks for: waited for in full, up to `LONGEST_DELAY`.
    """
    share = 0.5 + 0.5 * uniforms(0, "retry", key, attempt, n=1)[0]
    wanted = FIRST_DELAY * 2.0 ** min(attempt, 32) * float(share)
    return min(max(wanted, after or 0.0), LONGEST_DELAY)


def chat_client(config: JudgeConfig, cache: Path) -> ChatClient:
    """A client of the endpoint that `config` names; replies are kept in the file `cache`.

    Raises `InputError` where the key's variable is not set or `openai` is not installed.
    """
    send = openai_send(
        model=config.model,
        base_url=config.base_url,
        api_key=api_key(config.api_key_env),
        timeout=config.timeout,
    )
    return ChatClient(
        config.model, send, ReplyCache(cache), config.retries, config.max_parallel, SYSTEM
    )


def require_judge(config: JudgeConfig) -> None:
    """Raises InputError where no question could be asked: no key, or no `openai`."""
    key = api_key(config.api_key_env)
    openai_send(model=config.model, base_url=config.base_url, api_key=key, timeout=config.timeout)


def api_key(variable: str | None) -> str:
    """The key in the environment variable; a placeholder where none is wanted."""
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"judge.api_key_env={variable}: this environment variable is not set; export it, or "
            "set judge.api_key_env=null for a server that wants no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        # Such a key would stand, escaped, in an error of the HTTP library.
        raise InputError(
            f"judge.api_key_env={variable}: this environment variable holds no key (white space or "
            "characters that no header can carry; it is not shown); export the key alone"
        )
    return key


def redacted(text: str, key: str) -> str:
    """`text` without the key, however a reply or an error spells it."""
    if key == NO_KEY:
        return text
    spelled = (key, repr(key)[1:-1], json.dumps(key)[1:-1], quote(key, safe=""), quote_plus(key))
    coded = (base64.b64encode(key.encode()).decode(), key[::-1])
    for form in sorted({*spelled, *coded}, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


# --- openai -------------------------------------------------------------------------------------


def is_transient(status: int, code: str | None) -> bool:
    """Whether an HTTP error may pass: timeouts, conflicts, too many requests, server errors.

    An account without credit answers 429 too, and stays so.
    """
    return (status in (408, 409, 429) or status >= 500) and code != "insufficient_quota"


def openai_send(
    *, model: str, base_url: str, api_key: str, timeout: float, system: str = SYSTEM
) -> Send:
    """One chat completion a prompt, with the decoding defaults of the endpoint (Detail H2).

    Neither a reply nor an error holds the key, nor does the error behind it, which a traceback
    would show.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError(
            "the LLM judge needs the package openai; install it: pip install 'nplus[judge]'"
        ) from error
    # Retries are ours: bounded, and told of in the message.
    client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=0)

    def send(prompt: str) -> str:
        try:
            answer = client.chat.completions.create(
                model=model,
                messages=[
                    {"role": "system", "content": system},
                    {"role": "user", "content": prompt},
                ],
            )
        except openai.APIConnectionError as error:
            reason = redacted(f"{error} {error.__cause__ or ''}".strip(), api_key)
            raise Transient(f"{base_url}: {reason}") from None
        except json.JSONDecodeError as error:
            raise Transient(f"{base_url}: the answer is broken JSON ({error.msg})") from None
        except openai.APIStatusError as error:
            # A filtered question is a question without an answer, not a broken endpoint.
            if error.code == "content_filter":
                return ""
            reason = f"{base_url}: {redacted(str(error), api_key)}"
            if is_transient(error.status_code, error.code):
                raise Transient(
                    reason, _seconds(error.response.headers.get("retry-after"))
                ) from None
            raise InputError(
                f"{reason}; see judge.model={model}, judge.base_url and the key"
            ) from None
        try:
            reply = answer.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError) as error:  # openai checks no answer's shape
            raise InputError(
                f"{base_url}: no chat completion came back; judge.base_url ends in /v1 for most "
                "servers"
            ) from error
        if not isinstance(reply, str):
            raise InputError(
                f"{base_url}: the reply is {type(reply).__name__}, expected text; see judge.model"
            )
        return redacted(reply, api_key)  # replies are kept on disk

    return send


def _seconds(retry_after: str | None) -> float | None:
    """The header `Retry-After` in seconds; None where it is absent or a date."""
    try:
        return float(retry_after or "")
    except ValueError:
        return None
