// What every binding needs of torch, through the LibTorch Stable ABI only: the current stream, a
// device guard, and argument checks that say which op, which argument, what is expected, what came.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "output.h"

namespace questtrain {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i)
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_dtype(const Tensor& tensor, ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be ", name_of(type),
                  ", not ", name_of(tensor.scalar_type()));
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Float;
}

inline Output output_of(ScalarType type) {
  return type == ScalarType::BFloat16 ? Output::bfloat16
         : type == ScalarType::Half   ? Output::half
                                      : Output::float32;
}

inline void check_floating(ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(is_floating(type), op, ": ", name,
                  " must be bfloat16, float16 or float32, not ", name_of(type));
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
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, op, ": ", name,
                  " must start at a multiple of 16 bytes");
}

inline void check_matrix(const Tensor& tensor, const Tensor& like, int64_t rows, int64_t columns,
                         const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, op,
                  ": ", name, " must be [", rows, ", ", columns, "], not ", shape_of(tensor));
  check_layout(tensor, like, op, name);
}

inline void check_vector(const Tensor& tensor, const Tensor& like, int64_t length, const char* op,
                         const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == length, op, ": ", name, " must be [",
                  length, "], not ", shape_of(tensor));
  check_layout(tensor, like, op, name);
}

inline void check_two_dimensional(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2, op, ": ", name, " must have 2 dimensions, not shape ",
                  shape_of(tensor));
}

// Bits of one packed code: the smallest container of 1, 2 or 4 bits that holds `levels`.
inline int container_bits(int64_t levels, const char* op) {
  STD_TORCH_CHECK(levels >= 2 && levels <= 16, op, ": packed codes hold 2 to 16 levels, not ",
                  levels);
  return levels == 2 ? 1 : levels <= 4 ? 2 : 4;
}

}  // namespace questtrain
