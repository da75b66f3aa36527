"""For every Python of a GPU session: `scripts/gpu_session.sh` puts this folder first on PYTHONPATH.

It maps `fastgpt` and `fastgpt.kernels` to this tree, as an editable install would: GPU time is too dear for pip. With
FASTGPT_FAKE_GPU it also gives torch a GPU that is not there (`scripts/gpu/fake_cuda.py`), so that a session can be
tried on any machine.
"""

import importlib.util
import os
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


class AfterTorch:
    """Runs fake_cuda.install() as soon as torch has been imported, and before anything uses it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(AfterTorch)
        spec = PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            spec_of_fake = importlib.util.spec_from_file_location(
                "fastgpt_fake_cuda", os.path.join(ROOT, "scripts", "gpu", "fake_cuda.py")
            )
            fake = importlib.util.module_from_spec(spec_of_fake)
            sys.modules["fastgpt_fake_cuda"] = fake
            spec_of_fake.loader.exec_module(fake)
            fake.install()

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, ThisTree)  # before an editable install of another tree
if os.environ.get("FASTGPT_FAKE_GPU"):
    sys.meta_path.insert(0, AfterTorch)
