"""`ropex train`: what a recipe leaves behind, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

import ropex
from ropex.cli import main
from ropex.doctor import diagnose
from ropex.train.recipes import trainer
from ropex.train.recipes.folder import claimed, write_folder
from ropex.train.recipes.log import Log
from ropex.train.recipes.reading import read_recipe
from ropex.train.recipes.run import train
from tests.support.models import (
    logits,
    plain,
    rope_settings,
    save_checkpoint,
    tiny_causal,
    tiny_tokenizer,
)
from tests.support.paths import ROOT, python
from tests.support.processes import begin, ranks
from tests.support.tiny_eval import words
from tests.support.training import REFUSED, Stop, furnish, losses, run, same, stop_at, weights

IDS = torch.arange(3, 103)[None]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the recipe as it stands."""
    folder = tmp_path_factory.mktemp("undisturbed")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run("out")
    return folder / "out"


@pytest.mark.parametrize("strategy", ["yarn:4", "linear:4", "dynamic:4", "ntk:2+clip:2"])
def test_the_final_model_is_the_trained_one(place: Path, strategy: str) -> None:
    seen: list[Any] = []

    def watch(trainer: Any, stage: int, patch: Any) -> None:
        seen.append(trainer.model)
        seen.append({name: value.clone() for name, value in trainer.model.named_parameters()})

    recipe = read_recipe(Path("mine.yaml"), [f"strategy={strategy}"])
    train(recipe, Path("out"), watch)
    model, before = seen
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
    with ropex.patch(model.eval(), strategy):
        wanted = logits(model, IDS)
    assert torch.equal(logits(plain(Path("out/final")), IDS), wanted)
    record = json.loads(Path("out/final/ropex.json").read_text())
    assert (record["strategy"], record["trained_length"]) == (strategy, 32)
    assert Path("out/final/tokenizer.json").is_file()


def test_a_doctor_finds_nothing_wrong_with_the_final_model(place: Path) -> None:
    settings = Path("tiny/tokenizer_config.json")
    limited = json.loads(settings.read_text()) | {"model_max_length": 32}
    settings.write_text(json.dumps(limited))
    assert diagnose(run("out") / "final") == ()


def test_what_no_config_says_is_trained_and_loaded_again(place: Path) -> None:
    out = run("out", "strategy=yarn:4+logn")
    model = ropex.load(out / "final")
    assert logits(model, IDS).ne(logits(plain(out / "final"), IDS)).any()


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(place: Path, step: int) -> None:
    stop = stop_at(f"step {step}/")
    changes = ("positions={sampler: pose, window: 24}", "lora.dropout=0.2")
    whole = run("whole", *changes)
    with pytest.raises(Stop):
        run("parts", *changes, tell=stop)
    assert not Path("parts/final").exists()
    assert same(run("parts", *changes), whole)
    assert losses(Path("parts"))[-1] == losses(whole)[-1]
    told: list[str] = []
    run("parts", *changes, tell=told.append)
    assert told == []  # there was nothing left to do


