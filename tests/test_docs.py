"""Every ```python and ```console example of README.md and docs/ runs, in order, one folder a page.

Behind the name `image-tiny` stands the shipped tokenizer, or, in a checkout whose weights were left out, one of the
same shape with random weights. Examples that need a cluster or a download are marked ```text.
"""

import glob
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from mmtok import hub, listing
from mmtok.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
MADE_UP = ("python", "console", "text", "yaml", "")
NAME = "image-tiny"


def blocks(page: Path) -> list[tuple[str, int, str]]:
    """(language, line, text) of the fenced blocks of a page."""
    text = page.read_text()
    return [(m[1], text.count("\n", 0, m.start()) + 2, m[2]) for m in BLOCK.finditer(text)]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> dict:
    """The catalogue entry behind `image-tiny`."""
    entries = hub.catalogue()
    if NAME in entries:
        return entries[NAME]
    from omegaconf import OmegaConf

    from mmtok.training.config_file import read_config_file

    recipe = OmegaConf.create(read_config_file(ROOT / "configs" / "image" / "image_tiny.yaml"))
    tokenizer = hub.build(OmegaConf.to_container(recipe.model.tokenizer, resolve=True))
    folder = hub.save(tokenizer, tmp_path_factory.mktemp("checkpoints") / NAME)
    return {"folder": str(folder), "modality": "image", "summary": "untrained", "licence": "Apache-2.0"}


@pytest.fixture
def place(tmp_path, monkeypatch, stand_in) -> Path:
    """An empty folder with cat.jpg and photos/, in which `image-tiny` loads."""
    data = Path(importlib.util.find_spec("skimage").submodule_search_locations[0]) / "data"
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    for name, target in (
        ("chelsea.png", "cat.jpg"), ("coffee.png", "photos/coffee.jpg"), ("rocket.jpg", "photos/trip/rocket.png"),
    ):  # fmt: skip
        with Image.open(data / name) as image:
            image.resize((180, 120)).save(tmp_path / target)
    monkeypatch.chdir(tmp_path)
    entries = hub.catalogue() | {NAME: stand_in}
    monkeypatch.setattr(hub, "catalogue", lambda: entries)
    monkeypatch.setattr(listing, "catalogue", lambda: entries)
    return tmp_path


def run_command(line: str) -> None:
    """One `mmtok ...` line of a console block."""
    words = [name for word in shlex.split(line, comments=True) for name in sorted(glob.glob(word)) or [word]]
    assert words[0] == "mmtok", f"console examples are mmtok commands, this is {line!r}"
    try:
        code = main(words[1:])
    except SystemExit as stop:
        code = stop.code
    assert not code, f"{line}: exit code {code}"


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_example_runs(page, place, capsys) -> None:
    names: dict = {"__name__": "example"}
    for language, line, text in blocks(page):
        if language == "python":
            # blank lines in front, so that a traceback shows the line of the page
            exec(compile("\n" * (line - 1) + text, page, "exec"), names)
        elif language == "console":
            text = text.replace("\\\n", " ")
            for command in text.splitlines():
                if command.startswith("$ "):
                    run_command(command[2:])


def test_the_usage_page_has_examples_of_both_kinds() -> None:
    languages = [language for language, _, _ in blocks(ROOT / "docs" / "usage.md")]
    assert languages.count("python") >= 5 and languages.count("console") >= 1


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_and_options_on_the_pages_exist(page) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    assert text.count("```") % 2 == 0
    for language, line, block in blocks(page):
        assert language in (*MADE_UP, "bash"), f"{page.name}:{line}: {language}"
        if language in ("bash", "text", ""):
            assert "$ " not in block, f"{page.name}:{line}: a command with a prompt belongs in a console block"
