"""The page and its server, in a real browser and under attack."""

import http.cookiejar
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.read import read_video
from animate_jax.video.write import write_video
from animate_jax.web.page import in_words, play, serving

PICTURE, MOTION = str(EXAMPLE / "reference.png"), str(EXAMPLE / "driving.mp4")
pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=[(signal.SIGINT, 130)])
def server(tmp_path, request):
    """Address, working folder and process of the page, served by a process of its own: the tests' type checks hide
    generators from Gradio."""
    ending, status = request.param
    pytest.importorskip("gradio")
    folder = tmp_path / "server"
    folder.mkdir()
    command = [sys.executable, "-m", "animate_jax", "web", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as process:
        yield process.stdout.readline().split()[0], folder, process
        process.send_signal(ending)
        assert process.wait(60) == status
    assert not list(folder.glob("animate_jax_web_*"))


@pytest.mark.slow
def test_in_a_browser(browser, server, tmp_path):
    """Poses, a video, cancel, a closed tab, hostile uploads, and paths that are none of a visitor's business."""
    address, folder, _ = server
    page = browser.new_page(viewport={"width": 1280, "height": 1150})
    page.goto(address)
    upload(page, PICTURE, MOTION)
    page.get_by_role("button", name="Look at the poses").click()
    page.locator("#poses video").wait_for(timeout=120_000)
    (poses,) = folder.rglob("poses.mp4")
    frames, _ = read_video(poses)
    assert all(half.max() > 128 for half in np.array_split(frames, 2, axis=2))  # detected, retargeted
    page.get_by_label("Speed").click()
    page.get_by_role("option", name="fast", exact=True).click()
    page.get_by_role("button", name="Animate").click()
    wait_for(page, "32 frames in", 300_000)
    page.wait_for_function(PLAYS, timeout=60_000)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    (first,) = folder.rglob("result.mp4")

    steps = page.get_by_label("number input for Steps")
    steps.fill("50")
    page.get_by_role("button", name="Animate").click()
    wait_for(page, "Denoising: ", 120_000)
    page.get_by_role("button", name="Cancel").click()
    wait_for(page, "Cancelled", 60_000)
    assert list(folder.rglob("result.mp4")) == [first]
    page.wait_for_timeout(2000)  # until the page knows, a second click counts as the first
    page.get_by_role("button", name="Animate").click()
    wait_for(page, "Denoising: ", 120_000)
    page.close()

    page = browser.new_page()
    page.goto(address)
    page.locator("table img").first.click()  # the bundled example
    page.locator(".prose video").wait_for(timeout=30_000)
    page.get_by_label("number input for Steps").fill("1")
    page.get_by_role("button", name="Animate").click()  # only a free device serves the next
    wait_for(page, "32 frames in", 100_000)
    assert len({*folder.rglob("result.mp4")} - {first}) == 1  # the one that was left was not finished

    (tmp_path / "evil.mp4").write_bytes(Path("/etc/hostname").read_bytes() + b"\0" * 5000)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{MOTION}'\n")
    write_video(tmp_path / "long.mp4", np.zeros((130, 32, 32, 3), np.uint8), 2)
    refusals = {"evil": "not a readable video", "list": "not a readable video", "long": "more than 60 s"}
    for name, words in refusals.items():
        page.reload()
        upload(page, PICTURE, str(tmp_path / f"{name}.mp4"))
        page.get_by_role("button", name="Animate").click()
        page.get_by_text(words).first.wait_for(timeout=60_000)
        assert "animate_jax_web_" not in page.inner_text("body")

    for secret in ("/etc/hostname", str(Path(__file__)), "/proc/self/environ", "../../etc/hostname"):
        for route in ("gradio_api/file=", "file=", "static/", "assets/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address + route + urllib.parse.quote(secret))
            assert refused.value.code in (400, 403, 404)

    shutil.copy(PICTURE, tmp_path / "private.png")
    shutil.copy(MOTION, tmp_path / "private.mp4")
    (tmp_path / "linked.png").symlink_to(tmp_path / "private.png")
    for picture in ("private.png", "linked.png", "server/../private.png"):
        picture = str(tmp_path / picture)
        for forged in (picture, f"file://{picture}", address + "gradio_api/file=" + picture):
            told = look(address, forged, str(tmp_path / "private.mp4"))
            assert not told["success"] and "data" not in told["output"], (forged, told)
    assert {*folder.rglob("poses.mp4")} <= {poses}  # which went with its tab, if the server has noticed


def upload_file(address, path, **headers):
    """As a program does; where the file lies on the server."""
    body = (
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
        + path.read_bytes()
        + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x", **headers}
    (answer,) = json.load(urllib.request.urlopen(urllib.request.Request(address + "gradio_api/upload", body, headers)))
    return answer


def press(address, button, picture, motion, *more):
    """What the server answers when a visitor's program presses a button after it claims to have uploaded these."""
    config = json.load(urllib.request.urlopen(address + "config"))
    buttons = [part["id"] for part in config["components"] if part["props"].get("value") == button]
    (event,) = (
        each["id"] for each in config["dependencies"] if [buttons[0], "click"] in each["targets"] and each["backend_fn"]
    )
    files = [{"path": path, "url": path, "meta": {"_type": "gradio.FileData"}} for path in (picture, motion)]
    body = {"data": [*files, *more], "fn_index": event, "session_hash": "forged"}
    request = urllib.request.Request(
        address + "gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request)
    with urllib.request.urlopen(address + "gradio_api/queue/data?session_hash=forged", timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data:") and (told := json.loads(line[5:]))["msg"] == "process_completed":
                return told
    raise AssertionError("no answer")


def look(address, picture, motion, frames=2):
    return press(address, "Look at the poses", picture, motion, frames, "largest", "bones", "96 x 128", "auto", "auto")


def animate(address, picture, motion, size, frames, steps, guidance):
    how = frames, "largest", "bones", size, "auto", "auto", steps, guidance, "exact", 0, "auto", "reference"
    return press(address, "Animate", picture, motion, *how)


def most_memory(process):
    """Bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize("server", [(signal.SIGTERM, 143)], indirect=True)
def test_one_visitor_cannot_kill_it(server, tmp_path, keypoints):
    """A canvas like a line, a film in the dark, and large results: each took 4 to 80 GB."""
    address, folder, process = server
    own = set(folder.rglob("*.*"))  # the example
    picture = upload_file(address, Path(PICTURE))
    wide = upload_file(address, Path(keypoints(tmp_path / "wide.json", (999_999, 100), 240)))
    write_video(tmp_path / "black.mp4", itertools.repeat(np.zeros((1080, 1920, 3), np.uint8), 300), 10)
    black = upload_file(address, tmp_path / "black.mp4")
    assert not look(address, picture, wide, 240)["success"] or most_memory(process) < LOADED
    assert "no person found" in look(address, picture, black, 240)["output"]["error"]
    assert most_memory(process) < LOADED
    motion = upload_file(address, Path(MOTION))
    assert not animate(address, picture, motion, "1024 x 1024", 16, 1, 1.0)["success"]
    assert "keep the others waiting" in animate(address, picture, motion, "192 x 256", 240, 50, 8.0)["output"]["error"]
    assert animate(address, picture, motion, "192 x 256", 16, 1, 2.0)["success"]
    assert most_memory(process) < COMPUTING

    (tmp_path / "large.bin").write_bytes(bytes(99_000_000))
    for index in range(5):  # no more than three stay
        (tmp_path / "large.bin").open("r+b").write(bytes([index]))
        upload_file(address, tmp_path / "large.bin")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 310_000_000
    for headers in ({"Origin": "https://evil.org"}, {"Origin": "null"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            upload_file(address, Path(PICTURE), **headers)
    assert upload_file(address, Path(PICTURE), Origin=address.rstrip("/"))
    (tmp_path / "larger.bin").write_bytes(bytes(101_000_000))
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        upload_file(address, tmp_path / "larger.bin")
    assert not list(folder.rglob("larger.bin"))

    assert list(folder.rglob("result.mp4"))
    urllib.request.urlopen(address + "gradio_api/heartbeat/forged").close()  # as a browser's tab
    for _ in range(300):
        if not list(folder.rglob("result.mp4")):
            break
        time.sleep(0.1)
    assert not {file for file in folder.rglob("*.*") if file.suffix != ".bin"} - own


LOADED, COMPUTING = 2.5e9, 3e9  # bytes of the bundled model's page: without, and with the largest result
PLAYS = "(() => { const v = document.querySelector('#result video'); return v && v.currentTime > 0.2; })()"


def upload(page, reference, driving):
    inputs = page.locator("input[type=file]")
    inputs.nth(0).set_input_files(reference)
    inputs.nth(1).set_input_files(driving)
    page.get_by_text(Path(driving).stem).first.wait_for(timeout=30_000)
    page.wait_for_timeout(1500)


def wait_for(page, words, timeout):
    page.wait_for_function(
        "words => document.querySelector('#status textarea').value.includes(words)", arg=words, timeout=timeout
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_password(monkeypatch, micro_params, micro):
    pytest.importorskip("gradio")
    monkeypatch.setenv("ANIMATE_JAX_PASSWORD", "open sesame")
    with serving(Pipeline(micro_params, micro), port=0) as address:
        assert address.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address + "config")
        assert refused.value.code == 401
        for password, right in (("guess", False), ("open sesame", True)):
            visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
            form = urllib.parse.urlencode({"username": "animate", "password": password}).encode()
            if right:
                visitor.open(address + "login", form)
                assert json.load(visitor.open(address + "config"))["title"] == "animate_jax"
            else:
                with pytest.raises(urllib.error.HTTPError, match="400"):
                    visitor.open(address + "login", form)


@pytest.mark.parametrize("password", ["", "open sesame"])
def test_a_page_open_to_the_network_says_so(password, monkeypatch, micro_params, micro, capsys):
    monkeypatch.setenv("ANIMATE_JAX_PASSWORD", password)
    monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace())  # the words come before the page
    with pytest.raises(AttributeError), serving(Pipeline(micro_params, micro), "0.0.0.0"):
        pass
    assert ("ANIMATE_JAX_PASSWORD=... asks" in capsys.readouterr().err) is (not password)


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'animate-jax\[web\]'"), serving(port=0):
        pass


def test_messages_use_the_pages_labels():
    advice = "9% lie outside the picture: try another --align"
    assert (
        in_words(f"{advice}; --steps 0: must be 1, or another detector with --dwpose FOLDER")
        == '9% lie outside the picture: try another "Fit the motion by"; Steps 0: must be 1'
    )
    assert in_words("step--align and --aligned, --compose off") == "step--align and --aligned, --compose off"


def test_an_uploaded_video_gets_a_player():
    pytest.importorskip("gradio")
    shown = play('/made/1/my "dance" <b>.MP4')
    assert shown["visible"]
    assert 'src="gradio_api/file=/made/1/my%20%22dance%22%20%3Cb%3E.MP4"' in shown["value"]
    assert not any(play(path)["visible"] for path in ("/made/1/poses.npy", None))
