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