def test_a_run_that_is_killed_goes_on(place: Path) -> None:
    changes = ["training.steps=24", "training.save_every=3", "training.chunked_loss=false"]
    whole = run("whole", *changes)
    child = begin(place, "train", "mine.yaml", *changes, "-o", "killed")
    log = Path("killed/log.jsonl")
    while child.runs and not (log.is_file() and log.read_text().count("\n") > 7):
        time.sleep(0.02)
    assert child.kill() == -signal.SIGKILL
    half = Path("killed/stage-1/checkpoint-23")  # as if it had been killed while writing
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert same(run("killed", *changes), whole)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "optimizer.pt": Path.unlink,
    "scheduler.pt": Path.unlink,
    "adapter_model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
}


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was never interrupted, and one with two checkpoints of it."""
    folder = tmp_path_factory.mktemp("broken off")
    furnish(folder)

    stop = stop_at("step 3/")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run("whole", *EVERY_STEP)
        with pytest.raises(Stop):
            run("parts", *EVERY_STEP, tell=stop)
    return folder


@pytest.fixture
def broken(place: Path, broken_off: Path) -> Path:
    """The folder of a run that was broken off, beside one that was not."""
    for out in ("whole", "parts"):
        shutil.copytree(broken_off / out, out)
    return Path("parts")


EVERY_STEP = ("training.save_every=1", "lora.dropout=0.2")


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_not_gone_on_from(
    broken: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stage = broken / "stage-1"
    assert {path.name for path in stage.glob("*")} == {"checkpoint-1", "checkpoint-2"}
    DAMAGE[name](stage / "checkpoint-2" / name)
    assert main(["train", "mine.yaml", *EVERY_STEP, "-o", "parts"]) == 0
    [told] = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert told.startswith(f"parts/stage-1/checkpoint-2 is damaged ({name} ")
    assert told.endswith("and training continues from parts/stage-1/checkpoint-1")
    assert same(Path("parts"), Path("whole"))


@pytest.mark.parametrize("cut", [False, True])
def test_rows_that_were_damaged_are_cut_again(
    broken: Path, capsys: pytest.CaptureFixture[str], cut: bool
) -> None:
    [path] = (broken / "rows").glob("*.arrow")
    content = bytearray(path.read_bytes())
    for place_of in range(len(content) // 2, len(content) // 2 + 400, 4):
        content[place_of] ^= 1  # of tokens
    path.write_bytes(content[:-50] if cut else content)
    assert main(["train", "mine.yaml", *EVERY_STEP, "-o", "parts"]) == 0
    told = f"{path} is damaged; its rows are cut from the texts again"
    assert told in capsys.readouterr().err.splitlines()
    assert same(Path("parts"), Path("whole"))


def test_no_whole_checkpoint_is_one_sentence(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in broken.glob("stage-1/*/optimizer.pt"):
        path.unlink()
    assert main(["train", "mine.yaml", *EVERY_STEP, "-o", "parts"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(told) == 1
    assert "no complete checkpoint is left in parts/stage-1: restore a file, or remove" in told[0]
    assert not Path("parts/final").exists()


def test_a_second_run_in_the_folder_is_refused_and_replaces_nothing(place: Path) -> None:
    recipe, other = (read_recipe(Path("mine.yaml"), [f"strategy={s}"]) for s in ("yarn:4", "ntk:4"))
    with claimed(recipe, Path("out"), pytest.fail):
        before = Path("out/recipe.yaml").read_bytes()
        for second in (recipe, other):
            with pytest.raises(FileExistsError, match="another run is at work in out; write"):
                train(second, Path("out"))
        assert Path("out/recipe.yaml").read_bytes() == before


def test_what_a_killed_run_has_half_written_is_removed_and_told(place: Path) -> None:
    half = [Path("out/log.jsonl.4711.tmp"), Path("out/rows/1f.arrow.1.tmp")]
    Path("out/rows").mkdir(parents=True)
    for path in half:
        path.touch()
    Path("out/recipe.yaml").touch()
    told: list[str] = []
    with claimed(read_recipe(Path("mine.yaml")), Path("out"), told.append):
        assert not any(path.exists() for path in half)
    assert sorted(told) == [
        f"{path} was half written when a run was killed, and is removed" for path in sorted(half)
    ]


def test_a_line_of_the_log_that_was_half_written_is_forgotten(tmp_path: Path) -> None:
    path, whole = tmp_path / "log.jsonl", '{"stage": 1, "step": 2}'
    path.write_text(whole + '\n{"stage": 1, "st', encoding="utf-8")
    state: Any = SimpleNamespace(global_step=2, is_world_process_zero=True)
    Log(path, 1, 1, pytest.fail).on_train_begin(None, state, None)
    assert path.read_text(encoding="utf-8") == whole + "\n"


def test_stages_follow_each_other(place: Path, undisturbed: Path) -> None:
    stages = "stages=[{}, {strategy: 'yarn:8', training: {steps: 3}}]"
    whole = run("whole", stages)
    assert json.loads((whole / "final/ropex.json").read_text())["strategy"] == "yarn:8"

    stop = stop_at("step 1/3")
    with pytest.raises(Stop):
        run("parts", stages, tell=stop)
    assert same(run("parts", stages), whole)
    assert not same(undisturbed, whole)


WAYS = {
    "chunks": "training.chunked_loss=true",
    "kept activations": "training.gradient_checkpointing=false",
    "one row at a time": "training.micro_batch=1",
}


def test_what_saves_memory_changes_no_loss(place: Path) -> None:
    wanted = losses(run("whole", "training.chunked_loss=false"))
    for way, change in WAYS.items():
        found = losses(run(way, "training.chunked_loss=false", change))
        assert found == pytest.approx(wanted, rel=1e-5), way


def test_packed_documents_and_streams_and_windows_are_read(place: Path, undisturbed: Path) -> None:
    pack = "data.sources.0={text: 'docs.jsonl:text', layout: pack, longest: 20}"
    plainly = losses(undisturbed)
    assert losses(run("packed", pack)) != plainly
    assert len(losses(run("stream", "data.streaming=true"))) == 4
    assert losses(run("random", "positions={sampler: random, window: 24}")) != plainly
    assert losses(run("shifted", "training.shifted_attention=4")) != plainly


def test_shifted_attention_outlasts_a_checkpoint_that_no_config_says(place: Path) -> None:
    changes = ("training.shifted_attention=4", "strategy=dynamic_yarn:4")
    seldom = run("seldom", *changes, "training.save_every=4")
    assert losses(run("often", *changes, "training.save_every=1")) == losses(seldom)


def test_a_stream_that_goes_on_equals_one_that_was_never_interrupted(place: Path) -> None:
    stop = stop_at("step 3/")
    whole = run("whole", "data.streaming=true")
    with pytest.raises(Stop):
        run("parts", "data.streaming=true", tell=stop)
    assert same(run("parts", "data.streaming=true"), whole)


def test_adapters_are_merged_and_kept_beside(place: Path) -> None:
    out = run("out", "lora={rank: 4, also: [norms, embeddings]}")
    merged = logits(plain(out / "final"), IDS)
    loaded = ropex.load("tiny", adapter=out / "adapter")
    torch.testing.assert_close(logits(loaded, IDS), merged, rtol=1e-4, atol=1e-3)
    before = load_file("tiny/model.safetensors")
    moved = {name for name, value in weights(out).items() if not torch.equal(value, before[name])}
    assert {"model.norm.weight", "model.layers.0.self_attn.q_proj.weight"} <= moved
    assert "model.embed_tokens.weight" in moved
    assert "lm_head.weight" not in moved
    assert not any("mlp" in name for name in moved)


def test_what_goes_with_adapters_is_not_rounded(place: Path) -> None:
    changes = ("lora={rank: 4}", "dtype=bfloat16", "autocast=true", "training.learning_rate=2e-5")
    out = run("out", *changes)
    before = load_file("tiny/model.safetensors")
    norms = [name for name in before if "norm" in name]
    assert norms
    for name in norms:
        assert weights(out)[name].dtype == torch.float32
        assert weights(out)[name].ne(before[name]).all()
    rounded = ropex.load("tiny", "yarn:4", dtype="bfloat16").float()
    adapted = PeftModel.from_pretrained(rounded, str(out / "adapter")).eval()
    torch.testing.assert_close(
        logits(adapted, IDS), logits(plain(out / "final"), IDS), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_two_processes_have_the_losses_of_one(place: Path, streaming: str) -> None:
    # Rows of unequal numbers of labels, so that a mean of means would be another number.
    pack = "data.sources.0={text: 'docs.jsonl:text', layout: pack, longest: 20}"
    changes = (pack, f"data.streaming={streaming}")
    for status, _, err in ranks(place, 2, "train", "mine.yaml", *changes, "-o", "two"):
        assert status == 0, err
    one = run("one", *changes)
    assert losses(Path("two")) == pytest.approx(losses(one), abs=1e-5)
    ours, theirs = weights(Path("two")), weights(one)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-3)


def test_shards_train_what_one_process_does(place: Path) -> None:
    """The file for FSDP2 that ropex ships, with two processes on a CPU instead of eight GPUs."""
    shipped = yaml.safe_load((ROOT / "recipes/accelerate/fsdp2.yaml").read_text())
    two = {"num_processes": 2, "gpu_ids": "-1,-1", "main_process_port": 0}
    Path("fsdp2.yaml").write_text(yaml.safe_dump(shipped | two))
    stages = "stages=[{}, {strategy: 'linear:4', training: {steps: 2}}]"
    measured = "evaluate={lengths: [16, 96], data: 'docs.jsonl:text', excerpts: 2}"
    launch = ("-m", "accelerate.commands.launch", "--config_file", "fsdp2.yaml")
    done = python(*launch, "-m", "ropex", "train", "mine.yaml", stages, measured, "-o", "shards")
    assert done.returncode == 0, done.stderr
    one = run("one", stages)
    assert losses(Path("shards")) == pytest.approx(losses(one), abs=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(Path("shards"))[name], value, rtol=1e-3, atol=2e-3)
    record = json.loads(Path("shards/final/ropex.json").read_text())
    assert record["strategy"] == "linear:4"
    sums = json.loads(Path("shards/stage-2/checkpoint-2/ropex-checksums.json").read_text())
    parts = {"model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"}
    assert parts <= set(sums["files"])


def test_rows_that_processes_cannot_share_are_refused(place: Path) -> None:
    for status, _, err in ranks(place, 2, "train", "mine.yaml", "training.batch=2", "-o", "two"):
        assert status == 2
        assert "training.batch is 2, and 2 processes read 2 rows at a time" in err
        assert "Traceback" not in err


def test_a_loss_that_is_no_number_stops_the_run(place: Path, undisturbed: Path) -> None:
    models: list[Any] = []

    def watch(trainer: Any, stage: int, patch: Any) -> None:
        models.append(trainer.model)

    def diverge(line: str) -> None:
        if line.startswith("step 3/"):
            with torch.no_grad():
                models[0].model.norm.weight.fill_(torch.inf)

    told = r"is not a number at step 4; lower .*checkpoint-2 is kept, and the same command resumes"
    with pytest.raises(ValueError, match=told):
        train(read_recipe(Path("mine.yaml")), Path("wild"), watch, tell=diverge)
    assert not Path("wild/final").exists()
    assert same(run("wild"), undisturbed)


def test_a_full_disk_leaves_the_last_checkpoint(place: Path, undisturbed: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from ropex.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import ropex.train.recipes.trainer as t\n"
        "real = t.RecipeTrainer._save_checkpoint\n"
        "def save(self, *args, **kwargs):\n"
        "    if self.state.global_step == 4:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))\n"
        "    real(self, *args, **kwargs)\n"
        "t.RecipeTrainer._save_checkpoint = save\n"
        "sys.exit(main(['train', 'mine.yaml', '-o', 'full']))\n"
    )
    status, _, err = begin(place, code=script).end()
    assert status == 2, err
    [told] = [line for line in err.splitlines() if "error:" in line]
    assert "checkpoint-4 could not be written" in told
    assert "checkpoint-2 is kept, and the same command resumes from it" in told
    assert [path.name for path in Path("full/stage-1").glob("checkpoint-*")] == ["checkpoint-2"]
    assert same(run("full"), undisturbed)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    state: Any = SimpleNamespace(global_step=1, max_steps=2, is_world_process_zero=True)
    log = Log(Path("/dev/full"), 1, 1, pytest.fail)
    with pytest.raises(OSError, match=r"/dev/full could not be written \(.*No space left"):
        log.on_log(None, state, None, logs={"loss": 1.0})

    def write(folder: Path) -> None:
        folder.mkdir()
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    with pytest.raises(OSError, match=r"final could not be written \(Error .*No space left"):
        write_folder(tmp_path / "final", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optimizer=adamw_8bit", "error: optimizer: You need to install `bitsandbytes`"),
        ("report_to=[wandb]", "error: report_to: wandb is not installed; install it"),
        ("report_to=[wandbe]", "error: report_to: 'wandbe' is unknown; choose all, none,"),
    ],
)
def test_what_is_not_installed_is_one_sentence(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    told: str,
) -> None:
    def lacks(self: Any, *args: Any) -> None:
        raise ImportError("You need to install `bitsandbytes`\n: pip install")

    monkeypatch.setattr(Trainer, "create_optimizer", lacks)
    monkeypatch.setattr(trainer, "get_available_reporting_integrations", list)
    assert main(["train", "mine.yaml", change, "-o", "out"]) == 2
    assert told in capsys.readouterr().err
    known = "wandbe" not in change
    assert main(["train", "mine.yaml", change, "--dry-run"]) == (0 if known else 2)


def test_a_gradient_that_is_no_number_reaches_no_checkpoint(place: Path) -> None:
    def watch(trainer: Any, stage: int, patch: Any) -> None:
        weight = trainer.model.model.norm.weight
        weight.register_hook(lambda g: g * torch.nan if trainer.state.global_step == 3 else g)

    with pytest.raises(ValueError, match=r"not a number at step 4; .*checkpoint-2 is kept"):
        train(read_recipe(Path("mine.yaml")), Path("out"), watch, tell=lambda line: None)
    kept = [path.name for path in Path("out/stage-1").iterdir()]
    assert kept == ["checkpoint-2"]


def test_the_last_step_is_told_and_the_log_has_each_once(place: Path) -> None:
    stop = stop_at("step 3/")
    stages = "stages=[{}, {training: {steps: 3, log_every: 2}}]"
    with pytest.raises(Stop):
        run("out", stages, tell=stop)
    run("out", stages)
    lines = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    places = [(line["stage"], line["step"]) for line in lines]
    assert places == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)]


def test_two_runs_do_not_write_one_folder(place: Path, undisturbed: Path) -> None:
    def again(line: str) -> None:
        if line.startswith("step 1/"):
            with pytest.raises(FileExistsError, match="another run is at work in out"):
                run("out")

    assert losses(run("out", tell=again)) == losses(undisturbed)


def test_short_texts_say_how_often_they_are_read(place: Path) -> None:
    told: list[str] = []
    short = ("data.sources.0.text=few.jsonl:text", "data.length=32")
    Path("few.jsonl").write_text(json.dumps({"text": words(70)}), encoding="utf-8")
    run("out", *short, tell=told.append)
    assert told[0].startswith("few.jsonl:text is short: each row is read ")


def test_a_model_without_bos_is_trained_and_measured(place: Path) -> None:
    save_checkpoint(Path("bare"), bos=False)
    Path("book.txt").write_text(words(900))
    measured = ("evaluate.data=book.txt", "evaluate.lengths=[16, 32]", "evaluate.excerpts=3")
    assert main(["train", "mine.yaml", "model=bare", *measured, "-o", "out"]) == 0
    assert main(["train", "mine.yaml", "data.bos=</s>", *measured, "-o", "other"]) == 0


def test_precision_is_that_of_the_recipe(
    place: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = losses(undisturbed)
    half = losses(run("half", "autocast=true"))
    assert losses(run("again", "seed=0")) == wanted != half
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as accelerate launch does
    assert losses(run("told", "autocast=true")) == half
    with pytest.raises(ValueError, match="mixed_precision bf16, and the recipe says autocast: fal"):
        run("other")


def test_a_tied_head_has_no_adapter_of_its_own(place: Path) -> None:
    model = tiny_causal(tie_word_embeddings=True)
    model.save_pretrained("tied")
    tiny_tokenizer().save_pretrained("tied")
    with pytest.raises(ValueError, match="lm_head is tied to the input embeddings of this model"):
        run("out", "model=tied", "lora.targets=[q_proj, lm_head]", "lora.also=[]")


@pytest.mark.parametrize("strategy", ["none", "logn"])
def test_a_base_that_no_patch_writes_is_in_both_notations(place: Path, strategy: str) -> None:
    tiny_causal(**rope_settings(5e5)).save_pretrained("tiny")
    told: list[str] = []
    config = json.loads(
        (run("out", f"strategy={strategy}", tell=told.append) / "final/config.json").read_text()
    )
    assert config["rope_theta"] == 5e5
    assert config.get("rope_parameters", {"rope_theta": 5e5})["rope_theta"] == 5e5
    assert ("no config says all of logn: ropex.load applies it" in told[-1]) == (strategy == "logn")


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line(place: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = REFUSED[case]
    assert main(["train", "mine.yaml", *changes, "-o", "out"]) == 2
    [told] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in told


def test_an_empty_text_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("docs.jsonl").write_text("")
    assert main(["train", "mine.yaml", "-o", "out"]) == 2
    assert "docs.jsonl is empty" in capsys.readouterr().err


def test_a_run_of_another_recipe_is_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("out", "training.steps=2")
    before = weights(out)
    assert main(["train", "mine.yaml", "model=nowhere", "-o", "fresh"]) == 2
    run("fresh", "training.steps=2")  # nothing was there but the mistake
    assert main(["train", "mine.yaml", "-o", "out"]) == 2
    assert "holds the run of a different recipe (stages differs)" in capsys.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in weights(out).items())
    (out / "recipe.yaml").write_text(": : [")
    assert main(["train", "mine.yaml", "training.steps=2", "-o", "out"]) == 2
    assert "recipe.yaml is damaged" in capsys.readouterr().err
    assert main(["compare", "out"]) == 2
    assert "recipe.yaml is damaged" in capsys.readouterr().err
    assert main(["train", "mine.yaml", "-o", "tiny"]) == 2
    assert "tiny is not empty and holds no run" in capsys.readouterr().err
