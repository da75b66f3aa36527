// A CUDA driver that accepts everything and does nothing: enough of libcuda.so.1 for Triton's own launchers and
// utilities to be linked, loaded and called on a machine without a GPU. Memory is the host's; kernels do not run.
#include <string.h>

typedef int CUresult;
typedef unsigned long long u64;

static long launches, tensor_maps;

long fake_launches(void) { return launches; }
long fake_tensor_maps(void) { return tensor_maps; }

CUresult cuInit(unsigned flags) { return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return 0; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "fake driver"; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }

// An H100 SXM, as far as Triton asks; the numbers are CUdevice_attribute's.
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 10: *value = 32; break;       // warp size
  case 12: *value = 65536; break;    // registers per block
  case 13: *value = 1980000; break;  // clock, kHz
  case 16: *value = 132; break;      // multiprocessors
  case 36: *value = 2619000; break;  // memory clock, kHz
  case 37: *value = 5120; break;     // memory bus, bits
  case 75: *value = 9; break;        // compute capability, major
  case 76: *value = 0; break;        // and minor
  case 81: *value = 233472; break;   // shared memory per multiprocessor
  case 97: *value = 232448; break;   // shared memory per block, opt-in
  default: *value = 0;
  }
  return 0;
}

CUresult cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
CUresult cuCtxSetCurrent(void *context) { return 0; }
CUresult cuCtxGetLimit(size_t *value, int limit) { *value = 1 << 20; return 0; }
CUresult cuCtxSetLimit(int limit, size_t value) { return 0; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }

CUresult cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
CUresult cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
// 1024 is right for the one attribute that Triton checks, the most threads per block.
CUresult cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
CUresult cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
CUresult cuFuncSetCacheConfig(void *function, int config) { return 0; }

CUresult cuPointerGetAttribute(void *value, int attribute, u64 pointer) { memcpy(value, &pointer, 8); return 0; }
CUresult cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *stream, void **params, void **extra) { launches++; return 0; }
CUresult cuLaunchKernelEx(const void *config, void *function, void **params, void **extra) { launches++; return 0; }
CUresult cuOccupancyMaxActiveClusters(int *clusters, void *function, const void *config) { *clusters = 1; return 0; }
CUresult cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const u64 *shape,
                                const u64 *strides, const unsigned *box, const unsigned *element_strides,
                                int interleave, int swizzle, int promotion, int fill) { tensor_maps++; return 0; }
