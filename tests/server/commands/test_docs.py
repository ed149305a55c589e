"""docs/parameters.md is what the schema says."""

from engines.params.model_kwargs import FAMILIES
from server.commands import docs
from server.commands.params import COMMANDS


def test_the_page_is_up_to_date() -> None:
    assert docs.PATH.read_text(encoding="utf-8") == docs.page(), "run `make docs`"


def test_the_page_has_every_parameter_and_every_link_a_section() -> None:
    page = docs.page()
    names = {name for model in [*COMMANDS.values(), *FAMILIES] for name in model.model_fields}
    assert all(f"| `{name}`" in page for name in names)
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert links == {line[3:].replace(" ", "-") for line in page.splitlines() if line.startswith("## ")} - {
        "Commands",
        "Not-supported",
    }


def test_what_no_command_reads_is_about_images() -> None:
    table = docs.page().split("## Not supported")[1].split("\n## ")[0]
    refused = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert refused == {
        "freeze_aligner", "freeze_llm", "freeze_vit", "limit_mm_per_prompt", "local_repo_path", "max_pixels",
        "model_kwargs", "vision_batch_size",
    }  # fmt: skip
    of_families = {name for family in FAMILIES for name in family.model_fields}
    assert len(refused | of_families) <= 40
