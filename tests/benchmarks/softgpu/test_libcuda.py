"""The driver library, called as Triton calls it: what a real one refuses, it refuses."""

import ctypes

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.softgpu import libcuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")

UINT8, FLOAT16, FLOAT32 = 0, 6, 7  # CUtensorMapDataType
NONE, B32, B64, B128 = 0, 1, 2, 3  # CUtensorMapSwizzle
INVALID_VALUE, INVALID_CLUSTER_SIZE, NOT_SUPPORTED = 1, 912, 801  # CUresult


@pytest.fixture
def driver():
    driver = libcuda.load()
    driver.softgpu_use(0)
    return driver


def encode(driver: ctypes.CDLL, align: int = 64, **changed: object) -> int:
    """cuTensorMapEncodeTiled of a matrix of 100 x 64 float16 in boxes of 16 x 64, with some arguments changed."""
    given = {
        "type": FLOAT16, "rank": 2, "address": 1 << 20, "sizes": (64, 100), "strides": (128,), "box": (64, 16),
        "element_strides": (1, 1), "interleave": 0, "swizzle": B128, "promotion": 2, "fill": 0,
    } | changed  # fmt: skip
    room = ctypes.create_string_buffer(512)
    at = (ctypes.addressof(room) + 127) // 128 * 128 + align % 128
    arrays = {
        name: (kind * 5)(*given[name])
        for name, kind in (
            ("sizes", ctypes.c_uint64), ("strides", ctypes.c_uint64), ("box", ctypes.c_uint32),
            ("element_strides", ctypes.c_uint32),
        )
    }  # fmt: skip
    return driver.cuTensorMapEncodeTiled(
        ctypes.c_void_p(at), given["type"], given["rank"], ctypes.c_void_p(given["address"]), arrays["sizes"],
        arrays["strides"], arrays["box"], arrays["element_strides"], given["interleave"], given["swizzle"],
        given["promotion"], given["fill"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {}, {"address": (1 << 20) + 16}, {"type": UINT8, "box": (128, 16)}, {"swizzle": NONE, "box": (256, 256)},
        {"rank": 5, "sizes": (64, 1 << 32, 1, 1, 7), "strides": (128, 16, (1 << 40) - 16, 128),
         "box": (64, 2, 1, 1, 1), "element_strides": (1,) * 5},
        {"strides": (0,)}, {"swizzle": B32, "box": (16, 16)}, {"fill": 1}, {"element_strides": (1, 8)},
        {"rank": 3, "sizes": (64, 9, 9), "strides": (128, 1152), "box": (16, 2, 1), "element_strides": (1, 1, 1),
         "interleave": 2, "swizzle": B32},
    ],
)  # fmt: skip
def test_tensor_maps_that_are_taken(driver, changed):
    assert encode(driver, **changed) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"rank": 0}, {"rank": 6}, {"type": 99}, {"swizzle": 99}, {"interleave": 3}, {"promotion": 4}, {"fill": 2},
        {"address": 0}, {"address": (1 << 20) + 8}, {"align": 16},
        {"sizes": (0, 100)}, {"sizes": (64, (1 << 32) + 1)}, {"strides": (120,)}, {"strides": (1 << 40,)},
        {"box": (0, 16)}, {"box": (64, 0)}, {"box": (64, 257)}, {"box": (4, 16), "swizzle": NONE},
        {"box": (72, 16)}, {"swizzle": B64}, {"swizzle": B32}, {"element_strides": (1, 0)},
        {"element_strides": (1, 9)}, {"type": UINT8, "fill": 1}, {"interleave": 1},
        {"rank": 3, "sizes": (64, 9, 9), "strides": (128, 1152), "box": (16, 2, 1), "element_strides": (1, 1, 1),
         "interleave": 2, "swizzle": B64},
        {"rank": 3, "sizes": (64, 9, 9), "strides": (144, 1152), "box": (16, 2, 1), "element_strides": (1, 1, 1),
         "interleave": 2, "swizzle": B32},
    ],
)  # fmt: skip
def test_tensor_maps_that_are_refused(driver, changed):
    assert encode(driver, **changed) == INVALID_VALUE
    assert said(driver, INVALID_VALUE) == "invalid argument"


def test_an_older_gpu_has_no_tensor_maps(driver):
    driver.softgpu_use(libcuda.device(80, 108))
    assert encode(driver) == NOT_SUPPORTED


def said(driver: ctypes.CDLL, error: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(error, ctypes.byref(text))
    return text.value.decode()


class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class Config(ctypes.Structure):
    """CUlaunchConfig"""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint),
    ]  # fmt: skip


def launch(driver: ctypes.CDLL, grid=(4, 1, 1), block=(128, 1, 1), shared=0, cluster=None) -> int:
    attributes = (Attribute * 1)()
    if cluster is not None:
        attributes[0].id = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attributes[0].value[:3] = cluster
    config = Config(
        (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared, None, attributes, cluster is not None
    )
    return driver.cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(1), None, None)


@pytest.mark.parametrize(
    ("capability", "arguments", "answer"),
    [
        (90, {}, 0), (90, {"shared": 232448}, 0), (90, {"shared": 232449}, INVALID_VALUE),
        (80, {"shared": 166912}, 0), (80, {"shared": 166913}, INVALID_VALUE), (86, {"shared": 101377}, INVALID_VALUE),
        (90, {"grid": (0, 1, 1)}, INVALID_VALUE), (90, {"grid": (1, 65536, 1)}, INVALID_VALUE),
        (90, {"grid": ((1 << 31) - 1, 65535, 65535)}, 0), (90, {"grid": (1 << 31, 1, 1)}, INVALID_VALUE),
        (90, {"block": (1025, 1, 1)}, INVALID_VALUE), (90, {"block": (1024, 1, 1)}, 0),
        (90, {"cluster": (2, 1, 1)}, 0), (90, {"cluster": (3, 1, 1)}, INVALID_CLUSTER_SIZE),
        (80, {"cluster": (2, 1, 1)}, INVALID_CLUSTER_SIZE), (80, {"cluster": (1, 1, 1)}, 0),
    ],
)  # fmt: skip
def test_launches_that_no_gpu_takes_are_refused(driver, capability, arguments, answer):
    driver.softgpu_use(libcuda.device(capability, 108))
    before = driver.softgpu_launches()
    assert launch(driver, **arguments) == answer
    assert driver.softgpu_launches() == before + 1


def test_devices(driver):
    assert libcuda.device(90, 132) == 0
    assert libcuda.device(80, 7) == libcuda.device(80, 7) != libcuda.device(80, 8)
    value = ctypes.c_int()
    for attribute, expected in ((75, 8), (76, 0), (16, 7), (97, 166912), (81, 167936), (10, 32)):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, libcuda.device(80, 7))
        assert value.value == expected
