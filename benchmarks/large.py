"""Time and memory to patch a checkpoint of 70 billion parameters.

Its files have real headers and real sizes, 128 GiB in all, but no content (they are sparse), so it
takes no room; a program that read the weights would need minutes, and its memory would show it.
Without --link the files are cloned where the file system can, and otherwise copied without the
holes; TMPDIR chooses the file system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from transformers import LlamaConfig

TEXTS = ("linear:4", "yarn:8", "mrrope:8")
SHARDS = 15
_NORMS = ("input", "post_attention")
CONFIG = LlamaConfig(
    architectures=["LlamaForCausalLM"], hidden_size=8192, intermediate_size=28672,
    num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    max_position_embeddings=4096, dtype="bfloat16",
)  # fmt: skip


def main() -> None:
    """Print one line a strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of each strategy (default 3)")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "llama-70b"
        size = write_checkpoint(checkpoint)
        print(f"{size / 2**30:.0f} GiB in {SHARDS} files")
        for text, *options in [*((text,) for text in TEXTS), (TEXTS[0], "--link")]:
            out = Path(folder) / "out"
            times = [patch(checkpoint, out, text, *options) for _ in range(args.repeats)]
            print(f"{' '.join([text, *options]):>16}  {median(times):5.1f} s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(f"largest process {peak:.0f} MiB")


def shapes() -> dict[str, list[int]]:
    """Names and shapes of all weights."""
    width, inner, vocabulary = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.vocab_size
    keys = width // 8  # 8 heads for 64
    found = {
        "model.embed_tokens.weight": [vocabulary, width],
        "lm_head.weight": [vocabulary, width],
        "model.norm.weight": [width],
    }
    for layer in range(CONFIG.num_hidden_layers):
        start = f"model.layers.{layer}"
        found |= {f"{start}.self_attn.{name}_proj.weight": [width, width] for name in "qo"}
        found |= {f"{start}.self_attn.{name}_proj.weight": [keys, width] for name in "kv"}
        found |= {f"{start}.mlp.{name}_proj.weight": [inner, width] for name in ("gate", "up")}
        found[f"{start}.mlp.down_proj.weight"] = [width, inner]
        found |= {f"{start}.{name}_layernorm.weight": [width] for name in _NORMS}
    return found


def write_checkpoint(folder: Path) -> int:
    """Write a sharded checkpoint of holes; the bytes that it seems to have."""
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG.to_json_string())
    weights, total = list(shapes().items()), 0
    places: dict[str, str] = {}
    for shard in range(SHARDS):
        name, here = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors", weights[shard::SHARDS]
        total += write_shard(folder / name, dict(here))
        places |= {weight: name for weight, _ in here}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_shard(path: Path, weights: dict[str, list[int]]) -> int:
    """Write one file: a header, and a hole of the right size."""
    header, end = {}, 0
    for name, shape in weights.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def patch(checkpoint: Path, out: Path, text: str, *options: str) -> float:
    """Seconds of the command, the start of Python and all imports included."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "ropex", "patch", str(checkpoint), "-s", text, "-o", str(out)]
    subprocess.run([*command, *options, "--force"], check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
