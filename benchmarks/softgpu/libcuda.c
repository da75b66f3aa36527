// A CUDA driver for machines without a GPU: as much of libcuda.so.1 as Triton's own launchers and utilities call.
// Memory is the host's. Until `softgpu_attach`, every image loads and kernels do nothing (scripts/gpu/fake_cuda.py);
// then modules, functions and launches are handed to driver.py, which executes them. What a real driver would refuse,
// this one refuses with the same error, and says why.
#include "cuda.h"
#include "machine/tensor_map.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

// ---- what driver.py sets and asks ------------------------------------------------------------------------------------

typedef struct {
  long long function;
  unsigned grid[3], block[3], cluster[3], shared;
  int cooperative;
} Shape;

// The first two answer with a handle, or with a CUresult as a negative number.
typedef long long (*Load)(const char *image);
typedef long long (*Find)(long long module, const char *name);
typedef int (*Launch)(const Shape *shape, void **params);

static Load load;
static Find find;
static Launch launch;
static long launches, tensor_maps;

void softgpu_attach(Load load_, Find find_, Launch launch_) { load = load_, find = find_, launch = launch_; }
long softgpu_launches(void) { return launches; }
long softgpu_tensor_maps(void) { return tensor_maps; }

// Device 0 is an H100 SXM; others are whatever they are set to.
#define DEVICES 64
static struct { int capability, multiprocessors; } devices[DEVICES] = {{90, 132}};
static int current;  // where kernels are launched

int softgpu_device(int ordinal, int capability, int multiprocessors) {
  if (ordinal < 0 || ordinal >= DEVICES) return 0;
  devices[ordinal].capability = capability, devices[ordinal].multiprocessors = multiprocessors;
  return 1;
}
void softgpu_use(int ordinal) { current = ordinal; }

static _Thread_local char reason[512];  // of the last error; Triton copies it into 1024 bytes

static CUresult fail(CUresult code, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(reason, sizeof reason, format, values);
  va_end(values);
  return code;
}

void softgpu_reason(const char *text) { fail(CUDA_SUCCESS, "%s", text); }

// ---- devices and contexts --------------------------------------------------------------------------------------------

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) { return *text = reason, CUDA_SUCCESS; }
// Up to 13.1 Triton clears a bit of every tensor map, where that driver is wrong about it.
CUresult cuDriverGetVersion(int *version) { return *version = 13020, CUDA_SUCCESS; }

static int shared_per_block(int capability) {
  switch (capability) {
  case 80: case 87: return 163 << 10;
  case 86: case 89: case 120: case 121: return 99 << 10;
  case 75: return 64 << 10;
  default: return 227 << 10;
  }
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  const int capability = devices[device].capability;
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;              // kHz
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;       // kHz
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;    // bits
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = devices[device].multiprocessors; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    *value = shared_per_block(capability) + (capability == 75 ? 0 : 1024);
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = shared_per_block(capability); break;
  default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return cuCtxGetCurrent(context); }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return *value = 1 << 20, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  return memcpy(value, &pointer, sizeof pointer), CUDA_SUCCESS;
}

// ---- modules and functions -------------------------------------------------------------------------------------------

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  const long long handle = load ? load(image) : 1;
  if (handle < 0) return (CUresult)-handle;
  return *module = (CUmodule)handle, CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  const long long handle = find ? find((long long)module, name) : 1;
  if (handle < 0) return (CUresult)-handle;
  return *function = (CUfunction)handle, CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  return *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  return *clusters = 1, CUDA_SUCCESS;
}

// ---- launches --------------------------------------------------------------------------------------------------------

static CUresult refuse(const Shape *shape) {
  const unsigned *grid = shape->grid, *block = shape->block, *cluster = shape->cluster;
  const unsigned threads = block[0] * block[1] * block[2], ctas = cluster[0] * cluster[1] * cluster[2];
  const unsigned most = shared_per_block(devices[current].capability);
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
    return fail(CUDA_ERROR_INVALID_VALUE, "invalid argument: a grid of %u, %u, %u CTAs", grid[0], grid[1], grid[2]);
  if (!threads || threads > 1024)
    return fail(CUDA_ERROR_INVALID_VALUE, "invalid argument: %u threads in a CTA", threads);
  if (shape->shared > most)
    return fail(CUDA_ERROR_INVALID_VALUE, "invalid argument: %u bytes of shared memory, of %u", shape->shared, most);
  if (!ctas || ctas > 16 || grid[0] % cluster[0] || grid[1] % cluster[1] || grid[2] % cluster[2])
    return fail(CUDA_ERROR_INVALID_CLUSTER_SIZE, "invalid cluster: %u, %u, %u CTAs in a grid of %u, %u, %u",
                cluster[0], cluster[1], cluster[2], grid[0], grid[1], grid[2]);
  if (ctas > 1 && devices[current].capability < 90)
    return fail(CUDA_ERROR_INVALID_CLUSTER_SIZE, "invalid cluster: only sm_90 and later have clusters");
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
  Shape shape = {
      .function = (long long)function,
      .grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
      .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
      .cluster = {1, 1, 1},
      .shared = config->sharedMemBytes,
  };
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const CUlaunchAttribute *attribute = &config->attrs[i];
    if (attribute->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      shape.cluster[0] = attribute->value.clusterDim.x;
      shape.cluster[1] = attribute->value.clusterDim.y;
      shape.cluster[2] = attribute->value.clusterDim.z;
    } else if (attribute->id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) {
      shape.cooperative = attribute->value.cooperative;
    }
  }
  launches++;
  const CUresult refused = refuse(&shape);
  return refused || !launch ? refused : (CUresult)launch(&shape, params);
}

// ---- tensor maps -----------------------------------------------------------------------------------------------------

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  tensor_maps++;
  if (devices[current].capability < 90) return fail(CUDA_ERROR_NOT_SUPPORTED, "operation not supported below sm_90");
  if (tensor_map_encode(map, type, rank, address, sizes, strides, box, element_strides, interleave, swizzle, promotion,
                        fill))
    return fail(CUDA_ERROR_INVALID_VALUE, "invalid argument");
  return CUDA_SUCCESS;
}
