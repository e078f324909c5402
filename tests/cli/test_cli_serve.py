"""poise serve in a process of its own: what it prints, how it stops, its memory; and what it refuses."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from cli_cases import MODEL, data, environment, poise

from poise import defenses
from poise.models import load
from poise.types import Outputs

POISE = Path(sys.executable).with_name("poise")

NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}


class Served:
    """The process, and the lines it printed until it served."""

    def __init__(self, *words: object, **more: str) -> None:
        self.process = subprocess.Popen(
            [POISE, "serve", *map(str, words), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment(), "OMP_NUM_THREADS": "1", **more},
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(3)]
        self.told = dict(line.rstrip("\n").split(None, 1) for line in lines if line)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.told["address"]).netloc, timeout=20)

    def stop(self, how: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err

    def memory(self) -> int:
        """Resident bytes."""
        statm = Path(f"/proc/{self.process.pid}/statm")
        if statm.exists():
            return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, check=True)
        return int(shown.stdout) * 1024


@contextmanager
def serving(*words: object, **more: str) -> Iterator[Served]:
    served = Served(*words, **more)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.communicate(timeout=30)


def get(served: Served, path: str, **headers: str) -> tuple[int, dict[str, object]]:
    with closing(served.connect()) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def npy(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, images)
    return stream.getvalue()


def post(connection: http.client.HTTPConnection, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection.request("POST", "/predict", body, {**NPY, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture(scope="module")
def defence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = torch.arange(200) % 4
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    fitted = defenses.TemperatureScaling().fit(4 * (noise + torch.nn.functional.one_hot(labels, 4)), labels)
    file = tmp_path_factory.mktemp("defence") / "mine.safetensors"
    defenses.save(fitted, file)
    return file


@pytest.fixture(scope="module")
def server(defence: Path) -> Iterator[Served]:
    words = ["--model", MODEL, "--defense", defence, "--data", data(), "--outputs", "probabilities"]
    with serving(*words, "--max-body-mb", "0.1", "--batch-size", "32") as served:
        yield served
        code, out, err = served.stop(signal.SIGTERM)
        assert (code, out, err) == (0, "", ""), "a terminated server has done its work"


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, 1, 6, 6), dtype=np.float32)


def test_it_says_what_it_serves_and_where_and_how_to_audit_it(server: Served) -> None:
    assert server.told["serving"] == "py:linear behind mine.safetensors: 4 classes, probabilities"
    address = server.told["address"]
    assert address.startswith("http://127.0.0.1:")
    assert shlex.split(server.told["audit"]) == ["poise", "audit", "--model", address, "--data", data()]
    status, told = get(server, "/metadata")
    assert status == 200
    assert (told["model"], told["shape"], told["max_batch"]) == ("py:linear", [1, 6, 6], 32)


def test_it_answers_with_the_defended_model(server: Served, defence: Path) -> None:
    sent = images(20)
    with closing(server.connect()) as connection:
        status, body = post(connection, npy(sent))
    bare = load(MODEL).query(torch.from_numpy(sent), torch.arange(20)).scores
    wanted = Outputs(defenses.load(defence)(bare)).probabilities.detach().numpy()
    assert status == 200
    assert np.abs(np.load(io.BytesIO(body)) - wanted).max() < 1e-6


def test_memory_is_steady_over_2000_requests(server: Served) -> None:
    """Good and bad ones, of changing size, on connections that stay and connections that go."""
    bodies = [npy(images(n)) for n in (1, 7, 32)] + [b"rubbish", npy(images(33)), npy(images(700))]
    wanted = [200, 200, 200, 400, 413, 413]

    def work(times: int) -> None:
        with closing(server.connect()) as connection:
            for turn in range(times):
                if turn % 50 == 0:
                    connection.close()
                at = turn % len(bodies)
                assert post(connection, bodies[at])[0] == wanted[at]

    def all_at_once(times: int) -> int:
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                work(times)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        return server.memory()

    before = all_at_once(100)
    after = all_at_once(500)
    assert after - before < 2**22, f"{(after - before) / 2**20:.1f} MiB more"


def test_the_first_signal_stops_it(defence: Path) -> None:
    with serving("--model", MODEL, "--token-env", "POISE_TEST_TOKEN", POISE_TEST_TOKEN="s3cret-of-the-test") as served:
        told = shlex.split(served.told["audit"])
        assert told[3] == f"{served.told['address']}?token_env=POISE_TEST_TOKEN"
        assert told[4:] == ["--data", "DATA"]
        assert get(served, "/metadata")[0] == 401
        status, told_of = get(served, "/metadata", Authorization="Bearer s3cret-of-the-test")
        assert (status, told_of["shape"]) == (200, None)
        sent, token = npy(np.ones((1, 1, 5, 5), "f4")), {"Authorization": "Bearer s3cret-of-the-test"}
        with closing(served.connect()) as connection:
            status, body = post(connection, sent, **token)
            assert (status, b"does not answer images of shape (1, 5, 5)" in body) == (422, True)
            code, out, err = served.stop(signal.SIGINT)
    assert (code, out) == (130, "")
    assert err.count("\n") == 1
    assert err.startswith("warning: the model failed on images of shape (1, 5, 5): RuntimeError: ")
    assert "s3cret" not in str(served.told) + out + err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "host: must be a loopback address, or be given with --token-env or --public"),
        (["--host", "no such host"], "host: must be a name or an address of this machine, got 'no such host'"),
        (["--port", "70000"], r"port: must be in 0..65535, got 70000"),
        (["--port", "x"], "(?i)invalid value for '?--port"),
        (["--outputs", "labels"], "outputs: must be logits or probabilities, got 'labels'"),
        (["--token-env", "POISE_NOT_SET"], "the environment variable must hold a token, got none in 'POISE_NOT_SET'"),
        (["--token-env", "POISE_ODD"], "token: must be printable ASCII text"),
        (["--batch-size", "0"], "batch-size: must be at least 1, got 0"),
        (["--max-body-mb", "0"], "max-body-mb: must be positive and below a million, got 0"),
        (["--max-body-mb", "nan"], "max-body-mb: must be positive and below a million, got nan"),
        (["--max-body-mb", "0.001", "--data", "DATA"], r"must hold one image of shape \(1, 6, 6\), 1168 b.* got 1000"),
        (["--max-wait-ms", "-1"], "wait_seconds must be positive, got -0.001"),
        (["--defense", "none.safetensors"], "none.safetensors' must be a file, got nothing there"),
        (["--model", "keras:x"], "keras"),
        (["--data", "csv:x"], "csv"),
        (["extra"], "unexpected extra argument"),
    ],
)  # fmt: skip
def test_what_it_refuses_is_one_line(words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_ODD", "sécret")
    monkeypatch.setattr("poise.serve.run", None)
    given = [data() if word == "DATA" else word for word in words]
    done = poise("serve", *([] if "--model" in words else ["--model", MODEL]), *given)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert done.err.startswith("poise: error: ")
    assert re.search(told, done.err), done.err
    assert "cret" not in done.err


def test_a_taken_port_is_one_line(server: Served) -> None:
    port = urlsplit(server.told["address"]).port
    done = poise("serve", "--model", MODEL, "--port", port)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"poise: error: host, port: must be free to listen at, got '127.0.0.1', {port} (Address")
    assert done.err.count("\n") == 1


def test_an_open_host_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.serve.run", lambda app, listening: False)
    done = poise("serve", "--model", MODEL, "--port", "0", "--host", "0.0.0.0", "--public")
    assert done.code == 0
    assert done.err == "warning: other machines reach 0.0.0.0, and no token is asked for\n"
    monkeypatch.setenv("POISE_TEST_TOKEN", "s3cret")
    done = poise("serve", "--model", MODEL, "--port", "0", "--host", "0.0.0.0", "--token-env", "POISE_TEST_TOKEN")
    assert (done.code, done.err) == (0, "")
    assert "s3cret" not in done.out


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("poise.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = poise("serve", "--model", MODEL)
    assert (done.code, done.err) == (
        2,
        "poise: error: poise serve needs the extra 'serve': pip install 'poise[serve]'\n",
    )
