"""The chat client: retries, cache and pool by a scripted sender, `openai` by a local server."""

import json
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from nplus.config import JudgeConfig
from nplus.engines.api import (
    LONGEST_DELAY,
    SYSTEM,
    ChatClient,
    ReplyCache,
    Transient,
    api_key,
    chat_client,
    delay,
    is_transient,
    openai_send,
    reply_key,
)
from nplus.evaluation.comparators import LLMJudge, ordered, verdict_report
from nplus.records import Comparison, InputError


class Script:
    """Sends what a list says, in turn; an exception in it is raised."""

    def __init__(self, *answers):
        self.answers, self.prompts = list(answers), []

    def __call__(self, prompt):
        self.prompts.append(prompt)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(send, path, **changes):
    naps = []
    found = ChatClient("m", send, ReplyCache(path), sleep=naps.append, **changes)
    return found, naps


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judge" / "replies.jsonl"


# --- retries ------------------------------------------------------------------------------------


def test_a_failure_that_passes_is_tried_again(path):
    send = Script(Transient("busy"), Transient("busy"), "the reply")
    chat, naps = client(send, path)
    assert chat.ask("q") == "the reply"
    assert (len(send.prompts), len(naps)) == (3, 2)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_tries_are_bounded_and_the_end_is_a_clear_message(path, retries):
    send = Script(*[Transient("connection refused")] * 10)
    chat, naps = client(send, path, retries=retries)
    with pytest.raises(InputError) as caught:
        chat.ask("q")
    assert (len(send.prompts), len(naps)) == (retries + 1, retries)
    told = str(caught.value)
    assert f"failed {retries + 1} times: connection refused" in told
    assert "judge.base_url" in told
    assert str(path) in told
    # Nothing was answered, so nothing is kept.
    assert not path.exists()


def test_a_refusal_is_not_tried_again(path):
    send = Script(InputError("no such model"), "late")
    chat, naps = client(send, path)
    with pytest.raises(InputError, match="no such model"):
        chat.ask("q")
    assert (len(send.prompts), naps) == (1, [])


def test_a_reply_is_a_reply_whatever_it_says(path):
    send = Script("")
    chat, _ = client(send, path)
    assert [chat.ask("q"), chat.ask("q")] == ["", ""]
    assert len(send.prompts) == 1


def test_waits_double_part_and_end():
    keys = [f"k{n}" for n in range(50)]
    for attempt in range(12):
        waits = [delay(attempt, key, None) for key in keys]
        top = min(2.0**attempt, 60.0)
        assert all(min(top / 2, 30.0) <= wait <= top for wait in waits)
        assert attempt > 5 or len(set(waits)) == 50
    assert delay(10_000, "k", None) == LONGEST_DELAY == 60.0


def test_the_endpoint_may_ask_for_a_longer_wait_within_bounds():
    assert delay(0, "k", 7.5) == 7.5
    assert delay(0, "k", 86_400.0) == 60.0
    assert delay(0, "k", float("inf")) == 60.0
    assert delay(0, "k", -1.0) == delay(0, "k", None) > 0


# --- the cache ----------------------------------------------------------------------------------


def test_a_resumed_judging_asks_nothing_twice(path):
    first, _ = client(str.upper, path)
    assert first.each(first.ask, ["a", "b", "c"]) == ["A", "B", "C"]
    send = Script("D")
    again, _ = client(send, path)
    assert again.each(again.ask, ["c", "b", "d", "a"]) == ["C", "B", "D", "A"]
    assert send.prompts == ["d"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["reply"] for row in rows) == ["A", "B", "C", "D"]


def test_another_model_or_system_line_is_another_question(path):
    keys = {reply_key("m", "q"), reply_key("n", "q"), reply_key("m", "r"), reply_key("m", "q", "s")}
    assert len(keys) == 4
    assert reply_key("m", "q") == reply_key("m", "q", SYSTEM)
    client(Script("of m"), path)[0].ask("q")
    other = ChatClient("n", Script("of n"), ReplyCache(path))
    assert other.ask("q") == "of n"


