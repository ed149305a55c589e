"""The command line's dialect: what words mean, and how they are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.params.base import Params
from engines.params.deploy import DeployParams
from engines.params.shapes import default_of
from server.commands.argv import build_parser, parse
from server.commands.other_names import OTHER_NAMES
from server.commands.params import COMMANDS
from training.params.export import ExportParams
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams


def given(model: type[Params], *words: str) -> dict[str, Any]:
    return parse(model, words, prog="tuneserve").model_dump(exclude_unset=True)


def refusal(capsys: pytest.CaptureFixture[str], model: type[Params], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(model, words, prog="tuneserve")
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "words", "meaning"),
    [
        pytest.param(DeployParams, [], {}, id="nothing is given"),
        pytest.param(DeployParams, ["--port", "9000"], {"port": 9000}, id="a number"),
        pytest.param(DeployParams, ["--port=9000"], {"port": 9000}, id="flag=value"),
        pytest.param(DeployParams, ["--max-model-len", "8"], {"max_model_len": 8}, id="dashes"),
        pytest.param(DeployParams, ["--max_model_len", "8"], {"max_model_len": 8}, id="underscores"),
        pytest.param(DeployParams, ["--max-model_len=8"], {"max_model_len": 8}, id="both, with an equals sign"),
        pytest.param(SftParams, ["--dataset", "a", "b"], {"dataset": ("a", "b")}, id="a list"),
        pytest.param(SftParams, ["--dataset", "a"], {"dataset": ("a",)}, id="a list of one"),
        pytest.param(SftParams, ["--dataset"], {"dataset": ()}, id="an empty list"),
        pytest.param(SftParams, ["--dataset=a-b"], {"dataset": ("a-b",)}, id="a list by an equals sign keeps dashes"),
        pytest.param(SftParams, ["--reft_layers", "1", "-1"], {"reft_layers": (1, -1)}, id="a list of numbers"),
        pytest.param(SftParams, ["--use_dora"], {"use_dora": True}, id="a bool alone is true"),
        pytest.param(SftParams, ["--use_dora", "true"], {"use_dora": True}, id="true"),
        pytest.param(SftParams, ["--freeze_vit", "False"], {"freeze_vit": False}, id="false, in capitals"),
        pytest.param(SftParams, ["--packing", "--seed", "1"], {"packing": True, "seed": 1}, id="a flag after a bool"),
        pytest.param(SftParams, ["--greater_is_better"], {"greater_is_better": True}, id="a bool that may be unset"),
        pytest.param(SftParams, ["--max_steps", "-1"], {"max_steps": -1}, id="a negative number"),
        pytest.param(
            SftParams, ["--vera_d_initial", "-1e-5"], {"vera_d_initial": -1e-5}, id="a negative number with an exponent"
        ),
        pytest.param(SftParams, ["--learning_rate", "1e-4"], {"learning_rate": 1e-4}, id="an exponent"),
        pytest.param(
            SftParams,
            ["--gradient_checkpointing_kwargs", '{"use_reentrant": false}'],
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            id="a JSON object",
        ),
        pytest.param(SftParams, ["--deepspeed", "zero3"], {"deepspeed": "zero3"}, id="a name where JSON may be"),
        pytest.param(DeployParams, ["--device_map", "auto"], {"device_map": "auto"}, id="a text where JSON may be"),
        pytest.param(
            DeployParams,
            ["--device_map", '{"": "cpu"}'],
            {"device_map": {"": "cpu"}},
            id="a JSON object where text may be",
        ),
        pytest.param(SftParams, ["--init_weights", "true"], {"init_weights": "true"}, id="a text that reads true"),
        pytest.param(DeployParams, ["--system", "- be brief"], {"system": "- be brief"}, id="a text with a dash"),
        pytest.param(DeployParams, ["--system", ""], {"system": ""}, id="an empty text"),
        pytest.param(DeployParams, ["--system=a=b --c"], {"system": "a=b --c"}, id="a text with an equals sign"),
        pytest.param(DeployParams, ["--model", "007"], {"model": "007"}, id="a text of digits"),
        pytest.param(DeployParams, ["--stop_words", "\n", "</s>"], {"stop_words": ("\n", "</s>")}, id="odd texts"),
        pytest.param(DeployParams, ["--served-model-name", "名"], {"served_model_name": "名"}, id="any script"),
        pytest.param(DeployParams, ["--port", "8000"], {"port": 8000}, id="given as the default is given"),
        pytest.param(ExportParams, ["--quant_method", "awq"], {"quant_method": "awq"}, id="a choice"),
        pytest.param(SftParams, ["--adalora_deltaT", "2"], {"adalora_deltaT": 2}, id="a name with a capital"),
    ],
)
def test_words_mean(model: type[Params], words: list[str], meaning: dict[str, Any]) -> None:
    assert given(model, *words) == meaning


def test_other_programs_names_are_none_of_ours_and_mean_one() -> None:
    ours = RlhfParams.model_fields
    assert {other: name for other, name in OTHER_NAMES.items() if name not in ours or other in ours} == {}


@pytest.mark.parametrize(
    ("model", "words", "told"),
    [
        pytest.param(DeployParams, ["--prot", "1"], "--prot: unknown parameter; did you mean --port?", id="a slip"),
        pytest.param(
            DeployParams, ["--max-model-length", "1"], "did you mean --max_model_len", id="a slip with dashes"
        ),
        pytest.param(SftParams, ["--cutoff-len", "9"], "did you mean --max_length?", id="another program's name"),
        pytest.param(
            SftParams,
            ["--train_dataset_sample", "9"],
            "did you mean --dataset? (500 rows of a set are --dataset NAME#500)",
            id="what a name says here",
        ),
        pytest.param(DeployParams, ["--qqqqqq"], "--qqqqqq: unknown parameter\n", id="nothing near"),
        pytest.param(DeployParams, ["--por", "1"], "--por: unknown", id="no abbreviations"),
        pytest.param(DeployParams, ["-p", "1"], "-p: unknown", id="a short flag"),
        pytest.param(DeployParams, ["--port", "1", "2"], "'2' belongs to no parameter", id="a value too many"),
        pytest.param(DeployParams, ["--port"], "--port: expected one argument", id="no value"),
        pytest.param(DeployParams, ["--port", "1", "--port", "2"], "--port is given twice", id="given twice"),
        pytest.param(DeployParams, ["--port", "x"], "--port: Input should be a valid integer", id="no number"),
        pytest.param(DeployParams, ["--port", "70000"], "(given '70000')", id="the value is quoted"),
        pytest.param(DeployParams, ["--infer_backend", "tgi"], "'pt', 'vllm' or 'lmdeploy'", id="choices are named"),
        pytest.param(DeployParams, ["--metrics_auth", "maybe"], "valid boolean", id="no bool"),
        pytest.param(DeployParams, ["--use_hf", "false"], "ModelScope is not supported", id="a validator's words"),
        pytest.param(DeployParams, ["--model_kwargs", '{"a": 1'], "is not JSON: Expecting", id="broken JSON"),
        pytest.param(DeployParams, ["--model_kwargs", "[1]"], "valid dictionary", id="JSON, but no object"),
        pytest.param(DeployParams, ["--device_map", "none.json"], "No such file", id="no such JSON file"),
        pytest.param(SftParams, ["--deepspeed", "zero9"], "'zero0', 'zero1'", id="a union tells its choices"),
        pytest.param(RlhfParams, [], "--rlhf_type: Field required", id="a required parameter"),
        pytest.param(DeployParams, ["server.txt"], "ends in .yaml, .yml or .json", id="a file of another kind"),
        pytest.param(DeployParams, [""], "ends in .yaml, .yml or .json", id="an empty word"),
        pytest.param(DeployParams, ["--port", "1", "p.yaml"], "(a file comes first)", id="a file that comes last"),
        pytest.param(DeployParams, ["none.yaml"], "none.yaml: No such file", id="no such file"),
    ],
)
def test_words_are_refused(
    capsys: pytest.CaptureFixture[str], model: type[Params], words: list[str], told: str
) -> None:
    assert told in refusal(capsys, model, *words)


def test_all_wrong_values_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(
        capsys, DeployParams, "--port", "x", "--top_p", "2", "--prot", "1", "--device_map", "{", "--seed", "1"
    )
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:-1]] == [
        "--prot",
        "--device_map",
        "--top_p",
        "--port",
    ]


def test_a_secret_is_not_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("hub_token: 12345678")
    told = refusal(capsys, DeployParams, str(tmp_path / "p.yaml"))
    assert "hub_token in" in told
    assert "12345678" not in told


def test_an_object_may_be_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    assert given(SftParams, "--deepspeed", str(path)) == {"deepspeed": {"zero_optimization": {"stage": 3}}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.yaml", "port: 1\nmax-model-len: 8\nstop_words: [a, b]\nadapters: x\nmodel_kwargs: {lr: 1e-6}"),
        ("p.json", json.dumps({"port": 1, "max_model_len": 8, "stop_words": ["a", "b"], "adapters": "x"})),
    ],
)
def test_a_file_may_come_first_and_flags_win(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    meaning = given(DeployParams, str(tmp_path / name), "--port", "2")
    assert meaning.pop("model_kwargs", {"lr": 1e-6}) == {"lr": 1e-6}
    assert meaning == {"port": 2, "max_model_len": 8, "stop_words": ("a", "b"), "adapters": ("x",)}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.yaml", "prot: 1", "p.yaml: unknown parameter; did you mean --port?"),
        ("p.yaml", "port: x", "p.yaml: Input should be a valid integer"),
        ("p.yaml", "port: yes", "port in {path}: true and false are not numbers (given True)"),
        ("p.json", '{"temperature": false}', "temperature in {path}: true and false are not numbers (given False)"),
        ("p.yaml", "port: 1\nport: 2", "port is given twice"),
        ("p.yaml", "max-seqs: 1\nmax_seqs: 2", "max_seqs is given twice"),
        ("p.json", '{"port": 1, "port": 2}', "port is given twice"),
        ("p.yaml", "- port", "must hold parameters by name"),
        ("p.yaml", "port: [", "p.yaml: while parsing"),
        ("p.json", "{", "p.json: Expecting"),
        ("p.yaml", "port: !!python/name:os.system", "p.yaml: could not determine a constructor"),
    ],
)
def test_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    assert told.format(path=tmp_path / name) in refusal(capsys, DeployParams, str(tmp_path / name))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_parameter_has_a_flag_in_one_section(command: str) -> None:
    model = COMMANDS[command]
    parser = build_parser(model, prog="tuneserve")
    flags = [action.dest for action in parser._actions if action.dest != "help"]
    assert sorted(flags) == sorted(model.model_fields)


def test_an_overridden_parameter_stands_with_the_command_that_overrides_it() -> None:
    words = build_parser(SftParams, prog="tuneserve").format_help()
    assert words.index("--temperature") > words.index("sft:")
    assert "(default: 0.0)" in words[words.index("--temperature") :]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_can_be_written_as_words(command: str) -> None:
    model, words = COMMANDS[command], []
    for name, field in model.model_fields.items():
        if (default := default_of(field)) is not None:
            words += [f"--{name}", *(default.split() if isinstance(field.default, tuple) else [default])]
    required = ["--rlhf_type", "dpo"] if command == "rlhf" else []
    assert given(model, *words, *required).items() <= parse(model, required, prog="tuneserve").model_dump().items()
