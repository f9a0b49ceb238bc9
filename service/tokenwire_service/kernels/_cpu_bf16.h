// Products of bfloat16 pairs, on processors that have them: each lane of a vector holds two numbers side by side, and one
// instruction adds both their products to a float32 sum. Where there are none, TW_BF16_PRODUCTS is 0 and bfloat16 is widened.
//
// Numbers below 2^-126 count as zero; sums are rounded to nearest even.
#pragma once

#include "_cpu.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define TW_BF16_PRODUCTS 1
#else
#define TW_BF16_PRODUCTS 0
#endif

#if TW_BF16_PRODUCTS
namespace tw {

typedef IntVec Pairs;
constexpr int64_t kPairLanes = 2 * kLanes;  // numbers in a vector of pairs

static inline Pairs load_pairs(const BFloat* p) { return reinterpret_cast<Pairs>(_mm512_loadu_si512(p)); }

// The first `count` numbers, zeros after them.
static inline Pairs load_pairs(const BFloat* p, int64_t count) {
    if (count >= kPairLanes) return load_pairs(p);
    return reinterpret_cast<Pairs>(_mm512_maskz_loadu_epi16((1u << count) - 1u, p));
}

// One pair in every lane.
static inline Pairs repeat_pair(const BFloat* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return Pairs{} + pair;
}

static inline Vec add_products(Vec sum, Pairs a, Pairs b) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                  reinterpret_cast<__m512bh>(b)));
}

// `first` and `second` rounded, in that order.
static inline Pairs round_pairs(Vec first, Vec second) {
    return reinterpret_cast<Pairs>(
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
}

// Each lane of `first` and of `second`, rounded and side by side.
static inline Pairs pair_lanes(Vec first, Vec second) {
    const Pairs order = __builtin_convertvector(lane_numbers(), Pairs) * 0x10001 + 0x100000;
    return reinterpret_cast<Pairs>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order),
                                                            reinterpret_cast<__m512i>(round_pairs(first, second))));
}

// The numbers of `first` and `second` side by side: those of the lower halves, and those of the upper.
static inline void interleave(Pairs first, Pairs second, Pairs& low, Pairs& high) {
    const Pairs order = __builtin_convertvector(lane_numbers(), Pairs) * 0x10001 + 0x200000;
    const auto a = reinterpret_cast<__m512i>(first), b = reinterpret_cast<__m512i>(second);
    low = reinterpret_cast<Pairs>(_mm512_permutex2var_epi16(a, reinterpret_cast<__m512i>(order), b));
    high = reinterpret_cast<Pairs>(_mm512_permutex2var_epi16(a, reinterpret_cast<__m512i>(order + 0x100010), b));
}

// e^x to within 2^-13 for x <= 0, what bfloat16 has use for; NaN stays NaN. The polynomial is 2^x on [-0.5, 0.5].
static inline Vec exp_narrow(Vec x) {
    x = larger(Vec{} - 126.0f, x * 1.44269504088896341f);
    const __m512 whole = _mm512_roundscale_ps(reinterpret_cast<__m512>(x), 0);
    const Vec r = x - reinterpret_cast<Vec>(whole);
    const Vec p = ((5.517149529e-2f * r + 2.426111088e-1f) * r + 6.932610175e-1f) * r + 9.999280752e-1f;
    return reinterpret_cast<Vec>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), whole));
}

// Rounds `count` numbers; what is left of their last pair becomes 0.
static inline void round_row(const float* from, int64_t count, BFloat* to) {
    int64_t i = 0;
    for (; i + kPairLanes <= count; i += kPairLanes) {
        const Pairs rounded = round_pairs(load(from + i), load(from + i + kLanes));
        std::memcpy(to + i, &rounded, sizeof rounded);
    }
    if (i == count) return;
    float rest[kPairLanes] = {};
    std::memcpy(rest, from + i, (count - i) * sizeof(float));
    const Pairs rounded = round_pairs(load(rest), load(rest + kLanes));
    std::memcpy(to + i, &rounded, round_up(count - i, 2) * sizeof(BFloat));
}

}  // namespace tw
#endif
