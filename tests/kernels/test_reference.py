"""The judge of correctness stands alone: a fault cannot be in the kernels and in what they are compared with."""

import ast
import sys
from pathlib import Path

import fastgpt
from fastgpt import kernels
from fastgpt.kernels import reference

# Where the reference is what a model runs (an `*_impl="reference"`, or the mask that torch's own attention is given),
# the self-check, which is a judge itself, and a page that shows its lines.
USERS = {
    fastgpt: {
        "interop/attention_registry.py", "interop/key_mask.py", "model/blocks.py", "nn/ffn.py", "nn/layer_norm.py",
        "nn/loss.py", "study/block_page.py", "tools/verify.py", "tools/verify_cases.py",
    },
    kernels: {"__init__.py"},
}  # fmt: skip


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import in a file, wherever it stands; a relative one begins with dots."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
    return found


def imports_the_reference(path: Path) -> bool:
    return any("reference" in (*module.split("."), name) for module, name in imports(path))


def test_it_imports_python_and_torch_only():
    roots = {module.split(".")[0] for module, _ in imports(Path(reference.__file__))}
    assert roots - set(sys.stdlib_module_names) == {"torch"}


def test_no_kernel_and_only_implementations_import_it():
    for package, users in USERS.items():
        root = Path(package.__file__).parent
        found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if imports_the_reference(path)}
        assert found == users, package.__name__


def test_every_public_function_has_its_reference():
    others = {"interpret", "reference"}
    assert {name for name in kernels.__all__ if name not in others} <= set(vars(reference))
