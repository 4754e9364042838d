"""Published weights from a hub on this machine to a checkpoint: small random files under the families' true names."""

import dataclasses
import fcntl
import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants, hf_api
from safetensors.torch import save_file

from animate_jax.checkpoints import checkpoint, hub
from animate_jax.commands.weights import main
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model
from animate_jax.presets import find_preset
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.storage import size_text
from animate_jax.torch_weights import fetching, published
from tests.hub_server import ask_here, serving, sha256

pytestmark = pytest.mark.compiles
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def home(server, monkeypatch, tmp_path):
    """Where downloads and checkpoints lie; a token is there."""
    ask_here(monkeypatch, server, tmp_path)
    monkeypatch.setenv("ANIMATE_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetching, "SPARE", 0)
    (tmp_path / "token").write_text("hf_secret")
    return tmp_path


def test_the_page_has_the_table():
    """docs/gpu.md says what the table says: bytes, and every repository at its commit."""
    page = (ROOT / "docs/gpu.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d.]+) GB \| ([\d.]+) GB \|", page, re.M)
    told = {name: (float(download), float(made)) for name, download, made in rows}
    assert told == {
        name: (round(sum(file.bytes for file in set(one.files.values())) / 1e9, 2), round(one.bytes / 1e9, 2))
        for name, one in published.PUBLISHED.items()
    }
    for one in published.PUBLISHED.values():
        for file in one.files.values():
            assert re.search(rf"`{file.repository.name}`.*`{file.repository.revision[:7]}`", page)
            assert len(file.repository.revision) == 40 and len(file.sha256 or "0" * 64) == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", published.PUBLISHED)
def test_the_size_of_a_checkpoint(name):
    """Parameters x 4 bytes; MusePose's own files are float16."""
    one = published.PUBLISHED[name]
    sizes = dict.fromkeys(one.files, 0)
    for path, leaf in abstract_model(find_preset(one.preset).model)[1].items():
        part = checkpoint.part_of(path)
        half = name == "musepose" and part in ("denoising_unet", "reference_unet", "motion_module", "pose_guider")
        if part in sizes:
            sizes[part] += math.prod(leaf.shape) * (2 if half else 4)
    assert sum(sizes.values()) == one.bytes


def place(server, home, name, contents, monkeypatch):
    """Puts files under the true names onto the hub, part by part, and their sizes and hashes into the table."""
    files = {}
    for part, file in published.PUBLISHED[name].files.items():
        folder = server.repositories.setdefault(file.repository.name, home / "server" / file.repository.name)
        lies = folder / file.path
        lies.parent.mkdir(parents=True, exist_ok=True)
        contents(part, lies)
        digest = sha256(lies) if file.sha256 else None
        files[part] = dataclasses.replace(file, bytes=lies.stat().st_size, sha256=digest)
    table = dataclasses.replace(
        published.PUBLISHED[name], files=files, bytes=sum(file.bytes for file in files.values())
    )
    monkeypatch.setitem(published.PUBLISHED, name, table)
    return table


@pytest.fixture
def moore(server, home, moore_directory, torch_parts, monkeypatch, small):
    """The hub's repositories of `moore` with the files of a small model."""

    def contents(part, lies):
        if lies.suffix == ".safetensors":
            save_file(torch_parts[part], lies)
        else:
            torch.save(torch_parts[part], lies)

    monkeypatch.setattr("animate_jax.presets.presets", lambda: {"moore": small, "paper": small})
    return place(server, home, "moore", contents, monkeypatch)


@pytest.fixture
def noise(server, home, monkeypatch):
    """As `moore`, but with files of noise, whose conversion is not tried: a folder stands for the checkpoint."""
    random = np.random.default_rng(0)
    sizes = {"denoising_unet": 400_000}

    def convert(files, target, preset):
        assert all(path.exists() for path in files.values())
        (target / "params").mkdir(parents=True)
        return [], []

    monkeypatch.setattr(fetching, "import_checkpoint", convert)
    return place(
        server, home, "moore", lambda part, lies: lies.write_bytes(random.bytes(sizes.get(part, 1000))), monkeypatch
    )


def on_hub(server, file):
    return server.repositories[file.repository.name] / file.path


def remote(file):
    return hub.look_up(file.repository.name, file.path, file.repository.revision)


def blobs(home):
    """Names of everything that huggingface_hub's cache holds of files."""
    return {file.name for file in (home / "hub").rglob("blobs/*")}


def test_fetched_once(server, home, moore, capsys, torch_parts):
    assert main(["fetch", "moore", "--accept-licenses"]) == 0
    said = capsys.readouterr()
    target = home / "home" / "checkpoints" / "moore"
    assert said.out == f"{target}\n"
    assert said.err.count("asking the hub for") == said.err.count("downloading ") == 6
    for file in moore.files.values():
        assert f"{server.address}/{file.repository.name}: {file.repository.license}" in said.err
    params, preset = checkpoint.load(target)
    assert preset.name == "small"
    np.testing.assert_array_equal(params["vae.quant_conv.bias"], torch_parts["vae"]["quant_conv.bias"].numpy())
    assert blobs(home) == {sha256(on_hub(server, file)) for file in moore.files.values()}
    assert {digest for digest, _ in server.bytes_sent()} == blobs(home) and len(server.bytes_sent()) == 6
    assert all(
        f"/resolve/{file.repository.revision}/" in "".join(path for _, path, _ in server.requests)
        for file in moore.files.values()
    )
    # the token goes to the hub and nowhere else
    assert all(
        headers.get("authorization") == "Bearer hf_secret"
        for _, path, headers in server.requests
        if "/resolve/" in path
    )
    assert not any("authorization" in headers for _, path, headers in server.requests if path.startswith("/cdn/"))
    server.requests.clear()
    assert main(["fetch", "moore"]) == 0  # not asked again either
    assert fetching.find_checkpoint("moore") == target and fetching.is_fetched("moore")
    assert server.requests == []


def test_refused_licenses(server, home, noise, capsys, monkeypatch):
    assert main(["fetch", "moore"]) == 2  # no terminal to ask in
    said = capsys.readouterr().err
    assert "academic research" in said and "animate-jax weights fetch moore --accept-licenses" in said.splitlines()[-1]
    assert server.requests == [] and not fetching.is_fetched("moore")
    with pytest.raises(UserError, match="licenses must be accepted first"):
        fetching.find_checkpoint("moore")
    answers = iter(["no\n", "y\n"])
    monkeypatch.setattr(
        sys, "stdin", type("Terminal", (), {"isatty": lambda _: True, "readline": lambda _: next(answers)})()
    )
    with pytest.raises(UserError, match="not accepted: nothing was downloaded"):
        fetching.fetch("moore")
    assert server.bytes_sent() == []
    fetching.fetch("moore")
    shutil.rmtree(home / "home" / "checkpoints" / "moore")
    fetching.fetch("moore")  # no third answer is wanted
    with pytest.raises(StopIteration):
        next(answers)


def test_a_cut_connection_is_resumed_where_it_was_cut(server, home, noise, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    file = noise.files["denoising_unet"]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    server.cut_after = [100_000, 50_000]
    local = hub.download(remote(file))
    assert sha256(local) == sha256(on_hub(server, file))
    assert [asked for _, asked in server.bytes_sent()] == [None, "bytes=100000-", "bytes=150000-"]
    lines = [record.getMessage() for record in caplog.records if record.name == hub.__name__]
    assert lines.count("patrolli/AnimateAnyone/denoising_unet.pth: interrupted, trying again") == 2


def test_what_another_attempt_left_is_continued(server, home, noise, caplog):
    caplog.set_level(logging.INFO)
    file = noise.files["denoising_unet"]
    found = remote(file)
    whole = on_hub(server, file).read_bytes()
    partial = home / "hub" / f"models--{file.repository.name.replace('/', '--')}" / "blobs" / f"{found.etag}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(whole[:70_000])
    assert hub.bytes_here(found) == 70_000
    assert hub.download(found).read_bytes() == whole
    size = size_text(len(whole))
    name = "patrolli/AnimateAnyone/denoising_unet.pth"
    lines = [record.getMessage() for record in caplog.records if record.name == hub.__name__]
    assert lines == [f"asking the hub for {name}", f"downloading {name}, {size}, 0.07 MB here"]
    assert server.bytes_sent() == [(found.etag, "bytes=70000-")]
    assert blobs(home) == {found.etag}


def test_what_another_version_of_the_repository_has_is_not_downloaded_again(server, home, noise):
    found = remote(noise.files["pose_guider"])
    local = hub.download(found)
    local.unlink()  # the name in this version's folder; the bytes stay
    assert hub.bytes_here(found) == found.bytes
    server.requests.clear()
    assert hub.download(found) == local and server.bytes_sent() == []


def test_two_at_once(server, home, noise):
    found = remote(noise.files["pose_guider"])
    partial = home / "hub/models--patrolli--AnimateAnyone/blobs" / f"{found.etag}.incomplete"
    partial.parent.mkdir(parents=True)
    with partial.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"pose_guider\.pth: another process is downloading it: wait for it$"):
            hub.download(found)
    assert hub.download(found).stat().st_size == found.bytes


def test_damaged_on_the_way(server, home, noise):
    server.damaged = True
    with pytest.raises(UserError, match=r"^patrolli/AnimateAnyone/denoising_unet.pth: damaged on the way \(hash"):
        fetching.fetch("moore", accept_licenses=True)
    assert blobs(home) == set() and not fetching.is_fetched("moore")
    server.damaged = False
    fetching.fetch("moore", accept_licenses=True)


@pytest.mark.parametrize("name", ["motion_module.pth", "pose_guider.pth"])  # whose hash, and whose size is known
def test_another_file_than_the_table_knows(server, home, noise, name):
    (server.repositories["patrolli/AnimateAnyone"] / name).write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{name}: is another file than this .*\(14 bytes, [\d,]+ exp"):
        fetching.fetch("moore", accept_licenses=True)
    assert server.bytes_sent() == [], "noticed before anything is downloaded"


@pytest.mark.parametrize(
    "refusal, message",
    [
        ((401, "RepoNotFound"), "the hub has no such repository, or it is private: check the name, or `hf auth login`"),
        ((401, ""), "the hub has no such repository, or it is private"),
        ((403, "GatedRepo"), "accept its terms on {hub}/stabilityai/sd-vae-ft-mse, then `hf auth"),
        ((404, "RevisionNotFound"), "the hub does not have this version of it any more"),
        ((404, "EntryNotFound"), "the hub has no such file"),
        ((500, ""), "500"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(server, home, noise, capsys, refusal, message):
    server.refused["stabilityai/sd-vae-ft-mse"] = refusal
    assert main(["fetch", "moore", "--accept-licenses"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("animate-jax weights: stabilityai/sd-vae-ft-mse/diffusion_pytorch_model.safetensors: ")
    assert message.format(hub=server.address) in line and "copy its folder moore to" in line
    assert server.bytes_sent() == [], "noticed before anything is downloaded"


def test_without_a_network(server, home, noise, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["fetch", "moore", "--accept-licenses"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "HF_HUB_OFFLINE keeps the hub from being asked" in line
    assert f"weights fetch moore elsewhere and copy its folder moore to {home / 'home/checkpoints/moore'}" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for file in noise.files.values():  # another program has downloaded all
        hub.download(remote(file))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # (the server's commit is not the table's)
    monkeypatch.setattr(
        hub,
        "cached",
        lambda repository, path, _: next(
            (home / "hub").glob(f"models--{repository.replace('/', '--')}/snapshots/*/{path}")
        ),
    )
    server.requests.clear()
    assert main(["fetch", "moore", "--accept-licenses"]) == 0
    assert server.requests == []


def test_a_disk_without_room(server, home, noise, monkeypatch, capsys):
    usage = type("Usage", (), {"free": noise.bytes + 10})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: usage)
    assert main(["fetch", "moore", "--accept-licenses"]) == 2
    assert "GB free: make room, or set HF_HOME" in capsys.readouterr().err.replace("MB", "GB")
    assert server.bytes_sent() == []
    usage.free = 2 * noise.bytes + 10
    assert main(["fetch", "moore", "--accept-licenses"]) == 0


def test_a_disk_that_fills(server, home, noise, monkeypatch):
    def full(url, stream, **_):
        stream.write(b"x" * 10)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(UserError, match=r"denoising_unet.pth: the disk is full: make room in .*hub, or set HF_HOME"):
        fetching.fetch("moore", accept_licenses=True)
    assert not fetching.is_fetched("moore") and not (home / "home" / "checkpoints").exists()


def test_a_slow_server(server, home, noise, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.piece, server.delay = 20_000, 0.01
    file = noise.files["pose_guider"]
    assert hub.download(hub.look_up(file.repository.name, file.path)).stat().st_size == file.bytes


def test_hub_names_of_files_folders_and_directories(server, home, noise, monkeypatch):
    """--directory owner/name, --denoising-unet owner/name/file.pth, --vae owner/name: only what is wanted."""
    from animate_jax.torch_weights.families import find_files
    from animate_jax.torch_weights.read import find_file

    files = find_files("patrolli/AnimateAnyone", "moore")
    assert sorted(files) == ["denoising_unet", "motion_module", "pose_guider", "reference_unet"]
    assert len(server.bytes_sent()) == 4
    assert find_file("patrolli/AnimateAnyone/denoising_unet.pth") == files["denoising_unet"]
    (server.repositories["stabilityai/sd-vae-ft-mse"] / "diffusion_pytorch_model.bin").write_bytes(b"the same")
    assert find_file("stabilityai/sd-vae-ft-mse").name == "diffusion_pytorch_model.safetensors"
    assert len(server.bytes_sent()) == 5
    clip = find_file("lambdalabs/sd-image-variations-diffusers/image_encoder")
    assert (clip.parent.name, clip.name) == ("image_encoder", "pytorch_model.bin")
    with pytest.raises(UserError, match=r"patrolli/AnimateAnyone/other\.pth: the hub has no such file$"):
        find_file("patrolli/AnimateAnyone/other.pth")
    with pytest.raises(UserError, match=r"^nobody/nothing: the hub has no such repository"):
        find_files("nobody/nothing", "moore")
    with pytest.raises(UserError, match=r"^--directory stabilityai/sd-vae-ft-mse: nothing of its family"):
        find_files("stabilityai/sd-vae-ft-mse", "moore")
    server.requests.clear()
    (home / "runs").mkdir()
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match=r"^runs/typo\.pth: no such file$"):
        find_file("runs/typo.pth")
    assert server.requests == [], "a path whose folder is here is no hub name"


def test_checkpoints_on_the_hub(server, home, noise):
    server.repositories["me/mine"] = home / "server" / "mine"
    for name in ("_CHECKPOINT_METADATA", "params/d/0"):
        (server.repositories["me/mine"] / name).parent.mkdir(parents=True, exist_ok=True)
        (server.repositories["me/mine"] / name).write_text(name)
    found = fetching.find_checkpoint("me/mine")
    assert (found / "params/d/0").read_text() == "params/d/0"
    server.requests.clear()
    with pytest.raises(UserError, match=r"^patrolli/AnimateAnyone: holds no checkpoint .*--directory patrolli/"):
        fetching.find_checkpoint("patrolli/AnimateAnyone")
    assert server.bytes_sent() == [], "nothing of its gigabytes"


def test_no_hub_at_all(server, home, noise, monkeypatch):
    from animate_jax.torch_weights.read import find_file

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(UserError, match=r"^patrolli/AnimateAnyone/pose_guider\.pth: not here, and the .*refused"):
        find_file("patrolli/AnimateAnyone/pose_guider.pth")


def test_a_hub_that_does_not_answer(home, noise, monkeypatch, caplog, capsys):
    """It takes the connection and is silent: one line says who is asked, and one, soon, that there was no answer."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = type("Silent", (), {"address": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        ask_here(monkeypatch, server, home)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"denoising_unet\.pth: .*timed out\)\. Without the hub: run animate-jax"):
            fetching.fetch("moore", accept_licenses=True)
        assert "moore is made of" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"^me/mine: .*timed out\): without the hub, copy the checkpoint's folder"):
            fetching.find_checkpoint("me/mine")
        with pytest.raises(UserError, match=r"^me/mine: not here, and the hub could not give it \(timed out\)$"):
            hub.list_files("me/mine")
        assert time.monotonic() - began < 10
    assert [record.getMessage() for record in caplog.records if record.name == hub.__name__] == [
        "asking the hub for patrolli/AnimateAnyone/denoising_unet.pth",
        "asking the hub for me/mine",
        "asking the hub for me/mine",
    ]


def test_what_was_fetched_before_needs_no_hub(server, home, noise, monkeypatch):
    server.repositories["me/mine"] = home / "server" / "mine"
    server.repositories["me/mine"].mkdir()
    (server.repositories["me/mine"] / "_CHECKPOINT_METADATA").write_text("")
    found = hub.fetch("me/mine")
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    assert hub.fetch("me/mine") == found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no hands in any frame")
def test_from_the_hub_to_a_video(server, home, moore):
    fetching._accept({file.repository.name: file.repository.license for file in moore.files.values()}, {}, True)
    animation = Pipeline.from_pretrained("moore")(
        EXAMPLE / "reference.png", EXAMPLE / "driving.mp4", frames=2, progress=False
    )
    assert animation.frames.shape == (2, 64, 64, 3) and animation.frames.std() > 1
    assert len(server.bytes_sent()) == 6


KILLED = """
import sys, pickle
from huggingface_hub import constants
from animate_jax import presets
from animate_jax.torch_weights import fetching, published
small, table = pickle.load(open(sys.argv[1], "rb"))
constants.DOWNLOAD_CHUNK_SIZE = 10_000
presets.presets = lambda: {"moore": small}
published.PUBLISHED["moore"] = table
fetching.SPARE = 0
print(fetching.fetch("moore", accept_licenses=True))
"""


@pytest.mark.slow
def test_killed_and_continued(server, home, moore, small):
    """In processes of their own, by environment variables: killed in the middle of a file, given again."""
    import pickle

    (home / "table").write_bytes(pickle.dumps((small, moore)))
    (home / "killed.py").write_text(KILLED)
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "ANIMATE_JAX_HOME": str(home / "home"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(home / "killed.py"), str(home / "table")]
    first = next(iter(moore.files.values()))
    server.piece, server.delay = 50_000, 0.2
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in (home / "hub").rglob("*.incomplete")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (home / "home" / "checkpoints").exists()
    server.delay = 0.0
    server.requests.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = server.bytes_sent()
    assert asked[0][1] and asked[0][1] != "bytes=0-", "the first file goes on where it was"
    assert len(asked) == 6 and asked[0][0] == sha256(on_hub(server, first))
    checkpoint.load(Path(done.stdout.strip()))
    assert not any(name.endswith(".incomplete") for name in blobs(home))


def test_without_the_package(home, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["fetch", "moore", "--accept-licenses"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install" in line
