// Raised with every change of an op that the library serves, so that an older library is not loaded:
// build_cpu.py writes it beside the library, questtrain.kernels.cpu_library compares.
#pragma once

namespace questtrain::cpu {

constexpr int kInterface = 1;

}  // namespace questtrain::cpu
