// silu(gate) * up; see reference.py for the meaning.
#include "../_cpu.h"

extern "C" int64_t tw_silu_mul(const float* gate_up, float* out, int64_t tokens, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (tokens * width > 16384)
    for (int64_t t = 0; t < tokens; ++t) {
        const float* gate = gate_up + t * 2 * width;
        const float* up = gate + width;
        float* row = out + t * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) row[i] = gate[i] / (1.0f + tw::exp_clamped(-gate[i])) * up[i];
    }
    return 0;
}