def test_a_torn_line_costs_one_question(path):
    chat, _ = client(str.upper, path)
    for prompt in "abc":
        chat.ask(prompt)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # killed while writing the third
    send = Script("C", "D")
    again, _ = client(send, path)
    assert len(again.cache) == 2
    assert [again.ask(prompt) for prompt in "abcd"] == ["A", "B", "C", "D"]
    assert send.prompts == ["c", "d"]
    third, _ = client(Script(), path)
    assert [third.ask(prompt) for prompt in "abcd"] == ["A", "B", "C", "D"]


def test_replies_keep_every_character(path):
    replies = ["zwei\nZeilen\r\n", "\u2028 \x85 \x00", "\ud800 half a pair", "é 漢 🙂", '"}{']
    chat, _ = client(Script(*replies), path)
    assert [chat.ask(str(n)) for n in range(5)] == replies
    again, _ = client(Script(), path)
    assert [again.ask(str(n)) for n in range(5)] == replies


# --- the pool -----------------------------------------------------------------------------------


def test_questions_go_side_by_side_and_no_more_than_allowed(path):
    lock, now, most = threading.Lock(), [0], [0]
    together = threading.Barrier(4, timeout=20)

    def send(prompt):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait()  # passes only if four are under way at once
        with lock:
            now[0] -= 1
        return prompt + "!"

    chat, _ = client(send, path, max_parallel=4)
    prompts = [f"q{n}" for n in range(24)]
    assert chat.each(chat.ask, prompts) == [f"q{n}!" for n in range(24)]
    assert most[0] == 4
    # Threads that write at once leave whole lines.
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 24


def test_the_first_failure_ends_it_and_what_was_answered_is_kept(path):
    asked = []

    def send(prompt):
        asked.append(prompt)
        if prompt == "q3":
            raise InputError("refused")
        time.sleep(0.01)
        return prompt

    chat, _ = client(send, path, max_parallel=2)
    prompts = [f"q{n}" for n in range(400)]
    with pytest.raises(InputError, match="refused"):
        chat.each(chat.ask, prompts)
    assert 4 <= len(asked) < 100
    kept = [json.loads(line)["reply"] for line in path.read_text().splitlines()]
    assert sorted(kept) == sorted(set(asked) - {"q3"})


# --- settings -----------------------------------------------------------------------------------


def test_the_key_comes_from_the_named_variable(monkeypatch):
    monkeypatch.setenv("SOME_KEY", " secret\n")
    assert api_key("SOME_KEY") == "secret"
    assert api_key(None)
    for empty in ("", "  "):
        monkeypatch.setenv("SOME_KEY", empty)
        with pytest.raises(InputError, match=r"judge\.api_key_env=SOME_KEY.*not set"):
            api_key("SOME_KEY")


def test_without_the_package_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"nplus\[judge\]"):
        chat_client(JudgeConfig(api_key_env=None), path)


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        (400, None, False),
        (401, None, False),
        (403, None, False),
        (404, "model_not_found", False),
        (408, None, True),
        (409, None, True),
        (422, None, False),
        (429, None, True),
        (429, "rate_limit_exceeded", True),
        (429, "insufficient_quota", False),
        (500, None, True),
        (503, None, True),
        (529, None, True),
    ],
)
def test_which_errors_may_pass(status, code, passes):
    assert is_transient(status, code) is passes


def test_the_config_is_the_papers_judge_and_is_checked():
    config = JudgeConfig()
    assert (config.model, config.order) == ("gpt-3.5-turbo-0125", "random")
    wrong = ({"order": "first"}, {"base_url": "localhost:8000"}, {"max_parallel": 0}, {"key": "x"})
    for bad in (*wrong, {"retries": -1}, {"timeout": 0}, {"model": ""}):
        with pytest.raises(ValidationError):
            JudgeConfig(**bad)


# --- openai, against a server on this machine ---------------------------------------------------


def completion(text, choices=True):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
    choice["message"]["content"] = text
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, {**body, "choices": [choice] if choices else []}


def failure(status, message="nope", code=None):
    return status, {"error": {"message": message, "code": code, "type": None, "param": None}}


