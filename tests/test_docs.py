"""What README, CONTRIBUTING.md and docs show runs: snippets, pictures, the site, the links."""

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import families
import pytest
import torch
from support.environment import ROOT

import muomni_fast
from muomni_fast import functional

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
}
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [text for _, kind, text in FENCE.findall(PAGES[page]) if kind == language]


def commands(page: str) -> list[str]:
    """A page's shell snippets, line by line, without comments."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)]


# Where snippets run.


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout after `python reference/train.py --out runs/first`, with the files
    of a published generator beside it. Models are small, and nobody trained them."""
    pytest.importorskip("safetensors")
    pytest.importorskip("soundfile")
    from muomni_fast.reference.checkpoint import save_model

    folder = tmp_path_factory.mktemp("workplace")
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "build", ".git", ".venv"):
            (folder / entry.name).symlink_to(entry)
    checkpoints = folder / "runs" / "first" / "checkpoints"
    checkpoints.mkdir(parents=True)
    vocoder = muomni_fast.reference.HiFiGANVocoder(upsample_initial_channel=16)
    mel = muomni_fast.MelConfig()
    save_model(checkpoints / "rvq.json", "rvq", muomni_fast.reference.RVQ(), mel)
    save_model(checkpoints / "vocoder.json", "vocoder", vocoder, mel)
    talker = muomni_fast.reference.Talker(dim=16, n_layers=1, n_heads=2, speakers=["ada"])
    save_model(checkpoints / "talker.json", "talker", talker, mel)

    published = muomni_fast.reference.HiFiGANVocoder(
        n_mels=80, upsample_initial_channel=16, weight_norm=True
    )
    shape = {k: v for k, v in published.config.items() if k not in ("n_mels", "weight_norm")}
    sound = {"sampling_rate": 22050, "n_fft": 1024, "win_size": 1024, "fmin": 0, "fmax": 8000}
    (folder / "hifigan").mkdir()
    (folder / "hifigan" / "config.json").write_text(
        json.dumps(shape | sound | {"num_mels": 80, "hop_size": published.hop_length})
    )
    torch.save({"generator": published.state_dict()}, folder / "hifigan" / "generator_v2")
    # What commands read that others wrote: each may be run alone.
    if importlib.util.find_spec("typer"):
        for out, *model in (("codes/ada-01.muc", "--model", "runs/first"), ("clip.muc",)):
            speech = "reference/speech/wavs/ada-01.flac"
            in_this_process("-m", "muomni_fast", "encode", speech, "-o", out, *model, cwd=folder)
    return folder


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


# Python snippets: a page's in order, sharing their names.


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_snippets_run(page: str, there: Path) -> None:
    names: dict[str, object] = {"__name__": "snippet"}
    for text in blocks(page, "python"):
        exec(compile(text, page, "exec"), names)
    if page == "README.md":
        import soundfile

        assert (soundfile.info("decoded.wav").frames, soundfile.info("decoded.wav").samplerate) == (
            soundfile.info("reference/speech/wavs/ada-01.flac").frames,
            16000,
        )


# Shell snippets: as they are, or only as far as says whether they would run.


@functools.cache
def output(*command: str, cwd: Path = ROOT, **env: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | env, timeout=300
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@functools.cache
def in_this_process(*words: str, cwd: Path = ROOT, **env: str) -> str:
    """What `python WORDS` prints, without importing torch once more."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(cwd)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", list(words[1:] if words[0] == "-m" else words))
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__")
            else:
                assert Path(words[0]).exists(), words[0]
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{shlex.join(words)} exits with {end.code}\n{said.getvalue()}"
    return said.getvalue()


def as_it_is(words: list[str], env: dict[str, str], folder: Path) -> str:
    return in_this_process(*words[1:], cwd=folder, **env)


def ours(words: list[str], env: dict[str, str], folder: Path) -> str:
    """The installed command."""
    for needed in ("typer", "soxr", "tqdm"):
        pytest.importorskip(needed)
    return in_this_process("-m", "muomni_fast", *words[1:], cwd=folder, **env)


def its_help(words: list[str], env: dict[str, str], folder: Path) -> str:
    """Trains, takes long or needs a GPU: the script's `--help` has every option and choice."""
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    if words[at].startswith("bench/"):
        text = helps_of_benchmarks()[words[at]]
    else:
        text = in_this_process(words[at], "--help")
    for option, value in zip(words[at + 1 :], [*words[at + 2 :], ""], strict=False):
        if option.startswith("--"):
            assert re.search(rf"{option}\b", text), f"{words[at]} has no {option}"
            choices = re.search(rf"{option} \{{(.*?)\}}", text, re.DOTALL)
            assert not choices or value in re.split(r",\s*", choices[1]), f"{option} {value}"
    return text


@functools.cache
def helps_of_benchmarks() -> dict[str, str]:
    """What every script in bench that the pages name says of itself: together in one process that
    does not interpret kernels, as some of them refuse to."""
    scripts = sorted(set(re.findall(r"(?<=python )bench/\w+\.py", "\n".join(COMMANDS))))
    said = output(sys.executable, "-c", HELPS, *scripts, TRITON_INTERPRET="0")
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


HELPS = """
import contextlib, io, json, runpy, sys
sys.path[0], scripts, helps = "bench", sys.argv[1:], {}
for script in scripts:
    sys.argv, said = [script, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{script} --help exits with {end.code}"
    helps[script] = said.getvalue()
print(json.dumps(helps))
"""


def dry_run(words: list[str], env: dict[str, str], folder: Path) -> str:
    """`make -n`: there is such a target, and what it needs."""
    return output("make", "-n", *words[1:])


def extras(words: list[str], env: dict[str, str], folder: Path) -> str:
    """Installs: the files are there, and pyproject.toml has the extras."""
    options = output(sys.executable, "-m", "pip", "install", "--help")
    for word in words[2:]:
        named = re.fullmatch(r"\.\[([\w,]+)\]", word)
        if named:
            for extra in named[1].split(","):
                assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M)
        else:
            assert word in options or (ROOT / word).exists(), word
    return options


