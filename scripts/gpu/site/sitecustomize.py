"""For every Python of a GPU session: `scripts/gpu_session.sh` puts this folder first on PYTHONPATH.

It maps `fastgpt` and `fastgpt.kernels` to this tree, as an editable install would: GPU time is too dear for pip. It
makes Triton's keys of compiled kernels and launchers the same in every process, here and on the GPU machine. With
FASTGPT_FAKE_GPU it also gives torch a GPU that is not there (`scripts/gpu/fake_cuda.py`), so that a session can be
tried on any machine.
"""

import importlib.util
import os
import platform
import sys
from importlib.machinery import PathFinder

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PACKAGES = {"fastgpt": os.path.join(ROOT, "fastgpt"), "fastgpt.kernels": os.path.join(ROOT, "kernels")}


class ThisTree:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in PACKAGES:
            return None
        folder = PACKAGES[name]
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


class AfterImport:
    """Does something as soon as a module has been imported, and before anything uses it."""

    def __init__(self, name, action):
        self.name, self.action = name, action

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self.action(module)

        spec.loader.exec_module = exec_module
        return spec


def hash_callees_first(jit):
    """Triton's key of a kernel holds the constants of the device functions that it calls, if those were hashed before.

    So it depends on what a process launched earlier, and a kernel compiled elsewhere may not be found.
    """
    original = jit.DependenciesFinder._update_hash

    def update_hash(self, function):
        _ = function.cache_key
        return original(self, function)

    jit.DependenciesFinder._update_hash = update_hash


def name_the_platform(build):
    """Triton's key of a launcher holds platform.architecture(), which runs the command `file`, if it is installed.

    So a launcher built where it is would not be found where it is not. What tells machines apart is in the rest, and in
    the suffix of an extension module, which is part of the launcher's name.
    """
    build.platform_key = lambda: ",".join([platform.machine(), platform.system(), "64bit", "ELF"])


def install_fake_gpu(torch):
    name = "fastgpt_fake_cuda"
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "scripts", "gpu", "fake_cuda.py"))
    fake = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    fake.install()


sys.meta_path.insert(0, ThisTree)  # before an editable install of another tree
sys.meta_path.insert(0, AfterImport("triton.runtime.jit", hash_callees_first))
sys.meta_path.insert(0, AfterImport("triton.runtime.build", name_the_platform))
if os.environ.get("FASTGPT_FAKE_GPU"):
    sys.meta_path.insert(0, AfterImport("torch", install_fake_gpu))
