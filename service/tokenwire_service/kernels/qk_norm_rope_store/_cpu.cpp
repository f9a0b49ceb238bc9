// Split of merged QKV, per-head norms, rotation and store into the KV blocks; see reference.py for the meaning.
#include <cmath>

#include "../_cpu.h"

namespace {

struct Rotation {
    const float* cos_sin;  // cosines then sines of one token; null rotates nothing
    int64_t rotary_dim;
    bool interleaved;
};

void copy_or_norm(const float* x, const float* weight, int64_t head_dim, float eps, float* out) {
    if (weight == nullptr) {
        std::memcpy(out, x, head_dim * sizeof(float));
        return;
    }
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < head_dim; ++i) sum += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(sum / static_cast<float>(head_dim) + eps);
#pragma omp simd
    for (int64_t i = 0; i < head_dim; ++i) out[i] = x[i] * factor * weight[i];
}

void rotate(float* x, const Rotation& rotation) {
    if (rotation.cos_sin == nullptr) return;
    const int64_t half = rotation.rotary_dim / 2;
    const float* cos = rotation.cos_sin;
    const float* sin = cos + half;
    const int64_t step = rotation.interleaved ? 2 : 1;
    const int64_t other = rotation.interleaved ? 1 : half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cos[i] - b * sin[i];
        x[i * step + other] = b * cos[i] + a * sin[i];
    }
}

}  // namespace

// Returns -1, or the first token whose slot is outside the blocks (nothing is written then).
extern "C" int64_t tw_qk_norm_rope_store(const float* qkv, const float* cos_sin, const int64_t* slots, float* key,
                                         float* value, float* q_out, const float* q_norm, const float* k_norm,
                                         int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim,
                                         int64_t blocks, int64_t block_size, int64_t rotary_dim, int64_t interleaved,
                                         float eps, int64_t threads) {
    for (int64_t t = 0; t < tokens; ++t)
        if (slots[t] < 0 || slots[t] >= blocks * block_size) return t;
    const int64_t width = (heads + 2 * kv_heads) * head_dim;
#pragma omp parallel for num_threads(threads) if (tokens * width > 32768)
    for (int64_t t = 0; t < tokens; ++t) {
        const float* x = qkv + t * width;
        const Rotation rotation = {cos_sin == nullptr ? nullptr : cos_sin + t * rotary_dim, rotary_dim,
                                   interleaved != 0};
        for (int64_t h = 0; h < heads; ++h, x += head_dim) {
            float* q = q_out + (t * heads + h) * head_dim;
            copy_or_norm(x, q_norm, head_dim, eps, q);
            rotate(q, rotation);
        }
        const int64_t block = slots[t] / block_size, offset = slots[t] % block_size;
        for (int64_t h = 0; h < kv_heads; ++h, x += head_dim) {
            const int64_t at = ((block * kv_heads + h) * block_size + offset) * head_dim;
            copy_or_norm(x, k_norm, head_dim, eps, key + at);
            rotate(key + at, rotation);
            std::memcpy(value + at, x + kv_heads * head_dim, head_dim * sizeof(float));
        }
    }
    return -1;
}
