// Residual add and RMSNorm; see reference.py for the meaning.
#include <cmath>

#include "../_cpu.h"

namespace {

struct Args {
    float* residual;
    const float *delta, *weight;  // delta may be null
    float* out;
    int64_t tokens, width;
    double eps;
};

}  // namespace

extern "C" void tw_add_rms_norm(const Args* args, tw::Run*) {
    const int64_t width = args->width;
    const float eps = static_cast<float>(args->eps);
    const float* weight = args->weight;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < args->tokens; ++t) {
        float* x = args->residual + t * width;
        float* row = args->out + t * width;
        if (args->delta != nullptr) {
            const float* d = args->delta + t * width;
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
}
