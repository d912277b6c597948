"""Two processes that share the utterances report what one process reports: means, failures by name, clips."""

import json

import pytest
from codec_toy import evaluate_share


def test_two_processes_equal_one(processes, tmp_path):
    evaluate_share(0, 1, None, tmp_path / "one")
    files = [tmp_path / f"two{rank}" for rank in (0, 1)]
    started = [
        processes.start(evaluate_share, rank, 2, tmp_path / "rendezvous", file) for rank, file in enumerate(files)
    ]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    one, *two = (json.loads(path.read_text()) for path in (tmp_path / "one", *files))
    assert one["utterances"] == 4 and one["skipped"] == 1 and len(one["clips"]) == 2
    assert {"metric": "stoi of 1 codebook", "utterance": "quiet", "reason": "the original is silent"} in one["failures"]
    for other in two:  # both hold the global numbers
        for key in ("utterances", "skipped", "failures", "clips", "notes", "audio_seconds"):
            assert other[key] == pytest.approx(one[key]) if isinstance(one[key], float) else other[key] == one[key]
        for a, b in zip([one["original"], *one["lengths"], *one["anchors"]],
                        [other["original"], *other["lengths"], *other["anchors"]], strict=True):
            assert a["label"] == b["label"] and b["values"] == pytest.approx(a["values"], rel=1e-9)
