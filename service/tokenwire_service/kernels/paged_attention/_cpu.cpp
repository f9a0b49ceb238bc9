// Causal attention over KV blocks; see reference.py for the meaning.
#include "_worker.h"

namespace {

using namespace tw;

// The plan of a step, made by its first layer; later ones differ in keys and values, and perhaps in their window.
struct Planned {
    Args args;
    Plan plan;
    bool serves(const Args& other) const {
        return args.starts == other.starts && args.lengths == other.lengths && args.batch == other.batch &&
               args.heads == other.heads && args.kv_heads == other.kv_heads && args.head_dim == other.head_dim &&
               args.window == other.window;
    }
};

void merge(const Args& args, const Merge& merge, const Plan& plan) {
    const int64_t group = args.group(), dim = args.head_dim, rows = merge.first.num_queries * group;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = args.starts[merge.first.row] + merge.first.first_query + r / group;
        float* out = args.out + (token * args.heads + merge.first.kv_head * group + r % group) * dim;
        float top = -std::numeric_limits<float>::infinity(), total = 0.0f;
        for (int64_t span = 0; span < merge.spans; ++span)
            top = std::max(top, plan.max[merge.first.partial + span * rows + r]);
        std::fill_n(out, dim, 0.0f);
        for (int64_t span = 0; span < merge.spans; ++span) {
            const int64_t at = merge.first.partial + span * rows + r;
            // A span outside the row's window has seen nothing.
            const float factor = plan.total[at] == 0.0f ? 0.0f : std::exp(plan.max[at] - top);
            total += plan.total[at] * factor;
            for (int64_t d = 0; d < dim; ++d) out[d] += plan.sum[at * dim + d] * factor;
        }
        for (int64_t d = 0; d < dim; ++d) out[d] /= total;
    }
}

template <class Products>
void attend(const Args& args, Run& run) {
    thread_local Buffers buffers;
    // Made by one thread and looked at by all only after it: nobody may decide by a plan that is being replaced.
#pragma omp single
    {
        const auto* planned = static_cast<const Planned*>(run.plan.get());
        if (planned == nullptr || !planned->serves(args))
            run.plan = std::make_shared<Planned>(Planned{args, make_plan(args)});
    }
    Plan& plan = static_cast<Planned*>(run.plan.get())->plan;
    Products products(args, plan.max_rows, buffers);
    const int64_t tasks = static_cast<int64_t>(plan.tasks.size()), merges = static_cast<int64_t>(plan.merges.size());
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks; ++i) {
        carry_out(products, args, plan, i);
        count_work();
    }
    if (merges == 0) return;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < merges; ++i) merge(args, plan.merges[i], plan);
}

}  // namespace

// The first batch row that does not fit the tensors, or -1.
extern "C" int64_t tw_check_batch(const int32_t* starts, const int32_t* lengths, const int32_t* tables, int64_t tokens,
                                  int64_t batch, int64_t blocks, int64_t block_size, int64_t max_blocks) {
    for (int64_t row = 0; row < batch; ++row) {
        const int64_t start = starts[row], end = starts[row + 1], length = lengths[row];
        const int64_t used = (length + block_size - 1) / block_size;
        if (start < 0 || end < start || end > tokens || length < end - start || used > max_blocks) return row;
        for (int64_t i = 0; i < used; ++i) {
            const int64_t block = tables[row * max_blocks + i];
            if (block < 0 || block >= blocks) return row;
        }
    }
    return -1;
}

extern "C" void tw_paged_attention_float32(const Args* args, Run* run) { attend<Widened<float>>(*args, *run); }
extern "C" void tw_paged_attention_float16(const Args* args, Run* run) { attend<Widened<Half>>(*args, *run); }
extern "C" void tw_paged_attention_bfloat16(const Args* args, Run* run) {
#if TW_BF16_PRODUCTS
    if (Paired::fits(*args)) return attend<Paired>(*args, *run);
#endif
    attend<Widened<BFloat>>(*args, *run);
}
