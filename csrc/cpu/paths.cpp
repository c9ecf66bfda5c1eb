// Which path runs, chosen at the first product by what the CPU has.
// Python asks and caps it through ctypes.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace questtrain::cpu {
namespace {

const Kernels* const kPaths[] = {
    &kPortable,
#if defined(__x86_64__)
    &kAvx2,
    &kAvx512Vnni,
#endif
};
constexpr int kCount = sizeof(kPaths) / sizeof(kPaths[0]);

// Paths are in the order of what they need: who has one has those before.
int best_path() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  return vnni ? 2 : 1;
#else
  return 0;
#endif
}

std::atomic<int> chosen{best_path()};

}  // namespace

const Kernels& kernels() { return *kPaths[chosen.load(std::memory_order_relaxed)]; }

}  // namespace questtrain::cpu

extern "C" {

// The path that serves.
__attribute__((visibility("default"))) const char* questtrain_cpu_path() {
  return questtrain::cpu::kernels().name;
}

// No better path than the one of this name serves from now on; null takes the cap away. Returns 0
// for a name that is none here.
__attribute__((visibility("default"))) int questtrain_cpu_cap(const char* name) {
  using namespace questtrain::cpu;
  const int best = best_path();
  if (name == nullptr) {
    chosen = best;
    return 1;
  }
  for (int i = 0; i < kCount; ++i) {
    if (std::strcmp(kPaths[i]->name, name) != 0) continue;
    chosen = i < best ? i : best;
    return 1;
  }
  return 0;
}

}  // extern "C"
