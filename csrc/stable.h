// What every binding on CUDA needs of torch, through the LibTorch Stable ABI only: the current
// stream, a device guard, an op's dtype as the kernels know it.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>

#include "operands.h"
#include "output.h"

namespace questtrain {

// The stream that torch works on now. The symbol lives in torch's CUDA half, which is looked up at
// run time, so that the library also loads where torch has none.
inline cudaStream_t current_stream(const Tensor& tensor) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function function = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(symbol);
  }();
  if (function == nullptr) throw std::runtime_error("questtrain: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* op) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

// Makes the tensor's device the current one for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Tensor& tensor) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    const int device = tensor.get_device_index();
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Whether the current device is one that code for 90a runs on.
inline bool is_hopper() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major == 9 && minor == 0;
}

// kernel(arguments…, stream) on the device and the stream of the op's tensors.
template <class Kernel, class... Arguments>
void launch_op(const Check& check, Kernel kernel, const Arguments&... arguments) {
  const DeviceGuard guard(check.like);
  check_cuda(kernel(arguments..., current_stream(check.like)), check.op);
}

// The instance of a kernel that is for elements of `type`.
template <class Kernel>
Kernel by_element(ScalarType type, Kernel of_bfloat16, Kernel of_half, Kernel of_float) {
  return type == ScalarType::BFloat16 ? of_bfloat16
         : type == ScalarType::Half   ? of_half
                                      : of_float;
}

inline Output output_of(ScalarType type) {
  return by_element(type, Output::bfloat16, Output::half, Output::float32);
}

}  // namespace questtrain
