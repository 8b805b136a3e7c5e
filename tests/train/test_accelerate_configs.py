"""The configs for `accelerate launch`: accelerate itself reads them, and means what they say."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import ParallelismConfig
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from torch.distributed.fsdp import OffloadPolicy

from tests.support.models import tiny_model
from tests.support.paths import ROOT

FOLDER = ROOT / "recipes" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.iterdir())
SHARDED = ("fsdp2", "fsdp2-cp")
PROCESSES = {
    "one-gpu": 1, "fsdp2": 8, "fsdp2-cp": 8, "deepspeed-zero3": 8, "two-processes-cpu": 2,
}  # fmt: skip
COMMAND = "accelerate launch --config_file recipes/accelerate/{}.yaml -m ropex train RECIPE"


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def asked(path: Path) -> Namespace:
    """What `accelerate launch` makes of a config and of the command in its header."""
    command = ["--config_file", str(path), "--main_process_port", "0"]
    arguments = launch_command_parser().parse_args([*command, "-m", "ropex", "train", "RECIPE"])
    made: Namespace = _validate_launch_command(arguments)[0]
    return made


def environment(arguments: Namespace) -> dict[str, str]:
    """What the processes are started with, beyond what is there already."""
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        made = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        made = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in made.items() if os.environ.get(key) != value}


def test_there_is_a_config_for_each_kind_of_machine() -> None:
    assert set(NAMES) == PROCESSES.keys()
    assert {path.suffix for path in FOLDER.iterdir()} == {".yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key(name: str) -> None:
    load_config_from_file(str(path_of(name)))  # it refuses keys of the first level
    known = vars(launch_command_parser().parse_args(["x"]))
    for key, value in yaml.safe_load(path_of(name).read_text(encoding="utf-8")).items():
        if isinstance(value, dict):
            assert value.keys() <= known.keys(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_the_command_and_what_it_takes(name: str) -> None:
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# " + COMMAND.format(name)
    header = " ".join(line for line in lines if line.startswith("#"))
    assert "Hardware: " in header
    assert "For " in header or "To try" in header
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_the_command_starts_ropex_in_each_process(name: str) -> None:
    arguments, processes = asked(path_of(name)), PROCESSES[name]
    assert (arguments.module, arguments.training_script) == (True, "ropex")
    assert arguments.training_script_args == ["train", "RECIPE"]
    assert (arguments.num_processes, arguments.num_machines) == (processes, 1)
    if processes == 1:
        command, variables = prepare_simple_launcher_cmd_env(arguments)
        assert command == [sys.executable, "-m", "ropex", "train", "RECIPE"]
        assert variables["CUDA_VISIBLE_DEVICES"] == "0"
        assert variables["ACCELERATE_USE_CPU"] == "False"
    else:
        variables = environment(arguments)
        assert arguments.nproc_per_node == str(processes)
    assert variables["ACCELERATE_MIXED_PRECISION"] == ("bf16" if "zero3" in name else "no")


@pytest.mark.parametrize("name", SHARDED)
def test_sharding_is_of_layers_and_saves_plain_checkpoints(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = environment(asked(path_of(name)))
    assert made["ACCELERATE_USE_FSDP"] == "true"
    for key, value in made.items():
        monkeypatch.setenv(key, value)
    plugin: Any = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert (plugin.activation_checkpointing, plugin.cpu_ram_efficient_loading) == (True, False)
    assert type(plugin.cpu_offload) is OffloadPolicy  # which keeps everything on the device
    model = tiny_model("llama")
    plugin.set_auto_wrap_policy(model)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert [module for module in model.modules() if wraps(module)] == list(model.model.layers)


def parallel(path: Path, monkeypatch: pytest.MonkeyPatch) -> ParallelismConfig:
    for key, value in environment(asked(path)).items():
        monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
    return ParallelismConfig()


@pytest.mark.parametrize(("shards", "parts"), [(1, 8), (2, 4)])
def test_texts_are_split_over_all_processes(
    shards: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path_of("fsdp2-cp").read_text(encoding="utf-8")
    content = content.replace("cp_size: 8", f"cp_size: {parts}")
    (tmp_path / "cp.yaml").write_text(
        content.replace("dp_shard_size: 1", f"dp_shard_size: {shards}"), encoding="utf-8"
    )
    made = parallel(tmp_path / "cp.yaml", monkeypatch)
    assert (made.cp_size, made.dp_shard_size, made.total_size) == (parts, shards, 8)
    assert (made.cp_backend, made.cp_handler.cp_comm_strategy) == ("torch", "allgather")
    assert [made.sp_size, made.tp_size, made.dp_replicate_size] == [1, 1, 1]


@pytest.mark.parametrize("name", ["fsdp2", "deepspeed-zero3", "two-processes-cpu"])
def test_nothing_is_split_where_nothing_says_so(name: str) -> None:
    assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in environment(asked(path_of(name)))


def test_zero_3_shards_everything_and_saves_plain_checkpoints() -> None:
    made = environment(asked(path_of("deepspeed-zero3")))
    said = {key.removeprefix("ACCELERATE_DEEPSPEED_"): value for key, value in made.items()}
    assert said["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert (said["ZERO_STAGE"], said["ZERO3_INIT"]) == ("3", "false")
    assert said["ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert said["OFFLOAD_OPTIMIZER_DEVICE"] == said["OFFLOAD_PARAM_DEVICE"] == "none"
    # Left to the recipe: accelerate takes them from the trainer.
    assert not [key for key in said if "GRADIENT" in key]


def test_the_lines_for_ulysses_split_each_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path_of("deepspeed-zero3").read_text(encoding="utf-8")
    (tmp_path / "sp.yaml").write_text(content.replace("\n#| ", "\n"), encoding="utf-8")
    made = parallel(tmp_path / "sp.yaml", monkeypatch)
    assert (made.sp_size, made.sp_backend, made.cp_enabled) == (8, "deepspeed", False)
    assert made.sp_handler.sp_attn_implementation == "sdpa"
    assert made.sp_handler.sp_seq_length_is_variable
