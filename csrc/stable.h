// What every binding on CUDA needs of torch, through the LibTorch Stable ABI only: the current
// stream, a device guard, and the checks of checks.h with those of device and alignment.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>

#include "checks.h"
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
  STD_TORCH_CHECK(function != nullptr, "questtrain: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
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

inline Output output_of(ScalarType type) {
  return type == ScalarType::BFloat16 ? Output::bfloat16
         : type == ScalarType::Half   ? Output::half
                                      : Output::float32;
}

inline void check_device(const Tensor& tensor, const Tensor& like, const char* op,
                         const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), op,
                  ": ", name, " must be on CUDA device ", like.get_device_index());
}

// On one CUDA device with `like`, contiguous, and of the shape [rows, columns] or [rows].
inline void check_layout(const Tensor& tensor, const Tensor& like, const char* op,
                         const char* name) {
  check_device(tensor, like, op, name);
  check_contiguous(tensor, op, name);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, op, ": ", name,
                  " must start at a multiple of 16 bytes");
}

inline void check_matrix(const Tensor& tensor, const Tensor& like, int64_t rows, int64_t columns,
                         const char* op, const char* name) {
  check_rows_and_columns(tensor, rows, columns, op, name);
  check_layout(tensor, like, op, name);
}

inline void check_vector(const Tensor& tensor, const Tensor& like, int64_t length, const char* op,
                         const char* name) {
  check_length(tensor, length, op, name);
  check_layout(tensor, like, op, name);
}

}  // namespace questtrain
