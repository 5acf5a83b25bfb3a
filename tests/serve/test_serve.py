"""The service answers as its members do, refuses in one line what it cannot take, and stays up."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import uvicorn

from haq import Experiment
from haq.adaptive import Cascade, Ladder, Rule, load_onnx
from haq.adaptive.confidence import margin
from haq.runs.family import make_family
from haq.serve import Engine, Limits, make_app
from haq.serve.engine import Version
from haq.serve.metrics import Metrics
from haq.serve.server import bind
from haq.values.formats import Precision
from haq.values.policy import Policy

QUICKSTART = "experiments/quickstart.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    experiment = Experiment.load(QUICKSTART, overrides=["evaluator.samples=50"])
    names = experiment.network.layer_names
    folder = tmp_path_factory.mktemp("served") / "F"
    policies = [Policy.uniform(names, Precision.parse(text)) for text in ("w4a4", "w8a8")]
    make_family(experiment, policies, folder, onnx=True)
    return folder, experiment.data.search.head(12).inputs


@contextmanager
def service(folder, controller=None, limits=None, slow=0.0, **options):
    family = load_onnx(folder)
    if slow:
        plain = family.predict
        family.predict = lambda *args: (time.sleep(slow), plain(*args))[1]
    engine = Engine(Version(0, family), controller, **options)
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(engine, Metrics(), limits), log_level="error"))
    running = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    running.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        running.join()
        listening.close()


def ask(url, content=None):
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_answers_are_those_of_the_most_precise_member_without_a_controller(made):
    folder, images = made
    with service(folder) as url:
        status, text, _ = ask(f"{url}/predict", {"inputs": images.tolist()})
        document = json.loads(text)
        assert (status, document["member"]) == (200, 1)
        assert torch.tensor(document["outputs"]).equal(load_onnx(folder).predict(images, 1))
        assert json.loads(ask(f"{url}/health")[1])["members"] == ["member-0", "member-1"]
        shown = ask(f"{url}/metrics")[1]
        assert 'haq_answers_total{member="1"} 12.0' in shown
        assert "haq_request_seconds_bucket" in shown


def test_a_cascade_says_who_answered_each_sample_and_gives_that_members_outputs(made):
    folder, images = made
    sure = margin(load_onnx(folder).predict(images, 0))
    cascade = Cascade("margin", float(sure.median()), (1.0, 1.0))
    with service(folder, cascade) as url:
        document = json.loads(ask(f"{url}/predict", {"inputs": images.tolist()})[1])
        family, alone = load_onnx(folder), []
        for image in images:
            one = json.loads(ask(f"{url}/predict", {"inputs": image[None].tolist()})[1])
            alone.append(one["member"])
            wanted = family.predict(image[None], one["member"])[0]
            assert torch.tensor(one["outputs"][0]) == pytest.approx(wanted, abs=1e-4)
    assert len(set(alone)) == 2
    assert document["member"] == alone


def test_requests_that_are_gathered_get_each_its_own_answer(made):
    folder, images = made
    wanted = load_onnx(folder).predict(images, 1)

    def one(number):
        return json.loads(ask(f"{url}/predict", {"inputs": images[number : number + 1].tolist()})[1])["outputs"][0]

    with service(folder, window=0.1) as url, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(12)))
    assert torch.tensor(found).numpy() == pytest.approx(wanted.numpy(), abs=1e-4)


def image(value="0.5", rows=8):
    row = f"[{','.join([value] * 8)}]"
    return f'{{"inputs": [[[{",".join([row] * rows)}]]]}}'.encode()


BAD = {
    "empty": (b"", "not JSON"),
    "list": (b"[1]", "must be a JSON object"),
    "no_inputs": (b"{}", "inputs: missing"),
    "unknown_key": (b'{"inputs": [], "run": "x"}', "unknown key 'run'"),
    "nan": (image("NaN"), "NaN is no number"),
    "infinite": (image("1e999"), "not finite"),
    "too_large_for_float32": (image("1e39"), "not finite"),
    "text": (image('"a"'), "nested lists of numbers"),
    "boolean": (image("true"), "nested lists of numbers"),
    "wrong_shape": (image(rows=7), r"has shape [1, 1, 7, 8]; expected [N, 1, 8, 8]"),
    "no_samples": (b'{"inputs": []}', "expected [N, 1, 8, 8]"),
    "ragged": (b'{"inputs": [[1], [1, 2]]}', "ragged"),
    "deep": (b'{"inputs": ' + b"[" * 50_000, "not JSON"),
    "not_text": (b'{"inputs": "\xff"}', "not JSON"),
    "signal": (image()[:-1] + b', "signals": {"mood": 1}}', "signals: 'mood'"),
}


@pytest.fixture(scope="module")
def url(made):
    with service(made[0], limits=Limits(bytes=100_000, samples=2)) as address:
        yield address


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_run_is_refused_in_one_line_and_the_service_stays_up(url, name):
    body, says = BAD[name]
    status, text, _ = ask(f"{url}/predict", body)
    line = json.loads(text)["error"]
    assert (status, says in line, "\n" in line) == (400, True, False), line
    assert ask(f"{url}/predict", image())[0] == 200


def test_limits_and_unknown_paths(url, made):
    assert ask(f"{url}/predict", b" " * 100_001)[0] == 413
    assert ask(f"{url}/predict", {"inputs": made[1][:3].tolist()})[0] == 400
    assert ask(f"{url}/elsewhere")[0] == 404
    assert ask(f"{url}/predict")[0] == 405


def test_beyond_the_queue_clients_are_asked_to_come_back(made):
    with service(made[0], slow=0.3, queue=1, window=0.0) as url, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: ask(f"{url}/predict", image()), range(6)))
        refused = [headers for status, _, headers in found if status == 503]
        assert refused
        assert {status for status, _, _ in found} == {200, 503}
        assert all(int(headers["Retry-After"]) >= 1 for headers in refused)
        assert ask(f"{url}/predict", image())[0] == 200


def test_a_controller_without_its_signal_refuses_the_request(made):
    with service(made[0], Ladder((Rule("battery", (0.5,)),))) as url:
        status, text, _ = ask(f"{url}/predict", image())
        assert (status, "the signal battery" in text) == (400, True)
        low = image()[:-1] + b', "signals": {"battery": 0.1}}'
        assert json.loads(ask(f"{url}/predict", low)[1])["member"] == 0


def test_the_command_serves_and_ends_well_when_told_to(made):
    command = [sys.executable, "-m", "haq", "serve", str(made[0]), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        line = process.stdout.readline()
        url = line.split(" on ")[1].split(" ")[0]
        assert ask(f"{url}/predict", image())[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
