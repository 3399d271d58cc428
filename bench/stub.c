/* A CUDA driver that executes nothing: what Triton's launchers call, for `rehearsal.py`.

   It says that it is an H100, and takes every module and launch. */
#include <stddef.h>
#include <stdint.h>

typedef int Result;

enum { SHARED_OPTIN = 97, SHARED = 8, MULTIPROCESSORS = 16, REGISTERS = 12, REGISTERS_SM = 82,
       WARP = 10, MAJOR = 75, CLOCK = 13, MEMORY_CLOCK = 36, BUS = 37 };

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuCtxGetCurrent(void **context) { *context = (void *)0x10; return 0; }
Result cuCtxSetCurrent(void *context) { return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x10; return 0; }
Result cuDeviceGet(int *device, int index) { *device = 0; return 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case SHARED_OPTIN: *value = 227 * 1024; break;
    case SHARED: *value = 48 * 1024; break;
    case MULTIPROCESSORS: *value = 132; break;
    case REGISTERS: case REGISTERS_SM: *value = 65536; break;
    case WARP: *value = 32; break;
    case MAJOR: *value = 9; break;
    case CLOCK: *value = 1980000; break;
    case MEMORY_CLOCK: *value = 2619000; break;
    case BUS: *value = 5120; break;
    default: *value = 0;
    }
    return 0;
}
Result cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 128 : 0; /* threads a block, registers */
    return 0;
}
Result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void *function, int config) { return 0; }
Result cuGetErrorString(int error, const char **text) { *text = "the stub driver"; return 0; }
Result cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)0x20;
    return 0;
}
Result cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }
Result cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
    *(uint64_t *)value = pointer;
    return 0;
}
Result cuGetProcAddress(void) { return 1; }

Result cuModuleLoadData(void **module, const void *image) { *module = (void *)0x30; return 0; }
Result cuLaunchKernelEx(void *config, void *function, void **arguments, void **extra) { return 0; }
Result cuLaunchKernel(void) { return 0; }
