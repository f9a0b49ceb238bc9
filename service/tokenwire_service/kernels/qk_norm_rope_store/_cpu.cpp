// Split of merged QKV, per-head norms, rotation and store into the KV blocks; see reference.py for the meaning.
#include <cmath>

#include "../_cpu.h"

namespace {

struct Args {
    const float *qkv, *cos_sin;  // cos_sin null rotates nothing
    const int64_t* slots;
    void *key, *value;
    float* q;
    const float *q_norm, *k_norm;  // null: no norm
    int64_t tokens, heads, kv_heads, head_dim, block_size, rotary_dim, interleaved;
    double eps;
};

struct Rotation {
    const float* cos_sin;  // cosines then sines of one token
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

// The largest finite number of each type: beyond it a key would become infinite, and its row's attention no number at all.
template <class KV>
constexpr float kLargest = 3.3895314e38f;
template <>
constexpr float kLargest<tw::Half> = 65504.0f;

template <class KV>
void keep(const float* from, int64_t head_dim, void* to, int64_t at) {
    KV* kept = static_cast<KV*>(to) + at;
    constexpr float limit = kLargest<KV>;
    for (int64_t i = 0; i < head_dim; ++i) {
        float x = from[i];
        x = x > limit ? limit : x;  // NaN stays
        x = x < -limit ? -limit : x;
        tw::from_float(x, kept + i);
    }
}

// A token's query head (work < heads) or its key and value of one KV head.
template <class KV>
void head(const Args& args, int64_t t, int64_t work, std::vector<float>& scratch) {
    const int64_t dim = args.head_dim;
    const float eps = static_cast<float>(args.eps);
    const float* x = args.qkv + (t * (args.heads + 2 * args.kv_heads) + work) * dim;
    const Rotation rotation = {args.cos_sin == nullptr ? nullptr : args.cos_sin + t * args.rotary_dim, args.rotary_dim,
                               args.interleaved != 0};
    if (work < args.heads) {
        float* q = args.q + (t * args.heads + work) * dim;
        copy_or_norm(x, args.q_norm, dim, eps, q);
        rotate(q, rotation);
        return;
    }
    if (args.slots[t] < 0) return;  // padding: nothing is stored
    const int64_t block = args.slots[t] / args.block_size, offset = args.slots[t] % args.block_size;
    const int64_t at = ((block * args.kv_heads + work - args.heads) * args.block_size + offset) * dim;
    copy_or_norm(x, args.k_norm, dim, eps, scratch.data());
    rotate(scratch.data(), rotation);
    keep<KV>(scratch.data(), dim, args.key, at);
    keep<KV>(x + args.kv_heads * dim, dim, args.value, at);
}

template <class KV>
void all_heads(const Args& args) {
    thread_local std::vector<float> scratch;
    scratch.resize(args.head_dim);
    const int64_t heads = args.heads + args.kv_heads;
#pragma omp for schedule(static)
    for (int64_t work = 0; work < args.tokens * heads; ++work) head<KV>(args, work / heads, work % heads, scratch);
}

}  // namespace

// The first token whose slot is neither in the blocks nor -1, padding; or -1.
extern "C" int64_t tw_check_slots(const int64_t* slots, int64_t tokens, int64_t num_slots) {
    for (int64_t t = 0; t < tokens; ++t)
        if (slots[t] < -1 || slots[t] >= num_slots) return t;
    return -1;
}

extern "C" void tw_qk_norm_rope_store_float32(const Args* args, tw::Run*) { all_heads<float>(*args); }
extern "C" void tw_qk_norm_rope_store_float16(const Args* args, tw::Run*) { all_heads<tw::Half>(*args); }
extern "C" void tw_qk_norm_rope_store_bfloat16(const Args* args, tw::Run*) { all_heads<tw::BFloat>(*args); }
