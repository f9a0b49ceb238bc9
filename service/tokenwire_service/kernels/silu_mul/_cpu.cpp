// silu(gate) * up; see reference.py for the meaning.
#include "../_cpu.h"

namespace {

struct Args {
    const float* gate_up;
    float* out;
    int64_t tokens, width;
};

constexpr int64_t kPiece = 512;  // columns of a piece of work, so that one token keeps several threads busy

}  // namespace

extern "C" void tw_silu_mul(const Args* args, tw::Run*) {
    const int64_t width = args->width, pieces = (width + kPiece - 1) / kPiece;
#pragma omp for schedule(static)
    for (int64_t work = 0; work < args->tokens * pieces; ++work) {
        const int64_t t = work / pieces, begin = work % pieces * kPiece;
        const int64_t end = begin + kPiece < width ? begin + kPiece : width;
        const float* gate = args->gate_up + t * 2 * width;
        const float* up = gate + width;
        float* row = args->out + t * width;
        int64_t i = begin;
        for (; i + tw::kLanes <= end; i += tw::kLanes) {
            const tw::Vec g = tw::load(gate + i);
            tw::store(row + i, g / (1.0f + tw::exp_clamped(-g)) * tw::load(up + i));
        }
        for (; i < end; ++i) row[i] = gate[i] / (1.0f + tw::exp_clamped(-gate[i])) * up[i];
    }
}
