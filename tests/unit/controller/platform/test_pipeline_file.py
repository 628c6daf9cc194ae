"""Reading an LLMPipeline from YAML: what is taken, and on which line what is wrong is said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from controller.platform import pipeline_file
from controller.platform.llm_pipeline import PipelineFileError
from controller.platform.pipeline_file import parse_text, read_pipeline

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "apiVersion: midstream.dev/v1alpha1\nkind: LLMPipeline\nmetadata: {name: smollm}\n"


def test_the_default_is_the_built_in_model_in_two_stages():
    default = read_pipeline(None)
    assert (default.name, default.layout_text(30)) == ("default", "15,15")
    assert default.spec.model.id is default.spec.model.path is None


def test_one_llmpipeline_among_other_objects_is_taken(tmp_path: Path):
    file = tmp_path / "all.yaml"
    file.write_text(f"---\nkind: Service\nx: &a 1\ny: *a\n---\n{HEAD}spec:\n  auto: {{stages: 3}}\n---\n")
    assert read_pipeline(file).layout_text(30) == "10,10,10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: empty; write an LLMPipeline"),
        ("a: b: c", "f.yaml:1: not YAML: mapping values are not allowed here"),
        ("a: [1\nb: 2", "f.yaml:2: not YAML: "),
        ("a: \x01", "f.yaml: not YAML: unacceptable character"),
        ("[" * 5000, "f.yaml: nested too deeply"),
        (f"{HEAD}kind: LLMPipeline\n", "f.yaml:4: 'kind' is given twice; remove one of them"),
        (f"{HEAD}spec:\n  auto: {{stages: 1, stages: 2}}\n", "f.yaml:5: 'stages' is given twice"),
        ("a: &x 1\nb: *x\n", "f.yaml:2: an alias (*); write it out"),
        ("? [a]\n: b\n", "f.yaml:1: a key must be a word"),
        ("<<: {a: 1}\n", "f.yaml:1: a key must be a word"),
        (
            "a: !!python/object/apply:os.system [x]",
            "f.yaml:1: tag:yaml.org,2002:python/object/apply:os.system is no tag",
        ),
        (f"a: !!python/name:os.system\n{HEAD}", "f.yaml:1: cannot read ''"),
        ("a: 2020-99-99", "f.yaml:1: cannot read '2020-99-99'"),
        ("kind: A\n---\nkind: B", "f.yaml: no document is of kind LLMPipeline; there must be exactly one"),
        (f"{HEAD}---\n{HEAD}", "f.yaml: 2 of its documents are of kind LLMPipeline (line 1, line 5)"),
        ("- 1", "f.yaml:1: [1] is not a mapping of fields"),
    ],
)
def test_a_text_that_holds_no_single_llmpipeline_is_refused_with_the_line(text: str, message: str):
    with pytest.raises(PipelineFileError) as refusal:
        parse_text(text, "f.yaml")
    assert message in str(refusal.value)


def test_every_broken_rule_is_told_with_its_line():
    text = f"{HEAD}spec:\n  stages:\n  - layers: 15\n  - layers: x\n    nodf: y\n  capacity:\n    kvBlocks: 1\n"
    with pytest.raises(PipelineFileError) as refusal:
        parse_text(text, "f.yaml")
    assert str(refusal.value).splitlines() == [
        "f.yaml:7: spec.stages[1].layers: 'x' is not a whole number",
        "f.yaml:8: spec.stages[1].nodf: is no field of spec.stages[1]; did you mean node?",
        "f.yaml:10: spec.capacity.kvBlocks: 1 is too small; 2 at least",
    ]


def test_a_rule_about_a_field_that_is_not_there_has_the_line_of_what_is_around_it():
    with pytest.raises(PipelineFileError, match=r"f.yaml:5: spec.stages\[0\].layers: is missing"):
        parse_text(f"{HEAD}spec:\n  stages: [{{node: a}}]\n", "f.yaml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PipelineFileError, match=r"missing.yaml: cannot read it: No such file"):
        read_pipeline(tmp_path / "missing.yaml")
    with pytest.raises(PipelineFileError, match="cannot read it: Is a directory"):
        read_pipeline(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: \xe4")
    with pytest.raises(PipelineFileError, match=r"latin.yaml: not UTF-8 text \(byte 6\)"):
        read_pipeline(latin)
    monkeypatch.setattr(pipeline_file, "MOST_BYTES", 10)
    large = tmp_path / "large.yaml"
    large.write_text(HEAD)
    with pytest.raises(PipelineFileError, match=r"large.yaml: larger than 10 bytes"):
        read_pipeline(large)
