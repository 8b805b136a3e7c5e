"""What an inference engine needs to compute the rotary embedding of a checkpoint.

Example:
    >>> from ropex.export import export
    >>> export(Path("./llama"), "vllm", "yarn:4").flags
"""

from ropex.export.exports import ENGINES, export, exports
from ropex.export.gguf_file import write_gguf
from ropex.export.value import Exactness, Export

__all__ = ["ENGINES", "Exactness", "Export", "export", "exports", "write_gguf"]
