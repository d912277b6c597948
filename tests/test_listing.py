"""`mmtok list` shows everything there is, each with a line that says what it is."""

from pathlib import Path

from mmtok import listing

CONFIGS = Path(__file__).parents[1] / "configs"


def test_every_recipe_is_listed_with_a_summary() -> None:
    found = listing.recipes()
    below = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert set(found) == {name for name in below if not name.startswith("base/")}
    assert "demo/image" in found
    for name, summary in found.items():
        assert len(summary) > 10, f"configs/{name}.yaml: the first line should be a comment that says what it is"
        assert listing.config_path(name).is_file()


def test_the_listing_names_tokenizers_and_recipes(monkeypatch, capsys) -> None:
    entry = {"folder": "x", "modality": "image", "summary": "a small one", "licence": "MIT"}
    monkeypatch.setattr(listing, "catalogue", lambda: {"some-name": entry})
    listing.print_listing()
    out = capsys.readouterr().out
    assert "some-name" in out and "a small one" in out and "[MIT]" in out
    assert all(name in out for name in listing.recipes())
