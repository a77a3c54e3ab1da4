"""Generated captions and queries, against a local server of the protocol: cache, retries, costs, consistency, and no key anywhere."""

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs import chat_endpoint
from mmtune.pairs.chat_endpoint import ChatEndpoint, NoAnswer, public_address
from mmtune.pairs.consistency import item_ranks
from mmtune.pairs.generated_pairs import GenerateOptions, generate_pairs
from mmtune.pairs.text_lists import texts_by_number, texts_of
from tests.support.chat_server import chat_server, told
from tests.support.pairs_helpers import dropped, pictures, rows_of

KEY = "sk-secret-0123456789"


@pytest.fixture
def shop(tmp_path):
    names = pictures(tmp_path, 6)
    rows = [{"id": f"p{n}", "image": name, "text": f"thing {n}", "color": "red"} for n, name in enumerate(names)]
    (tmp_path / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "shop.jsonl"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No long pauses: the back-off itself is tested by its own test."""
    monkeypatch.setattr(chat_endpoint, "FIRST_PAUSE", 0.001)


def by_item(body):
    return json.dumps([f"first of {told(body)}", f"second of {told(body)}"])


def generate(shop, out, server, **options):
    call = {k: options.pop(k) for k in ("dry_run", "overwrite") if k in options}
    options = {"task": "captions", "cache": str(shop.parent / "cache"), "timeout": 10.0, "retries": 2, **options}
    return generate_pairs(shop, out, GenerateOptions(server.url, "llm-1", **options), quiet=True, **call)


def test_captions_become_rows_of_their_item(tmp_path, shop):
    with chat_server(answer=by_item) as server:
        result = generate(
            shop, tmp_path / "out", server, about="{text}, {color}", per_item=2, price_prompt=2.0, price_completion=10.0
        )
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 12 and rows[0] == {
        "id": "p0~generated1",
        "group": "p0",
        "image": "../0.png",
        "text": "first of thing 0, red",
        "color": "red",
        "generated_by": "llm-1",
    }
    assert result.measures["used"] == {
        "requests": 6,
        "from_cache": 0,
        "prompt_tokens": 600,
        "completion_tokens": 120,
        "estimated": False,
        "cost": pytest.approx(0.0024),
    }
    request = server.requests[0]
    assert request["model"] == "llm-1" and "Write 2 different captions" in request["messages"][0]["content"][0]["text"]
    assert mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed").packed == 12


def test_a_vision_model_gets_the_picture(tmp_path, shop):
    with chat_server(answer=by_item) as server:
        generate(shop, tmp_path / "out", server, see=("image",), per_item=1)
        parts = server.requests[0]["messages"][0]["content"]
        assert [p["type"] for p in parts] == ["text", "image_url"]
        data = base64.b64decode(parts[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
        assert PIL.Image.open(io.BytesIO(data)).size == (40, 40)


def test_the_cache_pays_for_nothing_twice(tmp_path, shop):
    with chat_server(answer=by_item) as server:
        generate(shop, tmp_path / "a", server)
        again = generate(shop, tmp_path / "b", server)
        assert len(server.requests) == 6 and again.measures["used"]["from_cache"] == 6
        assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
        generate(shop, tmp_path / "c", server, per_item=2)  # another question
        assert len(server.requests) == 12
        for file in list((tmp_path / "cache").rglob("*.json"))[:3]:
            file.write_bytes(file.read_bytes()[:10])  # a damaged file is asked for again
        generate(shop, tmp_path / "d", server, overwrite=True)
        assert len(server.requests) <= 15


def joint_items(body):
    """The items that a joint request tells about, in its order."""
    texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    return [text.split(": ", 1)[1] for text in texts if text.startswith("Item ")]


def by_items(body):
    """An answer to a joint request in which every third item is missing, or to a request about one item."""
    items = joint_items(body)
    return json.dumps({f"{n}": [f"about {item}"] for n, item in enumerate(items, 1) if n % 3}) if items else by_item(body)


def test_several_items_in_one_request_and_the_ones_left_out_alone(tmp_path, shop):
    with chat_server(answer=by_items) as server:
        result = generate(shop, tmp_path / "out", server, per_item=1, items_per_request=3, concurrency=1, see=("image",))
        joint = [body for body in server.requests if joint_items(body)]
        assert [joint_items(body) for body in joint] == [[f"thing {n}" for n in (0, 1, 2)], [f"thing {n}" for n in (3, 4, 5)]]
        kinds = [part["type"] for part in joint[0]["messages"][0]["content"]]
        assert kinds == ["text", *["text", "image_url"] * 3]  # each picture follows the text of its item
        assert (
            joint[0]["max_tokens"] == 3 * 300 and len(server.requests) == 4
        )  # items 2 and 5 were left out, and asked about alone
        texts = {row["id"]: row["text"] for row in rows_of(tmp_path / "out")}
        expected = {f"p{n}~generated1": f"{'first of' if n % 3 == 2 else 'about'} thing {n}" for n in range(6)}
        assert texts == expected and result.measures["used"]["requests"] == 4
        again = generate(shop, tmp_path / "again", server, per_item=1, items_per_request=2, see=("image",))
        assert len(server.requests) == 4 and again.measures["used"]["from_cache"] == 6  # answers are kept by item
        dry = generate(shop, tmp_path / "dry", server, per_item=2, items_per_request=4, see=("image",), dry_run=True)
        assert dry.measures["estimate"]["requests"] == 2


def test_a_joint_request_that_fails_or_is_answered_with_nonsense_loses_no_item(tmp_path, shop):
    with chat_server(answer=lambda body: "no" if joint_items(body) else by_item(body), faults=[400]) as server:
        result = generate(shop, tmp_path / "out", server, items_per_request=3, concurrency=1)
    assert result.measures["items"] == 6 and len(server.requests) == 2 + 6 and not dropped(tmp_path / "out")


def test_what_is_told_about_an_item_is_sent_as_it_is(tmp_path, shop):
    shop.write_text(json.dumps({"id": "p", "image": "0.png", "text": "a box with {count} screws"}) + "\n")
    with chat_server(answer=by_item) as server:
        generate(shop, tmp_path / "out", server, per_item=2)
    assert told(server.requests[0]) == "a box with {count} screws"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"1": ["a", "b"], "2": ["c"]}', {1: ["a", "b"], 2: ["c"]}),
        ('Here:\n```json\n{"Item 2": ["c"]}\n```', {2: ["c"]}),
        ('[["a"], ["b"]]', {1: ["a"], 2: ["b"]}),
        ('[["a"], ["b"], ["c"]]', {}),  # three lists for two items: which is whose is not known
        ('{"1": ["a"], "3": ["b"]}', {}),
        ('{"0": ["a"], "1": ["b"]}', {}),  # counted from 0
        ('{"1": ["a"], "item 1": ["b"]}', {}),
        ('{"1": "a", "2": ["b"]}', {2: ["b"]}),
        ('["a", "b"]', {}),
        ("", {}),
    ],
)
def test_texts_go_to_the_right_item_or_to_none(answer, found):
    assert texts_by_number(answer, 2) == found


def test_faults_that_pass_are_retried_and_others_drop_their_item(tmp_path, shop):
    faults = [503, 429, "cut", "html", "hang", 400]
    with chat_server(answer=by_item, faults=list(faults)) as server:
        result = generate(shop, tmp_path / "out", server, timeout=2.0, concurrency=1, retries=5)
    assert result.measures["items"] == 5 and len(server.requests) >= 5 + 6
    (reason,) = dropped(tmp_path / "out")
    assert reason.startswith("HTTP 400: item too large")


def test_nonsense_drops_the_item_and_is_not_kept(tmp_path, shop):
    def answer(body):
        return "I am sorry, I cannot help with that." if "thing 1" in told(body) else by_item(body)

    with chat_server(answer=answer) as server:
        generate(shop, tmp_path / "out", server)
        assert dropped(tmp_path / "out") == {"an answer that is no list of texts": 1}
        server.answer = by_item
        generate(shop, tmp_path / "out", server, overwrite=True)
        assert len(server.requests) == 7 and not dropped(tmp_path / "out")
    with chat_server(answer=lambda body: "no") as server, pytest.raises(DataError, match="no generated text was kept"):
        generate(shop, tmp_path / "none", server)
    assert not (tmp_path / "none").exists()


def test_an_endpoint_that_is_down_ends_the_run_and_what_was_answered_stays(tmp_path, shop, capsys):
    rows = [{"id": f"q{n}", "text": f"text {n}"} for n in range(40)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with chat_server(answer=by_item) as server:
        server.faults = [0] * 3  # type: ignore[list-item]
        server.faults = ["wrong"] * 100
        command = [
            "pairs",
            "generate",
            str(tmp_path / "many.jsonl"),
            "--endpoint",
            server.url,
            "--llm",
            "m",
            "--task",
            "captions",
        ]
        command += ["--retries", "0", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "o")]
        assert main(command) == 2
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert "8 requests in a row failed: an answer that is not of the protocol" in error and len(server.requests) < 40
        server.faults = []
        assert main(command) == 0
    capsys.readouterr()
    assert main([*command[:4], "http://127.0.0.1:9/v1", *command[5:-1], str(tmp_path / "p"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "connection failed (ConnectError)" in error and error.count("\n") == 1


def test_costs_are_said_before_and_a_budget_stops(tmp_path, shop, capsys):
    with chat_server(answer=by_item) as server:
        prices = {"price_prompt": 1000.0, "price_completion": 1000.0}
        result = generate(shop, tmp_path / "out", server, dry_run=True, see=("image",), per_item=2, **prices)
        estimate = result.measures["estimate"]
        assert estimate["requests"] == 6 and estimate["completion_tokens"] == 6 * 40 and estimate["prompt_tokens"] > 6 * 800
        assert estimate["cost"] == pytest.approx((estimate["prompt_tokens"] + 240) / 1000)
        assert not server.requests and not (tmp_path / "out").exists() and not list(tmp_path.glob(".work*"))
        with pytest.raises(DataError, match=r"the estimate of .* is above --budget 0.01; nothing was sent"):
            generate(shop, tmp_path / "out", server, budget=0.01, **prices)
        assert not server.requests
        with pytest.raises(DataError, match="the budget of 0.5 is used"):  # the endpoint counts more than the estimate
            generate(shop, tmp_path / "out", server, budget=0.5, concurrency=1, per_item=1, **prices)
        assert 0 < len(server.requests) < 6
        command = ["pairs", "generate", str(shop), "--endpoint", server.url, "--llm", "m", "--task", "captions", "--dry-run"]
        assert main([*command, "--cache", str(tmp_path / "new"), "--out", str(tmp_path / "o")]) == 0
        printed = capsys.readouterr()
        assert "generate: 6 requests" in printed.err and "nothing was sent; 6 items" in printed.out


def test_the_key_comes_from_the_environment_and_is_never_written(tmp_path, shop, monkeypatch, capsys):
    command = ["pairs", "generate", str(shop), "--llm", "m", "--task", "captions", "--cache", str(tmp_path / "cache")]
    command += ["--key-variable", "MY_KEY", "--endpoint"]
    with chat_server(answer=by_item, key=KEY) as server:
        monkeypatch.delenv("MY_KEY", raising=False)
        assert main([*command, server.url, "--out", str(tmp_path / "o"), "--quiet"]) == 2
        assert "the key in $MY_KEY is not set" in capsys.readouterr().err
        monkeypatch.setenv("MY_KEY", KEY + "x")
        assert main([*command, server.url, "--out", str(tmp_path / "o")]) == 2
        printed = capsys.readouterr()
        assert "is not accepted" in printed.err and KEY not in printed.err + printed.out
        monkeypatch.setenv("MY_KEY", KEY)
        server.faults = [400]
        assert main([*command, server.url, "--out", str(tmp_path / "o"), "--json"]) == 0
        printed = capsys.readouterr()
        assert server.keys[-1] == f"Bearer {KEY}" and "item too large for Bearer ***" in printed.out
    with chat_server(answer=by_item) as server:
        with_user = server.url.replace("http://", "http://user:password@")
        assert main([*command, with_user, "--out", str(tmp_path / "p"), "--json"]) == 0
        more = capsys.readouterr()
        printed = type(printed)(printed.out + more.out, printed.err + more.err)
        assert str(server.keys[-1]).startswith("Basic")
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for secret in (KEY, "user:password"):
        assert secret not in printed.err + printed.out and secret.encode() not in written
    assert public_address("https://u:p@host:1/v1?key=x#y") == "https://host:1/v1"


def test_queries_are_kept_only_if_the_base_ranks_their_item_high(tmp_path, shop):
    with chat_server(answer=by_item) as server:
        result = generate(shop, tmp_path / "out", server, task="queries", base="tiny:clip", top=2, per_item=2)
        generate(shop, tmp_path / "all", server, task="queries", top=0, per_item=2)
    everything = rows_of(tmp_path / "all")
    model = mmtune.load("tiny:clip")
    queries = model.encode(text=[r["text"] for r in everything], role="query")
    items = model.encode(image=[str(shop.parent / f"{n}.png") for n in range(6)])
    scores = queries @ items.T
    rank = {r["text"]: 1 + int((s > s[int(r["group"][1:])]).sum()) for r, s in zip(everything, scores, strict=True)}
    kept = {r["text"]: r["rank"] for r in rows_of(tmp_path / "out")}
    assert kept == {text: n for text, n in rank.items() if n <= 2} and 0 < len(kept) < 12
    assert dropped(tmp_path / "out") == {"the base model ranks its item below 2": 12 - len(kept)}
    assert result.measures["generated"] == 12
    with pytest.raises(DataError, match="--base MODEL is missing"):
        GenerateOptions("http://x/v1", "m").check()


def test_ranks_equal_a_naive_loop_and_ties_count_against():
    rng = np.random.default_rng(0)
    items = rng.integers(-3, 4, (30, 4)).astype(np.float32)  # whole numbers: ties are ties, however products are summed up
    queries = items[rng.integers(0, 30, 700)] + rng.integers(-2, 3, (700, 4)).astype(np.float32)
    of_query, labels = rng.integers(0, 30, 700), np.arange(30) // 3
    naive = []
    for q, own in zip(queries, of_query, strict=True):
        s = q @ items.T
        best = max(s[i] for i in range(30) if labels[i] == labels[own])
        naive.append(1 + sum(1 for i in range(30) if labels[i] != labels[own] and s[i] >= best))
    assert item_ranks(queries, items, of_query, labels).tolist() == naive
    same = np.ones((5, 2), np.float32)
    assert item_ranks(same, same, np.arange(5), np.arange(5)).tolist() == [5] * 5


def test_a_text_for_items_of_two_groups_says_nothing(tmp_path, shop):
    with chat_server(answer=lambda body: json.dumps(["A thing", by_item(body)[2:12] + told(body)])) as server:
        generate(shop, tmp_path / "out", server)
    assert len(rows_of(tmp_path / "out")) == 6
    assert dropped(tmp_path / "out") == {"generated for items of different groups": 6}


def test_the_pauses_grow_and_the_rate_is_limited(monkeypatch):
    slept = []
    monkeypatch.setattr(chat_endpoint.time, "sleep", slept.append)
    monkeypatch.setattr(chat_endpoint, "FIRST_PAUSE", 1.0)
    with chat_server(faults=[500] * 4) as server, ChatEndpoint(server.url, "m", retries=3) as endpoint:
        with pytest.raises(NoAnswer, match=r"HTTP 500 \(4 attempts\)"):
            endpoint.ask(endpoint.body([{"type": "text", "text": "x"}], 10, 0.0))
    assert len(slept) == 3 and all(1 <= pause / 2**n <= 1.25 for n, pause in enumerate(slept))
    slept.clear()
    with chat_server() as server, ChatEndpoint(server.url, "m", per_minute=60) as endpoint:
        for _ in range(4):
            endpoint.ask(endpoint.body([], 10, 0.0))
    assert len(slept) == 3 and 2.5 < slept[-1] <= 3.0  # no real sleep: the fourth may start three seconds after the first


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ('["a boot", "A  Boot", "a bag"]', ["a boot", "a bag"]),
        ('Sure!\n```json\n{"queries": ["a", "b"]}\n```', ["a", "b"]),
        ('Here: ["a", "b"] - enjoy', ["a", "b"]),
        ('1. "red boot"\n2) warm boot\n- a hat', ["red boot", "warm boot", "a hat"]),
        ("I cannot do that.", []),
        ('["a", 3]', []),
        ("[]", []),
        ('["' + "x" * 500 + '"]', []),
        ("[" * 100_000, []),
    ],
)
def test_lists_of_texts(answer, texts):
    assert texts_of(answer) == texts