@contextmanager
def server(answer, headers=(), kind=None):
    """A chat endpoint; `answer(body)` gives status and object. Yields its URL and the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append((self.path, dict(self.headers), body))
            status, found = answer(body)
            text = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            usual = "text/html" if isinstance(found, bytes) else "application/json"
            self.send_header("content-type", kind or usual)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            with suppress(ConnectionError):  # a client that gave up
                self.wfile.write(text)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", requests
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def sender(url, **changes):
    pytest.importorskip("openai")
    settings = {"model": "m", "base_url": url, "api_key": "sk-secret", "timeout": 20.0}
    return openai_send(**settings | changes)


@pytest.mark.detail("H2")
def test_a_question_as_it_goes_over_the_wire():
    with server(lambda body: completion("hello")) as (url, requests):
        assert sender(url)("the prompt") == "hello"
    ((where, headers, body),) = requests
    assert where == "/v1/chat/completions"
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer sk-secret"
    # Detail H2: a generic system line, the question, and the API's own decoding.
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "the prompt"},
        ],
    }


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_http_errors_that_may_pass(status):
    answer = failure(status, "busy")
    with (
        server(lambda body: answer, headers={"retry-after": "7"}) as (url, requests),
        pytest.raises(Transient, match="busy") as caught,
    ):
        sender(url)("q")
    assert caught.value.after == 7.0
    assert len(requests) == 1  # the retries are the client's, not the package's


@pytest.mark.parametrize(
    "answer",
    [
        failure(401, "bad key sk-secret"),
        failure(404, "no model m"),
        failure(429, "pay", "insufficient_quota"),
        completion("", choices=False),
        (200, b"<html>a proxy</html>"),
        (200, {"hello": "world"}),
        (200, {"choices": [{}]}),
    ],
    ids=["key", "model", "quota", "no choices", "html", "json", "no message"],
)
def test_what_will_not_pass_is_an_input_error(answer):
    with server(lambda body: answer) as (url, _), pytest.raises(InputError) as caught:
        sender(url)("q")
    assert url in str(caught.value)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [completion(None), failure(400, "f", "content_filter")])
def test_a_filtered_question_has_an_empty_reply(answer):
    with server(lambda body: answer) as (url, _):
        assert sender(url)("q") == ""


def test_nobody_listening_may_pass():
    with server(lambda body: completion("x")) as (url, _):
        pass
    with pytest.raises(Transient, match=r"127\.0\.0\.1"):
        sender(url)("q")


@pytest.mark.parametrize("body", [b'{"a"', b""])
def test_a_broken_answer_may_pass(body):
    with server(lambda _: (200, body), kind="application/json") as (url, _):
        send = sender(url)
        with pytest.raises(Transient, match=r"127\.0\.0\.1"):
            send("q")


def test_a_slow_answer_may_pass():
    def slow(body):
        time.sleep(0.5)
        return completion("late")

    with server(slow) as (url, _), pytest.raises(Transient):
        sender(url, timeout=0.1)("q")


def test_a_date_to_retry_after_is_passed_over():
    answer = failure(503)
    headers = {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}
    with server(lambda body: answer, headers) as (url, _), pytest.raises(Transient) as caught:
        sender(url)("q")
    assert caught.value.after is None


def test_a_judging_from_end_to_end(path, monkeypatch):
    """A perfect judge behind a flaky server: every answer comes, none is a coin."""
    pytest.importorskip("openai")
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    monkeypatch.setattr("nplus.engines.api.FIRST_DELAY", 0.001)
    lock, failed = threading.Lock(), set()

    def answer(body):
        prompt = body["messages"][1]["content"]
        with lock:
            flaky = prompt not in failed
            failed.add(prompt)
        if flaky:
            return failure(503, "warming up")
        first = prompt.split("### Summary A\n")[1].split("\n")[0]
        return completion(f"Comparison: they differ.\nBetter: {'A' if first == 'good' else 'B'}")

    rows = [
        Comparison(f"t{n}", f"POST {n}\n\nTL;DR:", (" good", " bad"), ("ppo", "ref"), 0)
        for n in range(20)
    ]
    with server(answer) as (url, requests):
        config = JudgeConfig(model="m", base_url=url, api_key_env="SOME_KEY", order="both")
        for asked in (80, 80):  # twice 40 questions, each refused once; the second run asks none
            chat = chat_client(config, path)
            judge = ordered(LLMJudge(chat.ask, each=chat.each), config.order, seed=0)
            report = verdict_report(judge.compare(rows))
            assert (report["wins"], report["n"], report["invalid"]) == (20, 20, 0)
            assert len(requests) == asked
    assert "sk-secret" not in path.read_text()
