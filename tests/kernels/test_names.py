"""What CONTRIBUTING says of names, signatures and headers in device code, of every @triton.jit function there is."""

import ast
import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
NODES = [node for path in sorted(KERNELS.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]
JIT_FUNCTIONS = [
    node
    for node in NODES
    if isinstance(node, ast.FunctionDef) and "triton.jit" in [ast.unparse(d) for d in node.decorator_list]
]

NAMED_BY_TRITON = {"axis", "keep_dims"}  # keywords of tl.sum, for which sums.py has a stand-in


def names_in(node: ast.AST) -> set[str]:
    """The last part of each dotted name in an expression."""
    return {ast.unparse(n).rpartition(".")[2] for n in ast.walk(node) if isinstance(n, (ast.Name, ast.Attribute))}


def launched() -> set[str]:
    """Whatever is called as `kernel[grid](...)`, itself or as the value of a variable `kernel`."""
    launches = [n.func.value for n in NODES if isinstance(n, ast.Call) and isinstance(n.func, ast.Subscript)]
    chosen = [n.value for n in NODES if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "kernel"]
    return set().union(*map(names_in, launches + chosen))


def test_what_is_launched_is_called_a_kernel_and_nothing_else_is():
    names = {f.name for f in JIT_FUNCTIONS}
    assert {name for name in names if name.endswith("_kernel")} == names & launched()


@pytest.mark.parametrize("function", JIT_FUNCTIONS, ids=lambda f: f.name)
def test_a_signature_can_be_read(function):
    assert len(function.args.args) <= 20, "values that belong together travel as a NamedTuple of structs.py"
    assert [function.args.vararg, function.args.kwarg, *function.args.kwonlyargs] == [None, None]
    compile_time = [a.arg for a in function.args.args if a.annotation is not None]
    assert [name for name in compile_time if not (name.isupper() or name in NAMED_BY_TRITON)] == []


def test_most_signatures_are_short():
    assert len([f for f in JIT_FUNCTIONS if len(f.args.args) < 12]) > 0.8 * len(JIT_FUNCTIONS)


@pytest.mark.parametrize("family", sorted(path.parent.name for path in KERNELS.glob("*/op.py")))
def test_a_name_means_one_thing_in_a_family(family):
    homes = {}
    for path in sorted((KERNELS / family).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            for name in (getattr(target, "name", None) or getattr(target, "id", "_") for target in targets):
                homes.setdefault(name, []).append(path.name)
    several = {name: files for name, files in homes.items() if len(files) > 1 and not name.startswith("_")}
    assert several.keys() <= {"forward"}, several  # launch.forward, and the tile of it: tiles.forward


WITH_KERNELS = [
    path
    for path in sorted([*KERNELS.glob("*/*.py"), *KERNELS.glob("attention/hopper/*.py")])
    if re.search(r"(?m)^def \w+_kernel\(", path.read_text())
]


@pytest.mark.parametrize("path", WITH_KERNELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_kernel_says_who_launches_it(path):
    module = ast.parse(path.read_text())
    hosts = [path.with_name("launch.py"), path.with_name("host.py"), KERNELS / "_partials.py"]
    launching = {
        f"{host.stem}.{node.name}": names_in(node)
        for host in hosts if host.exists()
        for node in ast.parse(host.read_text()).body if isinstance(node, ast.FunctionDef)
    }  # fmt: skip
    for kernel in (node for node in module.body if getattr(node, "name", "").endswith("_kernel")):
        headers = f"{ast.get_docstring(kernel)} {ast.get_docstring(module)}"
        said = {f"{place}.{name}" for place, name in re.findall(r"(\w+)(?:\.|\.py: )(\w+)", headers)}
        assert any(kernel.name in launching.get(name, ()) for name in said), kernel.name
