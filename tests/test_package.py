"""What `import muomni_fast` needs and gives, and how it says what will run."""

import ast
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.environment import ROOT

import muomni_fast
from muomni_fast import BackendUnavailableError, functional, reference

OPS = ("rvq_encode", "rvq_decode", "rvq_quantize", "code_sums", "mrf", "generator", "talker_sample")
OPTIONAL = ("triton", "librosa", "soundfile", "soxr", "safetensors", "matplotlib", "tqdm", "faiss")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | env
    )


def without(*packages: str) -> str:
    """Code that makes packages look absent."""
    return f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"


@pytest.mark.long
def test_imports_and_runs_with_torch_and_numpy_only():
    code = """
import torch, muomni_fast as m, muomni_fast.kernels
codec = m.SpeechCodec(m.RVQ(), m.HiFiGANVocoder(upsample_initial_channel=16), m.MelConfig())
assert codec.decode(codec.encode(torch.randn(1, 512))).shape == (1, 512)
assert m.GriffinLimVocoder(n_iter=1).mel_to_audio(torch.zeros(128, 3)).shape == (768,)
m.MRF(8, (3,), ((1,),))(torch.randn(1, 8, 5)); m.MultiPeriodDiscriminator; m.MultiScaleDiscriminator
"""
    done = python(without(*OPTIONAL) + code)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_importing_us_draws_no_random_numbers():
    """A seed set before the import gives the weights that it gives without it."""
    code = "import torch\ntorch.manual_seed(0)\nbefore = torch.get_rng_state()\n"
    done = python(code + "import muomni_fast\nassert torch.equal(before, torch.get_rng_state())")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_triton_is_not_imported_by_importing_us():
    done = python("import sys, muomni_fast, muomni_fast.kernels; print('triton' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", ["RVQ", "HiFiGANVocoder", "MRF", "ResBlock", "NeuralVocoder"])
def test_modules_subclass_the_reference(name):
    assert issubclass(getattr(muomni_fast, name), getattr(reference, name))


def test_everything_public_is_documented():
    for name in muomni_fast.__all__:
        assert (getattr(muomni_fast, name).__doc__ or "").strip(), name
    for name in functional.__all__:
        assert "Args:" in getattr(functional, name).__doc__, name


def test_one_direction_of_imports():
    """kernels import nothing of ours, the reference no triton."""
    for folder, banned in (("kernels", ("muomni_fast", "reference")), ("reference", ("triton",))):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(n.split(".")[0] in banned for n in names), path


def test_no_module_shadows_the_standard_library():
    for folder in ("reference", "bench", "kernels"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.stem not in sys.stdlib_module_names, path


@pytest.mark.long
def test_doctor_names_every_operation_and_why():
    report = json.loads(
        subprocess.run(
            [sys.executable, "-m", "muomni_fast", "doctor"], capture_output=True, text=True
        ).stdout
    )
    assert report == json.loads(json.dumps(muomni_fast.doctor()))
    assert report["torch"] == torch.__version__
    assert tuple(report["operations"]) == OPS
    for op, devices in report["operations"].items():
        why = "torch path, because the tensors are not on a CUDA device"
        assert devices["cpu"] == f"{op}: {why}"


def test_explain_and_forced_backends(monkeypatch):
    mel = torch.randn(3, 128)
    assert "torch path" in muomni_fast.explain("rvq_encode", mel)
    with pytest.raises(ValueError, match="'fft'"):
        muomni_fast.explain("fft")
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "torch")
    assert "MUOMNI_FAST_BACKEND=torch" in muomni_fast.explain("rvq_encode", mel)
    rvq = muomni_fast.RVQ()
    codes = rvq.encode(mel)
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    generator = muomni_fast.HiFiGANVocoder(upsample_initial_channel=16)
    block, mrf = muomni_fast.ResBlock(4, 3, (1,)), muomni_fast.MRF(4, (3,), ((1,),))
    x, frames = torch.randn(1, 4, 5), torch.randn(1, 128, 3)
    for call in (
        lambda: rvq.double()(mel),
        lambda: generator.double()(frames.double()),
        lambda: block.double()(x.double()),
        lambda: mrf.double()(x.double()),
    ):
        with pytest.raises(BackendUnavailableError, match="kernels do not take float64"):
            call()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "cannot run" in muomni_fast.explain("rvq_encode", mel)
    assert "cannot run" in muomni_fast.explain("generator", frames)
    for module in (rvq, generator, block, mrf):
        module.float()
    for call in (
        lambda: rvq.encode(mel),
        lambda: rvq(mel),
        lambda: rvq.decode(codes),
        lambda: generator(frames),
        lambda: generator.eval().prepare(),
        lambda: block(x),
        lambda: mrf(x),
    ):
        with pytest.raises(BackendUnavailableError, match="tensors are not on a CUDA device"):
            call()
    with pytest.raises(BackendUnavailableError, match="; TRITON_INTERPRET=1 interprets kernels"):
        rvq.encode(mel)
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "cuda")
    with pytest.raises(ValueError, match="auto, triton, torch, got 'cuda'"):
        rvq.encode(mel)
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "")
    assert torch.equal(rvq.encode(mel), codes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors are on the CPU by default")
def test_explain_without_tensors_is_for_the_default_device():
    for op in OPS:
        assert "not on a CUDA device" in muomni_fast.explain(op)


def command_line(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muomni_fast", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )


@pytest.mark.long
def test_command_line():
    assert command_line("--version").stdout == f"{muomni_fast.__version__}\n"
    assert muomni_fast.__version__ == muomni_fast.doctor()["muomni_fast"]
    wrong = command_line("doctor", MUOMNI_FAST_BACKEND="cuda")
    assert wrong.returncode == 2 and wrong.stderr.endswith("triton, torch, got 'cuda'\n")
    assert "Traceback" not in wrong.stderr


def test_what_is_not_a_tensor_is_refused_by_name():
    rvq, frames = muomni_fast.RVQ(), np.zeros((3, 128), np.float32)
    vocoder = muomni_fast.HiFiGANVocoder(upsample_initial_channel=16)
    for name, call in (
        ("mel", lambda: rvq.encode(frames)),
        ("mel", lambda: rvq(frames)),
        ("codes", lambda: rvq.decode([[1, 2]])),
        ("codebooks", lambda: functional.rvq_encode(torch.zeros(3, 64), [frames[:, :64]])),
        ("mel", lambda: vocoder(frames[None])),
        ("x", lambda: muomni_fast.ResBlock(8, 3, (1,))(frames)),
    ):
        with pytest.raises(TypeError, match=rf"{name}(\[0\])?: expected a torch.Tensor, got "):
            call()
    with pytest.raises(ValueError, match="resblocks: expected at least one"):
        functional.mrf(torch.zeros(1, 8, 3), [])


# What a machine that is there for its GPU need not have.
OPTIONAL = "faiss librosa matplotlib pytest_benchmark safetensors soundfile soxr tqdm transformers"


@pytest.mark.long
def test_gpu_tests_are_found_without_optional_packages(tmp_path):
    blocker = f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL.split()}))\n"
    (tmp_path / "without_optional.py").write_text(blocker)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    plugins = "-p", "without_optional", "-p", "no:cacheprovider"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", *plugins, "tests"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 0, done.stdout
    for name in ("rvq/test_gpu.py::", "vocoder/test_gpu.py::"):
        assert name in done.stdout