def files_of_tests(words: list[str], env: dict[str, str], folder: Path) -> str:
    """Tests run elsewhere: the files are there, and hold what `-k` looks for."""
    path = ROOT / words[1]
    assert path.exists(), path
    if "-k" in words:
        assert words[words.index("-k") + 1] in path.read_text()
    return ""


# How a command is run, by what it begins with; the longest beginning counts.
RULES: dict[str, Callable[[list[str], dict[str, str], Path], str]] = {
    "python -m muomni_fast": as_it_is,
    "muomni-fast": ours,
    "python examples/": as_it_is,
    "python docs/pictures/make_pictures.py": as_it_is,
    "python reference/train.py": its_help,
    "python reference/evaluate.py": its_help,
    "python reference/speech/make_speech.py": its_help,
    "python bench/": its_help,
    "torchrun --nproc_per_node=4 reference/train.py": its_help,
    "make": dry_run,
    "pip install": extras,
    "pytest": files_of_tests,
}


def run(command: str, folder: Path) -> str:
    words = [word.removeprefix(".venv/bin/") for word in shlex.split(command, comments=True)]
    env = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, value = words.pop(0).split("=", 1)
        env[name] = value
    fitting = [start for start in RULES if " ".join(words).startswith(start)]
    assert fitting, f"no rule says how to run `{command}`"
    return RULES[max(fitting, key=len)](words, env, folder)


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, workplace: Path) -> None:
    run(command, workplace)


def test_what_would_not_run_is_caught(workplace: Path) -> None:
    for wrong in (
        "curl https://example.org | sh",  # no rule
        "make no-such-target",
        "python reference/train.py --no-such-option",
        "python reference/train.py --preset no-such-preset",
        'pip install -e ".[no_such_extra]"',
        'pip install -e ".[train,no_such_extra]"',
        "pytest tests/no_such_file.py",
        "pytest tests/test_docs.py -k no_such_" + "test",
        "python examples/no_such_example.py",
    ):
        with pytest.raises(AssertionError):
            run(wrong, workplace)


def test_every_rule_is_needed_and_every_block_has_one() -> None:
    joined = "\n".join(COMMANDS).replace(".venv/bin/", "")
    assert all(start in joined for start in RULES)
    heads = {start.split()[0] for start in RULES} | {"import", "$"}
    for page in PAGES:
        for _, kind, text in FENCE.findall(PAGES[page]):
            assert kind in ("python", "sh", ""), f"{page}: a block of {kind!r} is not run"
            if not kind:  # a diagram, or output
                assert not heads & {line.split()[0] for line in text.splitlines() if line.strip()}


# Examples.


def test_examples_do_what_they_say(workplace: Path) -> None:
    import soundfile

    said = run("python examples/encode_decode.py", workplace)
    assert "3.99 s of audio -> 250 x 8 codes" in said
    assert soundfile.info(workplace / "decoded.wav").duration == pytest.approx(3.986, abs=1e-3)
    said = run("python examples/stream.py", workplace)
    assert "no weights given" in said and "6 frames = 96 ms" in said
    assert float(re.findall(r"whole mel's audio: (\S+)", said)[0]) < 1e-5
    said = run("python examples/serve_lengths.py", workplace)
    assert said.count("difference from running alone") == 4


