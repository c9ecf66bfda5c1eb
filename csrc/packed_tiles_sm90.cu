// Launching the tiles of packed_tiles_sm90.cuh.
//
// An object for each BITS: 1 2 4
#include <algorithm>

#include "packed_tiles_sm90.cuh"

namespace questtrain {
namespace {

// The driver's, found at run time: nothing is linked with it.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &result);
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

// Boxes of a matrix of bytes, rows one after the other.
bool encode(CUtensorMap& map, const void* matrix, int bytes, int rows, int box_bytes, int box_rows,
            CUtensorMapSwizzle swizzle) {
  const cuuint64_t sizes[] = {cuuint64_t(bytes), cuuint64_t(rows)}, pitch[] = {cuuint64_t(bytes)};
  const cuuint32_t box[] = {cuuint32_t(box_bytes), cuuint32_t(box_rows)}, steps[] = {1, 1};
  return encode_tiled() != nullptr &&
         encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(matrix), sizes,
                        pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class T>
cudaError_t launch(int split, const PackedLinearArguments& a, cudaStream_t stream) {
  if constexpr (!T::kIsValid) {
    return cudaErrorInvalidConfiguration;
  } else {
    if (a.width % tile_block(T::bits)) return cudaErrorInvalidConfiguration;
    split = std::clamp(split, 1, std::max(1, a.width / (128 * T::quads)));
    CUtensorMap x, weight;
    if (!encode(x, a.x, a.width, a.rows, 128, T::rows, CU_TENSOR_MAP_SWIZZLE_128B) ||
        !encode(weight, a.weight, a.width * T::bits / 8, a.columns, T::kRowBytes, T::kColumns,
                CU_TENSOR_MAP_SWIZZLE_NONE))
      return cudaErrorInvalidValue;
    const auto kernel = packed_tile_kernel<T>;
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
    if (error != cudaSuccess) return error;
    const dim3 grid((a.columns + T::kColumns - 1) / T::kColumns, split,
                    (a.rows + T::rows - 1) / T::rows);
    return launch_clusters(kernel, dim3(1, split, 1), grid, dim3(T::kThreads), T::kSharedBytes,
                           stream, x, weight, a);
  }
}

}  // namespace

template <int bits>
cudaError_t launch_packed_tile(int tile, const PackedLinearArguments& a, cudaStream_t stream) {
  using Launch = cudaError_t (*)(int, const PackedLinearArguments&, cudaStream_t);
  constexpr Launch kLaunches[] = {
#define PACKED_TILE(...) launch<Tile<bits, __VA_ARGS__>>,
#include "packed_tiles.inc"
#undef PACKED_TILE
  };
  return kLaunches[tile % kPackedConfigurations](tile / kPackedConfigurations + 1, a, stream);
}

template cudaError_t launch_packed_tile<BITS>(int, const PackedLinearArguments&, cudaStream_t);

}  // namespace questtrain