@pytest.mark.parametrize("lib", [muomni_fast, reference], ids=lambda lib: lib.__name__)
def test_public_classes_pickle_under_their_public_names(lib):
    for name in lib.__all__:
        public = getattr(lib, name)
        if isinstance(public, type) and not issubclass(public, Exception):
            assert public.__module__ in ("muomni_fast", "muomni_fast.reference"), name
            assert pickle.loads(pickle.dumps(public)) is public
    rvq = pickle.loads(pickle.dumps(lib.RVQ()))
    assert type(rvq) is lib.RVQ


@pytest.mark.parametrize("former", ["data", "trainer"])
def test_documented_modules_stay_importable(former):
    pytest.importorskip("tqdm")
    moved = importlib.import_module(f"muomni_fast.reference.training.{former}")
    name = {"data": "SpeechDataset", "trainer": "Trainer"}[former]
    found = importlib.import_module(f"muomni_fast.reference.{former}")
    assert getattr(found, name) is getattr(moved, name)


@pytest.mark.long
def test_train_without_an_install_says_what_to_run():
    script = str(ROOT / "reference" / "train.py")
    done = subprocess.run([sys.executable, "-S", script], capture_output=True, text=True)
    assert done.returncode == 1 and "run `make train`" in done.stderr
    assert "Traceback" not in done.stderr


def test_train_without_the_repositorys_speech_asks_for_data(monkeypatch, tmp_path, capsys):
    from muomni_fast.reference import train
    from muomni_fast.reference.training import run

    monkeypatch.setattr(run, "SHIPPED_SPEECH", tmp_path / "speech")
    assert train.main(["--preset", "smoke", "--out", str(tmp_path / "run")]) == 1
    assert "the repository only; give other --data" in capsys.readouterr().err


@pytest.mark.long
def test_a_wheel_holds_everything(tmp_path):
    """Every module and table, without this repository."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("muomni_fast", "kernels", "reference"):
        shutil.copytree(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True, cwd=tmp_path)
    shutil.rmtree(source)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        cwd=target,
        env=os.environ | {"PYTHONPATH": str(target)},
    )
    assert done.returncode == 0, done.stderr
    folders = {"muomni_fast": "", "kernels": ".kernels", "reference": ".reference"}
    modules = {
        f"muomni_fast{package}." + ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
        for folder, package in folders.items()
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "speech"
    }
    assert modules <= set(done.stdout.split())


IMPORT_ALL = """
import importlib, pathlib, pkgutil, muomni_fast
here = pathlib.Path.cwd()
names = [module.name for module in pkgutil.walk_packages(muomni_fast.__path__, "muomni_fast.")]
for name in names:
    if name not in ("muomni_fast.__main__", "muomni_fast.reference.train"):
        module = importlib.import_module(name)
        assert pathlib.Path(module.__file__).is_relative_to(here), module.__file__
print(*names)
"""