@pytest.mark.parametrize("name", ["encode_decode", "stream", "serve_lengths"])
def test_examples_take_a_run(name: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if name == "serve_lengths" else ["--out", f"{name}.wav"]
    runpy.run_path(f"examples/{name}.py")["main"](["--run", "runs/first", *out])
    assert "random" not in capsys.readouterr().out
    assert not out or Path(out[1]).stat().st_size > 44


def test_there_are_three_examples() -> None:
    assert {p.stem for p in (ROOT / "examples").glob("*.py")} == {
        "encode_decode",
        "serve_lengths",
        "stream",
    }


# Pages.


def test_readme_is_one_screen_of_facts() -> None:
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 120
    lines = blocks("README.md", "python")[0].splitlines()
    assert len([line for line in lines if line]) == 10
    assert "not yet measured" in text


def test_pages_have_no_blanks_and_no_paths_of_a_machine() -> None:
    for name, text in {**PAGES, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text()}.items():
        assert not re.findall(r"@[A-Z_]+@", text), name
        assert not re.findall(r"(?<![\w.])/(?:work|root|home|tmp)\b", text), name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", PAGES[page])
    assert targets
    for target, anchor in targets:
        assert (ROOT / target).exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", (ROOT / target).read_text(), re.M)
            assert anchor in [re.sub(r"\W+", "-", title.lower()) for title in titles]


def test_files_that_pages_name_are_there() -> None:
    """Paths from the repository's root; not patterns, nor what a run leaves."""
    for page, text in PAGES.items():
        for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text):
            folder = path.split("/")[0]
            if folder in ("audio", "checkpoints", "runs", "build") or page == "docs/results.md":
                continue
            places = [ROOT, ROOT / "kernels", ROOT / "reference", ROOT / "tests"]
            assert any((place / path).exists() for place in places), f"{page}: {path}"


def test_figures_of_families_are_those_that_were_measured() -> None:
    """A page has its rows as `bench/families.py` prints them, the overview their times."""
    lines = json.loads((ROOT / "bench/results/families-cpu.json").read_text())["lines"]
    rows = [families.row_of(line) for line in lines]
    found = [
        row
        for page in sorted(DOCS.glob("families/*.md"))
        for row in page.read_text().splitlines()
        if re.match(rf"\| ({'|'.join(re.escape(line['family']) for line in lines)}) \|", row)
    ]
    assert sorted(found) == sorted(rows)
    for line in {line["family"]: line for line in reversed(lines)}.values():  # the first of each
        pairs = [line["ms"]] + ([line["whole"]["ms"]] if "whole" in line else [])
        times = [f"{theirs / ours:.2f}" for theirs, ours in pairs]
        start = f"| [{line['family']}](families/"
        (row,) = (row for row in PAGES["docs/families.md"].splitlines() if row.startswith(start))
        assert [cell.strip() for cell in row.split("|")[3:-1]] == [*times, ""][:2]


def test_every_fault_has_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGES["docs/faults.md"], re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 48))
    for number, row in rows:
        fault, result, shown = row.split(" | ")
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
        assert fault and result and tests and len(tests) == shown.count("`") // 2, number
        for path, name in tests:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{number}: {path}::{name}"
            before = shown[: shown.index(f"{path}::{name}")]
            assert ("GPU" in before) == path.endswith("test_gpu.py"), f"{number}: {name}"


def test_version_and_date_agree() -> None:
    """The changelog begins with this version, which is `.dev0` until it is released; the citation
    is of the last release."""
    changelog, citation = ((ROOT / name).read_text() for name in ("CHANGELOG.md", "CITATION.cff"))
    headings = re.findall(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.M)
    assert len(headings) == len(re.findall(r"^## ", changelog, re.M))
    (version, when), *_ = headings
    assert muomni_fast.__version__ == version + (".dev0" if when == "unreleased" else "")
    releases = [heading for heading in headings if heading[1] != "unreleased"]
    assert releases == headings[-len(releases) :]  # nothing unreleased is older
    numbers = [tuple(map(int, heading[0].split("."))) for heading in headings]
    assert numbers == sorted(set(numbers), reverse=True)
    (latest, date), *_ = releases
    assert f"\nversion: {latest}\n" in citation and f"date-released: {date}\n" in citation


# Pictures.


def test_pictures_are_what_their_script_draws(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    in_this_process("docs/pictures/make_pictures.py", str(tmp_path))
    names = {path.name for path in (DOCS / "pictures").iterdir() if path.suffix in (".svg", ".png")}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert names == {"rvq-encode.svg", "rvq-encode.png", "mrf.svg", "mrf.png"}
    pinned = re.search(r"^matplotlib==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    if pinned and matplotlib.__version__ == pinned[1]:
        for name in ("rvq-encode.svg", "mrf.svg"):
            assert (tmp_path / name).read_text() == (DOCS / "pictures" / name).read_text(), name


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    output(*build, NO_MKDOCS_2_WARNING="1")
    return folder


def text_of(page: Path) -> str:
    """Without tags, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page.read_text()))


@pytest.mark.long
def test_the_site_documents_all_that_is_public(site: Path) -> None:
    """Each name has its place in the reference, with the docstring that Python sees."""
    text, source = text_of(site / "api.html"), PAGES["docs/api.md"]
    names = [f"muomni_fast.{name}" for name in muomni_fast.__all__ if name != "functional"]
    names += [f"muomni_fast.functional.{name}" for name in functional.__all__]
    for name in names:
        assert f"::: {name}\n" in source, name
        thing = functools.reduce(getattr, name.split(".")[1:], muomni_fast)
        if isinstance(thing, Path):  # has the docstring of paths, not its own
            assert "MODEL_CARD.md" in text
            continue
        first = re.split(r"[.:`<'(]", thing.__doc__.strip())[0]
        assert re.sub(r"\s+", " ", first).strip() in text, name


@pytest.mark.long
def test_the_site_fetches_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]*)", page.read_text()
        )
        assert not fetched, page.name
