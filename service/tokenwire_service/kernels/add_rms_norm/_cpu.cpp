// Residual add and RMSNorm; see reference.py for the meaning.
#include <cmath>

#include "../_cpu.h"

extern "C" int64_t tw_add_rms_norm(float* residual, const float* delta, const float* weight, float* out, int64_t tokens,
                                   int64_t width, float eps, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (tokens * width > 32768)
    for (int64_t t = 0; t < tokens; ++t) {
        float* x = residual + t * width;
        float* row = out + t * width;
        if (delta != nullptr) {
            const float* d = delta + t * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) x[i] += d[i];
        }
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
        const float factor = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) row[i] = x[i] * factor * weight[i];
    }
    return 0;
}
